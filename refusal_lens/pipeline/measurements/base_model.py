"""The base model: what the model before its tuning replies, and where r stands in it."""

from __future__ import annotations

from typing import Any

from ...errors import InputError
from ...evaluation import complete, cosine_in_both
from ...model import fingerprint
from ...runs import OpenStep
from ..job import Job
from ..step import Step
from ..summary import base_summary
from .completions import Completion
from .geometry import CURVES


def work(job: Job, step: OpenStep) -> None:
    """Replies of the base model to the positive prompts, and cosine with r by layer in both models."""
    c, kind = job.config, job.contrast.kinds[0]
    base = job.load(str(c.base_model), base=None)
    if base.d_model != job.model.d_model or base.n_layers != job.model.n_layers:
        raise InputError(
            f"base model {c.base_model}: has {base.n_layers} layers of {base.d_model}, need "
            f"{job.model.n_layers} of {job.model.d_model}; is it the base of {c.model}?"
        )
    completions = complete(
        base,
        job.test_prompts[kind],
        behaviour=job.about,
        judge=job.concept.judge,
        max_new_tokens=c.max_new_tokens,
        batch_size=job.batch_size,
        on_progress=job.progress(f"completions, {kind}, base model"),
    )
    step.write_jsonl(f"completions/{kind}_base.jsonl", (completion.to_row() for completion in completions))
    curves = cosine_in_both(
        job.model,
        base,
        job.direction,
        prompts=job.test_prompts,
        batch_size=job.batch_size,
        on_progress=job.progress("cosines of both models"),
    )
    step.write_csv("base_curves.csv", curves)


def inputs(job: Job) -> dict[str, Any]:
    """The base model, and the length of replies."""
    c = job.config
    model = fingerprint(str(c.base_model), trust_remote_code=c.trust_remote_code)
    return {"base": model, **c.pick("max_new_tokens")}


def summary(job: Job) -> dict[str, Any]:
    """What the base model does, and what the edited model's replies share with its."""
    kinds = job.contrast.kinds
    ablated = {(kinds[0], "ablation"): job.completions(0, "ablation")}
    return base_summary(ablated, job.completions(0, "base"), kinds)


STEPS = (
    Step(
        "base",
        work,
        ("selection", "completions_{positive}_ablation"),
        inputs,
        wanted=lambda job: job.config.base_model is not None,
        files={"base_curves.csv": CURVES, "completions/*.jsonl": Completion},
        summary=summary,
    ),
)
