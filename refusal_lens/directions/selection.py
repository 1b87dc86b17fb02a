"""The paper's selection rule over a table of scored candidates, with a reason for each rejection."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd
from pandas.api.types import is_numeric_dtype

from ..chat import Place
from ..display import shown
from ..door import checked
from ..errors import InputError, UnmetError

SCORES = ("bypass", "induce", "kl")
NOT_NEEDED = "not needed"
"""The reason of a candidate that a lazy sweep did not have to score in full."""


@checked
@dataclass(frozen=True)
class Thresholds:
    """The rule's settings: kl <= kl_threshold, induce >= induce_threshold, layer < int((1 - prune) L).

    Boundaries are inclusive and the layer bound is floored, as in the reference implementation (the
    paper's text has strict inequalities and no floor).
    """

    kl_threshold: float = 0.1
    induce_threshold: float = 0.0
    prune_layers: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.prune_layers < 1:
            raise InputError(f"prune_layers: got {self.prune_layers}, need 0 <= share < 1")
        if math.isnan(self.kl_threshold) or math.isnan(self.induce_threshold):
            raise InputError("selection thresholds: got NaN, need numbers")

    def layer_bound(self, n_layers: int) -> int:
        """The first layer that the rule never takes, ``int(L (1 - prune))``."""
        return int(n_layers * (1.0 - self.prune_layers))


@shown("place", "layer", "scores", "n_passing", "table")
@dataclass(frozen=True, eq=False)
class Selection:
    """What the rule takes: place and layer, its scores, and the table with passes and reason."""

    place: Place
    layer: int
    scores: dict[str, float]
    table: pd.DataFrame
    thresholds: Thresholds

    @property
    def position(self) -> int | None:
        """The post-instruction token, -1 the last; None for another place."""
        return self.place.position

    @property
    def n_passing(self) -> int:
        """How many candidates pass the rule."""
        return int(self.table["passes"].sum())


class NoCandidateError(UnmetError):
    """No candidate passes the rule; ``table`` has the reason for each."""

    def __init__(self, message: str, table: pd.DataFrame) -> None:
        super().__init__(message)
        self.table = table


@checked
def select(table: pd.DataFrame, n_layers: int, rule: Thresholds | None = None) -> Selection:
    """The candidate of least bypass among those that pass the rule (paper, appendix C.1).

    table needs the columns layer, bypass, induce, kl, and place or position. Ties go to the earlier row of a table of
    places, and to the earlier position, then the lower layer, of one that has positions alone. rule: the paper's
    thresholds by default. Raises NoCandidateError, with the nearest miss in its message, when none passes.
    """
    rule = rule or Thresholds()
    marked = mark_passing(table, n_layers, rule)
    passing = marked[marked["passes"]]
    if passing.empty:
        raise NoCandidateError(explain_failure(marked, n_layers, rule), marked)
    order = ["bypass"] if "place" in table else ["bypass", "position", "layer"]
    best = passing.sort_values(order, kind="stable").iloc[0]
    return Selection(
        place=_place(best),
        layer=int(best["layer"]),
        scores={name: float(best[name]) for name in SCORES},
        table=marked,
        thresholds=rule,
    )


def mark_passing(table: pd.DataFrame, n_layers: int, rule: Thresholds) -> pd.DataFrame:
    """The table with ``passes`` and ``reason`` ("" for those that pass), rows in their order."""
    at = "place" if "place" in table else "position"
    missing = {at, "layer", *SCORES} - set(table.columns)
    if missing:
        raise InputError(f"candidate table: no column {', '.join(sorted(missing))}")
    numbers = ("layer", *SCORES) if at == "place" else ("position", "layer", *SCORES)
    texts = [c for c in numbers if not is_numeric_dtype(table[c])]
    if texts:
        raise InputError(f"candidate table: got texts in column {', '.join(texts)}, need numbers")
    marked = table.copy()
    reasons = [_reason(row, n_layers, rule) for row in table.to_dict("records")]
    marked["passes"] = [reason == "" for reason in reasons]
    marked["reason"] = reasons
    return marked


def _reason(row: dict, n_layers: int, rule: Thresholds) -> str:
    """Every condition that fails, in words; "" when none does."""
    bound = rule.layer_bound(n_layers)
    if row["layer"] >= bound:
        return f"layer >= {bound} (last {rule.prune_layers:.0%} of layers)"
    if row.get("skipped"):
        return f"{NOT_NEEDED}: {row['skipped']}"
    unknown = [name for name in SCORES if math.isnan(row[name])]
    if unknown:
        return "NaN: " + ", ".join(unknown)
    fails = []
    if row["kl"] > rule.kl_threshold:
        fails.append(f"kl {row['kl']:.3g} > {rule.kl_threshold:g}")
    if row["induce"] < rule.induce_threshold:
        fails.append(f"induce {row['induce']:.3g} < {rule.induce_threshold:g}")
    return "; ".join(fails)


def explain_failure(marked: pd.DataFrame, n_layers: int, rule: Thresholds) -> str:
    """Why no candidate passes: how many fail each condition, and the one that comes nearest."""
    inside = marked[marked["layer"] < rule.layer_bound(n_layers)]
    known = inside.dropna(subset=list(SCORES))
    over, under = known["kl"] > rule.kl_threshold, known["induce"] < rule.induce_threshold
    counts = (
        f"{len(marked) - len(inside)} in the last {rule.prune_layers:.0%} of layers, "
        f"{len(inside) - len(known)} NaN, {int(over.sum())} with kl > {rule.kl_threshold:g}, "
        f"{int(under.sum())} with induce < {rule.induce_threshold:g}"
    )
    message = f"selection: 0 of {len(marked)} candidates pass ({counts})"
    if known.empty:
        return f"{message}; no admissible candidate has scores; try another dtype (float32)"
    near = known.loc[_distance(known, rule).idxmin()]
    advice = []
    if near["kl"] > rule.kl_threshold:
        advice.append(f"--kl-threshold {_round_up(near['kl']):g}")
    if near["induce"] < rule.induce_threshold:
        advice.append(f"--induce-threshold {-_round_up(-near['induce']):g}")
    return (
        f"{message}; nearest miss: {_where(near)}, layer {int(near['layer'])} "
        f"({near['reason']}); relax with {' '.join(advice)}"
    )


def _place(row: pd.Series) -> Place:
    """The place of a row; tables of earlier versions and of others know positions only."""
    return Place.parse(row["place"]) if "place" in row else Place.post(int(row["position"]))


def _where(row: pd.Series) -> str:
    place = _place(row)
    return str(place) if place.position is None else f"position {place.position}"


def _distance(known: pd.DataFrame, rule: Thresholds) -> pd.Series:
    """How far each candidate is from passing, in nats: log-ratio of kl plus log-odds of induce.

    A kl below a thousandth counts as one: under a threshold of zero, candidates that do nothing would else be
    nearer than any that works.
    """
    smallest = 1e-3
    ratio = known["kl"].clip(lower=smallest) / max(rule.kl_threshold, smallest)
    lack = (rule.induce_threshold - known["induce"]).clip(lower=0)
    return ratio.map(math.log).clip(lower=0) + lack


def _round_up(value: float) -> float:
    """Two significant digits, never below the value."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 1) if value else 0.01
    return math.ceil(value / step) * step
