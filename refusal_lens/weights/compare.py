"""Two checkpoint folders compared on disk: was every writer edited, and nothing else? At any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..direction import Direction
from ..display import shown
from ..door import checked
from ..model.shards import DTYPES, Checkpoint, Stored, folder_at, open_checkpoint
from .arithmetic import Columns, Project, changed_rows, layout, precise, row_chunks
from .checkpoint import Added, ExportPlan, configuration, prepare
from .copying import read_rows
from .edits import orthogonalise

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What rounding to a dtype may leave along r, as a share of what was there."""
PIECE = 64 << 20


@dataclass(frozen=True)
class TensorCheck:
    """One tensor of the edited checkpoint.

    along: largest ``|b . W'|``, before: largest ``|b . W|``; problem: what is wrong, or nothing.
    """

    tensor: str
    writes: bool
    along: float | None
    before: float | None
    problem: str = ""


@shown("line")
@dataclass(frozen=True)
class FilesEquivalence:
    """Every tensor that writes to the stream, and every other one that differs."""

    tensors: tuple[TensorCheck, ...]

    @property
    def equal(self) -> bool:
        """Whether the edited folder is the original one with exactly this edit."""
        return not any(tensor.problem for tensor in self.tensors)

    @property
    def line(self) -> str:
        """The result in one line."""
        wrong = [tensor for tensor in self.tensors if tensor.problem]
        if not wrong:
            return f"{len(self.tensors)} tensors write to the stream, all are edited, and nothing else differs"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"{wrong[0].tensor}: {wrong[0].problem}{more}"

    def frame(self) -> pd.DataFrame:
        """The same as a table."""
        import pandas as pd

        return pd.DataFrame([asdict(tensor) for tensor in self.tensors])


@checked
def verify_files(
    original: str | Path,
    edited: str | Path,
    direction: Direction,
    *,
    strength: float = 1.0,
    keep_norms: bool = False,
    trust_remote_code: bool = False,
) -> FilesEquivalence:
    """Compare a checkpoint with the original it was made from, a piece of a tensor at a time.

    Every number of a writer must be what the edit makes of the original's, within one rounding step of the
    stored dtype, and ``b . W' = (1 - s) b . W`` (b is r^, or r^ times the gain of a norm behind it). All other
    tensors must be the same, an untied unembedding the old embedding, and config.json must say what is tied,
    whoever made the edit. Raises InputError for a folder that cannot be read.
    """
    edit = orthogonalise(direction, strength=strength, keep_norms=keep_norms)
    plan = prepare(original, edit, allow_partial=True, trust_remote_code=trust_remote_code)
    two = open_checkpoint(folder_at(edited))
    checks = [
        *_kept(plan, two),
        *(check for added in plan.added if (check := _added(plan, added, two)) is not None),
        *_further(plan, two),
        *_ties(plan, two, trust_remote_code=trust_remote_code),
    ]
    return FilesEquivalence(tuple(checks))


def _kept(plan: ExportPlan, edited: Checkpoint) -> Iterator[TensorCheck]:
    """Every writer of the original, and every other tensor of it that is not as it was."""
    original = plan.checkpoint
    for name, stored in original.tensors.items():
        change = plan.changes.get(name)
        problem = _unlike(stored, edited.tensors.get(name))
        if problem:
            yield TensorCheck(name, change is not None, None, None, problem)
        elif isinstance(change, Project):
            yield _of_writer(original, edited, name, change)
        elif not _same(original, stored, edited, edited.tensors[name]):
            yield TensorCheck(name, False, None, None, "differs although it does not write")


def _added(plan: ExportPlan, added: Added, edited: Checkpoint) -> TensorCheck | None:
    """What is wrong with a tensor that the edit adds: the unembedding with the unedited values."""
    assert added.like is not None
    problem = _unlike(added.like, edited.tensors.get(added.name))
    if not problem and not _same(plan.checkpoint, added.like, edited, edited.tensors[added.name]):
        problem = f"differs from the unedited {added.like.name}, which it was tied to"
    return TensorCheck(added.name, False, None, None, problem) if problem else None


def _further(plan: ExportPlan, edited: Checkpoint) -> Iterator[TensorCheck]:
    known = plan.checkpoint.tensors.keys() | {tensor.name for tensor in plan.added}
    for name in edited.tensors:
        if name not in known:
            yield TensorCheck(name, False, None, None, "is not in the original")


def _ties(plan: ExportPlan, edited: Checkpoint, *, trust_remote_code: bool) -> Iterator[TensorCheck]:
    """Whether config.json ties the unembedding as it should: not at all where the edit made it separate."""
    folders = (plan.checkpoint.folder, edited.folder)
    before, now = (_tied(folder, trust_remote_code=trust_remote_code) for folder in folders)
    wanted = before and not plan.writers.tied
    if now != wanted:
        problem = f"tie_word_embeddings is {str(now).lower()}, need {str(wanted).lower()}"
        yield TensorCheck("config.json: tie_word_embeddings", False, None, None, problem)


def _tied(folder: Path, *, trust_remote_code: bool) -> bool:
    """Whether any part of a configuration ties the unembedding to the embedding, as transformers reads it."""
    config = configuration(folder, trust_remote_code=trust_remote_code)
    parts = (config, config.get_text_config())
    return any(bool(getattr(part, "tie_word_embeddings", False)) for part in parts)


