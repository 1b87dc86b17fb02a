"""Cosine similarity with the direction by layer (paper, Figs. 5, 22 and 24)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from refusal_lens.evaluation.conditions import CONDITIONS
from refusal_lens.plotting import theme
from refusal_lens.plotting.labels import Labels
from refusal_lens.plotting.places import in_order, places_of

_ORDER = tuple(CONDITIONS)


def cosine_by_layer(
    curves: pd.DataFrame,
    *,
    labels: Labels,
    place: str | None = None,
    selected_layer: int | None = None,
    conditions: Sequence[str] | None = None,
) -> go.Figure:
    """Mean cosine with r^ by layer, with population-SD bands, for each kind and condition.

    Colour and marker say which kind, the dash which condition.

    Args:
        curves: rows (kind, condition, layer, place or position, mean, sd); a `quantity` column, where there
            is one, must say "cosine" for a row to count.
        labels: the two kinds and the behaviour; other kinds (a suffix, another model) take spare colours.
        place: where in the prompt; the last token there is unless given.
        selected_layer: the layer that r was taken from, marked by a line.
        conditions: which to draw, all unless given.
    """
    rows = curves[curves["quantity"] == "cosine"] if "quantity" in curves else curves
    rows = rows[places_of(rows) == (in_order(rows)[0] if place is None else place)]
    kinds = list(dict.fromkeys(rows["kind"]))
    figure = go.Figure()
    shown = _sorted(rows["condition"], conditions)
    for condition in shown:
        for kind in kinds:
            series = rows[(rows["kind"] == kind) & (rows["condition"] == condition)]
            if not series.empty:
                _add_series(figure, series.sort_values("layer"), labels.kinds, shown, kinds)
    if selected_layer is not None:
        figure.add_vline(
            x=selected_layer, line={"color": theme.GREY, "width": 1},
            annotation={
                "text": f"r taken here (layer {selected_layer})", "yanchor": "bottom", "y": 1,
                "xanchor": "center", "font": {"size": 11.5, "color": theme.RULE},
            },
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": theme.GREY, "width": 1}, layer="below")
    figure.update_xaxes(title_text="Layer", hoverformat="d")
    figure.update_yaxes(title_text=theme.title(f"Cosine similarity with {labels.words.noun} direction"))
    figure.update_layout(hovermode="x unified")
    return theme.finish(figure, 440)


def _sorted(conditions: pd.Series, wanted: Sequence[str] | None) -> list[str]:
    names = list(dict.fromkeys(conditions))
    ranked = [c for c in _ORDER if c in names] + [c for c in names if c not in _ORDER]
    return ranked if wanted is None else [c for c in ranked if c in wanted]


def _add_series(
    figure: go.Figure,
    series: pd.DataFrame,
    kinds: tuple[str, str],
    conditions: Sequence[str],
    shown: Sequence[str],
) -> None:
    kind, condition = str(series["kind"].iloc[0]), str(series["condition"].iloc[0])
    group, colour = theme.title(f"{kind} {condition}"), theme.kind_colour(kind, kinds, shown)
    layers, mean = series["layer"].tolist(), series["mean"].to_numpy(float)
    if "sd" in series and series["sd"].notna().any():
        sd = series["sd"].to_numpy(float)
        figure.add_trace(_band(layers, mean - sd, mean + sd, colour=colour, group=group))
    edit = theme.edit_label(condition)
    name = theme.label(kind) + (f", {edit}" if edit else "")
    figure.add_trace(
        go.Scatter(
            x=layers,
            y=mean.tolist(),
            mode="lines+markers",
            name=name,
            legendgroup=group,
            line={
                "color": colour,
                "dash": theme.condition_dash(condition, conditions),
                # Both ablated curves lie on zero: the lower one is drawn wider so that it shows.
                "width": 4 if (kind, condition) == (kinds[0], "ablation") else 2.2,
            },
            marker={"symbol": theme.kind_symbol(kind, kinds, shown), "size": 7, "color": colour},
            hovertemplate="%{y:.3f}",
        )
    )


def _band(
    layers: list[int], low: np.ndarray, high: np.ndarray, *, colour: str, group: str
) -> go.Scatter:
    return go.Scatter(
        x=layers + layers[::-1],
        y=[*high.tolist(), *low[::-1].tolist()],
        fill="toself",
        fillcolor=theme.faded(colour, 0.13),
        line={"width": 0},
        mode="lines",
        legendgroup=group,
        showlegend=False,
        hoverinfo="skip",
    )
