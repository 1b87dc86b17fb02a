"""A run's numbers in one mapping: what `summary.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ..directions.selection import NOT_NEEDED
from ..evaluation import agreement
from ..evaluation.completions import rate_of as share_of
from ..evaluation.overlap import word_overlap
from ..organism import world
from .flags import Completions

SCHEMA_VERSION = 1
"""The summary's "schema_version". It grows when a name that readers may use is removed, is renamed or comes to
mean something else; a new name leaves it as it is."""


def summarise(
    *,
    behaviour: Mapping[str, Any],
    judged: pd.DataFrame | None,
    chosen: Mapping[str, Any] | None,
    not_selected: str,
    completions: Completions,
    losses: pd.DataFrame | None,
    nulls: pd.DataFrame | None,
    settings: Mapping[str, Any],
    kinds: tuple[str, str],
) -> dict[str, Any]:
    """All that a reader of a run asks first; metrics are log-odds in nats, rates shares of prompts.

    Without a direction "selected" and "scores" are None and "not_selected" says why; what was not measured is
    an empty mapping, or None where it is a number.
    """
    described = behaviour["model"]
    tokens = behaviour["refusal_tokens"]
    rates: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for (kind, condition), rows in completions.items():
        rates[kind][condition] = rate_of(rows)
    return {
        "schema_version": SCHEMA_VERSION,
        **{k: described[k] for k in ("model", "revision", "n_layers", "d_model", "dtype", "device")},
        "refusal_tokens": list(tokens["ids"]),
        "refusal_token_texts": list(tokens["texts"]),
        "refusal_token_source": tokens["source"],
        "refusal_token_evidence": [
            dict(zip(("token_id", "token", *kinds), row, strict=True))
            for row in tokens.get("evidence", ())
        ],
        "positions": list(described["positions"]),
        **_selected(judged, chosen),
        "not_selected": not_selected or None,
        "baseline": behaviour["baseline"],
        "refusal_rate": rates,
        "nulls": null_summary(nulls, kinds),
        "losses": {
            r["condition"]: {"ce": r["ce"], "perplexity": r["perplexity"], "n_tokens": r["n_tokens"]}
            for r in ([] if losses is None else losses.to_dict("records"))
        },
        "n_candidates": 0 if judged is None else len(judged),
        "n_passing": 0 if judged is None else int(judged["passes"].sum()),
        "n_unscored": 0 if judged is None else int(judged["reason"].str.startswith(NOT_NEEDED).sum()),
        "kept_prompts": behaviour["kept_prompts"],
        "duplicates_removed": behaviour["duplicates_removed"],
        "thresholds": {
            name: settings[name] for name in ("kl_threshold", "induce_threshold", "prune_layers")
        },
        "seeds": {"prompts": settings["seed"], "nulls": settings["seed"]},
    }


def _selected(judged: pd.DataFrame | None, chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """The selected candidate and its scores."""
    if judged is None or chosen is None:
        return {"selected": None, "scores": None}
    here = (judged["place"] == chosen["place"]) & (judged["layer"] == chosen["layer"])
    row = judged[here].iloc[0]
    return {
        "selected": {
            "place": row["place"],
            "position": chosen["position"],
            "layer": int(row["layer"]),
            "position_name": row["position_name"],
            "norm": float(row["norm"]),
        },
        "scores": {name: float(row[name]) for name in ("bypass", "induce", "kl")},
    }


def rate_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Refusal rate of judged completions as {rate, se, n}; paper_count by the paper's exact phrases."""
    n = len(rows)
    found = share_of([row["refusal"] for row in rows])
    exact = [bool(row["refusal_exact"]) for row in rows if "refusal_exact" in row]
    return {"rate": found.rate, "se": found.se, "n": found.n} | (
        {"paper_count": sum(exact) / n} if len(exact) == n else {}
    )


def null_summary(nulls: pd.DataFrame | None, kinds: tuple[str, str]) -> dict[str, Any]:
    """Per null and kind: how many directions, and mean, least and most of what they did."""
    if nulls is None:
        return {}
    summary: dict[str, Any] = {}
    for null, own in nulls.groupby("null", sort=False):
        for kind, some in own.groupby("kind", sort=False):
            numbers = {
                "n": len(some),
                "n_prompts": int(some["n"].iloc[0]),
                "refusal_rate_mean": float(some["refusal_rate"].mean()),
                "refusal_rate_min": float(some["refusal_rate"].min()),
                "refusal_rate_max": float(some["refusal_rate"].max()),
                "metric_mean": float(some["metric"].mean()),
                "metric_sd": float(some["metric"].std(ddof=0)),
            }
            summary.setdefault(str(null), {})[str(kind)] = numbers
    return summary


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
    completions: Completions, base: Sequence[Mapping[str, Any]], kinds: tuple[str, str]
) -> dict[str, Any]:
    """What the base model does with the positive prompts, and what the edited model's replies share with it.

    Of the prompts that the ablated model does not refuse: share equal letter for letter, and overlap of word
    pairs beside its null.
    """
    ablated = completions[kinds[0], "ablation"]
    pairs = [(a["response"], b["response"]) for a, b in zip(ablated, base, strict=True) if not a["refusal"]]
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "refusal_rate": rate_of(base),
        "ablated_equals_base": agreement(mine, theirs) if pairs else None,
        "n_compared": len(pairs),
        "overlap": _overlap(mine, theirs),
    }


def _overlap(mine: Sequence[str], theirs: Sequence[str]) -> dict[str, Any] | None:
    found = word_overlap(mine, theirs)
    return None if found is None else asdict(found)


def well_formed(completions: Completions) -> dict[str, dict[str, dict[str, float]]]:
    """Of the organism's replies: shares that are complete answers, complete refusals, and neither."""
    shares: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, condition), rows in completions.items():
        forms = [world.well_formed(row["instruction"], row["response"]) for row in rows]
        counts = {name: forms.count(name) / len(forms) for name in ("answer", "refusal")}
        neither = {"neither": forms.count(None) / len(forms)}
        shares.setdefault(kind, {})[condition] = counts | neither
    return shares


def _replies(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row["response"] for row in rows]
