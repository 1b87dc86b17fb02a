"""Exports of the direction: weights and files for other tools, each a step that is added to a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from msgspec import Struct

from ...display import shown
from ...report.entry import Entry
from ...report.sections import exports as section
from ...runs import OpenStep, Table
from ...runs.schema import Number
from ..step import Step


class ParityRow(Struct):
    """Hooks against files, in one quantity."""

    quantity: str
    kind: str
    hooks: Number
    files: Number
    difference: Number
    allowed: Number
    equal: bool | None = None


class Export(Struct):
    """exports/*.json."""

    to: str
    edit: str
    strength: float
    norm_preserving: bool
    exactness: str | None
    left_unedited: list[str]
    notes: list[str]
    parity: list[ParityRow] | None
    made: str
    out: str = ""


@shown("label")
@dataclass(frozen=True)
class ExportRecord:
    """What an export leaves in its run: its label, the record, and the map of writers where there is one."""

    label: str
    entry: Mapping[str, Any]
    writers: pd.DataFrame | None = None


def work(record: ExportRecord, step: OpenStep) -> None:
    """The record and the map of writers."""
    step.write_json(f"exports/{record.label}.json", record.entry)
    if record.writers is not None:
        step.write_csv(f"exports/{record.label}.writers.csv", record.writers)


def inputs(record: ExportRecord) -> dict[str, Any]:
    """What was exported, and when: an export is done anew each time, also twice within a second."""
    names = ("to", "out", "edit", "strength")
    return {name: record.entry[name] for name in names} | {"at": time.time_ns()}


STEP = Step(
    "export",
    work,
    ("selection",),
    inputs,
    files={
        "exports/*.json": Export,
        "exports/*.writers.csv": Table(
            {},
            ("layer",),
            ("parameter", "role", "shape", "treatment", "why"),
            more_words=("after_norm",),
        ),
    },
    sections=(Entry(130, "exports", "exports/", section.render, optional=True),),
    addition=True,
)
STEPS = (STEP,)


def step_of(label: str) -> Step:
    """The step of one export."""
    return replace(STEP, name=f"export-{label}")
