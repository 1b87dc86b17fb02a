"""Two checkpoint folders compared on disk: was every writer edited, and nothing else? At any size."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..interventions import HasVector
from .checkpoint import prepare
from .contraction import contraction
from .edits import Project, orthogonalise
from .moving import bytes_of, read_all
from .shards import DTYPES, Checkpoint, open_checkpoint

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""What rounding to a dtype may leave along r, as a share of what was there."""
PIECE = 64 << 20


@dataclass(frozen=True)
class TensorProof:
    """One tensor of the edited checkpoint.

    along: largest ``|b . W'|``, before: largest ``|b . W|``; problem: what is wrong, or nothing.
    """

    tensor: str
    writes: bool
    along: float | None
    before: float | None
    problem: str = ""


@dataclass(frozen=True)
class FilesProof:
    """Every tensor that writes to the stream, and every other one that differs."""

    tensors: tuple[TensorProof, ...]

    @property
    def equal(self) -> bool:
        """Whether the edited folder is the original one with exactly this edit."""
        return not any(each.problem for each in self.tensors)

    @property
    def line(self) -> str:
        """The result in one line."""
        wrong = [each for each in self.tensors if each.problem]
        if not wrong:
            return f"{len(self.tensors)} tensors write to the stream, all are edited, and nothing else differs"
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        return f"{wrong[0].tensor}: {wrong[0].problem}{more}"

    def frame(self) -> pd.DataFrame:
        """The same as a table."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.tensors])


def verify_files(
    original: str | Path,
    edited: str | Path,
    direction: HasVector,
    *,
    strength: float = 1.0,
    trust_remote_code: bool = False,
) -> FilesProof:
    """Compare a checkpoint with the original it was made from, a piece of a tensor at a time.

    Checks ``b . W' = (1 - s) b . W`` for every writer (b is r^, or r^ times the gain of a norm behind it),
    and that all other tensors are the same, whoever made the edit. Raises InputError for a folder that
    cannot be read.
    """
    edit = orthogonalise(direction, strength=strength)
    job = prepare(Path(original), edit, allow_partial=True, trust_remote_code=trust_remote_code)
    one, two = job.checkpoint, open_checkpoint(Path(edited))
    found = []
    for name in one.tensors:
        change = job.changes.get(name)
        if name not in two.tensors or two.tensors[name].shape != one.tensors[name].shape:
            found.append(
                TensorProof(name, change is not None, None, None, "is not in the edited folder")
            )
        elif isinstance(change, Project):
            found.append(_of_writer(one, two, name, change, strength))
        elif not _same(one, two, name):
            found.append(TensorProof(name, False, None, None, "differs although it does not write"))
    for added in job.added:
        if added.name not in two.tensors:
            found.append(TensorProof(added.name, False, None, None, "is not in the edited folder"))
    return FilesProof(tuple(found))


def _of_writer(
    one: Checkpoint, two: Checkpoint, name: str, change: Project, strength: float
) -> TensorProof:
    old, new = (contraction(each, name, change.axis, change.right) for each in (one, two))
    before, along = float(old.abs().max()), float(new.abs().max())
    off = float((new - (1 - strength) * old).abs().max())
    allowed = ROUNDING[DTYPES[two.tensors[name].dtype]] * before
    problem = (
        "" if off <= allowed else f"was not edited so: {along:.2g} along r is left of {before:.2g}"
    )
    return TensorProof(name, True, along, before, problem)


def _same(one: Checkpoint, two: Checkpoint, name: str) -> bool:
    """Whether a tensor has the same bytes in both."""
    first, second = one.tensors[name], two.tensors[name]
    if first.dtype != second.dtype:
        return False
    with (one.folder / first.file).open("rb") as a, (two.folder / second.file).open("rb") as b:
        for start in range(0, first.bytes, PIECE):
            size = min(PIECE, first.bytes - start)
            pieces = torch.empty(2, size, dtype=torch.uint8)
            read_all(a.fileno(), bytes_of(pieces[0]), first.start + start)
            read_all(b.fileno(), bytes_of(pieces[1]), second.start + start)
            if not torch.equal(pieces[0], pieces[1]):
                return False
    return True
