"""The first step of the main job: what the plain model does with the prompts, whether it refuses or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..activations import mean_next_token_probabilities
from ..behaviours import FirstTokens
from ..behaviours.words import REFUSAL
from ..directions.finding import Behaved, observe_behaviour, pick_refusal_tokens
from ..directions.refusal_tokens import NoRefusalTokens, RefusalTokens, top_tokens
from ..model import ChatModel
from ..prompts import PromptPair
from ..runs import Step
from .steps import Job, side_of
from .summary import behaviour_summary, no_first_tokens

log = logging.getLogger(__name__)


def behaviour(job: Job, step: Step) -> None:
    """Refusal tokens; prompts filtered by the model's own behaviour; likeliest first tokens.

    Where there are no refusal tokens, or too few prompts remain, ``no_direction`` says why none is sought.
    """
    contrast = job.contrast
    job.require_room()
    tokens, reason = _refusal_tokens(job)
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    baseline: dict[str, float | None] = dict.fromkeys(contrast.kinds)
    for split in ("train", "val"):
        pair = getattr(contrast, split)
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
    for side, kind in enumerate(contrast.kinds):
        test = side_of(contrast.test, side)
        rows += [{"split": "test", "kind": kind, "instruction": p, "kept": True} for p in test]
    step.write_json(
        "behaviour.json",
        {
            "behaviour": _described(tokens),
            "kinds": list(contrast.kinds),
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
            given=job.config.refusal_tokens,
            batch_size=job.batch_size,
            on_progress=job.on_progress,
        )
    except NoRefusalTokens as error:
        return RefusalTokens((), (), "none found", error.evidence), str(error)
    return tokens, ""


def _described(tokens: RefusalTokens) -> dict[str, Any]:
    """What the summary says of the behaviour."""
    if not tokens.ids:
        return no_first_tokens("refusal", REFUSAL, tokens.evidence)
    return behaviour_summary(
        FirstTokens(tokens.ids, texts=tokens.texts, source=tokens.source, evidence=tokens.evidence)
    )


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
    for side, metric in enumerate((behaved.positive_metric, behaved.negative_metric)):
        kept = set(side_of(behaved.pair, side))
        rows += [
            {"split": split, "kind": kinds[side], "instruction": p, "kept": p in kept, "score": m}
            for p, m in zip(side_of(pair, side), metric.tolist(), strict=True)
        ]
    return rows


def _unfiltered(pair: PromptPair, split: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Without refusal tokens there is no metric, and no prompt is known to behave as it should."""
    return [
        {"split": split, "kind": kind, "instruction": p, "kept": False, "score": None}
        for side, kind in enumerate(kinds)
        for p in side_of(pair, side)
    ]


def _top_tokens(job: Job) -> pd.DataFrame:
    likely = []
    for side, kind in enumerate(job.contrast.kinds):
        prompts = side_of(job.contrast.train, side)
        p = mean_next_token_probabilities(
            job.model, prompts, batch_size=job.batch_size, on_progress=job.said(f"top tokens, {kind}")
        )
        likely.append(top_tokens(job.model, p).assign(kind=kind))
    return pd.concat(likely)[["kind", "token_id", "token", "probability"]]
