"""Candidates: a difference of means per position and layer, over the prompts that behave as they should."""

from __future__ import annotations

from ...directions.finding import extract_candidates
from ...runs import OpenStep
from ..job import Job
from ..step import Step


def work(job: Job, step: OpenStep) -> None:
    """Difference-of-means candidates; none where the plain model gives no ground for a direction."""
    if job.behaviour.get("no_direction"):
        return
    candidates = extract_candidates(
        job.model,
        job.kept("train"),
        data_sha256=job.contrast.sha256,
        concept=job.contrast.name,
        places=job.concept.places or None,
        batch_size=job.batch_size,
        on_progress=job.on_progress,
    )
    with step.writing("candidates.safetensors") as path:
        candidates.save(path)


STEPS = (Step("candidates", work, ("behaviour",), lambda job: {"places": job.concept.places}),)
