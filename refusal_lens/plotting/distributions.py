"""How prompts are spread: their scores (paper, Fig. 10) and principal components by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.evaluation.conditions import condition_text
from refusal_lens.plotting import theme
from refusal_lens.plotting.labels import Labels, capital

_ADDED = ("addition", "subtraction")
_MOST_PANELS = 12


def score_histograms(scores: pd.DataFrame, *, labels: Labels, bins: int = 36) -> go.Figure:
    """The score of each prompt, positive over negative kind, a panel per condition (Fig. 10).

    Args:
        scores: rows (kind, condition, score), one per prompt. All panels share axis and bins.
        labels: the two kinds, the score and its threshold, which is dotted.
        bins: how many over the whole range.
    """
    panels = _panels(scores["condition"], labels)
    values = scores["score"].to_numpy(float)
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (-1.0, 1.0)
    width = max((high - low) / bins, 1e-6)
    figure = make_subplots(
        rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.3 / (len(panels) + 2),
        subplot_titles=[theme.title(title) for title in panels],
    )  # fmt: skip
    for row, conditions in enumerate(panels.values(), start=1):
        inside = scores[scores["condition"].isin(conditions)]
        for kind in dict.fromkeys(scores["kind"]):
            of_kind = inside.loc[inside["kind"] == kind, "score"].tolist()
            bar = _histogram(of_kind, kind, labels.kinds, (low, high + width, width))
            figure.add_trace(bar.update(showlegend=row == 1), row=row, col=1)
        line = {"color": theme.RULE, "width": 1, "dash": "dot"}
        figure.add_vline(x=labels.threshold, row=row, col=1, line=line)
        figure.update_yaxes(title_text="Prompts", row=row, col=1)
    figure.update_xaxes(title_text=theme.title(labels.score), row=len(panels), col=1)
    figure.update_layout(barmode="overlay", bargap=0.04)
    theme.left_titles(figure, len(panels))
    return theme.finish(figure, 140 + 170 * len(panels))


def _panels(conditions: pd.Series, labels: Labels) -> dict[str, tuple[str, ...]]:
    """Title to the conditions of a panel; addition and subtraction, which are of one kind each, share theirs."""
    positive, negative = labels.kinds
    panels: dict[str, tuple[str, ...]] = {}
    for condition in dict.fromkeys(conditions):
        if condition in _ADDED:
            panels[f"Addition to {negative}, subtraction from {positive}"] = _ADDED
        else:
            panels[capital(condition_text(condition))] = (condition,)
    return panels


def _histogram(
    values: list[float], kind: str, kinds: tuple[str, str], bins: tuple[float, float, float]
) -> go.Histogram:
    colour = theme.kind_colour(kind, kinds)
    return go.Histogram(
        x=values,
        xbins={"start": bins[0], "end": bins[1], "size": bins[2]},
        autobinx=False,
        name=theme.label(kind),
        legendgroup=theme.label(kind),
        marker={"color": theme.faded(colour, 0.55), "line": {"color": colour, "width": 1}},
        hovertemplate="%{x}: %{y} prompts",
    )


def pca_by_layer(
    points: pd.DataFrame,
    *,
    labels: Labels,
    layers: Sequence[int] | None = None,
    selected_layer: int | None = None,
    most: int = _MOST_PANELS,
) -> go.Figure:
    """First two principal components of the last token's residual stream, a panel per layer.

    Args:
        points: rows (layer, kind, pc1, pc2, explained1, explained2), one per prompt.
        labels: the two kinds.
        layers: which to draw; else at most `most`, evenly spaced, the selected one among them.
        selected_layer: set in bold with a star.
        most: panels, when `layers` is not given.
    """
    shown = list(layers) if layers is not None else _spread(points["layer"], selected_layer, most)
    columns = min(4, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = make_subplots(
        rows=rows, cols=columns, horizontal_spacing=0.05, vertical_spacing=0.28 / (rows + 0.8),
        subplot_titles=[_pca_title(points, layer, layer == selected_layer) for layer in shown],
    )  # fmt: skip
    for index, layer in enumerate(shown):
        at = {"row": index // columns + 1, "col": index % columns + 1}
        for kind in dict.fromkeys(points["kind"]):
            cloud = points[(points["layer"] == layer) & (points["kind"] == kind)]
            figure.add_trace(_cloud(cloud, kind, labels.kinds, show=index == 0), **at)
        if at["col"] == 1:
            figure.update_yaxes(title_text="PC 2", **at)
        if index + columns >= len(shown):
            figure.update_xaxes(title_text="PC 1", **at)
    figure.update_xaxes(nticks=4, tickfont={"size": 10.5})
    figure.update_yaxes(nticks=4, tickfont={"size": 10.5})
    theme.left_titles(figure, len(shown))
    return theme.finish(figure, 110 + 215 * rows, legend="top")


def _spread(layers: pd.Series, selected: int | None, most: int) -> list[int]:
    """At most `most` of the layers, evenly spaced from first to last, the selected one kept."""
    every = sorted({int(layer) for layer in layers})
    if len(every) <= most:
        return every
    picked = {every[round(i)] for i in np.linspace(0, len(every) - 1, most)}
    if selected in every and selected not in picked:
        nearest = min(picked, key=lambda layer: abs(layer - int(selected or 0)))
        picked = (picked - {nearest}) | {int(selected or 0)}
    return sorted(picked)


def _pca_title(points: pd.DataFrame, layer: int, selected: bool) -> str:
    rows = points[points["layer"] == layer]
    share = ""
    if {"explained1", "explained2"} <= set(points) and not rows.empty:
        share = f" \u00b7 {rows['explained1'].iloc[0]:.0%} + {rows['explained2'].iloc[0]:.0%}"
    return f"<b>\u2605 layer {layer}</b>{share}" if selected else f"layer {layer}{share}"


def _cloud(points: pd.DataFrame, kind: str, kinds: tuple[str, str], *, show: bool) -> go.Scatter:
    return go.Scatter(
        x=points["pc1"].tolist(),
        y=points["pc2"].tolist(),
        mode="markers",
        name=theme.label(kind),
        legendgroup=theme.label(kind),
        showlegend=show,
        marker={
            "color": theme.kind_colour(kind, kinds),
            "symbol": theme.kind_symbol(kind, kinds),
            "size": 5,
            "opacity": 0.65,
        },
        hovertemplate="(%{x:.3g}, %{y:.3g})",
    )
