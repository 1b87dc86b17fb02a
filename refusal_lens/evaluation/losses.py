"""Cross-entropy of the model's own replies under an edit: the on-distribution loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from ..door import checked
from ..interventions import Edit, applied
from ..metrics import cross_entropy
from ..model import ChatModel

LOGIT_BUDGET = 2**27
"""How many logits one batch may hold (0.5 GiB in float32)."""


@dataclass(frozen=True)
class Loss:
    """Mean cross-entropy per token in nats, its perplexity, and over how many tokens."""

    ce: float
    n_tokens: int

    @property
    def perplexity(self) -> float:
        """``exp(ce)``, infinite where no float holds it."""
        try:
            return math.exp(self.ce)
        except OverflowError:
            return math.inf


@checked
def reply_loss(
    model: ChatModel,
    instructions: Sequence[str],
    replies: Sequence[str],
    *,
    edit: Edit | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Loss:
    """Mean CE over the reply tokens, without the end of turn (paper, Table 9, "on-distribution").

    Empty replies score no tokens; when every reply is empty the loss is NaN over 0 tokens.
    """
    pairs = [(i, r) for i, r in zip(instructions, replies, strict=True) if r]
    if not pairs:
        return Loss(math.nan, 0)
    rendered = model.chat.render([i for i, _ in pairs], replies=[r for _, r in pairs])
    width = int(rendered.lengths.max())
    rows = max(1, LOGIT_BUDGET // (width * model.d_vocab))
    total, n, done = 0.0, 0, 0
    with nullcontext() if edit is None else applied(model, edit):
        for _, batch in rendered.batches(rows):
            logits = model.logits(batch, all_positions=True)
            ids, scored = batch.ids.to(logits.device), batch.reply_mask.to(logits.device)
            loss, tokens = cross_entropy(logits, ids, scored)
            total, n, done = total + loss, n + tokens, done + len(batch)
            if on_progress is not None:
                on_progress(done, len(rendered))
    return Loss(total / n if n else math.nan, n)
