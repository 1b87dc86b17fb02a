"""Cross-entropy of the model's own replies under an edit: the on-distribution loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ..conversations import Prompt, unanswered
from ..door import checked
from ..errors import InputError
from ..interventions import Edit, applied
from ..metrics import cross_entropy
from ..model import ChatModel
from ..progress import Progress

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
    prompts: Sequence[Prompt],
    replies: Sequence[Sequence[int]],
    *,
    edit: Edit | None = None,
    on_progress: Progress | None = None,
) -> Loss:
    """Mean CE over the ids that were generated, without the end of turn (paper, Table 9, "on-distribution").

    replies: the ids of each reply, as `ChatModel.replies` gives them, scored behind the very prompt that
    they were generated from (and its prefill, which is not scored). Text would have to be tokenised
    again, into other tokens wherever it holds special tokens or characters cut in two.
    Empty replies score no tokens; when every reply is empty the loss is NaN over 0 tokens.
    Raises InputError for a number of replies that is not that of the prompts.
    """
    if len(replies) != len(prompts):
        raise InputError(
            f"replies: got {len(replies)}, need one for each of {len(prompts)} prompts"
        )
    pairs = [
        (prompt, reply)
        for prompt, reply in zip(unanswered(prompts), replies, strict=True)
        if len(reply)
    ]
    if not pairs:
        return Loss(math.nan, 0)
    asked = model.chat.render([prompt for prompt, _ in pairs])
    rendered = asked.followed_by([reply for _, reply in pairs], pad_id=model.chat.pad_id)
    new = torch.tensor([len(reply) for _, reply in pairs])
    width = int(rendered.lengths.max())
    rows = max(1, LOGIT_BUDGET // (width * model.d_vocab))
    total, n, done = 0.0, 0, 0
    with nullcontext() if edit is None else applied(model, edit):
        for index, batch in rendered.batches(rows):
            logits = model.logits(batch, all_positions=True)
            columns = torch.arange(batch.ids.shape[1])
            scored = columns >= batch.ids.shape[1] - new[index][:, None]
            loss, tokens = cross_entropy(
                logits, batch.ids.to(logits.device), scored.to(logits.device)
            )
            total, n, done = total + loss, n + tokens, done + len(batch)
            if on_progress is not None:
                on_progress("losses", done, len(rendered))
    return Loss(total / n if n else math.nan, n)
