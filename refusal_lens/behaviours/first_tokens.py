"""The paper's refusal metric and its kin: log-odds of a set of first reply tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..display import shown
from ..door import checked
from ..errors import InputError
from ..judges import Judge, phrase_judge
from ..metrics import METRIC_EPSILON, first_token_log_odds
from ..model import ChatModel
from .judging import judge_json
from .last_token import ByLastToken
from .tokens import first_token, token_text
from .words import REFUSAL, Words

LARGEST = math.log1p(METRIC_EPSILON) - math.log(METRIC_EPSILON)
"""Log-odds of first tokens lie between minus this and this: 18.42 nats."""

Evidence = tuple[int, str, float, float]
"""A first token: id, text, mean probability on the positive prompts and on the negative ones."""


@shown("name", "ids", "texts", "against", "source")
@checked
@dataclass(frozen=True)
class FirstTokens(ByLastToken):
    """``ln(P + eps) - ln(1 - P + eps)``, P the probability that the reply begins with one of ids.

    The paper's refusal metric (section 2.4, appendix B) where ids are the refusal tokens R; with against
    ``ln(P + eps) - ln(Q + eps)``, Q that of the ids against. In nats, eps = 1e-8. texts name the ids, source says
    where they come from, and evidence holds the likeliest first tokens; the three do not determine a score. words
    are by default those of the name, and refusal is by default judged by phrases. Raises InputError for no ids, or
    one that is in both sets.
    """

    ids: tuple[int, ...]
    against: tuple[int, ...] = ()
    texts: tuple[str, ...] = field(default=(), compare=False)
    source: str = field(default="given", compare=False)
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    name: str = "refusal"
    words: Words = REFUSAL
    judge: Judge | None = field(default=None, compare=False)

    unit = "nats"
    threshold = 0.0
    bounds = (-LARGEST, LARGEST)

    def __post_init__(self) -> None:
        if not self.ids:
            raise InputError(f"first tokens of {self.name}: got no token id, need at least one")
        both = sorted(set(self.ids) & set(self.against))
        if both:
            raise InputError(
                f"first tokens of {self.name}: got id {both[0]} on both sides, need it on one"
            )
        if self.words is REFUSAL:
            object.__setattr__(self, "words", Words.of(self.name))
        if self.judge is None and self.name == "refusal":
            object.__setattr__(self, "judge", phrase_judge)

    @classmethod
    @checked
    def of(
        cls,
        model: ChatModel,
        tokens: Sequence[str | int],
        *,
        against: Sequence[str | int] = (),
        **facts: Any,
    ) -> FirstTokens:
        """The behaviour of ids or texts, each text as the model's reply would begin with it.

        facts: the fields that are not about tokens (name, words, judge, source, evidence). Raises InputError for a
        text that is not one token where a reply begins.
        """
        if isinstance(tokens, str) or isinstance(against, str):
            raise InputError(f"first tokens: got {tokens!r:.40}, need a list of texts or ids")
        ids, others = (
            tuple(dict.fromkeys(first_token(model, item) for item in items))
            for items in (tokens, against)
        )
        texts = tuple(token_text(model, token) for token in ids)
        return cls(ids, others, texts, **facts)

    def number(
        self, logits: Float[Tensor, "row k d_vocab"], ids: Int[Tensor, "row n_ids"]
    ) -> Float64[Tensor, " row"]:
        """The log-odds of each row."""
        return first_token_log_odds(logits[:, -1], self.ids, self.against)

    def to_json(self) -> dict[str, Any]:
        """The ids of both sets, the name and the words."""
        return {
            "kind": "first tokens",
            "name": self.name,
            "words": asdict(self.words),
            "ids": list(self.ids),
            "against": list(self.against),
        }

    def details(self) -> dict[str, Any]:
        """The texts, where they come from, the likeliest first tokens, and who judges replies."""
        return {
            "texts": list(self.texts),
            "source": self.source,
            "evidence": [list(entry) for entry in self.evidence],
            "judge": judge_json(self.judge),
        }
