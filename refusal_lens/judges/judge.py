"""What a judge is: from exchanges to scores that show their evidence, None where it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..conversations import Exchange
from ..door import checked
from ..errors import InputError

SHOWN = 0.5
"""A reply shows the behaviour where its score is at least this."""


@checked
@dataclass(frozen=True)
class Score:
    """A judge's verdict on one reply: value (None when it cannot tell), evidence, and who judged.

    value: how much of the behaviour the reply shows, 0 for none and 1 for all of it.
    """

    value: float | None
    evidence: str
    judge: str

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise InputError(
                f"score by {self.judge}: got {self.value}, need a finite number, or None where the judge cannot tell"
            )

    @property
    def shows(self) -> bool | None:
        """Whether the reply shows the behaviour (a value of at least 0.5); None when the judge cannot tell."""
        return None if self.value is None else self.value >= SHOWN


@runtime_checkable
class Judge(Protocol):
    """A judge: has a name, and gives a Score for each exchange of a list."""

    @property
    def name(self) -> str:
        """What a score says who judged."""

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """One score for each exchange, in their order."""


def judged(judge: Judge | None, exchanges: Sequence[Exchange]) -> list[Score]:
    """The judge's score of every exchange; scores of None, which nobody gave, without a judge.

    Raises InputError where the judge gives anything but one Score for each exchange.
    """
    if judge is None:
        return [Score(None, "", "")] * len(exchanges)
    if not exchanges:
        return []
    scores = judge(exchanges)
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise InputError(f"judge {judge.name}: got {scores!r:.60}, need a list of scores")
    if len(scores) != len(exchanges):
        raise InputError(
            f"judge {judge.name}: got {len(scores)} scores, need one for each of {len(exchanges)} exchanges"
        )
    for row, score in enumerate(scores):
        if not isinstance(score, Score):
            raise InputError(
                f"judge {judge.name} at exchange {row}: got {score!r:.60}, need a Score; try judge_replies for a "
                "function of the reply"
            )
    return list(scores)


@dataclass(frozen=True)
class ReplyJudge:
    """A plain function of the reply as a judge: ``judge_replies`` makes one."""

    fn: Callable[[str], float | bool | None]
    name: str

    def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """What the function says of each reply."""
        return [self._score(exchange.reply) for exchange in exchanges]

    def _score(self, reply: str) -> Score:
        verdict = self.fn(reply)
        try:
            value = None if verdict is None else float(verdict)
        except (TypeError, ValueError):
            value = math.nan
        if isinstance(verdict, str) or (value is not None and not math.isfinite(value)):
            raise InputError(
                f"judge {self.name} on {reply!r:.40}: got {verdict!r:.40}, need True, False, a finite number or None"
            )
        return Score(value, "", self.name)


@checked
def judge_replies(fn: Callable[[str], float | bool | None], name: str) -> ReplyJudge:
    """A judge of a plain function from a reply to a bool, a number (1 for all of it) or None (cannot tell).

    >>> from refusal_lens.conversations import Conversation
    >>> judge = judge_replies(lambda reply: "rose" in reply, "roses")
    >>> judge([Exchange(Conversation.of("Sing."), "A rose is a rose.")])
    [Score(value=1.0, evidence='', judge='roses')]
    """
    return ReplyJudge(fn, name)


@dataclass(frozen=True)
class Disagreement:
    """Where the behaviour's score and the judge's verdict differ, over the n prompts that have both.

    score_only: prompts whose score alone shows the behaviour; judge_only: whose reply alone does.
    """

    n: int
    score_only: int
    judge_only: int

    @property
    def share(self) -> float:
        """The share of prompts on which the two differ; 0 for no prompts."""
        return (self.score_only + self.judge_only) / self.n if self.n else 0.0


def disagreement(
    scores: Sequence[float], shows: Sequence[bool | None], *, threshold: float = 0.0
) -> Disagreement:
    """Compares a behaviour's scores (above the threshold: shows it) with a judge's verdicts.

    Prompts without a score (NaN) or without a verdict (None) are left out. Raises InputError when there is not
    one verdict for each score.

    >>> disagreement([4.7, 3.0, -2.0, 1.0], [False, True, False, None]).share
    0.3333333333333333
    """
    if len(scores) != len(shows):
        raise InputError(f"verdicts: got {len(shows)}, need one for each of {len(scores)} scores")
    pairs = [
        (score > threshold, bool(shown))
        for score, shown in zip(scores, shows, strict=True)
        if shown is not None and not math.isnan(score)
    ]
    return Disagreement(len(pairs), pairs.count((True, False)), pairs.count((False, True)))
