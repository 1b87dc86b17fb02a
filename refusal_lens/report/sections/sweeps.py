"""The three scores of every candidate: lines by layer, and a map."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusal_lens.plotting import candidate_map, layer_sweep
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_SWEEP = (
    "A candidate per point, a line per post-instruction position. Filled markers pass the "
    "selection rule, open ones do not. Refusal metric: log-odds of the refusal tokens as the next "
    "token. Dashed: the unedited model. The shaded layers are never taken."
)
_STAR = {True: " The star is the selected candidate.", False: " None is selected."}
_MAP = (
    "The same candidates as cells. Vermillion: the edited model refuses; blue: it does not. "
    "Crossed grey cells have no score, because none was needed or it was not a number."
)


def render(run: RunFolder) -> Section | None:
    """Sweep figures from candidates.csv, with the summary's selection, thresholds and baselines."""
    scores = run.table("candidates.csv")
    if scores is None:
        return None
    depth = max(run.n_layers or 0, int(scores["layer"].max()) + 1)
    prune = run.number("thresholds", "prune_layers")
    where: dict[str, Any] = {
        "n_layers": depth,
        "selected": run.selected,
        "prune_layers": 0.2 if prune is None else prune,
    }
    sweep = layer_sweep(scores, baseline=_baseline(run), **_thresholds(run), **where)
    parts = (
        Plot("layer_sweeps", sweep, _SWEEP + _STAR[run.selected is not None]),
        Plot("candidate_map", candidate_map(_rows(scores), **where), _MAP),
    )
    title = "Where the direction was found" if run.selected else "Where a direction was sought"
    return Section("sweeps", title, parts)


def _baseline(run: RunFolder) -> dict[str, float]:
    found = {kind: run.number("baseline", kind) for kind in ("harmful", "harmless")}
    return {kind: value for kind, value in found.items() if value is not None}


def _thresholds(run: RunFolder) -> dict[str, Any]:
    found = {name: run.number("thresholds", name) for name in ("kl_threshold", "induce_threshold")}
    return {name: value for name, value in found.items() if value is not None}


def _rows(scores: pd.DataFrame) -> pd.DataFrame:
    return scores.drop_duplicates(["position", "layer"])
