"""The three scores of every candidate: lines by layer, and a map."""

from __future__ import annotations

from typing import Any

import pandas as pd

from refusal_lens.plotting import candidate_map, capital, layer_sweep
from refusal_lens.plotting.places import places_of
from refusal_lens.report.facts import score_meaning
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_SWEEP = (
    "A candidate per point, a line per place in the prompt. Filled markers pass the "
    "selection rule, open ones do not.{meaning} Dashed: the unedited model. The shaded layers are never "
    "taken."
)
_STAR = {True: " The star is the selected candidate.", False: " None is selected."}
_MAP = (
    "The same candidates as cells. Vermillion: the edited model {shows}; blue: it does not. "
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
        "labels": run.labels,
        "n_layers": depth,
        "selected": run.selected,
        "prune_layers": 0.2 if prune is None else prune,
    }
    sweep = layer_sweep(scores, baseline=_baseline(run), **_thresholds(run), **where)
    meaning = score_meaning(run)
    meaning = f" {capital(run.words.score)}: {meaning}." if meaning else ""
    caption = _SWEEP.format(meaning=meaning) + _STAR[run.selected is not None]
    once = scores[~pd.DataFrame({"place": places_of(scores), "layer": scores["layer"]}).duplicated()]
    parts = (
        Plot("sweep", sweep, caption),
        Plot("candidate_map", candidate_map(once, **where), _MAP.format(shows=run.words.shows)),
    )
    title = "Where the direction was found" if run.selected else "Where a direction was sought"
    return Section("sweeps", title, parts)


def _baseline(run: RunFolder) -> dict[str, float]:
    means = {kind: run.number("baseline", kind) for kind in run.kinds}
    return {kind: mean for kind, mean in means.items() if mean is not None}


def _thresholds(run: RunFolder) -> dict[str, Any]:
    values = {name: run.number("thresholds", name) for name in ("kl_threshold", "induce_threshold")}
    return {name: value for name, value in values.items() if value is not None}
