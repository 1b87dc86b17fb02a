"""Scores of the candidates by layer and place (paper, Fig. 11; the reference's score plots)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plotting import theme
from refusal_lens.plotting.labels import Labels, capital
from refusal_lens.plotting.places import in_order, place_label, place_text, places_of, tokens_of

_SCORES = ("bypass", "induce", "kl")
_KL_FLOOR = 1e-4
_KL_TICKS = {10.0**d: f"{10.0**d:g}" for d in range(-3, 3)} | {_KL_FLOOR: "\u2264 0.0001"}
_DIVERGING = ((0.0, theme.BLUE), (0.5, "#FFFFFF"), (1.0, theme.VERMILLION))
_RISING = ((0.0, "#F4FAF7"), (1.0, "#00543D"))


def layer_sweep(
    scores: pd.DataFrame,
    *,
    labels: Labels,
    n_layers: int | None = None,
    selected: tuple[str, int] | None = None,
    baseline: Mapping[str, float] | None = None,
    kl_threshold: float = 0.1,
    induce_threshold: float = 0.0,
    prune_layers: float = 0.2,
) -> go.Figure:
    """Bypass, induce and KL score by source layer, a line per place (Fig. 11).

    Args:
        scores: one row per candidate: place or position, layer, bypass, induce, kl, and where known
            position_name, passes. NaN is a gap. Open markers are rejected candidates.
        labels: the two kinds and the behaviour.
        n_layers: the model's layers; the rejected region starts at `int((1 - prune_layers) * L)`.
        selected: (place, layer) of the selected candidate, starred.
        baseline: mean score of the unedited model by kind of prompts.
        kl_threshold: drawn in the KL panel.
        induce_threshold: drawn in the induce panel.
        prune_layers: the fraction of last layers that the rule rejects.

    KL is drawn on a log axis and values under 1e-4 (also the slightly negative ones that the
    epsilons allow) at 1e-4; the hover text has the number.
    """
    depth = _depth(scores, n_layers)
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.075,
        subplot_titles=[f"{text} ({better})" for text, better in _panels(labels).items()],
    )  # fmt: skip
    for index, place in enumerate(in_order(scores)):
        lines = scores[places_of(scores) == place].sort_values("layer")
        for row, score in enumerate(_SCORES, start=1):
            figure.add_trace(_line(lines, score, place=place, index=index), row=row, col=1)
    for row, kind in enumerate(labels.kinds, start=1):
        if kind in (baseline or {}) and np.isfinite((baseline or {})[kind]):
            style = {"color": theme.KIND_COLOURS[row - 1], "dash": "longdash", "width": 1.4}
            name = f"baseline, {theme.label(kind)}"
            figure.add_trace(_level((baseline or {})[kind], name, style, depth), row=row, col=1)
    _thresholds(figure, induce_threshold, kl_threshold, depth)
    _rejected(figure, depth, prune_layers)
    if selected is not None:
        _star(figure, scores, selected)
    return _sweep_layout(figure, labels, depth)


def candidate_map(
    scores: pd.DataFrame,
    *,
    labels: Labels,
    n_layers: int | None = None,
    selected: tuple[str, int] | None = None,
    prune_layers: float = 0.2,
) -> go.Figure:
    """Every candidate as a cell, place by layer, one panel per score.

    The colours of bypass and induce are those of their meaning: vermillion shows the behaviour, blue does
    not. A candidate without a score (not needed, or not a number) is a crossed grey cell, never a colour.
    """
    depth = _depth(scores, n_layers)
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.09,
        subplot_titles=list(_panels(labels)),
    )  # fmt: skip
    heights = {place: -index for index, place in enumerate(in_order(scores))}
    grids = {score: _grid(scores, score, heights, depth) for score in _SCORES}
    names = {height: theme.label(place_text(place)) for place, height in heights.items()}
    for row, score in enumerate(_SCORES, start=1):
        figure.add_trace(_cells(grids[score], score, names), row=row, col=1)
        crosses = _crosses(grids[score], scores, heights, show_legend=row == 1)
        figure.add_trace(crosses, row=row, col=1)
    _rejected(figure, depth, prune_layers, over=True)
    if selected is not None and selected[0] in heights:
        for row in (1, 2, 3):
            star = _star_trace([selected[1]], [heights[selected[0]]], "selected", row == 1)
            figure.add_trace(star, row=row, col=1)
    return _map_layout(figure, scores, heights, grids, labels=labels, depth=depth)


def _panels(labels: Labels) -> dict[str, str]:
    """What each panel shows, and which way is better."""
    positive, negative = labels.kinds
    return {
        theme.title(f"Bypass score: {positive} prompts, r ablated"): "lower is better",
        theme.title(f"Induce score: {negative} prompts, r added"): "higher is better",
        theme.title(f"KL score: {negative} prompts, r ablated"): "lower is better",
    }


def _depth(scores: pd.DataFrame, n_layers: int | None) -> int:
    return int(scores["layer"].max()) + 1 if n_layers is None else n_layers


def _line(lines: pd.DataFrame, score: str, *, place: str, index: int) -> go.Scatter:
    colour, dash, symbol = theme.place_style(index)
    values = lines[score].to_numpy(float)
    passes = lines["passes"].to_numpy(bool) if "passes" in lines else np.ones(len(lines), bool)
    return go.Scatter(
        x=lines["layer"].tolist(),
        y=(np.maximum(values, _KL_FLOOR) if score == "kl" else values).tolist(),
        customdata=[theme.number(v) for v in values],
        mode="lines+markers",
        name=place_label(place, tokens_of(lines)[place]),
        legendgroup=theme.label(place),
        legend="legend",
        showlegend=score == "bypass",
        connectgaps=False,
        line={"color": colour, "dash": dash, "width": 1.8},
        marker={
            "symbol": symbol,
            "size": 6.5,
            "color": [colour if p else "white" for p in passes],
            "line": {"color": colour, "width": 1.2},
        },
        hovertemplate="%{customdata}",
    )


def _thresholds(
    figure: go.Figure, induce_threshold: float, kl_threshold: float, depth: int
) -> None:
    rule = {"color": theme.RULE, "dash": "dashdot", "width": 1.2}
    figure.add_trace(_level(induce_threshold, "threshold", rule, depth), row=2, col=1)
    kl = _level(max(kl_threshold, _KL_FLOOR), "threshold", rule, depth)
    figure.add_trace(kl.update(showlegend=False), row=3, col=1)


def _level(value: float, name: str, line: dict[str, object], depth: int) -> go.Scatter:
    return go.Scatter(
        x=[-0.5, depth - 0.5],
        y=[value, value],
        mode="lines",
        name=name,
        legendgroup=name,
        line=line,
        hovertemplate=f"{name} {value:.4g}<extra></extra>",
    )


def _rejected(figure: go.Figure, depth: int, prune_layers: float, *, over: bool = False) -> None:
    """Shade (or veil) the layers that the rule never takes: layer >= int((1 - prune) L)."""
    cut = int(depth * (1 - prune_layers))
    if cut >= depth:
        return
    for row in (1, 2, 3):
        figure.add_vrect(
            x0=cut - 0.5, x1=depth - 0.5, row=row, col=1,
            fillcolor=theme.VEIL if over else theme.SHADE, line_width=0,
            layer="above" if over else "below",
        )  # fmt: skip
        figure.add_vline(
            x=cut - 0.5, row=row, col=1, line={"color": theme.RULE, "width": 1, "dash": "dot"}
        )
    if not over:
        box = {"symbol": "square", "size": 12, "color": "#E4E4E4"}
        name = f"rejected: layer \u2265 {cut}"
        square = go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=box)
        figure.add_trace(square, row=1, col=1)


def _star(figure: go.Figure, scores: pd.DataFrame, selected: tuple[str, int]) -> None:
    place, layer = selected
    chosen = scores[(places_of(scores) == place) & (scores["layer"] == layer)]
    if chosen.empty:
        return
    for row, score in enumerate(_SCORES, start=1):
        value = float(chosen[score].iloc[0])
        shown = max(value, _KL_FLOOR) if score == "kl" else value
        name = f"selected: layer {layer}, {theme.label(place_text(place))}"
        figure.add_trace(_star_trace([layer], [shown], name, row == 1), row=row, col=1)
        figure.add_vline(x=layer, row=row, col=1, line={"color": theme.GREY, "width": 1})


def _star_trace(x: list[int], y: Sequence[float], name: str, show: bool) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=list(y),
        mode="markers",
        name=name,
        legendgroup="selected",
        showlegend=show,
        hoverinfo="skip",
        marker={
            "symbol": "star",
            "size": 16,
            "color": theme.YELLOW,
            "line": {"color": theme.BLACK, "width": 1.3},
        },
    )


def _sweep_layout(figure: go.Figure, labels: Labels, depth: int) -> go.Figure:
    score = theme.title(capital(labels.words.score))
    for row, axis in enumerate((score, score, "KL divergence"), start=1):
        figure.update_yaxes(title_text=axis, row=row, col=1)
    figure.update_yaxes(
        type="log", tickvals=list(_KL_TICKS), ticktext=list(_KL_TICKS.values()), row=3, col=1
    )
    figure.update_xaxes(range=[-0.5, depth - 0.5], hoverformat="d")
    figure.update_xaxes(title_text="Source layer", row=3, col=1)
    figure.update_layout(hovermode="x unified")
    theme.left_titles(figure, 3)
    return theme.finish(figure, 860)


def _grid(
    scores: pd.DataFrame, score: str, heights: Mapping[str, int], depth: int
) -> pd.DataFrame:
    """Place, by its height in the map, by layer; NaN where there is no score."""
    rows = scores.assign(height=places_of(scores).map(heights))
    grid = rows.pivot_table(index="height", columns="layer", values=score, dropna=False)
    return grid.reindex(index=sorted(heights.values()), columns=range(depth))


def _cells(grid: pd.DataFrame, score: str, names: Mapping[int, str]) -> go.Heatmap:
    values = grid.to_numpy(float)
    shown = np.log10(np.maximum(values, _KL_FLOOR)) if score == "kl" else values
    return go.Heatmap(
        z=[[None if np.isnan(v) else float(v) for v in row] for row in shown],
        x=list(grid.columns),
        y=list(grid.index),
        customdata=[[theme.number(v) for v in row] for row in values],
        hovertext=[[names[height]] * grid.shape[1] for height in grid.index],
        coloraxis="coloraxis2" if score == "kl" else "coloraxis",
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="layer %{x}, %{hovertext}<br>" + score + " %{customdata}<extra></extra>",
    )


def _crosses(
    grid: pd.DataFrame, scores: pd.DataFrame, heights: Mapping[str, int], *, show_legend: bool
) -> go.Scatter:
    reasons = {}
    if "reason" in scores:
        keys = zip(places_of(scores).map(heights), scores["layer"], strict=True)
        reasons = dict(zip(keys, scores["reason"].astype(str), strict=True))
    places = {height: theme.label(place_text(place)) for place, height in heights.items()}
    missing = [(y, x) for y in grid.index for x in grid.columns if np.isnan(grid.loc[y, x])]
    return go.Scatter(
        x=[layer for _, layer in missing],
        y=[height for height, _ in missing],
        customdata=[theme.label(reasons.get(key, "no such candidate")) for key in missing],
        hovertext=[places[height] for height, _ in missing],
        mode="markers",
        name="no score (not needed or NaN)",
        legendgroup="none",
        showlegend=show_legend and bool(missing),
        marker={"symbol": "x-thin", "size": 7, "line": {"color": theme.GREY, "width": 1.4}},
        hovertemplate="layer %{x}, %{hovertext}<br>no score: %{customdata}<extra></extra>",
    )


def _map_layout(
    figure: go.Figure,
    scores: pd.DataFrame,
    heights: Mapping[str, int],
    grids: Mapping[str, pd.DataFrame],
    *,
    labels: Labels,
    depth: int,
) -> go.Figure:
    tokens = tokens_of(scores)
    figure.update_yaxes(
        tickvals=list(heights.values()),
        ticktext=[place_label(place, tokens[place]) for place in heights],
        ticks="", showgrid=False, range=[0.5 - len(heights), 0.5],
    )  # fmt: skip
    figure.update_xaxes(range=[-0.5, depth - 0.5], showgrid=False)
    figure.update_xaxes(title_text="Source layer", row=3, col=1)
    metric = np.concatenate([grids[s].to_numpy(float).ravel() for s in ("bypass", "induce")])
    bound = float(np.nanmax(np.abs(metric - labels.threshold))) if np.isfinite(metric).any() else 1.0
    bar = {"thickness": 16, "outlinewidth": 0, "title_font_size": 12, "tickfont_size": 11.5}
    score_bar = bar | {"title_text": theme.label(labels.words.score)}
    decades = [math.log10(kl) for kl in _KL_TICKS]
    kl_bar = bar | {"title_text": "KL", "tickvals": decades, "ticktext": [*_KL_TICKS.values()]}
    figure.update_layout(
        coloraxis={
            "colorscale": _DIVERGING,
            "cmin": labels.threshold - bound, "cmax": labels.threshold + bound,
            "colorbar": score_bar | {"len": 0.6, "y": 1, "yanchor": "top"},
        },
        coloraxis2={
            "colorscale": _RISING, "cmin": -4, "cmax": 1,
            "colorbar": kl_bar | {"len": 0.33, "y": 0, "yanchor": "bottom"},
        },
    )  # fmt: skip
    theme.left_titles(figure, 3)
    theme.finish(figure, 3 * max(120, 26 * len(heights)) + 150, legend="top")
    return figure.update_layout(plot_bgcolor="#E9E9E9")
