"""The outcome: every step's part of summary.json, what speaks against it, and each prompt's score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from msgspec import Struct

from ... import __version__
from ...evaluation.conditions import OF_KIND
from ...report.entry import Entry
from ...report.sections import provenance, reference, scores
from ...runs import OpenStep, Table
from ...runs.schema import Count, Seconds
from ..flags import Measured, find_flags
from ..job import Job
from ..step import Step
from ..summary import SCHEMA_VERSION, Completions


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
        for side, conditions in enumerate(OF_KIND)
        for condition in (conditions if job.directed else ("baseline",))
    }
    step.write_csv("metrics.csv", scores_frame(completions))
    curves = job.read("curves.csv") if job.directed else None
    missed = _missed(job.behaviour["model"].get("missed_writes", ()))
    summary["flags"] = find_flags(Measured(summary, completions, curves, missed))
    step.write_json("summary.json", summary | {"seconds": job.run.seconds, "version": __version__})


def _missed(writes: Sequence[str]) -> str:
    """What ablation by hooks leaves out, in a sentence; "" for nothing."""
    if not writes:
        return ""
    more = f" and {len(writes) - 1} more" if len(writes) > 1 else ""
    return (
        f"Hooks leave writes to the residual stream unedited ({writes[0]}{more}): under --allow-partial, figures "
        "under ablation are not those of edited weights."
    )


def merge(summary: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Put a part into a summary; mappings of the same name are put together."""
    for name, value in part.items():
        if isinstance(value, Mapping) and isinstance(summary.get(name), dict):
            merge(summary[name], value)
        else:
            summary[name] = dict(value) if isinstance(value, Mapping) else value


def scores_frame(completions: Completions) -> pd.DataFrame:
    """Score per test prompt: kind, condition, index, score."""
    return pd.DataFrame(
        [
            {"kind": kind, "condition": condition, "index": i, "score": row["score"]}
            for (kind, condition), rows in completions.items()
            for i, row in enumerate(rows)
        ]
    )


STEPS = (
    Step(
        "summary",
        work,
        ("selection",),
        lambda job: {"words": job.concept.words},
        files={"metrics.csv": Table({}, ("score",), ("kind", "condition"), more=("index",))},
        summary_forms={
            "schema_version": Count,
            "seconds": dict[str, Seconds],
            "flags": list[Flag],
            "reference": Agreement,
            "version": str,
        },
        sections=(
            Entry(0, "agreement with the reference", "a reference run", reference.render, optional=True),
            Entry(40, "scores of each prompt", "metrics.csv", scores.render, ("scores",)),
            Entry(140, "provenance", "summary.json and manifest.json", provenance.render),
        ),
    ),
)
