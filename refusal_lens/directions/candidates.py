"""Candidates: a difference of means for every place and layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..activations import Means
from ..chat import ChatFormat, Place
from ..direction import Direction
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..runs import Tensors, read_safetensors, write_safetensors
from ..runs.schema import CandidateFacts, converted
from ..shapes import PlaceLayerVectors

FORMAT = "refusal_lens candidates 1"


@shown("n_layers", "names", "mean_positive")
@checked
@dataclass(frozen=True, eq=False)
class Candidates:
    """``r_i^(l) = mean_positive - mean_negative`` [place layer d_model] (paper, section 2.3).

    float64, not normalised. names are what a page calls the places: the texts of post-instruction tokens, else the
    places' own names. Raises InputError unless there is a place and a name for each mean.
    """

    mean_positive: PlaceLayerVectors
    mean_negative: PlaceLayerVectors
    places: tuple[Place, ...]
    names: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mean_positive.shape != self.mean_negative.shape:
            raise InputError(
                f"means of the two kinds: got shapes {tuple(self.mean_positive.shape)} and "
                f"{tuple(self.mean_negative.shape)}, need the same"
            )
        n = len(self.mean_positive)
        if len(set(self.places)) != n or len(self.names) != n or len(self.places) != n:
            raise InputError(
                f"places of candidates: got {len(set(self.places))} different ones and {len(self.names)} names for "
                f"means at {n}, need one of each"
            )
        if not bool(torch.isfinite(self.mean_diffs).all()):
            raise InputError("mean activations: got NaN or infinity; try another dtype (float32)")

    @classmethod
    @checked
    def from_means(cls, positive: Means, negative: Means, **provenance: Any) -> Candidates:
        """Candidates from the means over the two kinds of prompts."""
        if positive.places != negative.places:
            raise InputError(
                f"means of the two kinds: got places {', '.join(map(str, positive.places))} and "
                f"{', '.join(map(str, negative.places))}, need the same"
            )
        return cls(positive.mean, negative.mean, positive.places, positive.names, provenance)

    @property
    def mean_diffs(self) -> PlaceLayerVectors:
        """The candidates themselves."""
        return self.mean_positive - self.mean_negative

    @property
    def n_layers(self) -> int:
        """How many layers."""
        return int(self.mean_positive.shape[1])

    def index(self) -> list[tuple[int, int]]:
        """(row, layer) of every candidate: rows count the places from the end, -1 the last, and come in order.

        For post-instruction tokens down to the last one the row is the position.
        """
        rows = range(-len(self.places), 0)
        return [(row, layer) for row in rows for layer in range(self.n_layers)]

    @checked
    def direction(self, place: Place | str, layer: int) -> Direction:
        """One candidate as a Direction. Raises InputError when there is no such candidate."""
        place = Place.parse(place)
        if place not in self.places or not 0 <= layer < self.n_layers:
            raise InputError(
                f"candidate at {place}, layer {layer}: not there, need a place of "
                f"{', '.join(map(str, self.places))} and a layer from 0 to {self.n_layers - 1}"
            )
        row = self.places.index(place)
        return Direction(
            self.mean_diffs[row, layer], layer, place, self.names[row], **self.provenance
        )

    @checked
    def save(self, path: str | Path) -> Path:
        """Write ``mean_diffs``, ``mean_positive`` and ``mean_negative`` (float64) to safetensors."""
        header = {
            "format": FORMAT,
            "positions": json.dumps(list(self.names)),
            "places": json.dumps([str(place) for place in self.places]),
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
        contents = read_safetensors(Path(path))
        if contents.header.get("format") != FORMAT:
            raise InputError(f"{where}: not written by refusal_lens")
        names = converted(contents.header.get("positions"), list[str], where)
        places = _places(contents.header.get("places"), len(names), where)
        facts = converted(contents.header.get("provenance"), dict[str, Any], where)
        converted(facts, CandidateFacts, where)
        positive, negative = (
            _means(contents, name, where) for name in ("mean_positive", "mean_negative")
        )
        if positive.shape != negative.shape or len(positive) != len(names) or len(places) != len(names):
            raise InputError(
                f"{where}: got means {tuple(positive.shape)} and {tuple(negative.shape)} for "
                f"{len(places)} places and {len(names)} names, need the same shape, and one of each for a mean"
            )
        return cls(positive, negative, places, tuple(names), facts)


def _places(listed: str | None, n: int, where: str) -> tuple[Place, ...]:
    """The places that a file names. Files of earlier versions are of the last n post-instruction tokens."""
    if listed is None:
        return Place.posts(n)
    try:
        return tuple(Place.parse(name) for name in converted(listed, list[str], where))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _means(contents: Tensors, name: str, where: str) -> PlaceLayerVectors:
    mean = contents.tensors.get(name)
    if mean is None or mean.dtype != torch.float64 or mean.ndim != 3 or not mean.numel():
        shape = "none" if mean is None else f"{tuple(mean.shape)}"
        raise InputError(f"{where}: got {name} {shape}, need float64 [place layer d_model]")
    return mean


def provenance_of(chat: ChatFormat, **facts: Any) -> dict[str, Any]:
    """The facts that every direction of a run carries, as Direction's keyword arguments."""
    return {"template_sha256": chat.template_sha256, **facts}
