"""Selection: the rule over the scored candidates, with a reason for each, and the direction that it takes."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd
from msgspec import Struct

from ...directions import Candidates, Choice, NoCandidateError, select
from ...directions.selection import NOT_NEEDED
from ...report.entry import Entry
from ...report.sections import candidates as table_section
from ...report.sections import sweeps
from ...runs import OpenStep
from ...runs.schema import Count, Layer, Number, Position
from ..job import Job
from ..step import Step
from .scores import TABLE

log = logging.getLogger(__name__)


class Selected(Struct):
    """The selected candidate."""

    position: Position
    layer: Layer
    position_name: str | None = None
    norm: Number = None


def work(job: Job, step: OpenStep) -> None:
    """The rule, the table with reasons, and the direction file if a candidate passes."""
    if not job.made("scores", "scores.csv"):
        return
    try:
        choice = _choice(job)
    except NoCandidateError as error:
        log.info("%s", error)
        step.write_csv("candidates.csv", error.table)
        return
    step.write_csv("candidates.csv", choice.table)
    candidates = Candidates.load(job.path("candidates.safetensors"))
    with step.writing("direction.safetensors") as path:
        candidates.direction(choice.position, choice.layer).save(path)


def why_none_is_selected(job: Job) -> str:
    """The reason why there is no direction, with the nearest miss; "" when there is one."""
    if not job.made("scores", "scores.csv"):
        return str(job.behaviour.get("no_direction"))
    try:
        _choice(job)
    except NoCandidateError as error:
        return str(error)
    return ""


def _choice(job: Job) -> Choice:
    n_layers: int = job.behaviour["model"]["n_layers"]
    return select(job.read("scores.csv"), n_layers, **job.config.rule)


def summary(job: Job) -> dict[str, Any]:
    """The selected candidate with its scores, or why there is none, and how many there were."""
    table = job.read("candidates.csv") if job.made("selection", "candidates.csv") else None
    counts = {
        "n_candidates": 0 if table is None else len(table),
        "n_passing": 0 if table is None else int(table["passes"].sum()),
        "n_unscored": 0 if table is None else int(table["reason"].str.startswith(NOT_NEEDED).sum()),
        "thresholds": job.config.rule,
    }
    if table is None or not job.directed:
        return {"selected": None, "scores": None, "not_selected": why_none_is_selected(job), **counts}
    return _selected(table, job.direction.position, job.direction.layer) | counts


def _selected(table: pd.DataFrame, position: int, layer: int) -> dict[str, Any]:
    row = table[(table["position"] == position) & (table["layer"] == layer)].iloc[0]
    return {
        "selected": {
            "position": int(row["position"]),
            "layer": int(row["layer"]),
            "position_name": row["position_name"],
            "norm": float(row["norm"]),
        },
        "scores": {name: float(row[name]) for name in ("bypass", "induce", "kl")},
        "not_selected": None,
    }


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
                ("layer_sweeps", "candidate_map"),
                of_a_direction=True,
            ),
            Entry(80, "candidates", "candidates.csv", table_section.render, of_a_direction=True),
        ),
    ),
)
