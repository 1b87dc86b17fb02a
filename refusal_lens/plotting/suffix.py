"""Figures of the suffix study that are about conditions and prompts rather than heads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plotting import theme
from refusal_lens.plotting.cosine import cosine_by_layer
from refusal_lens.plotting.heads import wrapped
from refusal_lens.plotting.labels import Labels, capital


def suffix_cosine(
    values: pd.DataFrame, *, labels: Labels, selected_layer: int | None = None
) -> go.Figure:
    """Cosine with r by layer at the last token, a line per condition (paper, Fig. 5).

    Args:
        values: rows of quantity "cosine", one per prompt, condition and layer. Bands are one
            population standard deviation over prompts.
        labels: the two kinds and the behaviour.
        selected_layer: the layer that r was taken from.
    """
    rows = values[values["quantity"] == "cosine"]
    grouped = rows.groupby(["condition", "layer"], sort=False)["value"]
    curves = grouped.agg(mean="mean", sd=lambda v: v.std(ddof=0)).reset_index()
    curves = curves.rename(columns={"condition": "kind"}).assign(condition="baseline", position=-1)
    curves["layer"] = curves["layer"].astype(int)
    return cosine_by_layer(curves, labels=labels, selected_layer=selected_layer)


def suffix_behaviour(values: pd.DataFrame, *, labels: Labels) -> go.Figure:
    """Share of replies that show the behaviour (with its standard error) and score of each prompt, per condition.

    Args:
        values: rows of quantity "shows" (0 or 1) and "score", one per prompt and condition.
        labels: the two kinds, the behaviour and its score.
    """
    conditions = list(dict.fromkeys(values["condition"]))
    names = [wrapped(condition) for condition in conditions]
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    for name, condition in zip(names, conditions, strict=True):
        rows = values[values["condition"] == condition]
        colour = theme.kind_colour(condition, labels.kinds, conditions)
        figure.add_trace(_rate(name, rows.loc[rows["quantity"] == "shows", "value"], colour), row=1, col=1)
        scores = rows.loc[rows["quantity"] == "score", "value"]
        figure.add_trace(_points(name, scores.tolist(), colour), row=1, col=2)
    line = {"color": theme.RULE, "width": 1, "dash": "dot"}
    figure.add_hline(y=labels.threshold, row=1, col=2, line=line)
    rate = theme.title(f"{capital(labels.words.noun)} rate")
    figure.update_yaxes(title_text=rate, range=[0, 1.12], row=1, col=1)
    figure.update_yaxes(title_text=theme.title(labels.score), row=1, col=2)
    figure.update_xaxes(showgrid=False, ticks="", tickfont={"size": 11.5})
    figure.update_layout(showlegend=False, bargap=0.4)
    return theme.finish(figure, 400)


def _rate(name: str, shows: pd.Series, colour: str) -> go.Bar:
    """The share of the judged replies; no bar where none was judged."""
    judged = shows.dropna()
    if judged.empty:
        return go.Bar(x=[name], y=[None])
    rate = float(judged.mean())
    return go.Bar(
        x=[name],
        y=[rate],
        error_y={"type": "data", "array": [(rate * (1 - rate) / len(judged)) ** 0.5]},
        text=[f"{rate:.2f}"],
        textposition="inside" if rate > 0.2 else "outside",
        marker={"color": colour},
        hovertemplate=f"%{{y:.3f}}, n = {len(judged)}<extra></extra>",
    )


def _points(name: str, values: list[float], colour: str) -> go.Box:
    return go.Box(
        x=[name] * len(values),
        y=values,
        boxpoints="all",
        jitter=0.5,
        pointpos=0,
        marker={"color": colour, "size": 4, "opacity": 0.5},
        line={"width": 1.2, "color": theme.RULE},
        fillcolor="rgba(255, 255, 255, 0)",
        hovertemplate="%{y:.2f}<extra></extra>",
    )


def suffix_losses(
    lost: pd.DataFrame, *, pairs: Sequence[tuple[str, str]] | None = None
) -> go.Figure:
    """What each prompt loses to the suffix, one loss against another, with Pearson's correlation.

    Args:
        lost: one row per prompt; a column per quantity lost.
        pairs: (x, y) columns of the panels; neighbouring columns unless given.
    """
    names = list(lost.columns)
    shown = list(pairs) if pairs is not None else list(pairwise(names))
    titles = [f"{_correlation(lost[x], lost[y])}, n = {len(lost)}" for x, y in shown]
    figure = make_subplots(rows=1, cols=len(shown), subplot_titles=titles, horizontal_spacing=0.12)
    for col, (x, y) in enumerate(shown, start=1):
        figure.add_trace(
            go.Scatter(
                x=lost[x].tolist(),
                y=lost[y].tolist(),
                mode="markers",
                marker={"color": theme.BLUE, "size": 6, "opacity": 0.55},
                hovertemplate="(%{x:.3g}, %{y:.3g})<extra></extra>",
            ),
            row=1,
            col=col,
        )
        figure.update_xaxes(title_text=theme.label(capital(x)), row=1, col=col)
        figure.update_yaxes(title_text=theme.label(capital(y)), row=1, col=col)
    figure.update_layout(showlegend=False)
    theme.left_titles(figure, len(shown))
    return theme.finish(figure, 380)


def _correlation(x: pd.Series, y: pd.Series) -> str:
    """In words, since r is the direction's symbol."""
    value = x.corr(y)
    shown = f"{value:.2f}".replace("-", "\u2212") if value == value else "undefined"
    return f"Pearson correlation {shown}"
