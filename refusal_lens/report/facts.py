"""What headlines and sections ask a run folder besides its files: effects, flags, what was left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusal_lens.directions.selection import NOT_NEEDED
from refusal_lens.report.folder import Rate, RunFolder

Verdict = Literal["lowers", "raises", "none"]
_Z = 1.96


@dataclass(frozen=True)
class Metric:
    """The refusal metric of some prompts: its mean, the share of them above zero, and how many."""

    mean: float
    share: Rate


def change(before: Rate, after: Rate) -> Verdict:
    """Say "lowers", "raises", or "none" when a two-proportion z-test at 5% sees no difference."""
    n_before, n_after = before.get("n", 0.0), after.get("n", 0.0)
    gap = after["rate"] - before["rate"]
    if n_before <= 0 or n_after <= 0:
        bound = _Z * math.hypot(before.get("se", 0.0), after.get("se", 0.0))
    else:
        pooled = (before["rate"] * n_before + after["rate"] * n_after) / (n_before + n_after)
        bound = _Z * math.sqrt(pooled * (1 - pooled) * (1 / n_before + 1 / n_after))
    if abs(gap) <= bound or gap == 0:
        return "none"
    return "lowers" if gap < 0 else "raises"


def metric_of(run: RunFolder, kind: str, condition: str) -> Metric | None:
    """The refusal metric of one kind of test prompts under a condition; None when not measured."""
    rows = run.table("metrics.csv")
    if rows is None:
        return None
    own = rows.loc[(rows["kind"] == kind) & (rows["condition"] == condition), "metric"]
    values = own.to_numpy(float)
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    share: Rate = {"rate": float((values > 0).mean()), "n": float(values.size)}
    return Metric(float(values.mean()), share)


def null_metric(run: RunFolder, null: str, kind: str) -> float | None:
    """Mean refusal metric over the random draws of one null; None when not measured."""
    rows = run.table("nulls.csv")
    if rows is None or "metric" not in rows:
        return None
    values = rows.loc[(rows["null"] == null) & (rows["kind"] == kind), "metric"].dropna()
    return float(values.mean()) if len(values) else None


def not_selected(run: RunFolder) -> str:
    """Why the run selected no direction; "" when it did, or is not finished."""
    reason = run.value("not_selected")
    return reason if isinstance(reason, str) and run.selected is None else ""


def flags(run: RunFolder) -> list[str]:
    """What a reviewer would object to, in sentences."""
    found = run.value("flags")
    texts = (
        [flag.get("text") for flag in found if isinstance(flag, Mapping)]
        if isinstance(found, list)
        else []
    )
    return [text for text in texts if isinstance(text, str) and text]


def passing(run: RunFolder) -> str:
    """How many candidates pass, "at least" that many where others have no verdict; "" if not known."""
    table = run.table("candidates.csv")
    if table is not None and "passes" in table:
        pass_ = int(table["passes"].sum())
        lazy = "reason" in table and table["reason"].astype(str).str.startswith(NOT_NEEDED).any()
        # A lazy sweep that finds none has ruled out every other.
        return f"at least {pass_}" if lazy and pass_ else str(pass_)
    n, known = run.number("n_candidates"), run.number("n_passing")
    return "" if known is None or n == 0 else f"{known:.0f}"


def signed(value: float) -> str:
    """A metric with its sign, one decimal."""
    return f"{value:+.1f}".replace("-", "\u2212")
