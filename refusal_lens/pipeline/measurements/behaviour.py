"""The first step: what the plain model does with the prompts, whether it refuses or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import pandas as pd
from msgspec import Meta, Struct

from ...activations import mean_next_token_probabilities
from ...directions.finding import Behaved, observe_behaviour, pick_refusal_tokens
from ...directions.refusal_tokens import NoRefusalTokens, RefusalTokens, top_tokens
from ...model import ChatModel, fingerprint
from ...prompts import PromptPair
from ...report.entry import Entry
from ...report.sections import tokens as tokens_section
from ...runs import OpenStep, Table
from ...runs.schema import Count, Number, TokenId
from ...runs.tables import COUNT, MOST_LAYERS
from ..config import chat_options
from ..job import Job
from ..step import Step

log = logging.getLogger(__name__)


class Kept(Struct):
    """How many prompts behaved as their kind should."""

    kept: Count
    of: Count


class Tokens(Struct):
    """The refusal tokens in behaviour.json."""

    ids: list[TokenId]
    texts: list[str] = []
    source: str = ""


class Behaviour(Struct):
    """behaviour.json."""

    refusal_tokens: Tokens | None
    model: dict[str, Any]
    kept_prompts: dict[str, dict[str, Kept]] | None = None
    baseline: dict[str, Number] | None = None


class Prompt(Struct):
    """A line of prompts.jsonl."""

    split: str
    kind: str
    instruction: str
    kept: bool
    metric: Number = None


def work(job: Job, step: OpenStep) -> None:
    """Refusal tokens; prompts filtered by the model's own behaviour; likeliest first tokens.

    Where there are no refusal tokens, or too few prompts remain, ``no_direction`` says why none is sought.
    """
    contrast = job.contrast
    require_room(job)
    tokens, reason = _refusal_tokens(job)
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    baseline: dict[str, float | None] = dict.fromkeys(contrast.kinds)
    for split in ("train", "val"):
        pair = contrast.pair(split)
        if not tokens.ids:
            rows += _unfiltered(pair, split, contrast.kinds)
            continue
        behaved = observe_behaviour(
            job.model,
            pair,
            refusal_tokens=tokens.ids,
            batch_size=job.batch_size,
            on_progress=job.on_progress,
        )
        reason = reason or behaved.too_few(split)
        counts[split] = dict(zip(contrast.kinds, behaved.counts.values(), strict=True))
        # Of the last split, val: what bypass and induce start from.
        baseline = dict(zip(contrast.kinds, _means(behaved), strict=True))
        rows += _filtered(pair, behaved, split, contrast.kinds)
    if reason:
        log.info("no direction is sought: %s", reason)
    rows += [
        {"split": "test", "kind": kind, "instruction": prompt, "kept": True}
        for kind, prompts in job.test_prompts.items()
        for prompt in prompts
    ]
    step.write_json(
        "behaviour.json",
        {
            "refusal_tokens": asdict(tokens),
            "no_direction": reason or None,
            "kept_prompts": counts,
            "baseline": baseline,
            "duplicates_removed": contrast.duplicates_removed,
            "source": contrast.source,
            "model": describe(job.model),
        },
    )
    step.write_jsonl("prompts.jsonl", rows)
    step.write_csv("top_tokens.csv", _top_tokens(job))


def require_room(job: Job) -> None:
    """Raise InputError for a prompt of the run that does not fit the model with its reply."""
    c, contrast = job.config, job.contrast
    train, val, test = (
        [*pair.positive, *pair.negative] for pair in (contrast.train, contrast.val, contrast.test)
    )
    of_nulls = [prompt for prompts in job.test_prompts.values() for prompt in prompts[: c.null_prompts]]
    wanted = [(train, 0), (val, 0), (test, c.max_new_tokens), (of_nulls, c.null_tokens)]
    for prompts, reply in wanted if c.n_null else wanted[:-1]:
        job.model.require_room(job.model.chat.render(prompts), reply)


def describe(model: ChatModel) -> dict[str, Any]:
    """The facts about a model that a summary names."""
    return {
        "model": model.name,
        "revision": model.revision,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "positions": list(model.chat.positions),
        "template_sha256": model.chat.template_sha256,
        "missed_writes": list(model.missed_writes),
    }


def _refusal_tokens(job: Job) -> tuple[RefusalTokens, str]:
    """R and "", or an R of no tokens and why there is none."""
    try:
        tokens = pick_refusal_tokens(
            job.model,
            job.contrast.train,
            given=job.concept.first_tokens,
            batch_size=job.batch_size,
            on_progress=job.on_progress,
        )
    except NoRefusalTokens as error:
        return RefusalTokens((), (), "none found", error.evidence), str(error)
    return tokens, ""


def _means(behaved: Behaved) -> tuple[float | None, float | None]:
    """Mean metric of the kept prompts of both kinds, None where none is kept."""
    refused, answered = behaved.positive_metric, behaved.negative_metric
    kept = (refused[refused > 0], answered[answered < 0])
    first, second = (float(metric.mean()) if len(metric) else None for metric in kept)
    return first, second


def _filtered(
    pair: PromptPair, behaved: Behaved, split: str, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind, prompts, kept, metric in zip(
        kinds,
        (pair.positive, pair.negative),
        (set(behaved.pair.positive), set(behaved.pair.negative)),
        (behaved.positive_metric, behaved.negative_metric),
        strict=True,
    ):
        rows += [
            {"split": split, "kind": kind, "instruction": p, "kept": p in kept, "metric": m}
            for p, m in zip(prompts, metric.tolist(), strict=True)
        ]
    return rows


def _unfiltered(pair: PromptPair, split: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Without refusal tokens there is no metric, and no prompt is known to behave as it should."""
    return [
        {"split": split, "kind": kind, "instruction": p, "kept": False, "metric": None}
        for kind, prompts in zip(kinds, (pair.positive, pair.negative), strict=True)
        for p in prompts
    ]


