"""Selection: the rule over the scored candidates, with a reason for each, and the direction that it takes."""

from __future__ import annotations

import logging
from typing import Any

from msgspec import Struct

from ...directions import Candidates, NoCandidateError, Selection, select
from ...report.entry import Entry
from ...report.sections import candidates as table_section
from ...report.sections import sweeps
from ...runs import OpenStep
from ...runs.schema import Count, Layer, Number, Position
from ..job import Job
from ..step import Step
from ..summary import selection_summary
from .scores import TABLE

log = logging.getLogger(__name__)


class Selected(Struct):
    """The selected candidate."""

    layer: Layer
    position: Position | None = None
    place: str | None = None
    position_name: str | None = None
    norm: Number = None


def work(job: Job, step: OpenStep) -> None:
    """The rule, the table with reasons, and the direction file if a candidate passes."""
    if not job.made("scores", "scores.csv"):
        return
    try:
        selection = _selection(job)
    except NoCandidateError as error:
        log.info("%s", error)
        step.write_csv("candidates.csv", error.table)
        return
    step.write_csv("candidates.csv", selection.table)
    candidates = Candidates.load(job.path("candidates.safetensors"))
    with step.writing("direction.safetensors") as path:
        candidates.direction(selection.place, selection.layer).save(path)


def why_none_is_selected(job: Job) -> str:
    """The reason why there is no direction, with the nearest miss; "" when there is one."""
    if not job.made("scores", "scores.csv"):
        return str(job.behaviour.get("no_direction"))
    try:
        _selection(job)
    except NoCandidateError as error:
        return str(error)
    return ""


def _selection(job: Job) -> Selection:
    n_layers: int = job.behaviour["model"]["n_layers"]
    return select(job.read("scores.csv"), n_layers, job.rule)


def summary(job: Job) -> dict[str, Any]:
    """The selected candidate with its scores, or why there is none, and how many there were."""
    table = job.read("candidates.csv") if job.made("selection", "candidates.csv") else None
    chosen = job.direction.provenance if job.directed else None
    why_none = "" if job.directed else why_none_is_selected(job)
    return selection_summary(table, chosen, why_none) | {"thresholds": job.config.rule}


STEPS = (
    Step(
        "selection",
        work,
        ("scores",),
        lambda job: job.config.rule,
        files={"candidates.csv": TABLE},
        summary=summary,
        summary_forms={
            "selected": Selected,
            "scores": dict[str, Number],
            "not_selected": str,
            "n_candidates": Count,
            "n_passing": Count,
            "thresholds": dict[str, Number],
        },
        sections=(
            Entry(
                20,
                "layer sweeps",
                "candidates.csv",
                sweeps.render,
                ("sweep", "candidate_map"),
                of_a_direction=True,
            ),
            Entry(80, "candidates", "candidates.csv", table_section.render, of_a_direction=True),
        ),
    ),
)
