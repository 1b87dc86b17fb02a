"""The main job as a sequence of steps, each done once and trusted by its manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..door import checked
from ..progress import Progress
from ..runs import Run
from .concept import Concept, is_local
from .config import RunConfig
from .job import Job
from .measurements import FORMS, OUTCOME, SELECTION, STEPS
from .page import write_report
from .step import Step


@checked
def run_pipeline(
    config: RunConfig, out: str | Path, *, on_progress: Progress | None = None
) -> dict[str, Any]:
    """Find, test and describe the direction of a model; returns what summary.json holds.

    A model that does not refuse, or no candidate that passes the rule, is a result: the summary's "selected"
    is None, "not_selected" says why, what needs no direction is measured, and the page shows it.

    Continues what an earlier call left in the folder, and redoes just the steps that a changed setting
    touches; what it left of other settings counts no more. Raises InputError with one line for settings,
    prompts or models that cannot be used; what was computed until then stays in the folder.
    """
    with Run.open(Path(out)) as run:
        job = Job(config, run, FORMS, on_progress)
        steps = [step.of(job.contrast.kinds) for step in STEPS]
        _plan(job, [step for step in steps if step.wanted(job)], steps)
        until = [step.name for step in steps].index(SELECTION) + 1
        for step in steps[:until]:
            _do(job, step)
        _plan(job, [step for step in steps if step.wanted(job) and _is_possible(step, job)], steps)
        _invalidate(job, job.steps[-1])
        for step in job.steps[until:]:
            _do(job, step)
        summary: dict[str, Any] = job.read("summary.json")
        model = run.manifest("behaviour").inputs["model"]
        run.finish(
            irreproducible=_irreproducible(config, job.concept, model),
            config=config.as_dict(),
            model=model,
            concept=job.concept.to_json(),
            prompts=job.contrast.source,
            data_sha256=job.contrast.sha256,
        )
    write_report(Path(out))
    return summary


def _is_possible(step: Step, job: Job) -> bool:
    """Whether a step's direction, where it needs one, was found."""
    return step.name == OUTCOME or job.directed or not step.needs_direction


def _plan(job: Job, steps: Sequence[Step], known: Sequence[Step]) -> None:
    """Plan the run: these of all known steps; the outcome builds on every other."""
    *measured, outcome = steps
    outcome = replace(outcome, after=tuple(step.name for step in measured))
    job.steps = (*measured, outcome)
    names = {step.name for step in steps}
    job.run.plan(
        {step.name: (step.inputs(job), step.after) for step in job.steps},
        without=[step.name for step in known if step.name not in names],
    )


def _do(job: Job, step: Step) -> None:
    """Do a step that is needed; what it changes invalidates the outcome that comes after it."""
    with job.run.step(step.name, inputs=step.inputs(job), after=step.after) as opened:
        if opened.needed:
            if step.name != OUTCOME:
                _invalidate(job, job.steps[-1])
            step.work(job, opened)


def _invalidate(job: Job, outcome: Step) -> None:
    """Remove the outcome of a run, and its page, when it is not the one that is planned."""
    if job.run.invalidate(outcome.name, outcome.inputs(job), outcome.after):
        (job.run.path / "report.html").unlink(missing_ok=True)


def _irreproducible(config: RunConfig, concept: Concept, model: Mapping[str, Any]) -> str:
    """Why nobody else could make the same results from the manifest; "" when they could."""
    if config.model != "organism" and "sha256" in model:
        return "the model is a local folder, known only by its hash"
    if isinstance(concept.positive, tuple):
        return "the prompts are listed in a local file, known only by their hash"
    if concept.positive is not None and is_local(concept.positive):
        return "the prompts are local files, known only by their hash"
    if config.splits is not None:
        return "the prompts are a local folder, known only by their hash"
    return ""
