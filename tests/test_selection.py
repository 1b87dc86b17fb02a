"""The selection rule as coded by the reference implementation, and its explanations."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest
from kit import PUBLISHED

from refusal_lens.chat import Place
from refusal_lens.directions.selection import NoCandidateError, Thresholds, select
from refusal_lens.errors import InputError

LAYERS = 10


def table(*rows: tuple[int, int, float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["position", "layer", "bypass", "induce", "kl"])


def test_least_bypass_among_those_that_pass() -> None:
    choice = select(
        table((-2, 3, -5.0, 1.0, 0.05), (-1, 3, -6.0, 1.0, 0.05), (-1, 4, -9.0, 1.0, 0.5)), LAYERS
    )
    assert (choice.position, choice.layer) == (-1, 3)
    assert choice.scores == {"bypass": -6.0, "induce": 1.0, "kl": 0.05}
    assert choice.n_passing == 2
    assert list(choice.table["reason"]) == ["", "", "kl 0.5 > 0.1"]


def test_boundaries_are_inclusive() -> None:
    assert select(table((-1, 0, 1.0, 0.0, 0.1)), LAYERS).layer == 0


def test_layer_bound_is_floored() -> None:
    assert Thresholds().layer_bound(24) == 19
    assert Thresholds().layer_bound(18) == 14
    with pytest.raises(NoCandidateError, match="last 20% of layers"):
        select(table((-1, 14, -5.0, 1.0, 0.01)), 18)
    assert select(table((-1, 13, -5.0, 1.0, 0.01)), 18).layer == 13


def test_nan_never_passes() -> None:
    rows = [(-1, 1, -9.0, 1.0, math.nan), (-1, 2, math.nan, 1.0, 0.0), (-1, 3, -1.0, 1.0, 0.0)]
    choice = select(table(*rows), LAYERS)
    assert choice.layer == 3
    assert list(choice.table["reason"])[:2] == ["NaN: kl", "NaN: bypass"]


def test_ties_go_to_the_earlier_position_then_the_lower_layer() -> None:
    rows = [(-1, 2, -3.0, 1.0, 0.0), (-2, 5, -3.0, 1.0, 0.0), (-2, 4, -3.0, 1.0, 0.0)]
    choice = select(table(*rows), LAYERS)
    assert (choice.position, choice.layer) == (-2, 4)


def test_a_table_of_places_is_selected_from_by_place() -> None:
    rows = [(-1, 2, 1.0, 1.0, 0.0), (math.nan, 4, -3.0, 1.0, 0.0), (math.nan, 4, -3.0, 1.0, 0.0)]
    places = table(*rows).assign(place=["post[-1]", "instruction.mean", "t_inst"])
    choice = select(places, LAYERS)
    assert (choice.place, choice.position, choice.layer) == (Place("instruction"), None, 4)
    assert select(places.iloc[[0, 2, 1]], LAYERS).place == Place.parse("t_inst")
    places["kl"] = 1.0
    with pytest.raises(NoCandidateError, match=r"nearest miss: position -1, layer 2"):
        select(places.iloc[:1], LAYERS)
    with pytest.raises(NoCandidateError, match=r"nearest miss: instruction.mean, layer 4"):
        select(places.iloc[1:], LAYERS)


def test_failure_counts_each_condition_and_names_the_nearest_miss() -> None:
    rows = [
        (-1, 9, -9.0, 1.0, 0.01),
        (-1, 1, -9.0, 1.0, 0.11),
        (-1, 2, -9.0, -4.0, 0.01),
        (-1, 3, -9.0, math.nan, 0.01),
    ]
    with pytest.raises(NoCandidateError) as failed:
        select(table(*rows), LAYERS)
    line = str(failed.value)
    assert "0 of 4 candidates pass" in line
    assert "1 in the last 20% of layers, 1 NaN, 1 with kl > 0.1, 1 with induce < 0" in line
    assert "nearest miss: position -1, layer 1 (kl 0.11 > 0.1); relax with --kl-threshold 0.11" in line
    assert "\n" not in line
    assert list(failed.value.table["passes"]) == [False] * 4


def test_following_the_advice_makes_the_nearest_miss_pass() -> None:
    rows = table((-1, 2, -9.0, -4.123, 0.0123456))
    with pytest.raises(NoCandidateError, match=r"--induce-threshold -4\.2"):
        select(rows, LAYERS)
    assert select(rows, LAYERS, Thresholds(induce_threshold=-4.2)).layer == 2


def test_all_nan_says_so() -> None:
    with pytest.raises(NoCandidateError, match="no admissible candidate has scores"):
        select(table((-1, 2, math.nan, math.nan, math.nan)), LAYERS)


def test_bad_table_and_thresholds() -> None:
    with pytest.raises(InputError, match="no column kl"):
        select(table((-1, 2, 0.0, 0.0, 0.0)).drop(columns="kl"), LAYERS)
    with pytest.raises(InputError, match="prune_layers"):
        Thresholds(prune_layers=1.0)


@pytest.mark.published
@pytest.mark.parametrize("name", ["qwen-1_8b-chat", "gemma-2b-it", "meta-llama-3-8b-instruct"])
def test_reselects_what_the_reference_selected(name: str) -> None:
    folder = PUBLISHED / name
    rows = json.loads((folder / "select_direction/direction_evaluations.json").read_text())
    names = {"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
    scored = pd.DataFrame(rows).rename(columns=names)
    choice = select(scored, int(scored["layer"].max()) + 1)
    expected = json.loads((folder / "direction_metadata.json").read_text())
    assert {"pos": choice.position, "layer": choice.layer} == expected
