"""The main job as a sequence of steps, each done once and trusted by its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from ..door import checked
from ..model import fingerprint
from ..progress import Progress
from ..report import write_report
from ..runs import Run, Step, read_csv, read_json, read_jsonl
from . import steps
from .behaviour import behaviour
from .config import RunConfig, chat_options
from .flags import find_flags
from .steps import CONDITIONS, Job
from .summary import base_summary, summarise, unchanged, well_formed

Work = Callable[[Job, Step], None]
OPTIONAL = ("base", "nulls")
"""Steps that a run is not always asked for, whatever the model does."""


@dataclass(frozen=True)
class Task:
    """A step of the main job: what does it, the steps before it, and what else determines it."""

    name: str
    work: Work
    after: tuple[str, ...]
    inputs: Mapping[str, Any]


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
        job = Job(config, run, on_progress)
        trust = config.trust_remote_code
        who = fingerprint(config.model, config.revision, trust_remote_code=trust)
        finding, tests = _finding(job, who), _testing(job)
        everything = [*finding, *tests, _summing_up(tests)]
        _ask(run, everything, everything)
        for task in finding:
            _do(job, task, before=everything[-1])
        tests = [test for test in tests if job.directed or "selection" not in test.after]
        summing_up = _summing_up(tests)
        _ask(run, [*finding, *tests, summing_up], everything)
        _withdraw(run, summing_up)
        for task in (*tests, summing_up):
            _do(job, task, before=summing_up)
        summary: dict[str, Any] = read_json(job.path("summary.json"))
        run.finish(
            irreproducible=_irreproducible(config, who),
            config=config.as_dict(),
            model=who,
            prompts=job.contrast.source,
            data_sha256=job.contrast.sha256,
        )
    write_report(Path(out))
    return summary


def _do(job: Job, task: Task, *, before: Task) -> None:
    """Do a step that is needed; what it changes takes back the outcome that comes after it."""
    with job.run.step(task.name, inputs=task.inputs, after=task.after) as step:
        if step.needed:
            if task.name != before.name:
                _withdraw(job.run, before)
            task.work(job, step)


def _ask(run: Run, tasks: Sequence[Task], everything: Sequence[Task]) -> None:
    """Tell the run what it is asked for: of everything that it may be, these tasks."""
    names = {task.name for task in tasks}
    others = dict.fromkeys((*(task.name for task in everything), *OPTIONAL))
    run.ask(
        {task.name: (task.inputs, task.after) for task in tasks},
        without=[name for name in others if name not in names],
    )


def _withdraw(run: Run, outcome: Task) -> None:
    """Take back the outcome of a run, and its page, when it is not the one asked for."""
    if run.withdraw(outcome.name, outcome.inputs, outcome.after):
        (run.path / "report.html").unlink(missing_ok=True)


def _irreproducible(config: RunConfig, who: Mapping[str, Any]) -> str:
    """Why nobody else could make the same results from the manifest; "" when they could."""
    if config.model != "organism" and "sha256" in who:
        return "the model is a local folder, known only by its hash"
    if config.harmful is not None and steps.is_local(config.harmful):
        return "the prompts are local files, known only by their hash"
    if config.splits is not None:
        return "the prompts are a local folder, known only by their hash"
    return ""


def _finding(job: Job, model: Mapping[str, Any]) -> list[Task]:
    """Behaviour, candidates, scores, selection."""
    c = job.config
    who = {
        "model": model,
        "prompts": job.contrast.sha256,
        "dtype": job.dtype,
        **chat_options(c.as_dict()),
        **c.pick("refusal_tokens"),
        # What was measured although a write is missed does not stand for a run that asks for all of them.
        **(c.pick("allow_partial") if c.allow_partial else {}),
    }
    # A lazy sweep leaves out what the exact choice does not need, and that depends on the thresholds.
    rule = c.pick("kl_threshold", "induce_threshold", "prune_layers")
    scored = {"mode": c.mode} | (rule if c.mode == "lazy" else {})
    return [
        Task("behaviour", behaviour, (), who),
        Task("candidates", steps.candidates, ("behaviour",), {}),
        Task("scores", steps.scores, ("candidates",), scored),
        Task("selection", steps.selection, ("scores",), rule),
    ]


def _testing(job: Job) -> list[Task]:
    """Completions under every condition, losses, geometry, components, the base model, nulls.

    Those after the selection need its direction, and are left out where it took none.
    """
    c, tasks = job.config, []
    for side, conditions in CONDITIONS.items():
        for condition in conditions:
            name = f"completions_{job.contrast.kinds[side]}_{condition}"
            work = partial(steps.completions, side=side, condition=condition)
            after = "behaviour" if condition == "baseline" else "selection"
            said = c.pick("max_new_tokens") | {"reply_ids": True}
            tasks.append(Task(name, work, (after,), said))
    baseline = f"completions_{job.contrast.kinds[1]}_baseline"
    tasks.append(Task("losses", steps.losses, ("selection", baseline), {}))
    tasks.append(Task("geometry", steps.geometry, ("selection",), {}))
    tasks.append(Task("components", steps.components, ("behaviour",), {}))
    if c.base_model is not None:
        known = fingerprint(c.base_model, trust_remote_code=c.trust_remote_code)
        base = {"base": known, **c.pick("max_new_tokens")}
        tasks.append(Task("base", steps.base_comparison, ("selection",), base))
    if c.n_null:
        chance = c.pick("n_null", "n_moves", "null_prompts", "null_tokens", "seed")
        tasks.append(Task("nulls", steps.null_edits, ("selection",), chance))
    return tasks


def _summing_up(tests: Sequence[Task]) -> Task:
    """The last step, after all that it sums up."""
    return Task("summary", _describe, ("selection", *(test.name for test in tests)), {})


def _describe(job: Job, step: Step) -> None:
    """metrics.csv and summary.json."""
    config, kinds, directed = job.config, job.contrast.kinds, job.directed
    completions = {
        (kinds[side], condition): read_jsonl(
            job.path(f"completions/{kinds[side]}_{condition}.jsonl")
        )
        for side, conditions in CONDITIONS.items()
        for condition in (conditions if directed else ("baseline",))
    }
    step.write_csv("metrics.csv", metrics_frame(completions))
    scored = job.made("selection", "candidates.csv")
    text = ("place", "position_name", "reason")
    summary = summarise(
        behaviour=job.behaviour,
        judged=read_csv(job.path("candidates.csv"), text=text) if scored else None,
        chosen=job.direction.provenance if directed else None,
        not_selected="" if directed else steps.why_none_is_selected(job),
        completions=completions,
        losses=read_csv(job.path("losses.csv")) if directed else None,
        nulls=read_csv(job.path("nulls.csv")) if directed and config.n_null else None,
        settings=config.as_dict(),
        kinds=kinds,
    )
    if directed:
        summary |= unchanged(completions, kinds)
        if config.base_model is not None:
            replies = read_jsonl(job.path(f"completions/{kinds[0]}_base.jsonl"))
            summary["base"] = base_summary(completions, replies, kinds)
    if config.model == "organism":
        summary["well_formed"] = well_formed(completions)
    curves = read_csv(job.path("curves.csv")) if directed else None
    summary["flags"] = find_flags(
        summary,
        completions,
        kinds,
        curves=curves,
        missed_writes=_missed(job.behaviour["model"].get("missed_writes", ())),
    )
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


def metrics_frame(completions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Refusal metric per test prompt: kind, condition, index, metric."""
    return pd.DataFrame(
        [
            {"kind": kind, "condition": condition, "index": i, "metric": row["metric"]}
            for (kind, condition), rows in completions.items()
            for i, row in enumerate(rows)
        ]
    )
