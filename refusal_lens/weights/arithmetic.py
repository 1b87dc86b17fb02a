"""Changes of tensors, and how they are worked out: a few rows at a time, rounded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..display import shown
from ..shapes import Vector

CHUNK = 1 << 20
"""Bytes that are worked on at a time: they stay in a core's own cache, and allocators keep them at hand."""
CHUNK_OF_A_GPU = 1 << 26
"""The same on a GPU, where every piece costs the start of its kernels."""
VANISHING = 1e-6
"""A written vector that keeps less than this share of its length is not stretched back to it."""


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


def change_in_place(tensor: Tensor, change: Project | Offset) -> None:
    """Apply a change to a contiguous tensor, a piece at a time.

    Worked out in float32 for 16-bit tensors and in float64 for longer ones, and rounded once.
    """
    outer, d, inner = layout(tensor.shape, change.axis)
    if inner == 1:
        rows_of = tensor.view(outer, d)
        for rows in row_chunks(outer, d, tensor.dtype, tensor.device):
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


def row_chunks(
    n: int, size: int, dtype: torch.dtype, device: torch.device | None = None
) -> Iterator[slice]:
    """Slices of n rows of `size` numbers each: as many rows at a time as are worked on together, at least one."""
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
        self.rows = partial(row_chunks, d, inner, dtype, device)
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
