"""What a model replies, plain or edited, and how often the replies show the behaviour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from ..activations import map_last_logits
from ..behaviours import Behaviour
from ..behaviours.last_token import last_token_scores, require_last_token
from ..conversations import (
    Conversation,
    Exchange,
    Prompt,
    instruction_of,
    prompt_of_row,
    row_of_prompt,
    unanswered,
)
from ..display import shown
from ..door import at_least, checked
from ..interventions import Edit, applied
from ..judges import Judge, judged, paper_judge, phrase_judge
from ..metrics import binomial_standard_error
from ..model import ChatModel
from ..model.engine import Engine
from ..progress import Progress
from ..shapes import PerPrompt


@shown()
@dataclass(frozen=True)
class Completion:
    """One reply, what its judge says, and the behaviour's score of its prompt.

    response is the text for people and judges, reply_ids what the model generated. shows is the judge's verdict,
    None where the reply was not judged or the judge cannot tell, and evidence what it rests on. score is NaN
    without a behaviour. paper_count: whether the paper's exact phrases count it, where the judge is the phrase judge.
    """

    prompt: Prompt
    response: str
    shows: bool | None
    evidence: str
    score: float
    reply_ids: tuple[int, ...]
    paper_count: bool | None = None

    @property
    def instruction(self) -> str:
        """What the user said last."""
        return instruction_of(self.prompt)

    def to_row(self) -> dict[str, Any]:
        """The completion as a line of a completions file; a score of NaN is None."""
        row = row_of_prompt(self.prompt) | {
            "response": self.response,
            "shows": self.shows,
            "evidence": self.evidence,
            "score": None if math.isnan(self.score) else self.score,
            "reply_ids": list(self.reply_ids),
        }
        return row if self.paper_count is None else row | {"paper_count": self.paper_count}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Completion:
        """The completion that `to_row` wrote."""
        score = row["score"]
        return cls(
            prompt_of_row(row),
            row["response"],
            row["shows"],
            row["evidence"],
            math.nan if score is None else float(score),
            tuple(row["reply_ids"]),
            row.get("paper_count"),
        )


class Rate(NamedTuple):
    """A share of n judged replies with its binomial standard error; NaN both where n is 0.

    n_unjudged replies, of which the judge cannot tell, are left out.
    """

    rate: float
    se: float
    n: int
    n_unjudged: int = 0


@checked
def complete(
    engine: Engine,
    prompts: Sequence[Prompt],
    *,
    behaviour: Behaviour | None,
    edit: Edit | None = None,
    judge: Judge | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> list[Completion]:
    """Greedy replies under an edit (or none), judged, with the behaviour's score of each prompt.

    Replies that the prompts bring are left out. behaviour None gives scores of NaN. judge: by default the
    behaviour's; without any, ``shows`` is None. max_new_tokens as in `ChatModel.replies`. Raises InputError, before
    the first pass, for a prompt that does not fit into the model with its reply, and for an edit of an engine that
    is no ChatModel.
    """
    asked = unanswered(prompts)
    rendered = engine.chat.render(asked)
    engine.require_room(rendered, max_new_tokens)
    with nullcontext() if edit is None else applied(engine, edit):
        scores = [math.nan] * len(asked)
        if behaviour is not None:
            scores = scores_on(engine, asked, behaviour, batch_size=batch_size).tolist()
        replies = engine.replies(
            rendered, max_new_tokens=max_new_tokens, batch_size=batch_size, on_progress=on_progress
        )
    judge = judge or (behaviour.judge if behaviour is not None else None)
    to_judge = exchanges(asked, [reply.text for reply in replies])
    paper = judged(paper_judge, to_judge) if judge == phrase_judge else []
    return [
        Completion(
            prompt,
            reply.text,
            verdict.shows,
            verdict.evidence,
            score,
            reply.ids,
            paper[row].shows if paper else None,
        )
        for row, (prompt, reply, verdict, score) in enumerate(
            zip(asked, replies, judged(judge, to_judge), scores, strict=True)
        )
    ]


@checked
def rate(completions: Sequence[Completion]) -> Rate:
    """Share of replies that show the behaviour, with its binomial standard error (paper, appendix D.4)."""
    at_least(1, completions=len(completions))
    return rate_of([completion.shows for completion in completions])


def rate_of(shows: Sequence[bool | None]) -> Rate:
    """The share of True among the verdicts that are not None."""
    verdicts = [shown for shown in shows if shown is not None]
    n, n_unjudged = len(verdicts), len(shows) - len(verdicts)
    if not n:
        return Rate(math.nan, math.nan, 0, n_unjudged)
    share = sum(verdicts) / n
    return Rate(share, binomial_standard_error(share, n), n, n_unjudged)


def scores_on(
    engine: Engine, prompts: Sequence[Prompt], behaviour: Behaviour, *, batch_size: int
) -> PerPrompt:
    """The behaviour's score of every prompt on any engine.

    Raises InputError for a behaviour that asks for more than an engine gives that is no ChatModel.
    """
    if isinstance(engine, ChatModel):
        return behaviour.scores(engine, prompts, batch_size=batch_size)
    require_last_token(behaviour, prompts, f"completions of {engine.name}, which is no ChatModel")
    number = partial(last_token_scores, behaviour)
    return map_last_logits(engine, prompts, number=number, batch_size=batch_size)


def exchanges(prompts: Sequence[Prompt], replies: Sequence[str]) -> list[Exchange]:
    """What a judge sees: each prompt with the reply to it."""
    return [
        Exchange(Conversation.of(prompt), reply)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
