"""Candidates: a difference of means for every post-instruction position and layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..activations import Means
from ..chat import ChatFormat
from ..direction import Direction
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..runs import Tensors, read_safetensors, write_safetensors
from ..runs.schema import CandidateFacts, converted
from ..shapes import PositionLayerVectors

FORMAT = "refusal_lens candidates 1"


@shown("n_layers", "positions", "mean_positive")
@checked
@dataclass(frozen=True, eq=False)
class Candidates:
    """``r_i^(l) = mean_positive - mean_negative`` [position layer d_model] (paper, section 2.3).

    float64, not normalised. positions are the names of the post-instruction tokens; the first is
    position -len(positions), the last -1.
    """

    mean_positive: PositionLayerVectors
    mean_negative: PositionLayerVectors
    positions: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mean_positive.shape != self.mean_negative.shape:
            raise InputError(
                f"means of the two kinds: got shapes {tuple(self.mean_positive.shape)} and "
                f"{tuple(self.mean_negative.shape)}, need the same"
            )
        if not bool(torch.isfinite(self.mean_diffs).all()):
            raise InputError("mean activations: got NaN or infinity; try another dtype (float32)")

    @classmethod
    @checked
    def from_means(cls, positive: Means, negative: Means, **provenance: Any) -> Candidates:
        """Candidates from the means over the two kinds of prompts."""
        return cls(positive.mean, negative.mean, positive.positions, provenance)

    @property
    def mean_diffs(self) -> PositionLayerVectors:
        """The candidates themselves."""
        return self.mean_positive - self.mean_negative

    @property
    def n_positions(self) -> int:
        """How many post-instruction positions."""
        return int(self.mean_positive.shape[0])

    @property
    def n_layers(self) -> int:
        """How many layers."""
        return int(self.mean_positive.shape[1])

    def index(self) -> list[tuple[int, int]]:
        """(position, layer) of every candidate, positions ascending from the first, then layers."""
        return [(p, l) for p in range(-self.n_positions, 0) for l in range(self.n_layers)]  # noqa: E741

    @checked
    def direction(self, position: int, layer: int) -> Direction:
        """One candidate as a Direction. Raises InputError when there is no such candidate."""
        if not (-self.n_positions <= position < 0 and 0 <= layer < self.n_layers):
            raise InputError(
                f"candidate ({position}, {layer}): need a position from {-self.n_positions} to -1 and a "
                f"layer from 0 to {self.n_layers - 1}"
            )
        return Direction(
            self.mean_diffs[position, layer],
            layer,
            position,
            self.positions[position],
            **self.provenance,
        )

    @checked
    def save(self, path: str | Path) -> Path:
        """Write ``mean_diffs``, ``mean_positive`` and ``mean_negative`` (float64) to safetensors."""
        header = {
            "format": FORMAT,
            "positions": json.dumps(list(self.positions)),
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
        }
        tensors = {
            "mean_diffs": self.mean_diffs,
            "mean_positive": self.mean_positive,
            "mean_negative": self.mean_negative,
        }
        write_safetensors(Path(path), tensors, header)
        return Path(path)

    @classmethod
    @checked
    def load(cls, path: str | Path) -> Candidates:
        """Read what `save` wrote. Raises InputError for a damaged or foreign file."""
        where = f"candidates file {path}"
        found = read_safetensors(Path(path))
        if found.header.get("format") != FORMAT:
            raise InputError(f"{where}: not written by refusal_lens")
        names = converted(found.header.get("positions"), list[str], where)
        facts = converted(found.header.get("provenance"), dict[str, Any], where)
        converted(facts, CandidateFacts, where)
        positive, negative = (
            _means(found, name, where) for name in ("mean_positive", "mean_negative")
        )
        if positive.shape != negative.shape or len(positive) != len(names):
            raise InputError(
                f"{where}: got means {tuple(positive.shape)} and {tuple(negative.shape)} for "
                f"{len(names)} positions, need the same shape and a name for each position"
            )
        return cls(positive, negative, tuple(names), facts)


def _means(found: Tensors, name: str, where: str) -> PositionLayerVectors:
    mean = found.tensors.get(name)
    if mean is None or mean.dtype != torch.float64 or mean.ndim != 3 or not mean.numel():
        shape = "none" if mean is None else f"{tuple(mean.shape)}"
        raise InputError(f"{where}: got {name} {shape}, need float64 [position layer d_model]")
    return mean


def provenance_of(chat: ChatFormat, **facts: Any) -> dict[str, Any]:
    """The facts that every direction of a run carries, as Direction's keyword arguments."""
    return {"template_sha256": chat.template_sha256, **facts}
