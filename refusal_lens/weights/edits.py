"""Edits of weights: which parameter changes how, and the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..direction import Direction, unit
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model.stream.writers import Treatment, Writer, Writers
from ..shapes import Vector
from .norms import Gain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CHUNK = 1 << 20
"""Bytes that are worked on at a time: they stay in a core's own cache, and allocators keep them at hand."""
CHUNK_OF_A_GPU = 1 << 26
"""The same on a GPU, where every piece costs the start of its kernels."""
VANISHING = 1e-6
"""A written vector that keeps less than this share of its length is not stretched back to it."""

GainOf = Callable[[str], Gain]
"""Measures the norm module of that name."""


@shown()
@checked
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
        _require_finite(self.vector, self.strength)
        if float(unit(self.vector).norm()) == 0:
            raise InputError("direction: got a vector of length 0, need one with a direction")
        if self.keep_norms and self.strength != 1:
            raise InputError("norm-preserving edit: needs strength 1")

    name = "ablate"


@shown()
@checked
@dataclass(frozen=True, eq=False)
class Shift:
    """``x + c r`` at the entry of block ``layer``, as a bias of what is added just before it.

    The paper's equation 3 (equation 17 with c < 0); r is the raw vector [d_model].
    """

    vector: Vector
    layer: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        _require_finite(self.vector, self.strength)
        layer: Any = self.layer
        if isinstance(layer, bool) or not isinstance(layer, int):
            raise InputError(
                f"layer of a weight edit: got {layer!r:.40}, need a whole number from 0"
            )

    @property
    def name(self) -> str:
        """As the command line has it."""
        return "add" if self.strength >= 0 else "subtract"


WeightEdit = Orthogonalise | Shift


def _require_finite(vector: Any, strength: Any) -> None:
    if isinstance(strength, bool) or not isinstance(strength, int | float):
        raise InputError(f"strength of a weight edit: got {strength!r:.40}, need a number")
    if not math.isfinite(strength):
        raise InputError(f"strength of a weight edit: got {strength}, need a finite number")
    if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.is_floating_point():
        got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise InputError(f"direction: got {got}, need a vector of floats [d_model]")
    if not bool(vector.isfinite().all()):
        raise InputError("direction: got NaN or infinity in it, need a finite vector")


def _vector_of(direction: Any) -> Tensor:
    """A direction's vector on the CPU in float64. Raises InputError for what has none."""
    vector = direction if isinstance(direction, Tensor) else getattr(direction, "vector", None)
    if not isinstance(vector, Tensor):
        raise InputError(
            f"direction: got {type(direction).__name__}, need a Direction or a vector [d_model]"
        )
    return vector.detach().cpu().double()


@checked
def orthogonalise(
    direction: Direction | Vector, *, strength: float = 1.0, keep_norms: bool = False
) -> Orthogonalise:
    """Directional ablation in the weights (paper, equation 5): `interventions.ablate` without hooks.

    strength is the share that is taken away; keep_norms stretches what is written back to its length.
    Raises InputError for a vector of length 0 or not finite, a strength that is not a finite number, or
    keep_norms with another strength than 1.
    """
    return Orthogonalise(_vector_of(direction), strength, keep_norms)


@checked
def shift(direction: Direction, *, strength: float = 1.0) -> Shift:
    """Activation addition in the weights (paper, equation 3): `interventions.add` without hooks.

    direction.vector is the raw r [d_model], times strength added at the entry of direction.layer.
    Raises InputError when the vector or the strength is not finite.
    """
    if not hasattr(direction, "layer"):
        raise InputError(
            f"direction of an addition: got {type(direction).__name__}, need a Direction, which knows its layer; "
            "try Shift(vector, layer)"
        )
    return Shift(_vector_of(direction), direction.layer, strength)


# ------------------------------------------------------------------------------- what changes


@shown()
@dataclass(frozen=True, eq=False)
class Project:
    """``W - s a (b . W)`` along one axis: rank one. a, b are float64 [d_model] with ``a . b = 1``."""

    parameter: str
    axis: int
    left: Vector
    right: Vector
    strength: float
    keep_norms: bool = False


@shown()
@dataclass(frozen=True, eq=False)
class Offset:
    """``W + v`` along one axis, the same v [d_model] at every other index."""

    parameter: str
    axis: int
    vector: Vector


@shown()
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
    target = edit.strength * edit.vector
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


def map_after(writers: Writers, edit: WeightEdit, changes: Sequence[Change]) -> Writers:
    """The map with what an edit does to each writer: an addition changes one and leaves the others."""
    if isinstance(edit, Orthogonalise):
        return writers
    changed = {change.parameter for change in changes}
    new = {change.module: change for change in changes if isinstance(change, NewBias)}
    found = []
    for writer in writers.writers:
        treatment: Treatment = "edited" if writer.parameter in changed else "unchanged"
        if writer.treatment != "not editable":
            found.append(replace(writer, treatment=treatment, why=""))
        if writer.module in new and not writer.is_vector:
            bias = replace(writer, parameter=new[writer.module].parameter, shape=(writers.d_model,))
            role = f"{writer.role} bias"
            why = "the model had no bias here"
            found.append(replace(bias, axis=0, role=role, treatment="edited", why=why))
    tied = any(w.parameter in changed and writers.tied in w.copies for w in writers.writers)
    return replace(writers, writers=tuple(found), tied=writers.tied if tied else "")


