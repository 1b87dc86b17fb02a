"""Edits of weights: which parameter changes how, and the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from ..interventions import HasVector, unit
from ..shapes import Vector
from .norms import Gain
from .writers import Writer, Writers

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 1 << 22
"""Numbers that are worked on at a time: 16 MiB in float32."""
VANISHING = 1e-6
"""A written vector that keeps less than this share of its length is not stretched back to it."""

GainOf = Callable[[str], Gain]
"""Measures the norm module of that name."""


@dataclass(frozen=True, eq=False)
class Orthogonalise:
    """``W - s r^ r^T W`` for everything that writes to the stream (paper, equation 5; s = 1 there).

    keep_norms stretches every written vector back to the length that it had. The result still has no
    component along r^, but is no longer what hooks compute.
    """

    vector: Vector
    strength: float = 1.0
    keep_norms: bool = False

    def __post_init__(self) -> None:
        if float(unit(self.vector).norm()) == 0:
            raise InputError("direction: got a vector of length 0, need one with a direction")
        if self.keep_norms and self.strength != 1:
            raise InputError("norm-preserving edit: needs strength 1")

    name = "ablate"


@dataclass(frozen=True, eq=False)
class Shift:
    """``x + c r`` at the entry of block ``layer``, as a bias of what is added just before it."""

    vector: Vector
    layer: int
    coefficient: float = 1.0

    @property
    def name(self) -> str:
        """As the command line has it."""
        return "add" if self.coefficient >= 0 else "subtract"


WeightEdit = Orthogonalise | Shift


def orthogonalise(
    direction: HasVector | Vector, *, strength: float = 1.0, keep_norms: bool = False
) -> Orthogonalise:
    """Directional ablation in the weights: the same as `interventions.ablate`, without hooks."""
    vector = direction if isinstance(direction, Tensor) else direction.vector
    return Orthogonalise(vector.detach().cpu().double(), strength, keep_norms)


def shift(direction: HasVector, *, coefficient: float = 1.0) -> Shift:
    """Activation addition in the weights: the same as `interventions.add`, without hooks."""
    return Shift(direction.vector.detach().cpu().double(), direction.layer, coefficient)


# ------------------------------------------------------------------------------- what changes


@dataclass(frozen=True, eq=False)
class Project:
    """``W - s a (b . W)`` along one axis: rank one. a, b are float64 [d_model] with ``a . b = 1``."""

    parameter: str
    axis: int
    left: Vector
    right: Vector
    strength: float
    keep_norms: bool = False


@dataclass(frozen=True, eq=False)
class Offset:
    """``W + v`` along one axis, the same v [d_model] at every other index."""

    parameter: str
    axis: int
    vector: Vector


@dataclass(frozen=True, eq=False)
class NewBias:
    """A bias [d_model] for a module that has none."""

    module: str
    vector: Vector

    @property
    def parameter(self) -> str:
        """Name that the bias gets."""
        return f"{self.module}.bias"


Change = Project | Offset | NewBias


def plan(writers: Writers, edit: WeightEdit, gain_of: GainOf) -> tuple[Change, ...]:
    """What becomes of each parameter. Raises InputError when the edit does not fit the model."""
    if edit.vector.shape[0] != writers.d_model:
        raise InputError(
            f"direction for {writers.architecture}: got {edit.vector.shape[0]} dimensions, need d_model = "
            f"{writers.d_model}; is it a direction of another model?"
        )
    if isinstance(edit, Orthogonalise):
        return tuple(_projections(writers, edit, gain_of))
    return (_offset(writers, edit),)


def _projections(writers: Writers, edit: Orthogonalise, gain_of: GainOf) -> Iterator[Project]:
    r_hat = unit(edit.vector)
    for writer in writers.writers:
        if writer.treatment == "not editable":
            continue
        left = right = r_hat
        if writer.treatment == "folded":
            left, right = gain_of(writer.norms[0]).rank_one(r_hat)
        yield Project(writer.parameter, writer.axis, left, right, edit.strength, edit.keep_norms)


def _offset(writers: Writers, edit: Shift) -> Change:
    if not 0 <= edit.layer < writers.n_layers:
        raise InputError(
            f"layer of the direction for {writers.architecture}: got {edit.layer}, need 0 to "
            f"{writers.n_layers - 1}"
        )
    target = edit.coefficient * edit.vector
    writer = bias_before(writers, edit.layer)
    if writer is not None and writer.scale:
        if writer.role.endswith("bias") or writer.lookup:
            return Offset(writer.parameter, writer.axis, target / writer.scale)
        return NewBias(writer.module, target / writer.scale)
    where = f"block {edit.layer - 1}" if edit.layer else "the embedding"
    raise InputError(
        f"addition at layer {edit.layer} of {writers.architecture}: nothing that {where} writes can carry "
        "a constant vector (a norm or a router rescales it); use hooks or the steered file instead"
    )


def bias_before(writers: Writers, layer: int) -> Writer | None:
    """The writer that adds last before block ``layer`` and could add a constant there.

    A bias or a lookup table as it is; a matrix when only a bias of its module is missing. None when a
    norm, or a factor that differs from token to token, comes after all of them.
    """
    before = None if layer == 0 else layer - 1
    plain = [w for w in writers.writers if w.layer == before and w.late and w.scale and not w.norms]
    biases = [w for w in plain if w.is_vector and len(w.shape) == 1]
    tables = [w for w in plain if w.lookup]
    matrices = [
        w for w in plain if not w.lookup and len(w.shape) == 2 and w.parameter.endswith(".weight")
    ]
    return next(iter([*biases, *tables, *matrices]), None)


# ------------------------------------------------------------------------------- arithmetic


def change_in_place(tensor: Tensor, change: Project | Offset) -> None:
    """Apply a change to a contiguous tensor, a piece at a time.

    Worked out in float32 for 16-bit tensors and in float64 for longer ones, and rounded once.
    """
    precise = torch.float32 if tensor.element_size() < 4 else torch.float64
    d = tensor.shape[change.axis]
    outer = tensor.shape[: change.axis].numel()
    inner = tensor.shape[change.axis + 1 :].numel()
    view = tensor.view(outer, d, inner)
    if isinstance(change, Offset):
        vector = change.vector.to(tensor.device, precise)
        for rows in _pieces(outer, d * inner):
            view[rows] = (view[rows].to(precise) + vector[:, None]).to(tensor.dtype)
    elif inner == 1:
        for rows in _pieces(outer, d):
            flat = view[rows, :, 0]
            flat.copy_(_without_rows(flat.to(precise), change))
    else:
        for index in range(outer):
            _without_columns(view[index], change, precise)


def _pieces(n: int, size: int) -> Iterator[slice]:
    step = max(1, CHUNK // max(1, size))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _without_rows(rows: Tensor, change: Project) -> Tensor:
    """Rows that are written vectors each: ``w - s (w . b) a``."""
    left, right = change.left.to(rows), change.right.to(rows)
    new = rows.addr(rows @ right, left, alpha=-change.strength)
    if change.keep_norms:
        new = new * _stretch(rows.square().sum(-1), new.square().sum(-1))[:, None]
    return new


def _without_columns(matrix: Tensor, change: Project, precise: torch.dtype) -> None:
    """A matrix whose columns are written vectors: ``W - s a (b^T W)``, rows worked on in pieces."""
    left, right = (v.to(matrix.device, precise) for v in (change.left, change.right))
    along = torch.zeros(matrix.shape[1], dtype=precise, device=matrix.device)
    before = torch.zeros_like(along)
    for rows in _pieces(*matrix.shape):
        piece = matrix[rows].to(precise)
        along += right[rows] @ piece
        if change.keep_norms:
            before += piece.square().sum(0)
    factor = torch.ones_like(along)
    if change.keep_norms:
        after = torch.zeros_like(along)
        for rows in _pieces(*matrix.shape):
            piece = matrix[rows].to(precise)
            after += piece.addr_(left[rows], along, alpha=-change.strength).square().sum(0)
        factor = _stretch(before, after)
    for rows in _pieces(*matrix.shape):
        piece = matrix[rows].to(precise).addr_(left[rows], along, alpha=-change.strength)
        matrix[rows] = piece.mul_(factor) if change.keep_norms else piece


def _stretch(before: Tensor, after: Tensor) -> Tensor:
    """Factor from the squared lengths after to those before; 1 where next to nothing is left."""
    left_over = after > VANISHING**2 * before
    return torch.where(left_over, (before / after.clamp_min(1e-60)).sqrt(), torch.ones_like(before))


def changes_by_name(changes: tuple[Change, ...]) -> Mapping[str, Change]:
    """The changes by the parameter that they change."""
    return {change.parameter: change for change in changes}
