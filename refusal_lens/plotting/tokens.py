"""A prompt token by token: where the direction grows, what heads read, and where they look.

An entry is one prompt of the suffix study as a mapping: condition, tokens, regions, heads (names,
layer.head), projection [layer][token], contribution [head][token], and for attention views
pattern [head][query][key]. Token texts are untrusted, and shown as text only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plotting import theme
from refusal_lens.plotting.heads import REGION_COLOURS
from refusal_lens.plotting.policy import content_policy

STAND_IN = "\ue03c"
"""A character of private use."""
_BY_CHANCE = re.compile(r"circuits-vis-[0-9a-f]{8}-[0-9a-f]{4}\b")
_DIVERGING = [
    (0.0, theme.BLUE),
    (0.25, "#7FB8D8"),
    (0.5, "#FFFFFF"),
    (0.75, "#EAAE7F"),
    (1.0, theme.VERMILLION),
]


def projection_map(
    entries: Sequence[Mapping[str, Any]], *, selected_layer: int | None = None
) -> go.Figure:
    """Projection onto r^ per token and layer, a panel per entry on one colour scale."""
    size = max(float(np.abs(np.asarray(s["projection"])).max()) for s in entries)
    figure = make_subplots(
        rows=len(entries), cols=1, vertical_spacing=0.3 / len(entries),
        subplot_titles=[theme.label(s["condition"]) for s in entries],
    )  # fmt: skip
    for row, entry in enumerate(entries, start=1):
        rows = np.asarray(entry["projection"], float)
        figure.add_trace(_heat(rows, list(range(len(rows))), size, show=row == 1), row=row, col=1)
        _token_axis(figure, entry, row)
        figure.update_yaxes(title_text="Layer", row=row, col=1)
        if selected_layer is not None:
            line = {"color": theme.INK, "width": 1, "dash": "dot"}
            figure.add_hline(y=selected_layer, row=row, col=1, line=line)
    theme.left_titles(figure, len(entries))
    return theme.finish(figure, 90 + 290 * len(entries))


def contribution_map(entries: Sequence[Mapping[str, Any]]) -> go.Figure:
    """What each source token adds to each chosen head's DFA, a panel per entry."""
    size = max(float(np.abs(np.asarray(s["contribution"])).max()) for s in entries)
    figure = make_subplots(
        rows=len(entries), cols=1, vertical_spacing=0.34 / len(entries),
        subplot_titles=[theme.label(s["condition"]) for s in entries],
    )  # fmt: skip
    for row, entry in enumerate(entries, start=1):
        heads = [f"H{head}" for head in entry["heads"]]
        rows = np.asarray(entry["contribution"], float)
        figure.add_trace(_heat(rows, heads, size, show=row == 1), row=row, col=1)
        _token_axis(figure, entry, row)
        figure.update_yaxes(autorange="reversed", type="category", row=row, col=1)
    theme.left_titles(figure, len(entries))
    n = max(len(s["heads"]) for s in entries)
    return theme.finish(figure, 90 + (150 + 22 * n) * len(entries))


def attention_view(entry: Mapping[str, Any]) -> str:
    """Attention patterns of the chosen heads, drawn by circuitsvis: a page that opens offline."""
    from circuitsvis.attention import attention_heads

    view = attention_heads(
        attention=np.asarray(entry["pattern"], float),
        tokens=_with_stand_ins(entry["tokens"]),
        attention_head_names=[f"H{head}" for head in entry["heads"]],
    )
    return _page(f"Attention, {entry['condition']}", view.local_src)


def contribution_view(entry: Mapping[str, Any]) -> str:
    """Tokens coloured by what they add to the chosen heads' DFA: a page that opens offline."""
    from circuitsvis.tokens import colored_tokens

    values = np.asarray(entry["contribution"], float).sum(0)
    size = float(np.abs(values).max()) or 1.0
    view = colored_tokens(
        _with_stand_ins(entry["tokens"]),
        values,
        min_value=-size,
        max_value=size,
        negative_color=theme.BLUE,
        positive_color=theme.VERMILLION,
    )
    return _page(f"Contribution by source token, {entry['condition']}", view.local_src)


def _with_stand_ins(tokens: Sequence[str]) -> list[str]:
    """Tokens as they are shown, with a stand-in for ``<`` that no parser of pages knows."""
    return [theme.visible(token).replace("<", STAND_IN) for token in tokens]


def _page(title: str, source: str) -> str:
    """The local source as a page; its tokens can neither end the script nor open a tag."""
    for spelling in (STAND_IN, json.dumps(STAND_IN)[1:-1]):
        source = source.replace(spelling, "\\u003c")
    # circuitsvis draws the element's name by chance; one view a page needs no such name.
    source = _BY_CHANCE.sub("circuits-vis", source)
    (script,) = re.findall(r"<script[^>]*>(.*)</script>", source, flags=re.DOTALL)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"{content_policy([script])}<title>{theme.label(title)}</title></head>\n"
        f"<body>{source}</body></html>\n"
    )


def _heat(rows: np.ndarray, y: Sequence[Any], size: float, *, show: bool) -> go.Heatmap:
    return go.Heatmap(
        z=rows.tolist(),
        y=list(y),
        zmin=-size,
        zmax=size,
        colorscale=_DIVERGING,
        showscale=show,
        colorbar={"title": {"text": "along r\u0302", "side": "right"}, "thickness": 12, "len": 0.9},
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
    )


def _token_axis(figure: go.Figure, entry: Mapping[str, Any], row: int) -> None:
    """Token labels in the colour of their region."""
    ticks = [
        f'<span style="color:{_ink(region)}">{theme.label(token)}</span>'
        for token, region in zip(entry["tokens"], entry["regions"], strict=True)
    ]
    figure.update_xaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, tickangle=-90, tickfont={"size": 10},
        showgrid=False, row=row, col=1,
    )  # fmt: skip


def _ink(region: str) -> str:
    return REGION_COLOURS.get(region, theme.INK) if region != "template" else "#777777"
