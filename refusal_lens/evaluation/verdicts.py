"""Whether the refusal metric and the judge of replies agree, prompt by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Disagreement:
    """Of n prompts: how many the metric alone takes for refused, and how many the judge alone."""

    n: int
    metric_alone: int
    judge_alone: int

    @property
    def share(self) -> float:
        """Share of prompts on which they disagree."""
        return (self.metric_alone + self.judge_alone) / self.n


def disagreement(rows: Iterable[Mapping[str, Any]]) -> Disagreement | None:
    """Compare ``metric > 0`` with the judge's verdict over rows of completions; None without a metric.

    >>> rows = [{"metric": 4.7, "refusal": False}, {"metric": -3.0, "refusal": False}]
    >>> disagreement(rows)
    Disagreement(n=2, metric_alone=1, judge_alone=0)
    """
    pairs = [(known(row) > 0, bool(row["refusal"])) for row in rows if not math.isnan(known(row))]
    if not pairs:
        return None
    return Disagreement(
        n=len(pairs),
        metric_alone=sum(metric and not judge for metric, judge in pairs),
        judge_alone=sum(judge and not metric for metric, judge in pairs),
    )


def known(row: Mapping[str, Any]) -> float:
    """The metric of a row, NaN where there is none."""
    metric = row.get("metric")
    return math.nan if metric is None else float(metric)
