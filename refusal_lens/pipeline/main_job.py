"""The main job as a sequence of steps, each done once and trusted by its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from .. import __version__
from ..model import fingerprint
from ..report import write_report
from ..runs import Run, Step, read_csv, read_json, read_jsonl
from . import steps
from .config import RunConfig
from .steps import CONDITIONS, Job, OnProgress
from .summary import base_summary, summarise, unchanged, well_formed

Work = Callable[[Job, Step], None]


def run_pipeline(
    config: RunConfig, out: str | Path, *, on_progress: OnProgress | None = None
) -> dict[str, Any]:
    """Find, test and describe the direction of a model; returns what summary.json holds.

    Continues what an earlier call left in the folder, and redoes just the steps that a changed setting
    touches. Raises InputError with one line for settings, prompts or models that cannot be used; what was
    computed until then stays in the folder.
    """
    with Run.open(Path(out)) as run:
        job = Job(config, run, on_progress)
        who = fingerprint(config.model, config.revision)
        _find(job, who)
        tested = _test(job)
        summary = _describe(job, tested)
        run.finish(
            irreproducible=_irreproducible(config, who),
            config=config.as_dict(),
            model=who,
            prompts=job.contrast.source,
            data_sha256=job.contrast.sha256,
        )
    write_report(Path(out))
    return summary


def _do(job: Job, name: str, work: Work, *, after: list[str], inputs: Mapping[str, Any]) -> None:
    with job.run.step(name, inputs=inputs, after=after) as step:
        if step.needed:
            work(job, step)


def _irreproducible(config: RunConfig, who: Mapping[str, Any]) -> str:
    """Why nobody else could make the same results from the manifest; "" when they could."""
    if config.model != "organism" and "sha256" in who:
        return "the model is a local folder, known only by its hash"
    if config.harmful is not None and steps.looks_like_a_file(config.harmful):
        return "the prompts are local files, known only by their hash"
    if config.splits is not None:
        return "the prompts are a local folder, known only by their hash"
    return ""


def _find(job: Job, model: Mapping[str, Any]) -> None:
    """Behaviour, candidates, scores, selection."""
    c = job.config
    who = {
        "model": model,
        "prompts": job.contrast.sha256,
        **c.pick("dtype", "system", "refusal_tokens"),
    }
    _do(job, "behaviour", steps.behaviour, after=[], inputs=who)
    _do(job, "candidates", steps.candidates, after=["behaviour"], inputs={})
    # A lazy sweep leaves out what the exact choice does not need, and that depends on the thresholds.
    rule = c.pick("kl_threshold", "induce_threshold", "prune_layers")
    scored = {"mode": c.mode} | (rule if c.mode == "lazy" else {})
    _do(job, "scores", steps.scores, after=["candidates"], inputs=scored)
    _do(job, "selection", steps.selection, after=["scores"], inputs=rule)


def _test(job: Job) -> list[str]:
    """Completions under every condition, losses, nulls, geometry; returns the steps' names."""
    c, done = job.config, []
    for side, conditions in CONDITIONS.items():
        for condition in conditions:
            name = f"completions_{job.contrast.kinds[side]}_{condition}"
            work = partial(steps.completions, side=side, condition=condition)
            after = ["behaviour"] if condition == "baseline" else ["selection"]
            _do(job, name, work, after=after, inputs=c.pick("max_new_tokens"))
            done.append(name)
    baseline = f"completions_{job.contrast.kinds[1]}_baseline"
    _do(job, "losses", steps.losses, after=["selection", baseline], inputs={})
    done.append("losses")
    _do(job, "geometry", steps.geometry, after=["selection"], inputs={})
    done.append("geometry")
    if c.base_model is not None:
        base = {"base": fingerprint(c.base_model), **c.pick("max_new_tokens")}
        _do(job, "base", steps.base_comparison, after=["selection"], inputs=base)
        done.append("base")
    if c.n_null:
        chance = c.pick("n_null", "n_moves", "null_prompts", "null_tokens", "seed")
        _do(job, "nulls", steps.null_edits, after=["selection"], inputs=chance)
        done.append("nulls")
    return done


def _describe(job: Job, tested: list[str]) -> dict[str, Any]:
    """metrics.csv and summary.json."""
    config, kinds = job.config, job.contrast.kinds

    def write(job: Job, step: Step) -> None:
        completions = {
            (kinds[side], condition): read_jsonl(
                job.path(f"completions/{kinds[side]}_{condition}.jsonl")
            )
            for side, conditions in CONDITIONS.items()
            for condition in conditions
        }
        step.write_csv("metrics.csv", metrics_frame(completions))
        compared = {}
        if config.base_model is not None:
            replies = read_jsonl(job.path(f"completions/{kinds[0]}_base.jsonl"))
            compared = {"base": base_summary(completions, replies, kinds)}
        if config.model == "organism":
            compared["well_formed"] = well_formed(completions)
        step.write_json(
            "summary.json",
            summarise(
                described=job.behaviour["model"],
                behaviour=job.behaviour,
                judged=read_csv(job.path("candidates.csv"), text=("position_name", "reason")),
                chosen=job.direction.provenance,
                completions=completions,
                losses=read_csv(job.path("losses.csv")),
                nulls=read_csv(job.path("nulls.csv")) if config.n_null else None,
                settings=config.as_dict(),
                kinds=kinds,
            )
            | {"unchanged": unchanged(completions, kinds)}
            | compared
            | {"seconds": job.run.seconds, "version": __version__},
        )

    _do(job, "summary", write, after=["selection", *tested], inputs={})
    summary: dict[str, Any] = read_json(job.path("summary.json"))
    return summary


def metrics_frame(completions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Refusal metric per test prompt: kind, condition, index, metric."""
    return pd.DataFrame(
        [
            {"kind": kind, "condition": condition, "index": i, "metric": row["metric"]}
            for (kind, condition), rows in completions.items()
            for i, row in enumerate(rows)
        ]
    )
