"""The outcome: every step's part of summary.json, what speaks against it, and each prompt's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from msgspec import Struct

from ... import __version__
from ...report.entry import Entry
from ...report.sections import metrics, provenance, reference
from ...runs import OpenStep, Table
from ...runs.schema import Count, Seconds
from ..flags import find_flags
from ..job import CONDITIONS, Job
from ..step import Step
from ..summary import SCHEMA_VERSION


class Flag(Struct):
    """What a reviewer would object to."""

    name: str
    text: str


class Agreement(Struct):
    """Whether the rule takes what a reference run took."""

    agrees: bool | None = None
    verdict: str = ""
    files: list[str] = []
    missing: list[str] = []
    notes: list[str] = []


def work(job: Job, step: OpenStep) -> None:
    """metrics.csv and summary.json."""
    from . import STEPS as ALL_STEPS

    planned = {planned.name: planned for planned in job.steps}
    summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
    for measured in (measured.of(job.contrast.kinds) for measured in ALL_STEPS):
        merge(summary, measured.absent)
        if measured.name in planned:
            merge(summary, measured.summary(job))
    summary["seeds"] = {"prompts": job.config.seed, "nulls": job.config.seed}
    kinds = job.contrast.kinds
    completions = {
        (kinds[side], condition): job.completions(side, condition)
        for side, conditions in CONDITIONS.items()
        for condition in (conditions if job.directed else ("baseline",))
    }
    step.write_csv("metrics.csv", metrics_frame(completions))
    summary["flags"] = find_flags(
        summary,
        completions,
        kinds,
        curves=job.read("curves.csv") if job.directed else None,
        missed_writes="; ".join(job.behaviour["model"].get("missed_writes", ())),
    )
    step.write_json("summary.json", summary | {"seconds": job.run.seconds, "version": __version__})


def merge(summary: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Put a part into a summary; mappings of the same name are put together."""
    for name, value in part.items():
        if isinstance(value, Mapping) and isinstance(summary.get(name), dict):
            merge(summary[name], value)
        else:
            summary[name] = dict(value) if isinstance(value, Mapping) else value


def metrics_frame(completions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Refusal metric per test prompt: kind, condition, index, metric."""
    return pd.DataFrame(
        [
            {"kind": kind, "condition": condition, "index": i, "metric": row["metric"]}
            for (kind, condition), rows in completions.items()
            for i, row in enumerate(rows)
        ]
    )


STEPS = (
    Step(
        "summary",
        work,
        ("selection",),
        files={"metrics.csv": Table({}, ("metric",), ("kind", "condition"), more=("index",))},
        summary_forms={
            "schema_version": Count,
            "seconds": dict[str, Seconds],
            "flags": list[Flag],
            "reference": Agreement,
            "version": str,
        },
        sections=(
            Entry(0, "agreement with the reference", "a reference run", reference.render, optional=True),
            Entry(40, "refusal metric of each prompt", "metrics.csv", metrics.render, ("metric_histograms",)),
            Entry(140, "provenance", "summary.json and manifest.json", provenance.render),
        ),
    ),
)
