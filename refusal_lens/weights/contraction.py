"""``b . W`` for tensors on disk: what every input writes along a direction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..model.shards import DTYPES, Checkpoint, Stored
from ..shapes import Vector
from .arithmetic import layout, precise
from .copying import read_rows

PIECE = 64 << 20


def contraction(checkpoint: Checkpoint, name: str, axis: int, vector: Vector) -> Tensor:
    """The tensor summed over one axis with weights, float64 in memory: its shape without that axis.

    Reads a piece at a time, in float32 for 16-bit tensors and in float64 for longer ones.
    """
    stored = checkpoint.tensors[name]
    outer, d, inner = layout(stored.shape, axis)
    finer = precise(DTYPES[stored.dtype])
    weights = vector.to(finer)
    sums = torch.zeros(outer, inner, dtype=torch.float64)
    with (checkpoint.folder / stored.file).open("rb") as file:
        if inner == 1:
            for start, rows in _rows(file.fileno(), stored, outer, d):
                sums[start : start + len(rows), 0] = (rows.to(finer) @ weights).double()
        else:
            for start, rows in _rows(file.fileno(), stored, outer * d, inner):
                _add_rows(sums, rows.to(finer), start, weights, d)
    return sums.view(stored.shape[:axis] + stored.shape[axis + 1 :])


def _add_rows(sums: Tensor, rows: Tensor, start: int, weights: Tensor, d: int) -> None:
    """Add rows [n inner] that are the indices start, start + 1, ... of [outer d]."""
    at = 0
    while at < len(rows):
        index, first = divmod(start + at, d)
        count = min(len(rows) - at, d - first)
        sums[index] += (weights[first : first + count] @ rows[at : at + count]).double()
        at += count


def _rows(file: int, stored: Stored, n: int, width: int) -> Iterator[tuple[int, Tensor]]:
    """The tensor as n rows, some at a time, each time with the index of the first."""
    dtype = DTYPES[stored.dtype]
    step = max(1, PIECE // (width * dtype.itemsize))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield start, read_rows(file, stored.start, rows, width, dtype)
