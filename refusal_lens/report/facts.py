"""What headlines and sections ask a run folder besides its files: effects, flags, what was left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refusal_lens.directions.selection import NOT_NEEDED
from refusal_lens.report.folder import Rate, RunFolder

Verdict = Literal["lowers", "raises", "none"]
_Z = 1.96


@dataclass(frozen=True)
class Scores:
    """The scores of some prompts, at least one, and the score above which a prompt shows the behaviour."""

    values: np.ndarray
    threshold: float

    @property
    def mean(self) -> float:
        """Over prompts."""
        return float(self.values.mean())

    @property
    def share(self) -> Rate:
        """The share of prompts above the threshold."""
        return {"rate": float((self.values > self.threshold).mean()), "n": float(self.values.size)}


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


def mean_change(before: Scores, after: Scores) -> Verdict:
    """Say "lowers", "raises", or "none" when a z-test of the means at 5% sees no difference.

    Paired where there are as many scores of both, which are then of the same prompts.
    """
    gap = after.mean - before.mean
    if before.values.size == after.values.size:
        error = _standard_error(after.values - before.values)
    else:
        error = math.hypot(_standard_error(before.values), _standard_error(after.values))
    if abs(gap) <= _Z * error or gap == 0:
        return "none"
    return "lowers" if gap < 0 else "raises"


def _standard_error(values: np.ndarray) -> float:
    return float(values.std() / math.sqrt(values.size))


def scores_of(run: RunFolder, side: int, condition: str) -> Scores | None:
    """The scores of one kind of test prompts (0 positive, 1 negative) under a condition; None without any."""
    rows = run.table("metrics.csv")
    if rows is None:
        return None
    here = (rows["kind"] == run.kinds[side]) & (rows["condition"] == condition)
    values = rows.loc[here, "score"].to_numpy(float)
    values = values[np.isfinite(values)]
    return Scores(values, run.labels.threshold) if values.size else None


def score_meaning(run: RunFolder) -> str:
    """What the score is, where it is one of first tokens, else ""."""
    tokens, noun = run.behaviour.get("first_tokens"), run.words.noun
    if tokens is None:
        return ""
    against = " against others" if tokens.get("against") else ""
    return f"log-odds of {'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun} token{against} as the first one"


def who_names_tokens(behaviour: Mapping[str, Any]) -> str:
    """Where a user names the first tokens of a behaviour."""
    return "--refusal-tokens" if behaviour.get("name") == "refusal" else "the concept\u2019s file"


def not_selected(run: RunFolder) -> str:
    """Why the run selected no direction; "" when it did, or is not finished."""
    reason = run.value("not_selected")
    return reason if isinstance(reason, str) and run.selected is None else ""


def flags(run: RunFolder) -> list[str]:
    """What a reviewer would object to, in sentences."""
    entries = run.value("flags")
    texts = (
        [flag.get("text") for flag in entries if isinstance(flag, Mapping)]
        if isinstance(entries, list)
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
    """A score with its sign: one decimal, below one a second."""
    digits = 1 if abs(value) >= 1 else 2
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def from_to(before: float, after: float, unit: str) -> str:
    """A change of a mean score."""
    return f"from {signed(before)} to {signed(after)} {unit}"
