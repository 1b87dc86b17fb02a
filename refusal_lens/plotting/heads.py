"""Attention heads and a direction: what they write, where they look, what removing them does.

The paper's Fig. 6, and the causal check beside it. Tables are those of the suffix study: long, one
row per prompt (condition, prompt, quantity, layer, head, region, value).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.plotting import theme
from refusal_lens.plotting.labels import Labels, capital

_COLOURS = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.PINK, theme.SKY, theme.BLACK)
_PATTERNS = ("", "/", ".")
SUFFIXED = " + "
"""Between a kind of prompts and its suffix, in the name of a condition."""
REGION_ORDER = ("instruction", "suffix", "template", "BOS")
REGION_COLOURS = {
    "instruction": theme.VERMILLION,
    "suffix": theme.PINK,
    "template": theme.SKY,
    "BOS": theme.GREY,
}

def head_attribution(
    values: pd.DataFrame, *, labels: Labels, conditions: Sequence[str] | None = None
) -> go.Figure:
    """Stacked bars of the chosen heads' DFA per condition (paper, Fig. 6a).

    Args:
        values: rows of quantity "dfa"; the heads keep the order in which they come.
        labels: the behaviour.
        conditions: which bars, in order; all unless given. The diamond is the heads' sum, its bar
            one population standard deviation over prompts.
    """
    rows = values[values["quantity"] == "dfa"]
    shown = _order(rows["condition"], conditions)
    figure = go.Figure()
    for i, (layer, head) in enumerate(_heads(rows)):
        of_head = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        means = of_head.groupby("condition")["value"].mean().reindex(shown)
        figure.add_trace(_bar(_names(shown), means.tolist(), f"H{layer}.{head}", i))
    totals = rows.groupby(["condition", "prompt"])["value"].sum().groupby("condition")
    figure.add_trace(_totals(_names(shown), totals.mean()[shown], totals.std(ddof=0)[shown]))
    figure.add_hline(y=0, line={"color": theme.RULE, "width": 1})
    figure.update_xaxes(title_text="Suffix type", showgrid=False, ticks="")
    figure.update_yaxes(title_text=_projection(labels))
    figure.update_layout(barmode="relative", bargap=0.45, legend_title_text="Top heads")
    return theme.finish(figure, 440)


def head_attention(
    values: pd.DataFrame,
    *,
    conditions: Sequence[str] | None = None,
    regions: Sequence[str] = ("instruction", "suffix"),
) -> go.Figure:
    """Attention from the last token to each region, stacked by head, per condition (Fig. 6b).

    Args:
        values: rows of quantity "attention".
        conditions: a panel each; unless given, those with a suffix.
        regions: a bar each; a head's attention over all four regions sums to 1.
    """
    rows = values[values["quantity"] == "attention"]
    if conditions is None:
        conditions = [c for c in dict.fromkeys(rows["condition"]) if SUFFIXED in c]
    rows = rows[rows["condition"].isin(conditions)]
    figure = make_subplots(
        rows=1, cols=len(conditions), shared_yaxes=True, horizontal_spacing=0.06,
        subplot_titles=[_title(c) for c in conditions],
    )  # fmt: skip
    for i, (layer, head) in enumerate(_heads(rows)):
        of_head = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        means = of_head.groupby(["condition", "region"])["value"].mean()
        for col, condition in enumerate(conditions, start=1):
            bar = _bar(list(regions), [means[condition, r] for r in regions], f"H{layer}.{head}", i)
            figure.add_trace(bar.update(showlegend=col == 1), row=1, col=col)
    figure.update_xaxes(title_text="Attention source region", showgrid=False, ticks="")
    figure.update_yaxes(title_text="Attention from last token position", row=1, col=1)
    figure.update_layout(barmode="stack", bargap=0.45, legend_title_text="Top heads")
    theme.left_titles(figure, len(conditions))
    return theme.finish(figure, 440)


def head_sources(
    values: pd.DataFrame, *, labels: Labels, conditions: Sequence[str] | None = None
) -> go.Figure:
    """The heads' DFA split over the regions that it was read from, summed over heads.

    Args:
        values: rows of quantity "source dfa".
        labels: the behaviour.
        conditions: which bars, in order; all unless given.
    """
    rows = values[values["quantity"] == "source dfa"]
    shown = _order(rows["condition"], conditions)
    sums = rows.groupby(["condition", "region", "prompt"])["value"].sum()
    means = sums.groupby(["condition", "region"]).mean()
    figure = go.Figure()
    for region in REGION_ORDER:
        figure.add_trace(
            go.Bar(
                x=_names(shown),
                y=[means.get((c, region), 0.0) for c in shown],
                name=f"from {region}",
                marker={"color": REGION_COLOURS[region]},
                hovertemplate="%{y:.3f}",
            )
        )
    whole = rows.groupby(["condition", "prompt"])["value"].sum().groupby("condition")
    figure.add_trace(_totals(_names(shown), whole.mean()[shown], whole.std(ddof=0)[shown]))
    figure.add_hline(y=0, line={"color": theme.RULE, "width": 1})
    figure.update_xaxes(title_text="Suffix type", showgrid=False, ticks="")
    figure.update_yaxes(title_text=_projection(labels))
    figure.update_layout(barmode="relative", bargap=0.45)
    return theme.finish(figure, 440)


def head_effects(
    effects: pd.DataFrame, *, labels: Labels, quantity: str = "projection"
) -> go.Figure:
    """What replacing the chosen heads changes, beside as many random other heads.

    Args:
        effects: rows (condition, edit, heads, prompt, projection, score); heads is "none", "top"
            or "random i".
        labels: the behaviour.
        quantity: "projection" or "score".
    """
    means = effects.groupby(["condition", "edit", "heads"], sort=False)[quantity].mean()
    pairs = list(dict.fromkeys((c, e) for c, e, _ in means.index))
    shown = list(dict.fromkeys(condition for condition, _ in pairs))
    titles = dict(zip(shown, _names(shown), strict=True))
    names = [f"{_edit(edit)}<br>in {titles[condition]}" for condition, edit in pairs]
    moved = [means[pair] - means[pair]["none"] for pair in pairs]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=[float(m["top"]) for m in moved],
            name="the top heads",
            marker={"color": theme.ORANGE},
            width=0.5,
            hovertemplate="%{y:.3f}",
        )
    )
    drawn = [
        (name, float(m[heads]))
        for name, m in zip(names, moved, strict=True)
        for heads in m.index
        if heads.startswith("random")
    ]
    figure.add_trace(
        go.Scatter(
            x=[name for name, _ in drawn],
            y=[value for _, value in drawn],
            mode="markers",
            name="random other heads",
            marker={"color": theme.GREY, "size": 8, "line": {"color": theme.RULE, "width": 1}},
            hovertemplate="%{y:.3f}",
        )
    )
    figure.add_hline(y=0, line={"color": theme.RULE, "width": 1})
    words = {
        "projection": f"Change of projection onto {labels.words.noun} direction",
        "score": f"Change of {labels.words.score} ({labels.unit})",
    }
    figure.update_yaxes(title_text=theme.title(words[quantity]))
    figure.update_xaxes(showgrid=False, ticks="", tickfont={"size": 11}, tickangle=0)
    return theme.finish(figure, 430)


def _projection(labels: Labels) -> str:
    return theme.title(f"Output projection onto {labels.words.noun} direction")


def _edit(edit: str) -> str:
    words = {"zero": "set to zero", "mean": "set to their mean"}
    source = edit.removeprefix("patch from ")
    if source != edit:
        return f"patched from<br>{theme.label(source)}"
    return words.get(edit, theme.label(edit))


def _heads(rows: pd.DataFrame) -> list[tuple[int, int]]:
    return list(
        dict.fromkeys(zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True))
    )


def _order(conditions: pd.Series, wanted: Sequence[str] | None) -> list[str]:
    names = list(dict.fromkeys(conditions))
    return names if wanted is None else [c for c in wanted if c in names]


def _names(conditions: Sequence[str]) -> list[str]:
    """Conditions in two lines; the one that others add a suffix to says that it has none."""
    plain = {c.split(SUFFIXED)[0] for c in conditions if SUFFIXED in c}
    return [wrapped(c) + ("<br>(no suffix)" if c in plain else "") for c in conditions]


def wrapped(condition: str) -> str:
    """A condition of the suffix study in up to two lines.

    >>> wrapped("verse + random suffix")
    'verse +<br>random suffix'
    """
    kind, plus, suffix = condition.partition(SUFFIXED)
    return theme.label(kind) + (f" +<br>{theme.label(suffix)}" if plus else "")


def _title(condition: str) -> str:
    return theme.label(capital(condition.rpartition(SUFFIXED)[2]))


def _bar(x: list[str], y: list[float], name: str, index: int) -> go.Bar:
    pattern = _PATTERNS[index // len(_COLOURS) % len(_PATTERNS)]
    colour = _COLOURS[index % len(_COLOURS)]
    fill = theme.faded(colour, 0.55) if pattern else colour
    return go.Bar(
        x=x,
        y=y,
        name=name,
        legendgroup=name,
        marker={
            "color": fill,
            "line": {"color": "white", "width": 0.6},
            "pattern": {"shape": pattern, "fgcolor": colour, "size": 6},
        },
        hovertemplate="%{y:.3f}",
    )


def _totals(x: list[str], mean: pd.Series, sd: pd.Series) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=mean.tolist(),
        mode="markers",
        name="sum \u00b1 SD",
        marker={"symbol": "diamond", "size": 9, "color": theme.INK},
        error_y={"type": "data", "array": sd.tolist(), "thickness": 1.4, "width": 5},
        hovertemplate="%{y:.3f}",
    )
