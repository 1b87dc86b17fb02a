"""A direction as a value: the vector, where it was found, and in which model and data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..door import checked
from ..errors import InputError
from ..interventions import unit
from ..model import ChatModel
from ..shapes import Vector

FORMAT = "refusal_lens direction 1"


@checked
@dataclass(frozen=True, eq=False)
class Direction:
    """The raw difference of means r [d_model] and its provenance.

    vector is float64 on the CPU; layer is 0-based resid_pre; position is negative, -1 the last
    post-instruction token. Arithmetic keeps the provenance: ``-d``, ``2 * d``, ``d / 2``, ``d + e``.
    """

    vector: Vector
    layer: int
    position: int
    position_name: str = ""
    site: str = "resid_pre"
    concept: str = "refusal"
    model: str = ""
    revision: str | None = None
    template_sha256: str = ""
    data_sha256: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.vector.ndim != 1:
            raise InputError(f"direction vector: got shape {tuple(self.vector.shape)}, need [d_model]")
        object.__setattr__(self, "vector", self.vector.detach().cpu().double().clone())

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
        save_file({"direction": self.vector.contiguous()}, str(path), metadata=header)
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path, model: ChatModel | None = None) -> Direction:
        """Read a direction file; with a model, check that the direction is one of that model's.

        Raises InputError for a missing, damaged or foreign file, or a direction of another model.
        """
        try:
            with safe_open(str(path), framework="pt") as opened:
                header = opened.metadata() or {}
                vector = opened.get_tensor("direction") if "direction" in opened.keys() else None  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(f"direction file {path}: cannot be read ({error})") from error
        if vector is None or header.get("format") != FORMAT:
            raise InputError(
                f"direction file {path}: no direction with provenance in it; need a file that "
                "Direction.save or refusal-lens run wrote"
            )
        facts = json.loads(header["provenance"])
        facts = {name: facts[name] for name in facts if name not in ("norm", "d_model")}
        direction = cls(vector=vector, **facts)
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
