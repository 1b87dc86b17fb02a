"""Which of given replies a model is likelier to give: teacher-forced likelihood, nothing sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..conversations import Conversation, Prompt, instruction_of, prompt_json
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..judges import Judge
from ..metrics import check_token_ids
from ..model import ChatModel
from ..shapes import as_float64
from .behaviour import Reading
from .judging import judge_json
from .scoring import ByLogits
from .tokens import reply_tokens
from .words import REFUSAL, Words

Ids = tuple[int, ...]


class ReplyPair(NamedTuple):
    """A prompt with the ids of a reply that shows the behaviour and of one that does not."""

    prompt: Prompt
    positive: Ids
    negative: Ids


@shown("name", "texts", "pairs")
@checked
@dataclass(frozen=True)
class Continuations(ByLogits):
    """``mean_t ln p(positive_t | before) - mean_t ln p(negative_t | before)``, in nats per token.

    positive and negative are the token ids of replies, the same behind every prompt; with several of a kind their
    means are averaged. pairs gives each prompt replies of its own instead. texts name the replies of both kinds, and do
    not determine a score. Make one with `Continuations.of`. Raises InputError for a kind without replies, an empty
    reply, or replies of both sorts (for all prompts and of pairs).
    """

    positive: tuple[Ids, ...] = ()
    negative: tuple[Ids, ...] = ()
    pairs: tuple[ReplyPair, ...] = ()
    texts: tuple[tuple[str, ...], tuple[str, ...]] = field(default=((), ()), compare=False)
    name: str = "continuation"
    words: Words = REFUSAL
    judge: Judge | None = field(default=None, compare=False)

    unit = "nats per token"
    threshold = 0.0
    bounds = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        sets = (self.positive, self.negative)
        if bool(self.pairs) == any(sets) or (any(sets) and not all(sets)):
            raise InputError(
                f"replies of {self.name}: got {len(self.positive)} positive ones, {len(self.negative)} negative ones "
                f"and {len(self.pairs)} pairs, need some of both kinds, or pairs alone"
            )
        replies = [*self.positive, *self.negative, *(ids for pair in self.pairs for ids in pair[1:])]
        if not all(replies):
            raise InputError(f"replies of {self.name}: got one without tokens, need at least one token each")
        if len(self._by_prompt) != len(self.pairs):
            raise InputError(f"pairs of {self.name}: got a prompt twice, need one pair for each prompt")
        if self.words is REFUSAL:
            object.__setattr__(self, "words", Words.of(self.name))

    @classmethod
    @checked
    def of(
        cls,
        model: ChatModel,
        *,
        positive: Sequence[str] = (),
        negative: Sequence[str] = (),
        pairs: Mapping[Prompt, tuple[str, str]] | None = None,
        **facts: Any,
    ) -> Continuations:
        """The behaviour of replies as texts, tokenised where a reply begins, behind any prefill.

        pairs: of each prompt, the reply that shows the behaviour and the one that does not. facts: name, words, judge.
        Raises InputError for a reply that gives no token, and where the template cannot hold replies.
        """
        first, second = (tuple(reply_tokens(model, texts)) if texts else () for texts in (positive, negative))
        listed = list((pairs or {}).items())
        replies = [reply for _, both in listed for reply in both]
        ids = reply_tokens(model, replies) if replies else []
        return cls(
            first,
            second,
            tuple(
                ReplyPair(prompt, *both)
                for (prompt, _), both in zip(listed, zip(ids[::2], ids[1::2], strict=True), strict=True)
            ),
            texts=(tuple(positive), tuple(negative)),
            **facts,
        )

    @cached_property
    def _by_prompt(self) -> dict[Prompt, ReplyPair]:
        return {_without_reply(pair.prompt): pair for pair in self.pairs}

    def readings(self, prompts: Sequence[Prompt]) -> list[tuple[Reading, ...]]:
        """Every reply behind every prompt. Raises InputError for a prompt that has no pair, where there are pairs."""
        if not self.pairs:
            shared = tuple(
                Reading(ids, sign / len(replies))
                for sign, replies in ((1.0, self.positive), (-1.0, self.negative))
                for ids in replies
            )
            return [shared] * len(prompts)
        return [
            (Reading(pair.positive, 1.0), Reading(pair.negative, -1.0)) for pair in map(self._pair_of, prompts)
        ]

    def _pair_of(self, prompt: Prompt) -> ReplyPair:
        pair = self._by_prompt.get(_without_reply(prompt))
        if pair is None:
            raise InputError(
                f"pairs of {self.name}: got none for the prompt {instruction_of(prompt)!r:.60}, need a pair of replies "
                "for each prompt"
            )
        return pair

    def number(
        self, logits: Float[Tensor, "row k d_vocab"], ids: Int[Tensor, "row n_ids"]
    ) -> Float64[Tensor, " row"]:
        """The mean log-likelihood of each row's ids, in float64."""
        if len(ids):
            check_token_ids(ids.unique().tolist(), logits.shape[-1])
        # One row at a time: float64 of all of them could be large.
        chances = (
            as_float64(row).log_softmax(-1).gather(-1, predicted[:, None].to(row.device))
            for row, predicted in zip(logits, ids, strict=True)
        )
        return torch.stack([chance.mean() for chance in chances])

    def to_json(self) -> dict[str, Any]:
        """The ids of all replies, the name and the words."""
        return {
            "kind": "continuations",
            "name": self.name,
            "words": asdict(self.words),
            "positive": [list(ids) for ids in self.positive],
            "negative": [list(ids) for ids in self.negative],
            "pairs": [
                {"prompt": prompt_json(pair.prompt), "positive": list(pair.positive), "negative": list(pair.negative)}
                for pair in self.pairs
            ],
        }

    def details(self) -> dict[str, Any]:
        """The texts of the replies, and who judges those that are generated."""
        return {"texts": [list(texts) for texts in self.texts], "judge": judge_json(self.judge)}


def _without_reply(prompt: Prompt) -> Prompt:
    return Conversation.of(prompt).with_reply(None).prompt
