"""The first step of the main job: what the plain model does with the prompts, whether it refuses or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..activations import mean_next_token_probabilities
from ..behaviours import FirstTokens, NoFirstTokens, choose_first_tokens
from ..behaviours.tokens import top_tokens
from ..conversations import row_of_prompt
from ..directions.finding import FilteredPrompts, filter_by_behaviour
from ..model import ChatModel
from ..prompts import PromptPair
from ..runs import Step
from .steps import Job, side_of

log = logging.getLogger(__name__)


def behaviour(job: Job, step: Step) -> None:
    """Refusal tokens; prompts filtered by the model's own behaviour; likeliest first tokens.

    Raises InputError, before any pass over prompts, where ablation by hooks would miss a write to the stream.
    Where there are no refusal tokens, or too few prompts remain, ``no_direction`` says why none is sought.
    """
    contrast = job.contrast
    job.require_room()
    job.model.require_writes_reached(allow_partial=job.config.allow_partial)
    tokens, reason = _first_tokens(job)
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    baseline: dict[str, float | None] = dict.fromkeys(contrast.kinds)
    for split in ("train", "val"):
        pair = getattr(contrast, split)
        if isinstance(tokens, NoFirstTokens):
            rows += _unfiltered(pair, split, contrast.kinds)
            continue
        filtered = filter_by_behaviour(
            job.model,
            pair,
            behaviour=tokens,
            batch_size=job.batch_size,
            on_progress=job.on_progress,
        )
        reason = reason or filtered.too_few(split)
        counts[split] = dict(zip(contrast.kinds, filtered.counts.values(), strict=True))
        # Of the last split, val: what bypass and induce start from.
        baseline = dict(zip(contrast.kinds, _means(filtered), strict=True))
        rows += _filtered(pair, filtered, split, contrast.kinds)
    if reason:
        log.info("no direction is sought: %s", reason)
    for side, kind in enumerate(contrast.kinds):
        test = side_of(contrast.test, side)
        rows += [{"split": "test", "kind": kind, **row_of_prompt(p), "kept": True} for p in test]
    step.write_json(
        "behaviour.json",
        {
            "refusal_tokens": _as_json(tokens),
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


def _first_tokens(job: Job) -> tuple[FirstTokens | NoFirstTokens, str]:
    """R and "", or what was found instead and why there is none."""
    given = job.config.refusal_tokens
    if given is not None:
        return FirstTokens.of(job.model, given), ""
    try:
        tokens = choose_first_tokens(
            job.model,
            job.contrast.train,
            batch_size=job.batch_size,
            on_progress=job.on_progress,
        )
    except NoFirstTokens as error:
        return error, str(error)
    return tokens, ""


def _as_json(tokens: FirstTokens | NoFirstTokens) -> dict[str, Any]:
    if isinstance(tokens, NoFirstTokens):
        return {"ids": (), "texts": (), "source": "none found", "evidence": tokens.evidence}
    return {name: getattr(tokens, name) for name in ("ids", "texts", "source", "evidence")}


def _means(filtered: FilteredPrompts) -> tuple[float | None, float | None]:
    """Mean score of the kept prompts of both kinds, None where none is kept."""
    positive, negative = filtered.positive_scores, filtered.negative_scores
    threshold = filtered.behaviour.threshold
    kept = (positive[positive > threshold], negative[negative < threshold])
    first, second = (float(scores.mean()) if len(scores) else None for scores in kept)
    return first, second


def _filtered(
    pair: PromptPair, filtered: FilteredPrompts, split: str, kinds: Sequence[str]
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for side, scores in enumerate((filtered.positive_scores, filtered.negative_scores)):
        kept = set(side_of(filtered.pair, side))
        rows += [
            {"split": split, "kind": kinds[side], **row_of_prompt(p), "kept": p in kept, "metric": m}
            for p, m in zip(side_of(pair, side), scores.tolist(), strict=True)
        ]
    return rows


def _unfiltered(pair: PromptPair, split: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Without refusal tokens there is no metric, and no prompt is known to behave as it should."""
    return [
        {"split": split, "kind": kind, **row_of_prompt(p), "kept": False, "metric": None}
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
