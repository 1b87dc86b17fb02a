"""Cosine similarity with the direction by layer."""

from __future__ import annotations

import pandas as pd

from refusal_lens.plotting import cosine_by_layer
from refusal_lens.plotting.places import in_order, place_text
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_CAPTION = (
    "Mean over test {prompts} at {where}; the bands are one population standard deviation. "
    "{ablated}Layer l is the residual stream entering block l."
)

_ZERO = 0.05
_BASE = (
    "The chat model and the base model that it was tuned from, both with the chat model\u2019s "
    "direction, at the last token (as in Fig. 24 of the paper): how much of the direction was "
    "there before {noun} was trained."
)


def render(run: RunFolder) -> Section | None:
    """The last token, and the position r was taken from where that is another one."""
    curves = run.table("curves.csv")
    if curves is None:
        return None
    there = in_order(curves)
    place, layer = run.selected or (there[0], None)
    wheres = {there[0]: "the last token" if there[0] == "post[-1]" else place_text(there[0])}
    if place != there[0] and place in there:
        wheres[place] = f"{place_text(place)}, where r was taken"
    plots = []
    for index, (shown, where) in enumerate(wheres.items()):
        figure = cosine_by_layer(curves, labels=run.labels, place=shown, selected_layer=layer)
        name = "cosine" if index == 0 else "cosine_selected_place"
        caption = _CAPTION.format(prompts=run.words.prompts, where=where, ablated=_ablated(curves))
        plots.append(Plot(name, figure, caption))
    both = run.table("base_curves.csv")
    if both is not None:
        figure = cosine_by_layer(both, labels=run.labels, selected_layer=layer)
        plots.append(Plot("cosine_base", figure, _BASE.format(noun=run.words.noun)))
    return Section("cosine", "Cosine similarity by layer", tuple(plots))


def _ablated(curves: pd.DataFrame) -> str:
    """What the ablated curves, which should lie at zero, do."""
    left = curves.loc[curves["condition"] == "ablation", "mean"].abs()
    if left.empty:
        return ""
    if left.max() <= _ZERO:
        return "The ablated curves lie at zero, as ablation at every write makes them. "
    return (
        f"The ablated curves should lie at zero, and leave it by up to {left.max():.2g}: ablation "
        "misses a write to the stream. "
    )
