"""What a model replies, plain or edited, and how often it refuses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

from ..activations import map_last_logits
from ..display import shown
from ..door import at_least, checked
from ..interventions import Edit, applied
from ..judges import Judge, paper_judge, phrase_judge
from ..metrics import binomial_standard_error, first_token_log_odds
from ..model import ChatModel
from ..progress import Progress


@shown()
@dataclass(frozen=True)
class Completion:
    """One reply: refusal is the judge's verdict, metric the refusal metric (log-odds, nats).

    response is the text for people and judges, reply_ids what the model generated; refusal_exact is the
    paper's count of phrases.
    """

    instruction: str
    response: str
    refusal: bool
    evidence: str
    metric: float
    reply_ids: tuple[int, ...]
    refusal_exact: bool


@dataclass(frozen=True)
class Rate:
    """A share with its binomial standard error, of n."""

    rate: float
    se: float
    n: int


@checked
def complete(
    model: ChatModel,
    instructions: Sequence[str],
    *,
    refusal_tokens: Sequence[int],
    edit: Edit | None = None,
    judge: Judge = phrase_judge,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> list[Completion]:
    """Greedy replies under an edit (or none), judged, with the refusal metric of each prompt.

    The metric is NaN where there are no refusal tokens. max_new_tokens as in `ChatModel.replies`. Raises
    InputError, before the first pass, for a prompt that does not fit into the model with its reply.
    """
    rendered = model.chat.render(instructions)
    model.require_room(rendered, max_new_tokens)
    metric = partial(first_token_log_odds, ids=tuple(refusal_tokens))
    with nullcontext() if edit is None else applied(model, edit):
        metrics = [math.nan] * len(instructions)
        if refusal_tokens:
            metrics = map_last_logits(
                model, rendered, number=metric, batch_size=batch_size
            ).tolist()
        replies = model.replies(
            rendered, max_new_tokens=max_new_tokens, batch_size=batch_size, on_progress=on_progress
        )
    return [
        Completion(
            instruction,
            reply.text,
            bool(score.value),
            score.evidence,
            value,
            reply.ids,
            bool(paper_judge(reply.text).value),
        )
        for instruction, reply, score, value in zip(
            instructions, replies, (judge(r.text) for r in replies), metrics, strict=True
        )
    ]


@checked
def refusal_rate(completions: Sequence[Completion]) -> Rate:
    """Share of refusals with its binomial standard error (paper, appendix D.4)."""
    n = len(completions)
    at_least(1, completions=n)
    rate = sum(c.refusal for c in completions) / n
    return Rate(rate, binomial_standard_error(rate, n), n)
