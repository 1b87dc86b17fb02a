"""A direction as a value: the vector, where it was found, and in which model and data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..chat import Place
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..interventions import unit
from ..model import ChatModel
from ..model.sites import whole
from ..runs import read_safetensors, write_safetensors
from ..runs.schema import DirectionFacts, converted
from ..shapes import Vector

FORMAT = "refusal_lens direction 1"


@shown("layer", "place", "norm", "d_model", "concept", "model")
@checked
@dataclass(frozen=True, eq=False)
class Direction:
    """The raw difference of means r [d_model] and its provenance.

    vector is float64 on the CPU; layer is 0-based resid_pre; place is where the prompts were read, and position_name
    what a page calls it. Arithmetic keeps the provenance: ``-d``, ``2 * d``, ``d / 2``, ``d + e``.
    Raises InputError for a vector with NaN or infinity, or a layer that cannot be one.
    """

    vector: Vector
    layer: int
    place: Place
    position_name: str = ""
    site: str = "resid_pre"
    concept: str = "refusal"
    model: str = ""
    revision: str | None = None
    template_sha256: str = ""
    data_sha256: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.vector, Tensor) or self.vector.ndim != 1 or not len(self.vector):
            got = tuple(self.vector.shape) if isinstance(self.vector, Tensor) else type(self.vector).__name__
            raise InputError(f"direction vector: got {got}, need a tensor of shape [d_model]")
        if not bool(self.vector.isfinite().all()):
            raise InputError("direction vector: got NaN or infinity in it, need finite numbers")
        object.__setattr__(self, "layer", whole(self.layer, "layer of a direction"))
        object.__setattr__(self, "vector", self.vector.detach().cpu().double().clone())

    @property
    def position(self) -> int | None:
        """The post-instruction token r was read at, -1 the last; None where it was read at another place."""
        return self.place.position

    # ---------------------------------------------------------------- algebra

    @property
    def unit(self) -> Vector:
        """``r^ = r / ||r||``, float64."""
        return unit(self.vector)

    @property
    def norm(self) -> float:
        """``||r||`` in activation units."""
        return float(self.vector.norm())

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.vector.shape[0])

    @checked
    def cosine(self, other: Direction | Tensor) -> float:
        """Cosine similarity with another direction or vector [d_model]."""
        vector = other.vector if isinstance(other, Direction) else other.double().cpu()
        self._check_width(vector)
        return float(self.unit @ unit(vector))

    def __neg__(self) -> Direction:
        return -1 * self

    @checked
    def __mul__(self, scale: float) -> Direction:
        return replace(self, vector=self.vector * scale)

    __rmul__ = __mul__

    @checked
    def __truediv__(self, scale: float) -> Direction:
        if scale == 0 or math.isinf(scale):
            raise InputError(f"scale: got {scale:g}, need a finite number that is not 0")
        return replace(self, vector=self.vector / scale)

    @checked
    def __add__(self, other: Direction) -> Direction:
        self._check_width(other.vector)
        return replace(self, vector=self.vector + other.vector)

    @checked
    def __sub__(self, other: Direction) -> Direction:
        self._check_width(other.vector)
        return replace(self, vector=self.vector - other.vector)

    def _check_width(self, vector: Tensor) -> None:
        if vector.shape != self.vector.shape:
            raise InputError(
                f"other vector: got {list(vector.shape)}, need [{self.d_model}] as the direction has"
            )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Direction)
            and torch.equal(self.vector, other.vector)
            and self.provenance == other.provenance
        )

    __hash__ = None  # type: ignore[assignment]

    # ---------------------------------------------------------------- files

    @property
    def provenance(self) -> dict[str, Any]:
        """Everything but the vector, JSON-able."""
        names = ("layer", "position", "position_name", "site", "concept", "model", "revision")
        known = {name: getattr(self, name) for name in names}
        return known | {
            "place": str(self.place),
            "template_sha256": self.template_sha256,
            "data_sha256": self.data_sha256,
            "norm": self.norm,
            "d_model": self.d_model,
            "more": dict(self.more),
        }

    @checked
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: tensor ``direction``, provenance as JSON in the header."""
        header = {"format": FORMAT, "provenance": json.dumps(self.provenance, sort_keys=True)}
        write_safetensors(Path(path), {"direction": self.vector}, header)
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path, model: ChatModel | None = None) -> Direction:
        """Read a direction file; with a model, check that the direction is one of that model's.

        Raises InputError for a missing, damaged or foreign file, or a direction of another model.
        """
        where = f"direction file {path}"
        found = read_safetensors(Path(path))
        vector = found.tensors.get("direction")
        if vector is None or found.header.get("format") != FORMAT:
            raise InputError(
                f"{where}: no direction with provenance in it; need a file that Direction.save or "
                "refusal-lens run wrote"
            )
        facts = converted(found.header.get("provenance"), DirectionFacts, where)
        if vector.ndim != 1 or not vector.is_floating_point() or not len(vector):
            raise InputError(
                f"{where}: got {str(vector.dtype).removeprefix('torch.')} of shape "
                f"{tuple(vector.shape)}, need floats [d_model]"
            )
        if not bool(torch.isfinite(vector.double()).all()) or not bool(vector.any()):
            raise InputError(f"{where}: got NaN, infinity or nothing but zeros, need a direction")
        fields = {name: getattr(facts, name) for name in facts.__struct_fields__}
        direction = cls(vector, place=_place(fields.pop("place"), fields.pop("position"), where), **fields)
        if model is not None:
            direction.check_belongs_to(model)
        return direction

    @checked
    def check_belongs_to(self, model: ChatModel) -> None:
        """Raise InputError unless width, layer, template and model name fit."""
        if self.d_model != model.d_model or self.layer >= model.n_layers:
            raise InputError(
                f"direction of {self.model}: got d_model {self.d_model} and layer {self.layer}, but "
                f"{model.name} has d_model {model.d_model} and {model.n_layers} layers"
            )
        if self.model and Path(self.model).name != Path(model.name).name:
            raise InputError(
                f"direction of {self.model}: not of {model.name}; directions do not carry over between models"
            )
        if self.template_sha256 and self.template_sha256 != model.chat.template_sha256:
            raise InputError(
                f"direction of {self.model}: found with another chat template or system prompt than "
                f"{model.name} has now; load the model with the same ones"
            )


def _place(name: str | None, position: int | None, where: str) -> Place:
    """The place that a file names. Files of earlier versions know positions only."""
    if name is None and position is None:
        raise InputError(f"{where}: got neither place nor position, need one of them")
    if position is not None:
        return Place.post(position)
    try:
        return Place.parse(str(name))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