def _top_tokens(job: Job) -> pd.DataFrame:
    train = (job.contrast.train.positive, job.contrast.train.negative)
    likely = []
    for kind, prompts in zip(job.contrast.kinds, train, strict=True):
        p = mean_next_token_probabilities(
            job.model,
            prompts,
            batch_size=job.batch_size,
            on_progress=job.progress(f"top tokens, {kind}"),
        )
        likely.append(top_tokens(job.model, p).assign(kind=kind))
    return pd.concat(likely)[["kind", "token_id", "token", "probability"]]


def inputs(job: Job) -> dict[str, Any]:
    """Model, prompts, how they are written, and which tokens were asked for."""
    c = job.config
    return {
        "model": fingerprint(c.model, c.revision, trust_remote_code=c.trust_remote_code),
        "prompts": job.contrast.sha256,
        "dtype": job.dtype,
        **chat_options(c.as_dict()),
        **job.concept.scored,
    }


def summary(job: Job) -> dict[str, Any]:
    """The model, the refusal tokens and the kept prompts."""
    facts, kinds = job.behaviour, job.contrast.kinds
    tokens, model = facts["refusal_tokens"], facts["model"]
    names = ("model", "revision", "n_layers", "d_model", "dtype", "device", "positions")
    return {
        **{name: model[name] for name in names},
        "refusal_tokens": list(tokens["ids"]),
        "refusal_token_texts": list(tokens["texts"]),
        "refusal_token_source": tokens["source"],
        "refusal_token_evidence": [
            dict(zip(("token_id", "token", *kinds), row, strict=True))
            for row in tokens.get("evidence", ())
        ],
        **{name: facts[name] for name in ("baseline", "kept_prompts", "duplicates_removed")},
    }


STEPS = (
    Step(
        "behaviour",
        work,
        inputs=inputs,
        files={
            "behaviour.json": Behaviour,
            "prompts.jsonl": Prompt,
            "top_tokens.csv": Table({"token_id": COUNT}, ("probability",), ("kind", "token")),
        },
        summary=summary,
        summary_forms={
            "model": str,
            "revision": str,
            "n_layers": Annotated[int, Meta(ge=1, le=MOST_LAYERS)],
            "d_model": Annotated[int, Meta(ge=1, le=10**9)],
            "dtype": str,
            "device": str,
            "positions": list[str],
            "refusal_tokens": list[TokenId],
            "refusal_token_texts": list[str],
            "baseline": dict[str, Number],
            "kept_prompts": dict[str, dict[str, Kept]],
        },
        sections=(
            Entry(50, "top next tokens", "top_tokens.csv", tokens_section.render, ("top_tokens",)),
        ),
    ),
)
