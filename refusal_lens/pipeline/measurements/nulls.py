"""Nulls: random directions and norm-matched random moves."""

from __future__ import annotations

from ...evaluation import nulls
from ...report.entry import Entry
from ...report.sections import nulls as section
from ...runs import OpenStep, Table
from ...runs.schema import Number
from ..job import Job
from ..step import Step
from ..summary import null_summary


def work(job: Job, step: OpenStep) -> None:
    """Random directions and norm-matched random moves."""
    c = job.config
    table = nulls(
        job.model,
        job.direction,
        prompts={kind: prompts[: c.null_prompts] for kind, prompts in job.test_prompts.items()},
        behaviour=job.scored_by,
        judge=job.concept.judge,
        n=c.n_null,
        n_moves=c.n_moves,
        seed=c.seed,
        max_new_tokens=c.null_tokens,
        batch_size=job.batch_size,
        on_progress=job.progress("nulls"),
    )
    step.write_csv("nulls.csv", table)


STEPS = (
    Step(
        "nulls",
        work,
        ("selection",),
        lambda job: job.config.pick("n_null", "n_moves", "null_prompts", "null_tokens", "seed"),
        wanted=lambda job: job.config.n_null > 0,
        files={
            "nulls.csv": Table({}, ("rate", "score"), ("null", "kind"), more=("n", "n_unjudged", "index"))
        },
        summary=lambda job: null_summary(job.read("nulls.csv")),
        summary_forms={"nulls": dict[str, dict[str, dict[str, Number]]]},
        absent={"nulls": {}},
        sections=(Entry(110, "nulls", "nulls.csv", section.render, of_a_direction=True),),
    ),
)
