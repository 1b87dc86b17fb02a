"""The first step: what the plain model does with the prompts, whether it refuses or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import pandas as pd
from msgspec import Meta, Struct

from ...activations import mean_next_token_probabilities
from ...behaviours import Behaviour, NoFirstTokens
from ...behaviours.tokens import top_tokens
from ...conversations import Prompt, row_of_prompt
from ...directions.finding import FilteredPrompts, filter_by_behaviour
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
from ..summary import behaviour_summary, model_summary, no_first_tokens

log = logging.getLogger(__name__)


class Kept(Struct):
    """How many prompts behaved as their kind should."""

    kept: Count
    of: Count


class FirstToken(Struct):
    """A first token that was weighed: its mean probability on both kinds of prompts."""

    token_id: TokenId
    token: str
    positive: Number
    negative: Number


class FirstTokensFacts(Struct):
    """The first tokens whose log-odds are a behaviour's score; no ids where none were found."""

    ids: list[TokenId]
    texts: list[str] = []
    against: list[TokenId] = []
    source: str = ""
    evidence: list[FirstToken] = []


Word = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[^\n]*[^\s][^\n]*$")]


class WordsFacts(Struct, forbid_unknown_fields=True):
    """What a page calls a behaviour."""

    noun: Word
    shows: Word
    lacks: Word
    score: Word
    prompts: Word = "prompts"
    transitive: bool = False


class About(Struct):
    """What a run says of its behaviour."""

    name: str
    unit: str
    words: WordsFacts
    threshold: float = 0.0
    judge: str | None = None
    first_tokens: FirstTokensFacts | None = None
    definition: dict[str, Any] | None = None


Kinds = Annotated[list[str], Meta(min_length=2, max_length=2)]


class BehaviourFile(Struct):
    """behaviour.json."""

    behaviour: About
    kinds: Kinds
    model: dict[str, Any]
    no_direction: str | None = None
    kept_prompts: dict[str, dict[str, Kept]] | None = None
    baseline: dict[str, Number] | None = None


class PromptRow(Struct):
    """A line of prompts.jsonl."""

    split: str
    kind: str
    instruction: str
    kept: bool
    score: Number = None
    messages: list[dict[str, str]] | None = None


def work(job: Job, step: OpenStep) -> None:
    """The behaviour; prompts filtered by what the model does with them; likeliest first tokens.

    Where the behaviour's first tokens are not found, or too few prompts remain, ``no_direction`` says why none is
    sought. Raises InputError, before any pass over prompts, where ablation by hooks would miss a write to the stream.
    """
    contrast = job.contrast
    require_room(job)
    job.model.require_writes_reached(allow_partial=job.config.allow_partial)
    about, facts, reason = _settled(job)
    rows: list[dict[str, Any]] = []
    counts: dict[str, Any] = {}
    baseline: dict[str, float | None] = dict.fromkeys(contrast.kinds)
    for split in ("train", "val"):
        pair = contrast.pair(split)
        if about is None:
            rows += _unfiltered(pair, split, contrast.kinds)
            continue
        filtered = filter_by_behaviour(
            job.model,
            pair,
            behaviour=about,
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
    rows += [
        {"split": "test", "kind": kind, **row_of_prompt(prompt), "kept": True}
        for kind, prompts in job.test_prompts.items()
        for prompt in prompts
    ]
    step.write_json(
        "behaviour.json",
        {
            "behaviour": facts,
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


def require_room(job: Job) -> None:
    """Raise InputError for a prompt of the run that does not fit the model with its reply."""
    c, contrast = job.config, job.contrast
    train, val, test = (
        [*pair.positive, *pair.negative] for pair in (contrast.train, contrast.val, contrast.test)
    )
    of_nulls = [prompt for prompts in job.test_prompts.values() for prompt in prompts[: c.null_prompts]]
    wanted: list[tuple[list[Prompt], int | None]] = [
        (train, 0),
        (val, 0),
        (test, c.max_new_tokens),
        (of_nulls, c.null_tokens),
    ]
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


def _settled(job: Job) -> tuple[Behaviour | None, dict[str, Any], str]:
    """The behaviour with what a page says of it and ""; or none, with why its first tokens were not found."""
    concept = job.concept
    try:
        about = concept.behaviour(
            job.model, job.contrast.train, batch_size=job.batch_size, on_progress=job.on_progress
        )
    except NoFirstTokens as error:
        return None, no_first_tokens(concept.name, concept.words, error.evidence), str(error)
    return about, behaviour_summary(about), ""


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
    for kind, prompts, kept, scores in zip(
        kinds,
        (pair.positive, pair.negative),
        (set(filtered.pair.positive), set(filtered.pair.negative)),
        (filtered.positive_scores, filtered.negative_scores),
        strict=True,
    ):
        rows += [
            {"split": split, "kind": kind, **row_of_prompt(p), "kept": p in kept, "score": score}
            for p, score in zip(prompts, scores.tolist(), strict=True)
        ]
    return rows


def _unfiltered(pair: PromptPair, split: str, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Without a behaviour there is no score, and no prompt is known to behave as it should."""
    return [
        {"split": split, "kind": kind, **row_of_prompt(p), "kept": False, "score": None}
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
    """Model, prompts, how they are written, and what scores and judges them."""
    c = job.config
    return {
        "model": fingerprint(c.model, c.revision, trust_remote_code=c.trust_remote_code),
        "prompts": job.contrast.sha256,
        "dtype": job.dtype,
        **chat_options(c.as_dict()),
        **job.concept.scored,
        # What was measured although a write is missed does not stand for a run that asks for all of them.
        **(c.pick("allow_partial") if c.allow_partial else {}),
    }


def summary(job: Job) -> dict[str, Any]:
    """The model, the behaviour and the kept prompts."""
    facts = job.behaviour
    names = ("kinds", "baseline", "kept_prompts", "duplicates_removed")
    return {
        **model_summary(facts["model"]),
        "behaviour": facts["behaviour"] | {"words": asdict(job.concept.words)},
        **{name: facts[name] for name in names},
    }


STEPS = (
    Step(
        "behaviour",
        work,
        inputs=inputs,
        files={
            "behaviour.json": BehaviourFile,
            "prompts.jsonl": PromptRow,
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
            "behaviour": About,
            "kinds": Kinds,
            "baseline": dict[str, Number],
            "kept_prompts": dict[str, dict[str, Kept]],
        },
        sections=(
            Entry(50, "top next tokens", "top_tokens.csv", tokens_section.render, ("top_tokens",)),
        ),
    ),
)
