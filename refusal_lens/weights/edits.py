"""Edits of weights: which parameter changes how, and the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..direction import Direction, unit
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..interventions import require_number, require_vector
from ..model.norms import Norm
from ..model.sites import whole
from ..model.stream.writers import Treatment, Writer, Writers
from ..shapes import Vector
from .arithmetic import Change, NewBias, Offset, Project

NormOf = Callable[[str], Norm]
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
        _require_vector_and_strength(self.vector, self.strength)
        if self.keep_norms and self.strength != 1:
            raise InputError("norm-preserving edit: needs strength 1")

    name = "ablate"


@shown()
@checked
@dataclass(frozen=True, eq=False)
class AddBias:
    """``x + s r`` at the entry of block ``layer``, as a bias of what is added just before it.

    The paper's equation 3 (equation 17 with s < 0); r is the raw vector [d_model].
    """

    vector: Vector
    layer: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        _require_vector_and_strength(self.vector, self.strength)
        object.__setattr__(self, "layer", whole(self.layer, "layer of a weight edit"))

    @property
    def name(self) -> str:
        """As the command line has it."""
        return "add" if self.strength >= 0 else "subtract"


WeightEdit = Orthogonalise | AddBias


def _require_vector_and_strength(vector: Any, strength: Any) -> None:
    require_number(strength, "strength of a weight edit")
    require_vector(vector, "vector of a weight edit")
    if vector.ndim != 1:
        raise InputError(f"vector of a weight edit: got shape {tuple(vector.shape)}, need [d_model]")


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
def add_bias(direction: Direction, *, strength: float = 1.0) -> AddBias:
    """Activation addition in the weights (paper, equation 3): `interventions.add` without hooks.

    direction.vector is the raw r [d_model], added strength times at the entry of direction.layer.
    Raises InputError when the vector or the strength is not finite.
    """
    if not hasattr(direction, "layer"):
        raise InputError(
            f"direction of an addition: got {type(direction).__name__}, need a Direction, which knows its layer; "
            "try AddBias(vector, layer)"
        )
    return AddBias(_vector_of(direction), direction.layer, strength)


def changes_of(writers: Writers, edit: WeightEdit, norm_of: NormOf) -> tuple[Change, ...]:
    """What becomes of each parameter. Raises InputError when the edit does not fit the model."""
    if edit.vector.shape[0] != writers.d_model:
        raise InputError(
            f"direction for {writers.architecture}: got {edit.vector.shape[0]} dimensions, need d_model = "
            f"{writers.d_model}; is it a direction of another model?"
        )
    if isinstance(edit, Orthogonalise):
        return tuple(_projections(writers, edit, norm_of))
    return (_offset(writers, edit),)


def _projections(writers: Writers, edit: Orthogonalise, norm_of: NormOf) -> Iterator[Project]:
    r_hat = unit(edit.vector)
    for writer in writers.writers:
        if writer.treatment == "not editable":
            continue
        left = right = r_hat
        if writer.treatment == "folded":
            left, right = norm_of(writer.norms[0]).rank_one(r_hat)
        yield Project(writer.parameter, writer.axis, left, right, edit.strength, edit.keep_norms)


def _offset(writers: Writers, edit: AddBias) -> Change:
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
    writers_after = []
    for writer in writers.writers:
        treatment: Treatment = "edited" if writer.parameter in changed else "unchanged"
        if writer.treatment != "not editable":
            writers_after.append(replace(writer, treatment=treatment, why=""))
        if writer.module in new and not writer.is_vector:
            bias = replace(writer, parameter=new[writer.module].parameter, shape=(writers.d_model,))
            role = f"{writer.role} bias"
            why = "the model had no bias here"
            writers_after.append(replace(bias, axis=0, role=role, treatment="edited", why=why))
    tied = any(w.parameter in changed and writers.tied in w.copies for w in writers.writers)
    return replace(writers, writers=tuple(writers_after), tied=writers.tied if tied else "")