# ------------------------------------------------------------------------------- arithmetic


def change_in_place(tensor: Tensor, change: Project | Offset) -> None:
    """Apply a change to a contiguous tensor, a piece at a time.

    Worked out in float32 for 16-bit tensors and in float64 for longer ones, and rounded once.
    """
    outer, d, inner = layout(tensor.shape, change.axis)
    if inner == 1:
        rows_of = tensor.view(outer, d)
        for rows in pieces(outer, d, tensor.dtype, tensor.device):
            rows_of[rows] = changed_rows(rows_of[rows], change)
        return
    for matrix in tensor.view(outer, d, inner):
        columns = Columns(change, d, inner, tensor.dtype, tensor.device)
        for rows, look in columns.looks():
            look(rows, matrix[rows])
        for rows in columns.rows():
            matrix[rows] = columns.changed(rows, matrix[rows])


def layout(shape: Sequence[int], axis: int) -> tuple[int, int, int]:
    """A shape as [outer d_model inner] around the axis of d_model; inner is 1 when that is the last."""
    outer, inner = torch.Size(shape[:axis]).numel(), torch.Size(shape[axis + 1 :]).numel()
    return outer, shape[axis], inner


def pieces(
    n: int, size: int, dtype: torch.dtype, device: torch.device | None = None
) -> Iterator[slice]:
    """N rows of `size` numbers, as many at a time as are worked on together, at least one."""
    chunk = CHUNK if device is None or device.type == "cpu" else CHUNK_OF_A_GPU
    step = max(1, chunk // max(1, size * precise(dtype).itemsize))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def precise(dtype: torch.dtype) -> torch.dtype:
    """What is calculated in: float32 for 16-bit numbers, else float64."""
    return torch.float32 if dtype.itemsize < 4 else torch.float64


def changed_rows(rows: Tensor, change: Project | Offset) -> Tensor:
    """Rows [n d_model] that are written vectors each, ``w - s (w . b) a`` or ``w + v``, not yet rounded."""
    rows = rows.to(precise(rows.dtype))
    if isinstance(change, Offset):
        return rows + change.vector.to(rows)
    left, right = change.left.to(rows), change.right.to(rows)
    new = rows.addr(rows @ right, left, alpha=-change.strength)
    if change.keep_norms:
        new *= _stretch(rows.square().sum(-1), new.square().sum(-1))[:, None]
    return new


@shown()
class Columns:
    """A matrix [d_model inner] whose columns are written vectors: ``W - s a (b^T W)`` or ``W + v 1^T``.

    Its rows come a few at a time, as `rows` says. All that `looks` asks for must be looked at before any is
    `changed`. dtype is the matrix' own; it is calculated in a finer one.
    """

    def __init__(
        self,
        change: Project | Offset,
        d: int,
        inner: int,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        self.change = change
        self.rows = partial(pieces, d, inner, dtype, device)
        finer = precise(dtype)
        vectors = (change.vector,) if isinstance(change, Offset) else (change.left, change.right)
        self.left, self.right = (v.to(device, finer) for v in (vectors[0], vectors[-1]))
        self.along, self.before, self.after, self.factor = torch.zeros(
            4, inner, dtype=finer, device=device
        )

    def looks(self) -> Iterator[tuple[slice, Callable[[slice, Tensor], None]]]:
        """Which rows to look at, in this order, each with what to call with them."""
        if isinstance(self.change, Offset):
            return
        yield from ((rows, self._add_along) for rows in self.rows())
        if self.change.keep_norms:
            yield from ((rows, self._add_length) for rows in self.rows())
            self.factor = _stretch(self.before, self.after)

    def changed(self, rows: slice, piece: Tensor) -> Tensor:
        """These rows with the change, not yet rounded."""
        piece = piece.to(self.left.dtype)
        if isinstance(self.change, Offset):
            return piece + self.left[rows, None]
        new = piece.addr(self.left[rows], self.along, alpha=-self.change.strength)
        return new.mul_(self.factor) if self.change.keep_norms else new

    def _add_along(self, rows: slice, piece: Tensor) -> None:
        piece = piece.to(self.left.dtype)
        self.along += self.right[rows] @ piece
        if isinstance(self.change, Project) and self.change.keep_norms:
            self.before += piece.square().sum(0)

    def _add_length(self, rows: slice, piece: Tensor) -> None:
        assert isinstance(self.change, Project)
        piece = piece.to(self.left.dtype)
        new = piece.addr(self.left[rows], self.along, alpha=-self.change.strength)
        self.after += new.square().sum(0)


def _stretch(before: Tensor, after: Tensor) -> Tensor:
    """Factor from the squared lengths after to those before; 1 where next to nothing is left."""
    left_over = after > VANISHING**2 * before
    return torch.where(left_over, (before / after.clamp_min(1e-60)).sqrt(), torch.ones_like(before))


def changes_by_name(changes: tuple[Change, ...]) -> Mapping[str, Change]:
    """The changes by the parameter that they change."""
    return {change.parameter: change for change in changes}
