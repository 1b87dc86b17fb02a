"""Behaviours of whole replies: generated, then judged. Slow: every score is a reply to generate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..chat import Rendered
from ..conversations import Conversation, Exchange, Prompt, unanswered
from ..display import shown
from ..door import at_least, checked
from ..judges import Judge, judge_replies, judged
from ..model import ChatModel
from ..progress import Progress
from ..shapes import PerPrompt
from .judging import judge_json
from .words import REFUSAL, Words


@shown("name", "judge", "max_new_tokens")
@checked
@dataclass(frozen=True)
class Replies:
    """The judge's value of each prompt's greedy reply; NaN where it cannot tell.

    name is by default the judge's, and words those of the name. A prompt shows the behaviour where the value is
    above threshold. Raises InputError for replies of no token.
    """

    judge: Judge
    max_new_tokens: int = 64
    name: str = ""
    words: Words = REFUSAL
    threshold: float = 0.5

    unit = ""
    bounds = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        at_least(1, max_new_tokens=self.max_new_tokens)
        object.__setattr__(self, "name", self.name or self.judge.name)
        if self.words is REFUSAL:
            object.__setattr__(self, "words", Words.of(self.name))

    def scores(
        self,
        model: ChatModel,
        prompts: Sequence[Prompt] | Rendered,
        *,
        batch_size: int = 32,
        on_progress: Progress | None = None,
    ) -> PerPrompt:
        """The value of every prompt's reply under the edits that are installed.

        Raises InputError for a prompt that does not fit the model with its reply.
        """
        asked = unanswered(prompts.prompts if isinstance(prompts, Rendered) else prompts)
        replies = model.replies(
            prompts if isinstance(prompts, Rendered) else asked,
            max_new_tokens=self.max_new_tokens,
            batch_size=batch_size,
            on_progress=on_progress,
        )
        exchanges = [
            Exchange(Conversation.of(prompt), reply.text) for prompt, reply in zip(asked, replies, strict=True)
        ]
        values = [score.value for score in judged(self.judge, exchanges)]
        return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)

    def to_json(self) -> dict[str, Any]:
        """The judge, the length of replies, the name and the words."""
        return {
            "kind": "replies",
            "name": self.name,
            "words": asdict(self.words),
            "judge": judge_json(self.judge),
            "max_new_tokens": self.max_new_tokens,
            "threshold": self.threshold,
        }

    def details(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@checked
def from_replies(
    fn: Callable[[str], float | bool | None], *, name: str, max_new_tokens: int = 64, **facts: Any
) -> Replies:
    """A behaviour of a plain function from a reply's text to a bool, a number or None (cannot tell).

    facts: words and threshold, as of `Replies`. A run cannot be reopened with it.
    """
    return Replies(judge_replies(fn, name), max_new_tokens, name, **facts)
