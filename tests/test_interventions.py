"""Edits that would change nothing, or something else than meant, are refused when they are made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import kit
import numpy as np
import pytest
import torch
from jaxtyping import config

from refusal_lens.activations import cache_residuals
from refusal_lens.chat import Place
from refusal_lens.direction import Direction
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
from refusal_lens.model import Site

WIDTH = kit.WIDTH
R = torch.randn(WIDTH, generator=torch.Generator().manual_seed(5))
D = Direction(R, layer=1, place=Place.post(-1))


@pytest.fixture(autouse=True)
def as_for_users() -> Iterator[None]:
    """Types are checked in tests only: here the messages are tested that users get."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


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
        lambda n: add(D, strength=n),
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
        subtract(D, strength=number)
    with pytest.raises(InputError, match=r"need a (finite )?number"):
        affine(D, broken(number))


@pytest.mark.parametrize("layer", [True, 1.0, -1, "1", None])
def test_layers_are_whole_numbers(layer: Any) -> None:
    for make in (partial(Add, R), lambda n: Clamp(R, n, 0.5), partial(Site, "resid_pre")):
        with pytest.raises(InputError, match=r"layer of .* need a whole number"):
            make(layer)
    with pytest.raises(InputError, match=r"layer of .* need a whole number"):
        Direction(R, layer, Place.post(-1))


def test_numpys_whole_numbers_are_whole() -> None:
    assert Add(R, np.int64(1)).layer == 1
    assert Direction(R, np.int64(1), Place.post(-2)).layer == 1


@pytest.mark.parametrize("place", [-1, "post[-1]", None])
def test_directions_are_of_places(place: Any) -> None:
    with pytest.raises(InputError, match=r"place of Direction: got .*, need a Place"):
        Direction(R, 1, place)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_directions_are_finite(number: float) -> None:
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        Direction(broken(number), 1, Place.post(-1))
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        D * number
    with pytest.raises(InputError, match=r"NaN or infinity|need a (finite )?number"):
        D / 0


@pytest.mark.parametrize(
    ("edit", "at", "message"),
    [
        (Ablate(R), [], "at: got no site"),
        (Ablate(R), Site("resid_pre", 1), "at: got Site"),
        (Ablate(R), [True], "at: got True in the list, need a list of layers or sites"),
        (Ablate(R), [1, 2.0], "at: got 2.0 in the list"),
        (Ablate(R), [-1], "layer in at: got -1"),
        (Ablate(R), [kit.LAYERS], "hook site blocks.3"),
        (Ablate(R), ["blocks.1.hook_resid_pre"], "at: got 'blocks.1.hook_resid_pre'"),
        (Ablate(R), [Site("resid_pre", kit.LAYERS)], "hook site blocks.3"),
        (Ablate(R), [Site("pattern", 1)], "edit at pattern"),
        (Ablate(R), [Site("z", 1)], "edit at z"),
        (Add(R, kit.LAYERS), None, "layer of the edit"),
        (lambda x: x, None, "does not know its sites"),
        (7, None, "edit: got int"),
    ],
)
def test_an_edit_is_put_where_it_belongs(edit: Any, at: Any, message: str) -> None:
    with pytest.raises(InputError, match=message), applied(kit.load("qwen2"), edit, at=at):
        pass


@pytest.mark.parametrize("place", ["post[99]", "post[-99]", "reply.mean", -1, True, "-1", "t_out"])
def test_streams_are_read_at_places_that_exist(place: Any) -> None:
    wanted = r"^place .* at prompt 0: got|^place: got .* need t_inst|^places of .* need a list of"
    with pytest.raises(InputError, match=wanted):
        cache_residuals(kit.load("qwen2"), ["hello"], places=[place])


@pytest.mark.parametrize("layer", [kit.LAYERS, -1, 1.0, True])
def test_writes_are_those_of_layers_that_exist(layer: Any) -> None:
    with pytest.raises(InputError, match=r"layers? of .* need"):
        kit.load("qwen2").writes([layer])


def test_whole_numbers_are_the_streams_that_enter_layers() -> None:
    rendered = kit.load("qwen2").chat.render(["hello", "hello there"])
    outputs = []
    for at in ([1, Site("mlp_out", 0)], [Site("resid_pre", np.int64(1)), Site("mlp_out", 0)], [np.int64(1)]):
        with applied(kit.load("qwen2"), Ablate(R), at=at):
            outputs.append(kit.load("qwen2").logits(rendered))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_edits_of_what_is_no_model_of_this_process_get_one_line() -> None:
    engine = SimpleNamespace(name="served", chat=kit.load("qwen2").chat, replies=list, logits=list)
    with pytest.raises(InputError, match=r"model of applied: got .*, need a ChatModel: edits are hooks"):
        with applied(engine, ablate(D)):
            pass


@pytest.mark.parametrize(
    "edit",
    [
        lambda r, u: Ablate(r, 0.7),
        lambda r, u: Add(r, 1, -2.0),
        lambda r, u: Clamp(r, 1, 3.0, 0.5),
        lambda r, u: NormMatchedMove(r, u),
    ],
)
def test_gradients_flow_through_edits_to_activations_and_vectors(edit: Any) -> None:
    x, r, u = (
        torch.randn(*shape, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        for seed, shape in enumerate(((2, 3), (), ()))
    )
    assert torch.autograd.gradcheck(lambda x, r, u: edit(r, u)(x), (x, r, u))


@pytest.mark.parametrize("when", ["all", "prompt"])
def test_a_vector_can_be_learned_through_the_model(when: Any) -> None:
    """Each step sees the vector as the last one left it; nothing on the way is detached or kept."""
    vector = R.clone().requires_grad_()
    edit, rendered = Ablate(vector), kit.load("qwen2").chat.render(["hello", "hello there"])
    losses = []
    for _ in range(3):
        with applied(kit.load("qwen2"), edit, when=when), kit.load("qwen2").reply_at(rendered.reply_mask):
            loss = kit.load("qwen2").run(rendered.ids, rendered.mask).logsumexp(-1).sum()
        (slope,) = torch.autograd.grad(loss, vector)
        losses.append(loss.item())
        with torch.no_grad():
            vector -= slope / slope.norm()
    assert losses[0] > losses[1] > losses[2]
