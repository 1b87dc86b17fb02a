"""Edits that would change nothing, or something else than meant, are refused when they are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jaxtyping import config

from refusal_lens.activations import cache_residuals
from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.interventions import (
    Ablate,
    Add,
    Clamp,
    NormMatchedMove,
    ablate,
    add,
    affine,
    applied,
    clamp,
    subtract,
)
from refusal_lens.model import ChatModel, Site

WIDTH = tiny.WIDTH
R = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
D = Direction(R, layer=1, position=-1)


@pytest.fixture(autouse=True)
def as_for_users() -> Iterator[None]:
    """Types are checked in tests only: here the messages are tested that users get."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@lru_cache
def model() -> ChatModel:
    return ChatModel.load(str(tiny.folder("qwen2")), device="cpu")


def broken(value: float, at: int = 3) -> torch.Tensor:
    return R.index_fill(0, torch.tensor(at), value)


MAKERS: dict[str, Any] = {
    "Ablate": Ablate,
    "Add": partial(Add, layer=1),
    "Clamp": partial(Clamp, layer=1, value=0.5),
    "NormMatchedMove, r": lambda v: NormMatchedMove(v, R),
    "NormMatchedMove, u": lambda v: NormMatchedMove(R, v),
    "ablate": ablate,
}
VECTORS = {
    "NaN": broken(math.nan),
    "infinity": broken(math.inf),
    "zero": torch.zeros(WIDTH),
    "rounding noise": 1e-12 * R,
    "one NaN row of many": torch.stack([R, broken(math.nan)])[:, None],
    "one zero row of many": torch.stack([R, 0 * R])[:, None],
    "empty": torch.zeros(0),
    "a list": [1.0] * WIDTH,
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("vector", VECTORS)
def test_a_vector_without_a_direction_is_no_edit(maker: str, vector: str) -> None:
    with pytest.raises(InputError, match=r"vector|direction|other of NormMatchedMove") as failed:
        MAKERS[maker](VECTORS[vector])
    assert "\n" not in str(failed.value)


def test_rows_of_directions_are_not_taken_for_positions() -> None:
    """[rows d_model] would broadcast over the tokens of every prompt."""
    with pytest.raises(InputError, match=r"got shape \(2, 32\)"):
        Ablate(torch.stack([R, R]))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda n: Ablate(R, n),
        lambda n: Add(R, 1, n),
        lambda n: Clamp(R, 1, n),
        lambda n: Clamp(R, 1, 0.0, n),
        lambda n: ablate(D, strength=n),
        lambda n: add(D, coefficient=n),
        lambda n: clamp(D, n),
        lambda n: clamp(D, 1.0, strength=n),
        lambda n: affine(D, R, strength=n),
    ],
)
def test_strengths_and_values_are_finite_numbers(make: Any, number: float) -> None:
    with pytest.raises(InputError, match=r"need a (finite )?number"):
        make(number)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_subtracts_and_what_refers_is_finite_too(number: float) -> None:
    with pytest.raises(InputError, match=r"need a (finite )?number"):
        subtract(D, coefficient=number)
    with pytest.raises(InputError, match=r"need a (finite )?number"):
        affine(D, broken(number))


@pytest.mark.parametrize("layer", [True, 1.0, -1, "1", None])
def test_layers_are_whole_numbers(layer: Any) -> None:
    for make in (partial(Add, R), lambda n: Clamp(R, n, 0.5), partial(Site, "resid_pre")):
        with pytest.raises(InputError, match=r"layer of .* need a whole number"):
            make(layer)
    with pytest.raises(InputError, match=r"layer of .* need a whole number"):
        Direction(R, layer, -1)


def test_numpys_whole_numbers_are_whole() -> None:
    assert Add(R, np.int64(1)).layer == 1
    assert Direction(R, np.int64(1), np.int64(-2)).position == -2


@pytest.mark.parametrize("position", [0, 3, -1.0, True])
def test_positions_of_directions_are_negative_whole_numbers(position: Any) -> None:
    with pytest.raises(InputError, match=r"position of (a direction|Direction)"):
        Direction(R, 1, position)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_directions_are_finite(number: float) -> None:
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        Direction(broken(number), 1, -1)
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        D * number
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        D / 0


@pytest.mark.parametrize(
    ("edit", "at", "message"),
    [
        (Ablate(R), [], "at: got no site"),
        (Ablate(R), Site("resid_pre", 1), "at: got Site"),
        (Ablate(R), ["blocks.1.hook_resid_pre"], "at: got 'blocks.1.hook_resid_pre'"),
        (Ablate(R), [Site("resid_pre", tiny.LAYERS)], "hook site blocks.3"),
        (Ablate(R), [Site("pattern", 1)], "edit at pattern"),
        (Ablate(R), [Site("z", 1)], "edit at z"),
        (Add(R, tiny.LAYERS), None, "layer of the edit"),
        (lambda x: x, None, "does not know its sites"),
        (7, None, "edit: got int"),
    ],
)
def test_an_edit_is_put_where_it_belongs(edit: Any, at: Any, message: str) -> None:
    with pytest.raises(InputError, match=message), applied(model(), edit, at=at):
        pass


@pytest.mark.parametrize("position", [0, 5, -99, -1.0, True, "-1"])
def test_streams_are_read_at_positions_that_exist(position: Any) -> None:
    wanted = r"position: got .* from -\d+ to -1|positions of .* need a list of whole numbers"
    with pytest.raises(InputError, match=wanted):
        cache_residuals(model(), ["hello"], positions=[position])


@pytest.mark.parametrize("layer", [tiny.LAYERS, -1, 1.0, True])
def test_writes_are_those_of_layers_that_exist(layer: Any) -> None:
    with pytest.raises(InputError, match=r"layers? of .* need"):
        model().writes([layer])
