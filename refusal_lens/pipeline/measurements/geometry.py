"""Geometry: cosine of the residual stream with r by layer, under each condition."""

from __future__ import annotations

from ...evaluation import cosine_by_layer
from ...evaluation.conditions import OF_KIND
from ...report.entry import Entry
from ...report.sections import cosine
from ...runs import OpenStep, Table
from ...runs.tables import LAYER, POSITION
from ..job import Job
from ..step import Step

CURVES = Table(
    {"layer": LAYER, "position": POSITION}, ("mean",), ("kind", "condition"),
    more=("sd", "n"), more_words=("quantity",),
)  # fmt: skip


def work(job: Job, step: OpenStep) -> None:
    """Cosine with r by layer under each condition."""
    edits = {
        kind: {condition: job.edit(condition) for condition in OF_KIND[side]}
        for side, kind in enumerate(job.contrast.kinds)
    }
    curves = cosine_by_layer(
        job.model,
        job.direction,
        prompts=job.test_prompts,
        edits=edits,
        batch_size=job.batch_size,
        on_progress=job.progress("cosine by layer"),
    )
    step.write_csv("curves.csv", curves)


STEPS = (
    Step(
        "geometry",
        work,
        ("selection",),
        files={"curves.csv": CURVES},
        sections=(
            Entry(
                30,
                "cosine similarity by layer",
                "curves.csv",
                cosine.render,
                ("cosine", "cosine_selected_place", "cosine_base"),
                of_a_direction=True,
            ),
        ),
    ),
)
