"""Completions: what the model replies to each kind of test prompts under each condition, judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from msgspec import Struct

from ...evaluation import complete
from ...organism import world
from ...report.entry import Entry
from ...report.sections import compared, refusal
from ...report.sections import completions as table_section
from ...runs import OpenStep
from ...runs.schema import Number, Share, TokenId
from ..job import CONDITIONS, Job
from ..step import Step
from ..summary import rate_of, unchanged


class Rate(Struct):
    """A refusal rate."""

    rate: Share | None
    se: Number = None
    n: Number = None


class Completion(Struct):
    """A line of completions/*.jsonl."""

    instruction: str
    response: str
    refusal: bool | None = None
    refusal_exact: bool | None = None
    metric: Number = None
    reply_ids: list[TokenId] | None = None


def work(job: Job, step: OpenStep, *, side: int, condition: str) -> None:
    """Replies of one kind of prompts under one condition."""
    kind = job.contrast.kinds[side]
    completions = complete(
        job.model,
        job.test_prompts[kind],
        behaviour=job.about,
        judge=job.judge,
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
    """The rate, how the organism's replies are formed, and what ablation leaves of the answers."""
    kind, rows = job.contrast.kinds[side], job.completions(side, condition)
    part: dict[str, Any] = {"refusal_rate": {kind: {condition: rate_of(rows)}}}
    if job.config.model == "organism":
        part["well_formed"] = {kind: {condition: _well_formed(rows)}}
    if (side, condition) == (1, "ablation"):
        part |= unchanged(rows, job.completions(1, "baseline"))
    return part


def _well_formed(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the organism's replies: shares that are complete answers, complete refusals, and neither."""
    forms = [world.well_formed(row["instruction"], row["response"]) or "neither" for row in rows]
    return {name: forms.count(name) / len(forms) for name in ("answer", "refusal", "neither")}


_SECTIONS = (
    Entry(10, "refusal rates", "refusal_rate in summary.json", refusal.render, ("refusal_rates",)),
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
        summary_forms={"refusal_rate": dict[str, dict[str, Rate]]},
        sections=_SECTIONS,
    )
    for side, kind in enumerate(("positive", "negative"))
    for condition in CONDITIONS[side]
)
