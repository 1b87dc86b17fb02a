"""Figures say what the numbers say, in one set of colours, and no token can act in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from synthetic_run import HOSTILE_TOKEN, LABELS, POSITIONS, write_run

from refusal_lens.pipeline.page import open_folder
from refusal_lens.plotting import (
    TEMPLATE,
    candidate_map,
    cosine_by_layer,
    label,
    layer_sweep,
    pca_by_layer,
    rates_by_condition,
    score_histograms,
    theme,
    top_tokens,
    visible,
)
from refusal_lens.plotting.suffix import suffix_losses
from refusal_lens.report.folder import RunFolder

SELECTED = ("post[-1]", 6)
N_LAYERS = 12
COLOURS = dict(zip(LABELS.kinds, theme.KIND_COLOURS, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return open_folder(write_run(tmp_path_factory.mktemp("plots") / "run"))


@pytest.fixture(scope="module")
def scores(run: RunFolder) -> pd.DataFrame:
    return run.table("candidates.csv")


def draw_all(run: RunFolder) -> dict[str, go.Figure]:
    """Every figure of the room, from one run."""
    scores = run.table("candidates.csv")
    return {
        "layer_sweep": layer_sweep(
            scores, selected=SELECTED, baseline={"harmful": 8.0}, labels=LABELS
        ),
        "candidate_map": candidate_map(scores, selected=SELECTED, labels=LABELS),
        "cosine": cosine_by_layer(run.table("curves.csv"), selected_layer=6, labels=LABELS),
        "rates": rates_by_condition(run.rates, run.table("nulls.csv"), labels=LABELS),
        "histograms": score_histograms(run.table("metrics.csv"), labels=LABELS),
        "tokens": top_tokens(run.table("top_tokens.csv"), scored=[7], labels=LABELS),
        "pca": pca_by_layer(run.table("pca.csv"), selected_layer=6, labels=LABELS),
    }


def of_type(figure: go.Figure, kind: type) -> list:
    return [trace for trace in figure.data if isinstance(trace, kind)]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\n\n", "\\n\\n"),
        ("\t", "\\t"),
        (" I", "␣I"),
        (" ", "␣"),
        ("", "∅"),
        ("a b", "a b"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("你好", "你好"),
        ("\u2028", "\\u2028"),
    ],
)
def test_a_token_is_shown_whole(token: str, shown: str) -> None:
    assert visible(token) == shown


@pytest.mark.parametrize("token", ["<b>x</b>", "<br>", "&lt;", "</script>", "<a href='x'>y</a>"])
def test_a_label_holds_no_markup(token: str) -> None:
    import html

    assert "<" not in label(token)
    assert html.unescape(label(token)) == token


def test_a_long_label_is_cut() -> None:
    assert len(label("x" * 500)) < 40


def test_no_figure_carries_a_tag_of_a_token(run: RunFolder) -> None:
    for name, figure in draw_all(run).items():
        texts = figure.to_json()
        assert "&lt;" in texts or name in ("cosine", "rates", "histograms", "pca"), name
        assert HOSTILE_TOKEN[:10] not in texts, name
        assert "</script" not in texts, name


# ---------------------------------------------------------------- house style


def test_every_figure_is_in_the_house_template(run: RunFolder) -> None:
    for name, figure in draw_all(run).items():
        assert figure.layout.template.layout == TEMPLATE.layout, name
        assert figure.layout.height, name


def test_every_axis_that_shows_a_quantity_has_a_title(run: RunFolder) -> None:
    for name, figure in draw_all(run).items():
        titles = [axis.title.text for axis in (*figure.select_xaxes(), *figure.select_yaxes())]
        assert any(titles), name


def test_a_colour_means_the_same_everywhere(run: RunFolder) -> None:
    figures = draw_all(run)
    for name in ("histograms", "pca"):
        for trace in figures[name].data:
            red, green, blue = (int(COLOURS[trace.name][i : i + 2], 16) for i in (1, 3, 5))
            wanted = {COLOURS[trace.name], f"rgba({red}, {green}, {blue}, 0.55)"}
            assert trace.marker.color in wanted, name
    for trace in figures["cosine"].data:
        if trace.name:
            assert trace.line.color == COLOURS[trace.name.split(",")[0]]


def test_drawing_leaves_the_numbers_alone(run: RunFolder) -> None:
    before = {n: run.table(n) for n in ("candidates.csv", "curves.csv", "pca.csv", "nulls.csv")}
    after = {n: frame.copy() for n, frame in before.items()}
    layer_sweep(after["candidates.csv"], selected=SELECTED, labels=LABELS)
    candidate_map(after["candidates.csv"], labels=LABELS)
    cosine_by_layer(after["curves.csv"], labels=LABELS)
    pca_by_layer(after["pca.csv"], labels=LABELS)
    rates_by_condition(run.rates, after["nulls.csv"], labels=LABELS)
    for name in before:
        pd.testing.assert_frame_equal(before[name], after[name])


def test_positions_cannot_be_taken_for_each_other() -> None:
    styles = [theme.place_style(index) for index in range(15)]
    assert len(set(styles)) == len(styles)


# ---------------------------------------------------------------- sweeps


def test_a_sweep_has_a_line_for_each_position_and_score(scores: pd.DataFrame) -> None:
    lines = [t for t in layer_sweep(scores, labels=LABELS).data if t.mode == "lines+markers"]
    assert len(lines) == 3 * len(POSITIONS)
    first = lines[0]
    rows = scores[scores["place"] == "post[-1]"].sort_values("layer")
    np.testing.assert_allclose(np.array(first.y, float), rows["bypass"])
    assert list(first.x) == list(range(N_LAYERS))


@pytest.mark.parametrize(("n_layers", "first"), [(12, 9), (18, 14), (24, 19), (32, 25), (80, 64)])
def test_the_rejected_region_starts_where_the_rule_says(
    scores: pd.DataFrame, n_layers: int, first: int
) -> None:
    for figure in (
        layer_sweep(scores, n_layers=n_layers, labels=LABELS),
        candidate_map(scores, n_layers=n_layers, labels=LABELS),
    ):
        shades = [shape for shape in figure.layout.shapes if shape.type == "rect"]
        assert {(s.x0, s.x1) for s in shades} == {(first - 0.5, n_layers - 0.5)}
        assert len(shades) == 3


def test_the_selected_candidate_is_starred_at_its_scores(scores: pd.DataFrame) -> None:
    chosen = scores[(scores["place"] == "post[-1]") & (scores["layer"] == 6)].iloc[0]
    stars = [
        t
        for t in layer_sweep(scores, selected=SELECTED, labels=LABELS).data
        if t.marker.symbol == "star"
    ]
    assert [star.x[0] for star in stars] == [6, 6, 6]
    wanted = [chosen["bypass"], chosen["induce"], chosen["kl"]]
    np.testing.assert_allclose([star.y[0] for star in stars], wanted)
    assert not [t for t in layer_sweep(scores, labels=LABELS).data if t.marker.symbol == "star"]


def test_open_markers_are_the_rejected_ones(scores: pd.DataFrame) -> None:
    lines = [t for t in layer_sweep(scores, labels=LABELS).data if t.mode == "lines+markers"][::3]
    passing = sum(colour != "white" for line in lines for colour in line.marker.color)
    assert passing == scores["passes"].sum() > 0


def test_baselines_and_thresholds_are_drawn_at_their_values(scores: pd.DataFrame) -> None:
    figure = layer_sweep(
        scores,
        baseline={"harmful": 8.25, "harmless": -9.5},
        kl_threshold=0.2,
        induce_threshold=1.0,
        labels=LABELS,
    )
    levels = sorted(t.y[0] for t in figure.data if t.mode == "lines")
    assert levels == [-9.5, 0.2, 1.0, 8.25]


def test_a_tiny_or_negative_kl_is_drawn_on_the_floor_and_told_in_full() -> None:
    scores = pd.DataFrame(
        {"position": -1, "layer": [0, 1], "bypass": 0.0, "induce": 0.0, "kl": [-1e-9, 0.5]}
    )
    line = [t for t in layer_sweep(scores, labels=LABELS).data if t.mode == "lines+markers"][2]
    assert list(line.y) == [1e-4, 0.5]
    assert list(line.customdata) == ["-1e-09", "0.5"]


def test_a_missing_score_is_a_cross_never_a_colour(scores: pd.DataFrame) -> None:
    figure = candidate_map(scores, labels=LABELS)
    missing = int(scores["bypass"].isna().sum())
    assert missing > 0
    for cells, crosses in zip(
        of_type(figure, go.Heatmap), of_type(figure, go.Scatter), strict=True
    ):
        assert sum(value is None for row in cells.z for value in row) == missing
        assert len(crosses.x) == missing
        assert all("layer &gt;= 9" in reason for reason in crosses.customdata)


def test_sweeps_survive_scores_that_are_all_nan() -> None:
    nan = float("nan")
    scores = pd.DataFrame(
        {"position": -1, "layer": [0, 1], "bypass": nan, "induce": nan, "kl": nan}
    )
    assert layer_sweep(scores, selected=("post[-1]", 1), labels=LABELS).to_json()
    assert candidate_map(scores, labels=LABELS).to_json()


# ---------------------------------------------------------------- the others


def test_cosine_takes_the_last_token_unless_told(run: RunFolder) -> None:
    curves = run.table("curves.csv")
    curves["mean"] += curves["position"]
    assert {t.y[0] for t in cosine_by_layer(curves, labels=LABELS).data if t.name} <= set(
        curves.loc[(curves["position"] == -1) & (curves["layer"] == 0), "mean"]
    )
    shifted = cosine_by_layer(curves, place="post[-3]", labels=LABELS)
    assert all(-3.2 < t.y[0] < -2.8 for t in shifted.data if t.name)


def test_cosine_bands_are_one_sd_each_way(run: RunFolder) -> None:
    curves = run.table("curves.csv")
    rows = curves[
        (curves["kind"] == "harmful")
        & (curves["condition"] == "baseline")
        & (curves["position"] == -1)
    ].sort_values("layer")
    band = next(
        t
        for t in cosine_by_layer(curves, labels=LABELS).data
        if t.legendgroup == "harmful baseline"
    )
    high, low = np.array(band.y[:N_LAYERS], float), np.array(band.y[N_LAYERS:], float)[::-1]
    np.testing.assert_allclose((high + low) / 2, rows["mean"])
    np.testing.assert_allclose((high - low) / 2, rows["sd"])


def test_cosine_draws_each_kind_under_each_condition(run: RunFolder) -> None:
    names = [t.name for t in cosine_by_layer(run.table("curves.csv"), labels=LABELS).data if t.name]
    assert names == [
        "harmful",
        "harmless",
        "harmful, r ablated",
        "harmless, r ablated",
        "harmless, r added",
        "harmful, r subtracted",
    ]
    only = cosine_by_layer(run.table("curves.csv"), conditions=["baseline"], labels=LABELS)
    assert [t.name for t in only.data if t.name] == ["harmful", "harmless"]


def styles(figure: go.Figure) -> list[tuple[str, str]]:
    """Dash and marker of every line: what is left of it without colour."""
    return [(t.line.dash, t.marker.symbol) for t in figure.data if t.name]


@pytest.mark.parametrize(
    ("kinds", "conditions"),
    [
        (("harmful", "harmless"), ("chat", "base")),
        (("harmful", "harmless"), ("baseline", "ablation", "addition")),
        (
            ("harmful", "harmful + random suffix", "harmful + adversarial suffix", "harmless"),
            ("baseline",),
        ),
        (("harmful", "french"), ("chat", "another", "a third")),
    ],
)
def test_curves_can_be_told_apart_without_colour(
    kinds: tuple[str, ...], conditions: tuple[str, ...]
) -> None:
    rows = [
        {
            "kind": kind,
            "condition": condition,
            "layer": layer,
            "position": -1,
            "mean": 0.5,
            "sd": 0.1,
        }
        for kind in kinds
        for condition in conditions
        for layer in (0, 1)
    ]
    drawn = styles(cosine_by_layer(pd.DataFrame(rows), labels=LABELS))
    assert len(drawn) == len(set(drawn)) == len(kinds) * len(conditions)
    assert len({symbol for _, symbol in drawn}) == len(kinds)
    assert len({dash for dash, _ in drawn}) == len(conditions)


def test_a_correlation_is_not_called_r() -> None:
    """r is the direction."""
    lost = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 6.0], "c": [1.0, 1.0, 1.0]})
    titles = [a.text for a in suffix_losses(lost).layout.annotations]
    assert titles == ["Pearson correlation 1.00, n = 3", "Pearson correlation undefined, n = 3"]


def test_bars_carry_rate_error_and_every_null(run: RunFolder) -> None:
    nulls = run.table("nulls.csv")
    figure = rates_by_condition(run.rates, nulls, labels=LABELS)
    bars = of_type(figure, go.Bar)
    rates = [score for kind in run.rates.values() for score in kind.values()]
    effects = [bar for bar in bars if bar.error_y.array is not None]
    assert [bar.y[0] for bar in effects] == [score["rate"] for score in rates]
    assert [bar.error_y.array[0] for bar in effects] == [score["se"] for score in rates]
    dots = [t for t in of_type(figure, go.Scatter) if t.mode == "markers"]
    drawn = sorted(y for t in dots for y in t.y)
    np.testing.assert_allclose(drawn, sorted(nulls["rate"]))
    means = [bar.y[0] for bar in bars if bar.error_y.array is None]
    wanted = nulls.groupby(["kind", "null"], sort=False)["rate"].mean()
    np.testing.assert_allclose(means, wanted)
    ticks = figure.layout.xaxis.ticktext
    assert len(ticks) == len(set(ticks)) == 5


def test_bars_do_without_nulls_and_errors() -> None:
    figure = rates_by_condition({"harmful": {"baseline": {"rate": 0.5}}}, labels=LABELS)
    assert [bar.y[0] for bar in of_type(figure, go.Bar)] == [0.5]


def test_histograms_count_every_prompt_once_in_shared_bins(run: RunFolder) -> None:
    metrics = run.table("metrics.csv")
    bars = of_type(score_histograms(metrics, labels=LABELS), go.Histogram)
    assert sum(len(bar.x) for bar in bars) == len(metrics)
    assert len({(b.xbins.start, b.xbins.end, b.xbins.size) for b in bars}) == 1
    assert all(bars[0].xbins.start <= x < bars[0].xbins.end for bar in bars for x in bar.x)


def test_tokens_of_equal_text_stay_two_bars() -> None:
    rows = [("harmful", 3, "\ufffd", 0.5), ("harmful", 4, "\ufffd", 0.25), ("harmful", 5, "1", 0.1)]
    tokens = pd.DataFrame(rows, columns=["kind", "token_id", "token", "probability"])
    figure = top_tokens(tokens, scored=[4], labels=LABELS)
    (bar,) = of_type(figure, go.Bar)
    assert list(bar.x) == [0.5, 0.25, 0.1]
    assert list(bar.y) == [0, 1, 2]
    assert [c == theme.VERMILLION for c in bar.marker.color] == [False, True, False]
    assert [tick.split()[0] for tick in figure.layout.yaxis.ticktext] == ["\ufffd", "\ufffd", "1"]


@pytest.mark.parametrize(("n_layers", "panels"), [(6, 6), (12, 12), (32, 12), (80, 12)])
def test_pca_shows_first_last_and_selected_layer(n_layers: int, panels: int) -> None:
    points = pd.DataFrame(
        [(layer, kind, 0.0, 1.0) for layer in range(n_layers) for kind in ("harmful", "harmless")],
        columns=["layer", "kind", "pc1", "pc2"],
    )
    for selected in (0, n_layers // 2 + 1, n_layers - 1):
        titles = [
            a.text
            for a in pca_by_layer(points, selected_layer=selected, labels=LABELS).layout.annotations
        ]
        assert len(titles) == panels
        assert f"<b>★ layer {selected}</b>" in titles


@pytest.mark.parametrize("draw", [layer_sweep, candidate_map])
def test_sweeps_take_the_file_that_a_run_writes(
    draw: Callable[..., go.Figure], tmp_path: Path
) -> None:
    run = open_folder(write_run(tmp_path / "run", n_layers=32))
    figure = draw(run.table("candidates.csv"), labels=run.labels, selected=run.selected)
    assert len(figure.layout.annotations) >= 3
    assert math.isfinite(figure.layout.height)
