"""A direction as a value: the vector, where it was found, and in which model and data."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .chat import Place
from .display import shown
from .door import checked
from .errors import InputError
from .model import ChatModel
from .model.sites import whole
from .runs import read_safetensors, write_safetensors
from .runs.schema import DirectionFacts, converted
from .shapes import Vector, Vectors, as_float64

log = logging.getLogger(__name__)

FORMAT = "refusal_lens direction 1"

ZERO_NORM = 1e-8
"""A vector shorter than this is rounding noise and has no direction."""


def unit(vector: Vectors) -> Vectors:
    """``r^ = r / ||r||`` in float64; the zero vector where ||r|| is mere rounding noise."""
    r = as_float64(vector)
    norm = r.norm(dim=-1, keepdim=True)
    return torch.where(norm > ZERO_NORM, r / norm.clamp_min(ZERO_NORM), torch.zeros_like(r))


@shown("layer", "place", "norm", "d_model", "concept", "model")
@checked
@dataclass(frozen=True, eq=False)
class Direction:
    """The raw difference of means r [d_model] and its provenance.

    vector is float64 on the CPU; layer is 0-based resid_pre; place is where the prompts were read, and position_name
    what a page calls it. Arithmetic keeps the provenance: ``-d``, ``2 * d``, ``d / 2``, ``d + e``.
    weights_sha256 tells whose it is, whatever the model is called. Raises InputError for a vector with NaN or
    infinity, a layer that cannot be one, and arithmetic between layers or widths.
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
    weights_sha256: str = ""
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
    def __mul__(self, factor: float) -> Direction:
        return replace(self, vector=self.vector * factor)

    __rmul__ = __mul__

    @checked
    def __truediv__(self, divisor: float) -> Direction:
        if divisor == 0 or math.isinf(divisor):
            raise InputError(f"divisor: got {divisor:g}, need a finite number that is not 0")
        return replace(self, vector=self.vector / divisor)

    @checked
    def __add__(self, other: Direction) -> Direction:
        return replace(self, vector=self.vector + self._beside(other))

    @checked
    def __sub__(self, other: Direction) -> Direction:
        return replace(self, vector=self.vector - self._beside(other))

    def _beside(self, other: Direction) -> Vector:
        """The other's vector, where it is one of the same stream."""
        self._check_width(other.vector)
        if (other.site, other.layer) != (self.site, self.layer):
            raise InputError(
                f"direction to add or subtract: got one of layer {other.layer} ({other.site}), need layer "
                f"{self.layer} ({self.site}) as the other's; try candidates.direction(..., layer={self.layer})"
            )
        return other.vector

    def _check_width(self, vector: Tensor) -> None:
        if vector.shape != self.vector.shape:
            raise InputError(
                f"other vector: got {list(vector.shape)}, need [{self.d_model}] as the direction has; is it of "
                "another model?"
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
            "weights_sha256": self.weights_sha256,
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
    def load(
        cls, path: str | Path, model: ChatModel | None = None, *, transfer: bool = False
    ) -> Direction:
        """Read a direction file; with a model, check that the direction is one of that model's.

        transfer=True takes a direction of another model of the same width over to this one, as `transferred` does.
        Raises InputError for a missing, damaged or foreign file, or a direction of another model.
        """
        if transfer and model is None:
            raise InputError("transfer of a direction: got no model, need the one to take it over to")
        where = f"direction file {path}"
        contents = read_safetensors(Path(path))
        vector = contents.tensors.get("direction")
        if vector is None or contents.header.get("format") != FORMAT:
            raise InputError(
                f"{where}: no direction with provenance in it; need a file that Direction.save or "
                "refusal-lens run wrote"
            )
        facts = converted(contents.header.get("provenance"), DirectionFacts, where)
        if vector.ndim != 1 or not vector.is_floating_point() or not len(vector):
            raise InputError(
                f"{where}: got {str(vector.dtype).removeprefix('torch.')} of shape "
                f"{tuple(vector.shape)}, need floats [d_model]"
            )
        if not bool(torch.isfinite(vector.double()).all()) or not bool(vector.any()):
            raise InputError(f"{where}: got NaN, infinity or nothing but zeros, need a direction")
        fields = {name: getattr(facts, name) for name in facts.__struct_fields__}
        direction = cls(vector, place=_place(fields.pop("place"), fields.pop("position"), where), **fields)
        if model is not None and transfer:
            return direction.transferred(model)
        if model is not None:
            direction.check_belongs_to(model)
        return direction

    @checked
    def transferred(self, model: ChatModel) -> Direction:
        """The same vector and layer as a direction of another model: base, fine-tune, other revision.

        Where it comes from stays in ``more["transferred_from"]``. Raises InputError for a model of another width or
        with too few layers.
        """
        self._check_fits(model)
        names = ("model", "revision", "weights_sha256", "template_sha256")
        origin = {name: getattr(self, name) for name in names}
        return replace(
            self,
            model=model.name,
            revision=model.revision,
            weights_sha256=model.weights_sha256,
            template_sha256=model.chat.template_sha256,
            more={**self.more, "transferred_from": origin},
        )

    @checked
    def check_belongs_to(self, model: ChatModel) -> None:
        """Raise InputError unless width, layer, weights and template are those of the model.

        What the model is called does not matter. A direction of before weights were noted is taken with a warning.
        """
        self.check_weights(model)
        if self.model and not (self.weights_sha256 and model.weights_sha256):
            log.warning(
                "direction of %s: nothing says of which weights, so that it could not be checked whether %s has them",
                self.model,
                model.name,
            )
        if self.template_sha256 and self.template_sha256 != model.chat.template_sha256:
            raise InputError(
                f"direction of {self.model}: found with another chat template or system prompt than "
                f"{model.name} has now; load the model with the same ones"
            )

    def check_weights(self, model: ChatModel) -> None:
        """Raise InputError for a direction of another width or deeper layer, or known to be of other weights."""
        self._check_fits(model)
        known = self.weights_sha256, model.weights_sha256
        if all(known) and known[0] != known[1]:
            raise InputError(
                f"direction of {self.model}: got weights {known[0][:8]}, but {model.name} has {known[1][:8]}; to use "
                "it there all the same, try direction.transferred(model) or Direction.load(path, model, transfer=True)"
            )

    def _check_fits(self, model: ChatModel) -> None:
        if self.d_model != model.d_model or self.layer >= model.n_layers:
            raise InputError(
                f"direction of {self.model}: got d_model {self.d_model} and layer {self.layer}, but "
                f"{model.name} has d_model {model.d_model} and {model.n_layers} layers"
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