def _unlike(one: Stored, other: Stored | None) -> str:
    """What keeps two tensors from being compared number by number."""
    if other is None:
        return "is not in the edited folder"
    if other.shape != one.shape:
        return f"has shape {other.shape}, need {one.shape}"
    return "" if other.dtype == one.dtype else f"is stored as {other.dtype}, need {one.dtype}"


def _of_writer(original: Checkpoint, edited: Checkpoint, name: str, change: Project) -> TensorCheck:
    old, new = original.tensors[name], edited.tensors[name]
    difference = _Difference(change, DTYPES[old.dtype])
    with ExitStack() as files:
        first, second = (
            _Reader(files.enter_context((checkpoint.folder / stored.file).open("rb")).fileno(), stored)
            for checkpoint, stored in ((original, old), (edited, new))
        )
        outer, d, inner = layout(old.shape, change.axis)
        if inner == 1:
            _compare_rows(first, second, outer, d, difference)
        else:
            for index in range(outer):
                _compare_columns(first, second, index * d, d, inner, difference)
    return TensorCheck(name, True, difference.along, difference.before, difference.problem)


def _compare_rows(first: _Reader, second: _Reader, n: int, d: int, difference: _Difference) -> None:
    """Compare a tensor whose rows [n d_model] are written vectors."""
    right = difference.change.right.to(difference.finer)
    for rows in row_chunks(n, d, difference.dtype):
        old, got = first.rows(rows, d), second.rows(rows, d)
        steps = difference.look(old, changed_rows(old, difference.change), got)
        along = (old.to(difference.finer) @ right, got.to(difference.finer) @ right)
        difference.look_along(*along, steps.square() @ right.square())


def _compare_columns(
    first: _Reader, second: _Reader, start: int, d: int, inner: int, difference: _Difference
) -> None:
    """Compare a matrix [d_model inner] whose columns are written vectors."""
    columns = Columns(difference.change, d, inner, difference.dtype)

    def part(rows: slice) -> slice:
        return slice(start + rows.start, start + rows.stop)

    for rows, look in columns.looks():
        look(rows, first.rows(part(rows), inner))
    along, noise = torch.zeros(2, inner, dtype=difference.finer)
    for rows in columns.rows():
        old, got = first.rows(part(rows), inner), second.rows(part(rows), inner)
        steps = difference.look(old, columns.changed(rows, old), got)
        along += columns.right[rows] @ got.to(difference.finer)
        noise += columns.right[rows].square() @ steps.square()
    difference.look_along(columns.along, along, noise)


class _Reader:
    """A tensor in an open file, as rows of any width."""

    def __init__(self, file: int, stored: Stored) -> None:
        self.file, self.start, self.dtype = file, stored.start, DTYPES[stored.dtype]

    def rows(self, rows: slice, width: int) -> Tensor:
        return read_rows(self.file, self.start, rows, width, self.dtype)


class _Difference:
    """How far a stored writer is from what the edit makes of the original."""

    def __init__(self, change: Project, dtype: torch.dtype) -> None:
        self.change, self.dtype, self.finer = change, dtype, precise(dtype)
        self.numbers = self.wrong = 0
        self.before = self.along = self.off = self.noise = 0.0

    def look(self, old: Tensor, wanted: Tensor, got: Tensor) -> Tensor:
        """Count the numbers further from the wanted ones than a rounding step; gives the steps."""
        step, least = torch.finfo(self.dtype).eps, torch.finfo(self.dtype).smallest_normal
        size = torch.maximum(old.to(self.finer).abs(), wanted.abs())
        steps = step * size.clamp_min(least)
        near = (got.to(self.finer) - wanted).abs() <= steps
        self.numbers += near.numel()
        self.wrong += near.numel() - int(near.sum())
        return steps

    def look_along(self, before: Tensor, after: Tensor, noise: Tensor) -> None:
        """Note what is written along b, before and after, and the square of what rounding adds to it."""
        self.before = max(self.before, float(before.abs().max()))
        self.along = max(self.along, float(after.abs().max()))
        rest = after - (1 - self.change.strength) * before
        self.off = max(self.off, float(rest.abs().max()))
        self.noise = max(self.noise, float(noise.max()) ** 0.5)

    @property
    def problem(self) -> str:
        """What is wrong with it, or nothing."""
        if self.off > max(ROUNDING[self.dtype] * self.before, 2 * self.noise):
            return f"was not edited so: {self.along:.2g} along r is left of {self.before:.2g}"
        if self.wrong:
            return (
                f"is not what the edit makes of it: {self.wrong:,} of {self.numbers:,} numbers are further off "
                "than a rounding step"
            )
        return ""


def _same(original: Checkpoint, first: Stored, edited: Checkpoint, second: Stored) -> bool:
    """Whether two tensors of one dtype and shape have the same bytes."""
    with (original.folder / first.file).open("rb") as a, (edited.folder / second.file).open("rb") as b:
        for start in range(0, first.bytes, PIECE):
            part = slice(start, min(start + PIECE, first.bytes))
            one, other = (
                read_rows(file.fileno(), stored.start, part, 1, torch.uint8)
                for file, stored in ((a, first), (b, second))
            )
            if not torch.equal(one, other):
                return False
    return True
