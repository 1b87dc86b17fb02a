"""Completions: what the model replies to each kind of test prompts under each condition, judged."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec import Struct

from ...evaluation import complete
from ...evaluation.conditions import OF_KIND
from ...report.entry import Entry
from ...report.sections import compared, rates
from ...report.sections import completions as table_section
from ...runs import OpenStep
from ...runs.schema import Count, Number, Share, TokenId
from ..job import Job
from ..step import Step
from ..summary import rates_summary, unchanged, well_formed


class Rate(Struct):
    """A share of the replies that were judged."""

    rate: Share | None
    se: Number = None
    n: Number = None
    n_unjudged: Count = 0
    paper_count: Share | None = None


class Completion(Struct):
    """A line of completions/*.jsonl."""

    instruction: str
    response: str
    shows: bool | None = None
    evidence: str = ""
    score: Number = None
    paper_count: bool | None = None
    reply_ids: list[TokenId] | None = None
    messages: list[dict[str, str]] | None = None


def work(job: Job, step: OpenStep, *, side: int, condition: str) -> None:
    """Replies of one kind of prompts under one condition."""
    kind = job.contrast.kinds[side]
    completions = complete(
        job.model,
        job.test_prompts[kind],
        behaviour=job.about,
        judge=job.concept.judge,
        edit=job.edit(condition),
        max_new_tokens=job.config.max_new_tokens,
        batch_size=job.batch_size,
        on_progress=job.progress(f"completions, {kind}, {condition}"),
    )
    step.write_jsonl(f"completions/{kind}_{condition}.jsonl", (completion.to_row() for completion in completions))


def inputs(job: Job) -> dict[str, Any]:
    """The length of replies."""
    return job.config.pick("max_new_tokens") | {"reply_ids": True}


def summary(job: Job, *, side: int, condition: str) -> Mapping[str, Any]:
    """The rate, how the organism's replies are formed, and what ablation leaves of those to negative prompts."""
    kinds = job.contrast.kinds
    measured = {(kinds[side], condition): job.completions(side, condition)}
    part = rates_summary(measured)
    if (job.config.model, job.concept.name) == ("organism", "refusal"):
        part |= well_formed(measured)
    if (side, condition) == (1, "ablation"):
        plain = {(kinds[1], "baseline"): job.completions(1, "baseline")}
        part |= unchanged(measured | plain, kinds)
    return part


_SECTIONS = (
    Entry(10, "rates", "rates in summary.json", rates.render, ("rates",)),
    Entry(90, "completions", "completions/*.jsonl", table_section.render),
    Entry(100, "replies compared", "summary.json", compared.render, optional=True, of_a_direction=True),
)

STEPS = tuple(
    Step(
        f"completions_{{{kind}}}_{condition}",
        partial(work, side=side, condition=condition),
        ("behaviour" if condition == "baseline" else "selection",),
        inputs,
        files={"completions/*.jsonl": Completion},
        summary=partial(summary, side=side, condition=condition),
        summary_forms={"rates": dict[str, dict[str, Rate]]},
        sections=_SECTIONS,
    )
    for side, kind in enumerate(("positive", "negative"))
    for condition in OF_KIND[side]
)
