"""Places: where in a rendered conversation something is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float64, Int, Shaped
from torch import Tensor

from ..door import checked
from ..errors import InputError
from ..shapes import as_float64

Region = Literal["instruction", "post", "reply", "last"]
_SPELT = re.compile(r"(?P<region>[a-z]+)(?:\[(?P<index>-?\d{1,6})\]|\.(?P<mean>mean))?")
_NEED = "t_inst, post[-1], post.mean, instruction.mean, reply.first, reply.mean, reply[-1] or last"


@checked
@dataclass(frozen=True, repr=False)
class Place:
    """A token of a region, or the mean over the region's tokens.

    index counts the region's tokens as Python does, 0 the first and -1 the last; None is the mean over all of them.
    Regions: the last user message (``instruction``), the template's tokens behind it (``post``, the paper's
    post-instruction tokens), the reply with its prefill (``reply``), and ``last``, the last token of all.

    >>> str(Place.parse("t_inst")), str(Place.parse("post[-1]")), str(Place.parse("reply.first"))
    ('t_inst', 'post[-1]', 'reply.first')
    """

    region: Region
    index: int | None = None

    def __post_init__(self) -> None:
        if self.region == "last" and self.index != -1:
            object.__setattr__(self, "index", -1)

    @classmethod
    def parse(cls, text: Place | str) -> Place:
        """The place of this name. Raises InputError for what names none."""
        if isinstance(text, Place):
            return text
        if not isinstance(text, str):
            raise InputError(f"place: got {text!r:.40}, need {_NEED}")
        name = {"t_inst": "instruction[-1]", "reply.first": "reply[0]", "last": "last[-1]"}.get(
            text.strip(), text.strip()
        )
        spelt = _SPELT.fullmatch(name)
        if (
            spelt is None
            or spelt["region"] not in get_args(Region)
            or not (spelt["index"] or spelt["mean"])
        ):
            raise InputError(f"place: got {text!r:.40}, need {_NEED}")
        return cls(spelt["region"], int(spelt["index"]) if spelt["index"] else None)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Place({self})"

    def __str__(self) -> str:
        if self.region == "last":
            return "last"
        name = f"{self.region}.mean" if self.index is None else f"{self.region}[{self.index}]"
        return {"instruction[-1]": "t_inst", "reply[0]": "reply.first"}.get(name, name)

    @property
    def position(self) -> int | None:
        """The negative position among the post-instruction tokens, -1 the last; None for other places."""
        return (
            self.index
            if self.region == "post" and self.index is not None and self.index < 0
            else None
        )

    @classmethod
    def posts(cls, n: int) -> tuple[Place, ...]:
        """The last n post-instruction tokens, in their order."""
        return tuple(cls.post(position) for position in range(-n, 0))

    @classmethod
    def post(cls, position: int) -> Place:
        """The post-instruction token at a negative position, -1 the last."""
        return cls("post", position)


class Columns(NamedTuple):
    """Where a place lies in each row of a batch: columns [batch k] and their weights [batch k], which sum to 1.

    k is 1 for a single token. For a mean it is the longest region's length; behind a shorter one the weights are 0,
    and the columns stay inside the region.
    """

    columns: Int[Tensor, "batch k"]
    weights: Float64[Tensor, "batch k"]


def all_columns(places: Sequence[Columns]) -> Int[Tensor, "batch column"]:
    """The columns of several places side by side: what `by_place` takes values at."""
    return torch.cat([place.columns for place in places], 1)


def by_place(
    values: Shaped[Tensor, "batch column *axes"], places: Sequence[Columns]
) -> Shaped[Tensor, "batch place *axes"]:
    """Values at `all_columns` brought together: one for each place.

    Single tokens stay as they are where there is no other place; else float64, means weighted.
    """
    lengths = [place.columns.shape[1] for place in places]
    if max(lengths) == 1:
        return values
    values = as_float64(values)
    weights = torch.cat([place.weights for place in places], 1).to(values.device)
    weighted = values * weights.reshape(*weights.shape, *[1] * (values.ndim - 2))
    return torch.stack([part.sum(1) for part in weighted.split(lengths, dim=1)], 1)
