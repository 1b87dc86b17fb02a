"""Hooks against files: the same prompts scored under hooks and by what was exported, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..activations import map_last_logits
from ..behaviours import Behaviour, Words
from ..behaviours.last_token import last_token_scores, reads_last_token
from ..conversations import Prompt, unanswered
from ..display import shown
from ..errors import UnmetError
from ..interventions import unit
from ..judges import judged
from ..metrics import kl_divergence
from ..model import ChatModel, Site
from ..shapes import PerPrompt
from ..weights.edits import WeightEdit
from .completions import exchanges, rate_of

KL_ALLOWED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Mean KL in nats that rounding the edited weights to the checkpoint's dtype explains."""
KL_OF_A_FOLD = 0.1
"""Mean KL in nats that a folded post-norm may leave: the paper's bound on a direction's side effects."""
RATE_ALLOWED = 0.1
"""Difference of rates that such differences of logits explain, beyond one reply."""
STREAM_ALLOWED = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest ``|x . r^| / ||x||`` that rounding leaves at any layer."""
LONGEST_REPLY = 64
"""Tokens of a reply that is compared, where nobody says another number."""


@shown()
@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says to prompts of each kind, and how much of its stream lies along r^.

    By kind: logits [prompt d_vocab], the behaviour's scores [prompt], replies, and the judge's verdicts (None where
    it cannot tell).
    """

    logits: Mapping[str, Tensor]
    scores: Mapping[str, PerPrompt]
    replies: Mapping[str, Sequence[str]]
    shows: Mapping[str, Sequence[bool | None]]
    stream: float


def ask(
    model: ChatModel,
    prompts: Mapping[str, Sequence[Prompt]],
    edit: WeightEdit,
    *,
    behaviour: Behaviour,
    under: AbstractContextManager[Any] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
) -> Answers:
    """Put prompts to a model, under a context of hooks or none; replies are greedy and judged by the behaviour's judge.

    Replies are 64 tokens long at most, or as many as fit, unless max_new_tokens says how many.
    """
    asked = {kind: unanswered(texts) for kind, texts in prompts.items()}
    logits, scores, replies = {}, {}, {}
    with under or nullcontext():
        for kind, texts in asked.items():
            rendered = model.chat.render(texts)
            logits[kind] = map_last_logits(model, rendered, batch_size=batch_size).float()
            scores[kind] = (
                last_token_scores(behaviour, logits[kind])
                if reads_last_token(behaviour, texts)
                else behaviour.scores(model, texts, batch_size=batch_size)
            )
            length = max_new_tokens or model.reply_room(rendered, LONGEST_REPLY)
            replies[kind] = model.generate(rendered, max_new_tokens=length, batch_size=batch_size)
        stream = stream_along(model, next(iter(asked.values()))[:8], edit)
    shows = {
        kind: [score.shows for score in judged(behaviour.judge, exchanges(texts, replies[kind]))]
        for kind, texts in asked.items()
    }
    return Answers(logits, scores, replies, shows, stream)


def stream_along(model: ChatModel, prompts: Sequence[Prompt], edit: WeightEdit) -> float:
    """Largest ``|x . r^| / ||x||`` at the last token, at the entry of any block and behind the last."""
    r_hat = unit(edit.vector)
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    streams = model.read(
        model.chat.render(list(prompts)), [*sites, Site("resid_post", sites[-1].layer)]
    )
    xs = [x[:, -1].double().cpu() for x in streams.values()]
    return max(float(((x @ r_hat).abs() / x.norm(dim=-1).clamp_min(1e-30)).max()) for x in xs)


@dataclass(frozen=True)
class Row:
    """One line of the table; allowed is None where nothing is asked of the difference.

    The difference of the mean scores is the largest of any prompt's.
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
        """Raise UnmetError naming the first line that is not."""
        for row in self.rows:
            if not row.equal:
                raise UnmetError(
                    f"parity of {what}: {row.quantity} on {row.kind} prompts is {row.hooks:.4g} with hooks and "
                    f"{row.files:.4g} from the files, a difference of {row.difference:.2g}, need at most "
                    f"{row.allowed:.2g}; nothing was left there"
                )


@dataclass(frozen=True)
class Promise:
    """What an edit of weights in this dtype, the coarsest it touched, promises of its likeness to hooks.

    exact: equality, where a folded post-norm may leave `KL_OF_A_FOLD`. cleans: that nothing is left along r^ at any
    layer. made: False for a partial or norm-preserving edit, whose differences are only shown.
    """

    dtype: torch.dtype
    exact: bool
    cleans: bool
    made: bool = True

    @property
    def kl(self) -> float | None:
        """Mean KL in nats that is allowed; None where nothing is promised."""
        if not self.made:
            return None
        return KL_ALLOWED.get(self.dtype, 1e-4) if self.exact else KL_OF_A_FOLD

    def rate(self, n: int) -> float | None:
        """Difference of two rates over n replies that is allowed."""
        return RATE_ALLOWED + 1 / n if self.exact and self.made else None

    @property
    def stream(self) -> float | None:
        """The share of the stream along r^ that is allowed."""
        return STREAM_ALLOWED.get(self.dtype, 1e-4) if self.cleans else None


def parity(hooks: Answers, files: Answers, *, words: Words, promise: Promise) -> Parity:
    """The table of the behaviour's score, KL, rate and stream; no rate where no reply was judged."""
    rows = [row for kind in hooks.logits for row in _rows(hooks, files, kind, words, promise)]
    rows.append(
        Row(
            "stream along r^, largest",
            "all",
            hooks.stream,
            files.stream,
            files.stream,
            promise.stream,
        )
    )
    return Parity(tuple(rows))


def _rows(
    hooks: Answers, files: Answers, kind: str, words: Words, promise: Promise
) -> Iterator[Row]:
    """The lines of one kind of prompts."""
    # Rounding can take the sum of p log(p / q) below zero.
    kl = kl_divergence(hooks.logits[kind], files.logits[kind]).clamp_min(0)
    n, mean, largest = len(kl), float(kl.mean()), float(kl.max())
    first, second = hooks.scores[kind], files.scores[kind]
    moved = float((first - second).abs().max())
    yield Row(f"{words.score}, mean", kind, float(first.mean()), float(second.mean()), moved, None)
    yield Row("KL(hooks || files), mean", kind, 0.0, mean, mean, promise.kl)
    yield Row("KL(hooks || files), largest", kind, 0.0, largest, largest, None)
    rate, other = rate_of(hooks.shows[kind]), rate_of(files.shows[kind])
    if rate.n and other.n:
        gap = abs(rate.rate - other.rate)
        allowed = promise.rate(min(rate.n, other.n))
        yield Row(f"{words.noun} rate", kind, rate.rate, other.rate, gap, allowed)
    same = sum(a == b for a, b in zip(hooks.replies[kind], files.replies[kind], strict=True)) / n
    yield Row("identical replies", kind, 1.0, same, 1 - same, None)
