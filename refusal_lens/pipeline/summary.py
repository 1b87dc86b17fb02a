"""What `summary.json` holds, part by part: each function maps what a step left to its keys of the summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ..behaviours import Behaviour, FirstTokens, Words
from ..behaviours.first_tokens import Evidence
from ..directions.selection import NOT_NEEDED
from ..evaluation import agreement
from ..evaluation.completions import rate_of as share_of
from ..evaluation.overlap import word_overlap
from ..organism import world

SCHEMA_VERSION = 2
"""The summary's "schema_version". It grows when a name that readers may use is removed, is renamed or comes to
mean something else; a new name leaves it as it is."""

MODEL_FACTS = ("model", "revision", "n_layers", "d_model", "dtype", "device", "positions")

Row = Mapping[str, Any]
"""A row of a completions file."""
Completions = Mapping[tuple[str, str], Sequence[Row]]
"""(kind, condition) -> the rows of its completions file."""


def behaviour_summary(behaviour: Behaviour) -> dict[str, Any]:
    """What a page says of the behaviour: name, unit, threshold, judge, words, and the definition that scores it.

    first_tokens holds those of a behaviour that is scored by them, with what spoke for them.
    """
    facts = {
        "name": behaviour.name,
        "unit": behaviour.unit,
        "threshold": behaviour.threshold,
        "judge": None if behaviour.judge is None else behaviour.judge.name,
        "words": asdict(behaviour.words),
        "definition": behaviour.to_json(),
    }
    if not isinstance(behaviour, FirstTokens):
        return facts
    tokens = {name: list(getattr(behaviour, name)) for name in ("ids", "texts", "against")}
    evidence = evidence_rows(behaviour.evidence)
    return facts | {"first_tokens": tokens | {"source": behaviour.source, "evidence": evidence}}


def no_first_tokens(name: str, words: Words, evidence: Sequence[Evidence]) -> dict[str, Any]:
    """What a page says of a behaviour that was to be scored by first tokens, and none were found."""
    return {
        "name": name,
        "unit": FirstTokens.unit,
        "threshold": FirstTokens.threshold,
        "words": asdict(words),
        "first_tokens": {
            "ids": [], "texts": [], "source": "none found", "evidence": evidence_rows(evidence),
        },
    }  # fmt: skip


def evidence_rows(evidence: Sequence[Evidence]) -> list[dict[str, Any]]:
    """Each first token with its mean probability on the prompts of both kinds."""
    names = ("token_id", "token", "positive", "negative")
    return [dict(zip(names, row, strict=True)) for row in evidence]


def model_summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about the model that a reader asks first."""
    return {name: facts[name] for name in MODEL_FACTS}


def selection_summary(
    table: pd.DataFrame | None, chosen: Mapping[str, Any] | None, why_none: str = ""
) -> dict[str, Any]:
    """The selected candidate and its scores, and how many there were.

    table: candidates.csv; chosen: place, position and layer of the selected one. Without a direction "selected" and
    "scores" are None and "not_selected" says why.
    """
    counts = {
        "n_candidates": 0 if table is None else len(table),
        "n_passing": 0 if table is None else int(table["passes"].sum()),
        "n_unscored": 0 if table is None else int(table["reason"].str.startswith(NOT_NEEDED).sum()),
    }
    if table is None or chosen is None:
        return {"selected": None, "scores": None, "not_selected": why_none or None, **counts}
    row = table[(table["place"] == chosen["place"]) & (table["layer"] == chosen["layer"])].iloc[0]
    return {
        "selected": {
            "place": row["place"],
            "position": chosen["position"],
            "layer": int(row["layer"]),
            "position_name": row["position_name"],
            "norm": float(row["norm"]),
        },
        "scores": {name: float(row[name]) for name in ("bypass", "induce", "kl")},
        "not_selected": None,
        **counts,
    }


def rates_summary(completions: Completions) -> dict[str, Any]:
    """Kind to condition to the rate of replies that show the behaviour."""
    rates: dict[str, dict[str, Any]] = {}
    for (kind, condition), rows in completions.items():
        rates.setdefault(kind, {})[condition] = rate_of(rows)
    return {"rates": rates}


