"""How often replies show the behaviour, beside chance (paper, Figs. 1, 3 and 23), and the first token (Fig. 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from refusal_lens.evaluation.conditions import condition_text
from refusal_lens.plotting import theme
from refusal_lens.plotting.labels import Labels, capital
from refusal_lens.plotting.nulls import null_of

Trace: TypeAlias = go.Bar | go.Scatter


def rates_by_condition(
    rates: Mapping[str, Mapping[str, Mapping[str, float]]],
    nulls: pd.DataFrame | None = None,
    *,
    labels: Labels,
) -> go.Figure:
    """Share of replies that show the behaviour by condition, a panel per kind, with SE bars and nulls.

    Args:
        rates: kind to condition to {"rate", "se", "n"}; se is sqrt(p (1 - p) / n).
        nulls: rows (null, kind, rate): one per random draw. A null is a grey bar at the
            mean of its draws, and every draw is a dot.
        labels: the two kinds and the behaviour.
    """
    kinds = [k for k in rates if rates[k]]
    columns = {k: _columns(rates[k], _of_kind(nulls, k)) for k in kinds}
    figure = make_subplots(
        rows=1, cols=max(1, len(kinds)), shared_yaxes=True, horizontal_spacing=0.03,
        subplot_titles=[_prompts(kind, labels) for kind in kinds],
        column_widths=[max(1, len(columns[k])) for k in kinds] or None,
    )  # fmt: skip
    for col, kind in enumerate(kinds, start=1):
        for slot, name in enumerate(columns[kind]):
            if name in rates[kind]:
                traces = _bar(rates[kind][name], slot, condition=name, colour=_colour(kind, labels))
            else:
                traces = _null_bar(_draws(_of_kind(nulls, kind), name), slot)
            figure.add_traces(traces, rows=1, cols=col)
        ticks = [_tick(name, kind, labels.kinds) for name in columns[kind]]
        figure.update_xaxes(
            tickvals=list(range(len(ticks))), ticktext=ticks, tickfont={"size": 11.5},
            range=[-0.6, len(ticks) - 0.4], showgrid=False, ticks="", row=1, col=col,
        )  # fmt: skip
    figure.update_yaxes(range=[0, 1.12], tickvals=[0, 0.25, 0.5, 0.75, 1])
    figure.update_yaxes(title_text=theme.title(f"{capital(labels.words.noun)} rate"), row=1, col=1)
    figure.update_layout(showlegend=False, bargap=0.3)
    theme.left_titles(figure, len(kinds))
    return theme.finish(figure, 400)


def _prompts(kind: str, labels: Labels) -> str:
    return theme.title(capital(f"{kind} {labels.words.prompts}"))


def _colour(kind: str, labels: Labels) -> str:
    return theme.kind_colour(kind, labels.kinds)


def _tick(name: str, kind: str, kinds: tuple[str, str]) -> str:
    null = null_of(name, kinds.index(kind)) if kind in kinds else None
    wrapped = capital(theme.label(condition_text(name))).replace(" ", "<br>", 1)
    return null.tick if null else wrapped


def _of_kind(nulls: pd.DataFrame | None, kind: str) -> pd.DataFrame:
    if nulls is None:
        return pd.DataFrame(columns=["null", "kind", "rate"])
    return nulls[(nulls["kind"] == kind) & nulls["rate"].notna()]


def _columns(rates: Mapping[str, object], nulls: pd.DataFrame) -> list[str]:
    return [*rates, *dict.fromkeys(nulls["null"])]


def _draws(nulls: pd.DataFrame, name: str) -> list[float]:
    return [float(v) for v in nulls.loc[nulls["null"] == name, "rate"]]


def _bar(score: Mapping[str, float], slot: int, *, condition: str, colour: str) -> list[Trace]:
    se, n = score.get("se") or 0.0, score.get("n")
    sample = "" if n is None else f", n = {n:.0f}"
    bar = go.Bar(
        x=[slot],
        y=[score["rate"]],
        error_y={"type": "data", "array": [se], "thickness": 1.6, "width": 6},
        marker={
            "color": colour if condition == "baseline" else theme.faded(colour, 0.45),
            "line": {"color": colour, "width": 1.4},
            "pattern": {"shape": theme.HATCHES.get(condition, "-"), "fgcolor": colour, "size": 7},
        },
        name=theme.label(condition_text(condition)),
        hovertemplate=f"%{{y:.3f}} \u00b1 {se:.3f} (SE){sample}",
    )
    return [bar, _value(score["rate"], slot, above=score["rate"] + se)]


def _null_bar(draws: Sequence[float], slot: int) -> list[Trace]:
    mean = sum(draws) / len(draws)
    spread = [slot + 0.5 * ((i * 0.618034) % 1 - 0.5) for i in range(len(draws))]
    text = f"mean of {len(draws)}: {mean:.3f} (lowest {min(draws):.3f}, highest {max(draws):.3f})"
    bar = go.Bar(
        x=[slot],
        y=[mean],
        marker={"color": "#DADADA", "line": {"color": theme.GREY, "width": 1.4}},
        hovertemplate=text + "<extra></extra>",
    )
    dots = go.Scatter(
        x=spread,
        y=list(draws),
        mode="markers",
        cliponaxis=False,
        marker={"color": theme.RULE, "size": 4.5, "opacity": 0.65},
        hoverinfo="skip",
    )
    return [bar, dots, _value(mean, slot, above=max(draws), words="mean ")]


def _value(rate: float, slot: int, *, above: float, words: str = "") -> go.Scatter:
    """The number over a bar, clear of its error bar or dots."""
    return go.Scatter(
        x=[slot],
        y=[above + 0.012],
        mode="text",
        text=[f"{words}{rate:.2f}"],
        textposition="top center",
        cliponaxis=False,
        hoverinfo="skip",
    )


def top_tokens(
    tokens: pd.DataFrame, *, labels: Labels, scored: Sequence[int] = (), most: int = 10
) -> go.Figure:
    """The most probable first tokens of a reply, mean probability over prompts (Fig. 9).

    Args:
        tokens: rows (kind, token_id, token, probability).
        labels: the two kinds and the behaviour.
        scored: ids whose log-odds are the score, drawn in full colour; the others are pale.
        most: bars per kind.
    """
    kinds = [k for k in labels.kinds if k in set(tokens["kind"])]
    kinds += [k for k in dict.fromkeys(tokens["kind"]) if k not in kinds]
    figure = make_subplots(
        rows=1, cols=max(1, len(kinds)), horizontal_spacing=0.2,
        subplot_titles=[_prompts(kind, labels) for kind in kinds],
    )  # fmt: skip
    for col, kind in enumerate(kinds, start=1):
        rows = tokens[tokens["kind"] == kind].nlargest(most, "probability", keep="first")
        bars = _token_bars(rows, set(scored), _colour(kind, labels), labels.words.noun)
        figure.add_trace(bars, row=1, col=col)
        ticks = [
            f"{theme.label(str(t))}  ({int(i)})"
            for t, i in zip(rows["token"], rows["token_id"], strict=True)
        ]
        figure.update_yaxes(
            tickvals=list(range(len(ticks))), ticktext=ticks, autorange="reversed",
            showgrid=False, ticks="", tickfont={"family": "monospace", "size": 12}, row=1, col=col,
        )  # fmt: skip
        figure.update_xaxes(
            title_text="Mean next-token probability", rangemode="tozero", row=1, col=col
        )
    figure.update_layout(showlegend=False, bargap=0.25)
    theme.left_titles(figure, len(kinds))
    return theme.finish(figure, 390)


def _token_bars(rows: pd.DataFrame, scored: set[int], colour: str, noun: str) -> go.Bar:
    is_scored = [int(token_id) in scored for token_id in rows["token_id"]]
    return go.Bar(
        x=rows["probability"].tolist(),
        y=list(range(len(rows))),
        orientation="h",
        marker={
            "color": [colour if full else theme.faded(colour, 0.35) for full in is_scored],
            "line": {"color": colour, "width": 1},
        },
        text=[f"{p:.3f}" if p >= 0.0005 else "< 0.001" for p in rows["probability"]],
        textposition="auto",
        customdata=[theme.title(f"{noun} token") if full else "" for full in is_scored],
        hovertemplate="%{x:.4f} %{customdata}<extra></extra>",
    )
