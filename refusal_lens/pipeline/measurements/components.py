"""Components: principal components of the plain model's last token, by layer."""

from __future__ import annotations

from ...activations import cache_residuals
from ...evaluation import principal_components
from ...report.entry import Entry
from ...report.sections import pca
from ...runs import OpenStep, Table
from ...runs.tables import LAYER
from ..job import Job
from ..step import Step


def work(job: Job, step: OpenStep) -> None:
    """Principal components of the plain model's last token, by layer."""
    streams = {
        kind: cache_residuals(
            job.model,
            prompts,
            places=["post[-1]"],
            batch_size=job.batch_size,
            on_progress=job.progress(f"components, {kind}"),
        )
        for kind, prompts in job.test_prompts.items()
    }
    step.write_csv("pca.csv", principal_components(streams))


STEPS = (
    Step(
        "components",
        work,
        ("behaviour",),
        files={
            "pca.csv": Table({"layer": LAYER}, ("pc1", "pc2"), ("kind",), more=("explained1", "explained2"))
        },
        sections=(Entry(60, "principal components", "pca.csv", pca.render, ("pca",)),),
    ),
)
