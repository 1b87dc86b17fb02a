"""A run's numbers in one mapping: what `summary.json` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from ..evaluation import Rate, agreement
from ..metrics import binomial_standard_error
from ..organism import world


def summarise(
    *,
    described: Mapping[str, Any],
    behaviour: Mapping[str, Any],
    judged: pd.DataFrame,
    chosen: Mapping[str, Any],
    completions: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    losses: pd.DataFrame,
    nulls: pd.DataFrame | None,
    settings: Mapping[str, Any],
    kinds: tuple[str, str],
) -> dict[str, Any]:
    """All that a reader of a run asks first; metrics are log-odds in nats, rates shares of prompts."""
    row = judged[
        (judged["position"] == chosen["position"]) & (judged["layer"] == chosen["layer"])
    ].iloc[0]
    tokens = behaviour["refusal_tokens"]
    rates: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for (kind, condition), rows in completions.items():
        rates[kind][condition] = rate_of(rows)
    return {
        **{k: described[k] for k in ("model", "revision", "n_layers", "d_model", "dtype", "device")},
        "refusal_tokens": list(tokens["ids"]),
        "refusal_token_texts": list(tokens["texts"]),
        "refusal_token_source": tokens["source"],
        "positions": list(described["positions"]),
        "selected": {
            "position": int(row["position"]),
            "layer": int(row["layer"]),
            "position_name": row["position_name"],
            "norm": float(row["norm"]),
        },
        "scores": {name: float(row[name]) for name in ("bypass", "induce", "kl")},
        "baseline": behaviour["baseline"],
        "refusal_rate": rates,
        "nulls": null_summary(nulls, kinds),
        "losses": {
            r["condition"]: {"ce": r["ce"], "perplexity": r["perplexity"], "n_tokens": r["n_tokens"]}
            for r in losses.to_dict("records")
        },
        "n_candidates": len(judged),
        "n_passing": int(judged["passes"].sum()),
        "kept_prompts": behaviour["kept_prompts"],
        "duplicates_removed": behaviour["duplicates_removed"],
        "thresholds": {
            name: settings[name] for name in ("kl_threshold", "induce_threshold", "prune_layers")
        },
        "seeds": {"prompts": settings["seed"], "nulls": settings["seed"]},
    }


def rate_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Refusal rate of judged completions as {rate, se, n}."""
    n = len(rows)
    rate = sum(bool(row["refusal"]) for row in rows) / n
    found = Rate(rate, binomial_standard_error(rate, n), n)
    return {"rate": found.rate, "se": found.se, "n": found.n}


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


Completions = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""(kind, condition) -> the rows of its completions file."""


def unchanged(completions: Completions, kinds: tuple[str, str]) -> dict[str, float]:
    """Share of negative prompts whose reply an edit leaves as it was, letter for letter."""
    plain = _replies(completions[kinds[1], "baseline"])
    return {"ablation": agreement(_replies(completions[kinds[1], "ablation"]), plain)}


def base_summary(
    completions: Completions, base: Sequence[Mapping[str, Any]], kinds: tuple[str, str]
) -> dict[str, Any]:
    """What the base model does with the positive prompts, and how often the edited model says the same.

    Of the prompts that the ablated model does not refuse.
    """
    ablated = completions[kinds[0], "ablation"]
    pairs = [(a["response"], b["response"]) for a, b in zip(ablated, base, strict=True) if not a["refusal"]]
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "refusal_rate": rate_of(base),
        "ablated_equals_base": agreement(mine, theirs) if pairs else None,
        "n_compared": len(pairs),
    }


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
