"""Hooks against files: the same prompts scored under hooks and by what was exported, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..activations import map_last_logits
from ..display import shown
from ..errors import UnmetError
from ..interventions import unit
from ..metrics import first_token_log_odds, kl_divergence
from ..model import ChatModel, Site
from ..weights.edits import WeightEdit

Refuses = Callable[[str], bool]
"""Whether a reply is a refusal."""

KL_ALLOWED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Mean KL in nats that rounding the edited weights to the checkpoint's dtype explains."""
KL_OF_A_FOLD = 0.1
"""Mean KL in nats that a folded post-norm may leave: the paper's bound on a direction's side effects."""
RATE_ALLOWED = 0.1
"""Difference of refusal rates that such differences of logits explain, beyond one reply."""
STREAM_ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest ``|x . r^| / ||x||`` that rounding leaves at any layer."""
LONGEST_REPLY = 64
"""Tokens of a reply that is compared, where nobody says another number."""


@shown()
@dataclass(frozen=True, eq=False)
class Scores:
    """What a model says to prompts of each kind: logits [prompt d_vocab], replies, refusals."""

    logits: Mapping[str, Tensor]
    replies: Mapping[str, Sequence[str]]
    refused: Mapping[str, Sequence[bool]]
    stream: float


def score(
    model: ChatModel,
    prompts: Mapping[str, Sequence[str]],
    edit: WeightEdit,
    *,
    refuses: Refuses,
    under: AbstractContextManager[Any] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> Scores:
    """Last-token logits, greedy replies and the stream along r^, under a context of hooks or none.

    Replies are 64 tokens long at most, or as many as fit, unless max_new_tokens says how many.
    """
    logits, replies = {}, {}
    with under or nullcontext():
        for kind, texts in prompts.items():
            rendered = model.chat.render(list(texts))
            logits[kind] = map_last_logits(model, rendered, batch_size=batch_size).float()
            length = max_new_tokens or model.reply_room(rendered, LONGEST_REPLY)
            replies[kind] = model.generate(rendered, max_new_tokens=length, batch_size=batch_size)
        first = next(iter(prompts.values()))
        stream = stream_along(model, list(first)[:8], edit)
    refused = {kind: [refuses(reply) for reply in each] for kind, each in replies.items()}
    return Scores(logits, replies, refused, stream)


def stream_along(model: ChatModel, prompts: Sequence[str], edit: WeightEdit) -> float:
    """Largest ``|x . r^| / ||x||`` at the last token, at the entry of any block and behind the last."""
    r_hat = unit(edit.vector)
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    held = model.read(
        model.chat.render(list(prompts)), [*sites, Site("resid_post", sites[-1].layer)]
    )
    xs = [x[:, -1].double().cpu() for x in held.values()]
    return max(float(((x @ r_hat).abs() / x.norm(dim=-1).clamp_min(1e-30)).max()) for x in xs)


@dataclass(frozen=True)
class Row:
    """One line of the table; allowed is None where nothing is asked of the difference.

    The difference of means of the refusal metric is the largest of any prompt's.
    """

    quantity: str
    kind: str
    hooks: float
    files: float
    difference: float
    allowed: float | None

    @property
    def equal(self) -> bool:
        """Whether the difference is within what is allowed."""
        return self.allowed is None or self.difference <= self.allowed


@shown("equal", "rows")
@dataclass(frozen=True)
class Parity:
    """The table, and whether the files are what the hooks are."""

    rows: tuple[Row, ...]

    @property
    def equal(self) -> bool:
        """Whether every line is within what is allowed."""
        return all(row.equal for row in self.rows)

    def require(self, what: str) -> None:
        """Raise InputError naming the first line that is not."""
        for row in self.rows:
            if not row.equal:
                raise UnmetError(
                    f"parity of {what}: {row.quantity} on {row.kind} prompts is {row.hooks:.4g} with hooks and "
                    f"{row.files:.4g} from the files, a difference of {row.difference:.2g}, need at most "
                    f"{row.allowed:.2g}; nothing was left there"
                )


def parity(
    hooks: Scores,
    files: Scores,
    *,
    refusal_tokens: Sequence[int],
    dtype: torch.dtype,
    exact: bool,
    cleans: bool,
    promised: bool = True,
) -> Parity:
    """The table of metric, KL, refusal rate and stream.

    exact: whether the class promises equality; a fold may differ by KL_OF_A_FOLD. cleans: whether the edit
    leaves nothing along r^ at any layer. promised: False asks nothing of the differences (a partial or
    norm-preserving edit), only shows them.
    """
    rows = []
    for kind in hooks.logits:
        one, two = hooks.logits[kind], files.logits[kind]
        # Rounding can take the sum of p log(p / q) below zero.
        kl = kl_divergence(one, two).clamp_min(0)
        mean = float(kl.mean())
        first, second = (first_token_log_odds(each, refusal_tokens) for each in (one, two))
        rate, other_rate = (sum(each.refused[kind]) / len(kl) for each in (hooks, files))
        same = sum(a == b for a, b in zip(hooks.replies[kind], files.replies[kind], strict=True))
        kl_bound = (KL_ALLOWED.get(dtype, 1e-4) if exact else KL_OF_A_FOLD) if promised else None
        rate_bound = RATE_ALLOWED + 1 / len(kl) if exact and promised else None
        largest, moved = float(kl.max()), float((first - second).abs().max())
        rows += [
            Row(
                "refusal metric, mean", kind, float(first.mean()), float(second.mean()), moved, None
            ),
            Row("KL(hooks || files), mean", kind, 0.0, mean, mean, kl_bound),
            Row("KL(hooks || files), largest", kind, 0.0, largest, largest, None),
            Row("refusal rate", kind, rate, other_rate, abs(rate - other_rate), rate_bound),
            Row("identical replies", kind, 1.0, same / len(kl), 1 - same / len(kl), None),
        ]
    bound = STREAM_ALLOWED.get(dtype, 1e-4) if cleans else None
    rows.append(
        Row("stream along r^, largest", "all", hooks.stream, files.stream, files.stream, bound)
    )
    return Parity(tuple(rows))