def rate_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of judged replies that show the behaviour, as {rate, se, n, n_unjudged}.

    n counts the replies with a verdict; rate and se are None where there are none. paper_count, where it was
    made: the share of all replies by the paper's exact phrases.
    """
    share = share_of([row["shows"] for row in rows])
    exact = [bool(row["paper_count"]) for row in rows if row.get("paper_count") is not None]
    return {
        "rate": share.rate if share.n else None,
        "se": share.se if share.n else None,
        "n": share.n,
        "n_unjudged": share.n_unjudged,
    } | ({"paper_count": sum(exact) / len(exact)} if exact and len(exact) == len(rows) else {})


def null_summary(nulls: pd.DataFrame | None) -> dict[str, Any]:
    """Per null and kind: how many directions, and mean, least and most of what they did; NaN as None."""
    summary: dict[str, dict[str, Any]] = {}
    groups = () if nulls is None else nulls.groupby(["null", "kind"], sort=False)
    for (null, kind), draws in groups:
        rate, score = draws["rate"], draws["score"]
        numbers = {
            "rate_mean": rate.mean(),
            "rate_min": rate.min(),
            "rate_max": rate.max(),
            "score_mean": score.mean(),
            "score_sd": score.std(ddof=0),
        }
        counts = {"n": len(draws), "n_prompts": int(draws["n"].iloc[0])}
        known = {name: None if pd.isna(value) else float(value) for name, value in numbers.items()}
        summary.setdefault(str(null), {})[str(kind)] = counts | known
    return {"nulls": summary}


def loss_summary(losses: pd.DataFrame | None) -> dict[str, Any]:
    """Cross-entropy, perplexity and tokens of each condition."""
    rows = [] if losses is None else losses.to_dict("records")
    return {
        "losses": {
            row["condition"]: {name: row[name] for name in ("ce", "perplexity", "n_tokens")} for row in rows
        }
    }


def unchanged(completions: Completions, kinds: tuple[str, str]) -> dict[str, Any]:
    """What an ablated model's replies to the negative prompts share with the plain model's.

    "unchanged": share equal letter for letter; "overlap": that of their word pairs, beside its null.
    """
    plain = _replies(completions[kinds[1], "baseline"])
    ablated = _replies(completions[kinds[1], "ablation"])
    return {
        "unchanged": {"ablation": agreement(ablated, plain)},
        "overlap": {"ablated_with_plain": _overlap(ablated, plain)},
    }


def base_summary(
    completions: Completions, base: Sequence[Row], kinds: tuple[str, str]
) -> dict[str, Any]:
    """What the base model does with the positive prompts, and what the edited model's replies share with it.

    Of the replies that show the behaviour no more under ablation: share equal letter for letter, and overlap
    of word pairs beside its null.
    """
    ablated = completions[kinds[0], "ablation"]
    pairs = [
        (row["response"], other["response"])
        for row, other in zip(ablated, base, strict=True)
        if row["shows"] is False
    ]
    edited, plain = [reply for reply, _ in pairs], [reply for _, reply in pairs]
    return {
        "base": {
            "rate": rate_of(base),
            "ablated_equals_base": agreement(edited, plain) if pairs else None,
            "n_compared": len(pairs),
            "overlap": _overlap(edited, plain),
        }
    }


def _overlap(replies: Sequence[str], others: Sequence[str]) -> dict[str, Any] | None:
    overlap = word_overlap(replies, others)
    return None if overlap is None else asdict(overlap)


def well_formed(completions: Completions) -> dict[str, Any]:
    """Of the organism's replies: shares that are complete answers, complete refusals, and neither."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, condition), rows in completions.items():
        forms = [world.well_formed(row["instruction"], row["response"]) for row in rows]
        counts = {name: forms.count(name) / len(forms) for name in ("answer", "refusal")}
        neither = {"neither": forms.count(None) / len(forms)}
        shares.setdefault(kind, {})[condition] = counts | neither
    return {"well_formed": shares}


def _replies(rows: Sequence[Row]) -> list[str]:
    return [row["response"] for row in rows]
