"""Scores: bypass, induce and kl of every candidate, by the sweep."""

from __future__ import annotations

from typing import Any

from ...directions import Candidates, SweepCheckpoint
from ...directions.sweep import sweep
from ...runs import OpenStep, Table
from ...runs.tables import LAYER, POSITION
from ..job import Job
from ..step import Step

TABLE = Table(
    {"layer": LAYER}, ("bypass", "induce", "kl"), more=("norm",),
    more_words=("place", "position_name", "reason", "skipped"), flags=("passes",),
    partly={"position": POSITION},
)  # fmt: skip


def work(job: Job, step: OpenStep) -> None:
    """bypass, induce and kl of every candidate; an interrupted sweep goes on after its last block."""
    if not job.made("candidates", "candidates.safetensors"):
        return
    val = job.kept("val")
    done = sweep(
        job.model,
        Candidates.load(job.path("candidates.safetensors")),
        positive=val.positive,
        negative=val.negative,
        behaviour=job.scored_by,
        mode=job.config.mode,
        rule=job.rule,
        on_progress=job.progress("scores"),
        resume=SweepCheckpoint.latest(step.records),
        on_block=lambda checkpoint: step.keep(checkpoint.record()),
    )
    step.write_csv("scores.csv", done.table)
    step.write_json("sweep.json", done.checkpoint.passes)


def inputs(job: Job) -> dict[str, Any]:
    """The mode; a lazy sweep leaves out what the exact choice does not need, which the rule decides."""
    mode = job.config.mode
    return {"mode": mode} | (job.config.rule if mode == "lazy" else {})


STEPS = (Step("scores", work, ("candidates",), inputs, files={"scores.csv": TABLE}),)
