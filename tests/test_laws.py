"""The laws that edits obey, as a table: each is a pure function on plain vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from refusal_lens.chat import Place
from refusal_lens.directions import Direction
from refusal_lens.interventions import (
    Ablate,
    Add,
    Clamp,
    NormMatchedMove,
    ablate,
    add,
    affine,
    clamp,
    subtract,
    unit,
)

WIDTH = 16


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = draw(3, 5, WIDTH, seed=0)
R = 7 * draw(WIDTH, seed=1)
U = draw(WIDTH, seed=2)
D = Direction(R, layer=2, place=Place.post(-1))

LAWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "ablation is idempotent": (lambda x: Ablate(R)(Ablate(R)(x)), Ablate(R)),
    "ablation is blind to sign": (Ablate(-R), Ablate(R)),
    "ablation is blind to scale": (Ablate(1e-3 * R), Ablate(R)),
    "ablation forgets addition": (lambda x: Ablate(R)(Add(R, 2)(x)), Ablate(R)),
    "ablation equals clamp to zero": (Ablate(R), Clamp(R, 2, 0.0)),
    "affine to zero equals ablation": (affine(D, torch.zeros(WIDTH)), Ablate(R)),
    "affine to the reference fixes it": (
        lambda x: affine(D, X[0, 0])(x)[:1, :1],
        lambda x: x[:1, :1],
    ),
    "subtraction undoes addition": (lambda x: subtract(D)(add(D)(x)), lambda x: x),
    "addition adds up": (lambda x: Add(R, 2)(Add(R, 2)(x)), Add(R, 2, 2.0)),
    "addition is of the raw vector": (add(D), lambda x: x + R),
    "strength zero is nothing": (Ablate(R, 0.0), lambda x: x),
    "half strength twice leaves a quarter": (
        lambda x: Ablate(R, 0.5)(Ablate(R, 0.5)(x)),
        Ablate(R, 0.75),
    ),
    "ablating two orthogonal directions commutes": (
        lambda x: Ablate(R)(Ablate(Ablate(R)(U))(x)),
        lambda x: Ablate(Ablate(R)(U))(Ablate(R)(x)),
    ),
    "a norm-matched move along r itself is ablation": (NormMatchedMove(R, R), Ablate(R)),
    "a vector per row acts on its row": (
        lambda x: Ablate(torch.stack([R, U, R])[:, None])(x),
        lambda x: torch.stack([Ablate(R)(x[0]), Ablate(U)(x[1]), Ablate(R)(x[2])]),
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_law(law: str) -> None:
    left, right = LAWS[law]
    assert torch.allclose(left(X), right(X), rtol=0, atol=1e-12)


def test_ablation_leaves_nothing_along_r_and_all_else() -> None:
    after = Ablate(R)(X)
    assert (after @ unit(R)).abs().max() < 1e-12
    across = U - (U @ unit(R)) * unit(R)
    assert torch.allclose(after @ across, X @ across)


def test_clamp_sets_the_projection() -> None:
    assert torch.allclose(clamp(D, 4.5)(X) @ unit(R), torch.tensor(4.5, dtype=torch.float64))


def test_a_norm_matched_move_goes_exactly_as_far_as_ablation() -> None:
    moved, ablated = NormMatchedMove(R, U)(X) - X, Ablate(R)(X) - X
    assert torch.allclose(moved.norm(dim=-1), ablated.norm(dim=-1))
    assert not torch.allclose(moved, ablated)


@pytest.mark.parametrize("edit", [ablate(D), add(D), clamp(D, 1.0), NormMatchedMove(R, U)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_edits_keep_dtype_and_leave_their_input(edit: Callable, dtype: torch.dtype) -> None:
    x = X.to(dtype)
    before = x.clone()
    after = edit(x)
    assert after.dtype == dtype
    assert after.shape == x.shape
    assert torch.equal(x, before)
    assert not torch.equal(after, before)
