"""The suffix study as one more step of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..door import checked
from ..progress import Progress
from ..runs import Run
from .finding import LoadOptions, open_run
from .measurements import FORMS, suffix
from .measurements.suffix import SuffixConfig, SuffixJob
from .page import write_report

__all__ = ["SuffixConfig", "run_suffix_study"]


@checked
def run_suffix_study(
    folder: str | Path,
    config: SuffixConfig | None = None,
    *,
    options: LoadOptions | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Add the suffix study to a run folder and its page; returns what suffix/summary.json holds.

    The model, direction, behaviour and test prompts are the run's own; options say how its model is
    loaded. Raises InputError for an unfinished run or a suffix that cannot be used; an earlier study
    stays as it is until the new one is whole.
    """
    path = Path(folder)
    job = SuffixJob(open_run(path, options), config or SuffixConfig(), on_progress)
    (step,) = suffix.STEPS
    with (
        Run.open(path) as run,
        run.addition(step.name, inputs=step.inputs(job), after=step.after) as opened,
    ):
        if opened.needed:
            step.work(job, opened)
    write_report(path)
    summary: dict[str, Any] = FORMS.read(path, "suffix/summary.json")
    return summary
