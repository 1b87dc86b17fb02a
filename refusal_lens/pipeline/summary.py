"""What `summary.json` says of completions and nulls: rates, overlaps, and what chance does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ..evaluation import agreement
from ..evaluation.completions import rate_of as share_of
from ..evaluation.overlap import word_overlap

SCHEMA_VERSION = 1
"""The summary's "schema_version". It grows when a name that readers may use is removed, is renamed or comes to
mean something else; a new name leaves it as it is."""

Row = Mapping[str, Any]
"""A row of a completions file."""


def rate_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Refusal rate of judged completions as {rate, se, n}; paper_count by the paper's exact phrases."""
    n = len(rows)
    found = share_of([row["refusal"] for row in rows])
    exact = [bool(row["refusal_exact"]) for row in rows if "refusal_exact" in row]
    return {"rate": found.rate, "se": found.se, "n": found.n} | (
        {"paper_count": sum(exact) / n} if len(exact) == n else {}
    )


def null_summary(nulls: pd.DataFrame) -> dict[str, Any]:
    """Per null and kind: how many directions, and mean, least and most of what they did."""
    summary: dict[str, Any] = {}
    for (null, kind), draws in nulls.groupby(["null", "kind"], sort=False):
        rate, metric = draws["refusal_rate"], draws["metric"]
        summary.setdefault(str(null), {})[str(kind)] = {
            "n": len(draws),
            "n_prompts": int(draws["n"].iloc[0]),
            "refusal_rate_mean": float(rate.mean()),
            "refusal_rate_min": float(rate.min()),
            "refusal_rate_max": float(rate.max()),
            "metric_mean": float(metric.mean()),
            "metric_sd": float(metric.std(ddof=0)),
        }
    return summary


def unchanged(ablated: Sequence[Row], plain: Sequence[Row]) -> dict[str, Any]:
    """What an ablated model's replies to the negative prompts share with the plain model's.

    "unchanged": share equal letter for letter; "overlap": that of their word pairs, beside its null.
    """
    edited, unedited = _replies(ablated), _replies(plain)
    return {
        "unchanged": {"ablation": agreement(edited, unedited)},
        "overlap": {"ablated_with_plain": _overlap(edited, unedited)},
    }


def base_summary(ablated: Sequence[Row], base: Sequence[Row]) -> dict[str, Any]:
    """What the base model does with the positive prompts, and what the edited model's replies share with it.

    Of the prompts that the ablated model does not refuse: share equal letter for letter, and overlap of word
    pairs beside its null.
    """
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


def _replies(rows: Sequence[Row]) -> list[str]:
    return [row["response"] for row in rows]
