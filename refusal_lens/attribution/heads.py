"""What a head is called, and which vectors say what it writes along a direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Float64
from torch import Tensor

from ..directions import Direction
from ..display import shown
from ..errors import InputError
from ..interventions import ZERO_NORM
from ..model import ChatModel
from ..model.writers import AttentionWriter, HeadVectors, attention_writer
from ..shapes import Vector, as_float64

Scale = Float64[Tensor, "*axes"]
"""A norm's frozen scale at every place."""


class Head(NamedTuple):
    """An attention head, 0-based; shown as the paper writes them, layer.head."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


@shown()
@dataclass(frozen=True, eq=False)
class HeadWriter:
    """One layer's attention, ready to be projected on a unit vector u.

    Head h writes ``scale * <z[h], vectors[h]>`` along u, and the biases ``scale * inside + shift``.
    """

    writer: AttentionWriter
    vectors: HeadVectors
    inside: float
    shift: float

    @classmethod
    def of(cls, model: ChatModel, layer: int, u: Vector) -> HeadWriter:
        """The layer's heads and biases along the unit vector u."""
        writer = attention_writer(model, layer)
        inside, shift = writer.bias_along(u)
        return cls(writer, writer.head_vectors(u), inside, shift)

    def scale(
        self, z: Float[Tensor, "*axes head d_head"], attn_out: Float[Tensor, "*axes d_model"]
    ) -> Scale | None:
        """The frozen scale of the norm between heads and stream; None where there is none.

        Raises InputError when the head outputs are not as wide as the output matrix takes.
        """
        if z.shape[-2:] != self.vectors.shape:
            raise InputError(
                f"head outputs: got {list(z.shape[-2:])} heads and dimensions, need {list(self.vectors.shape)} as "
                "the output matrix has; this attention cannot be attributed to heads"
            )
        if self.writer.norm is None:
            return None
        before = as_float64(self.writer.head_sum(z))
        return self.writer.norm.scale(before, as_float64(attn_out) / self.writer.multiplier)


def check_target(model: ChatModel, direction: Direction, layer: int | None) -> int:
    """The layer l* whose resid_pre is explained.

    Raises InputError unless direction and layer fit the model.
    """
    direction.check_belongs_to(model)
    if direction.norm <= ZERO_NORM:
        raise InputError(
            f"direction of layer {direction.layer}: got norm {direction.norm:.2g}, need one above "
            f"{ZERO_NORM:g}; a zero vector has nothing to attribute"
        )
    target = direction.layer if layer is None else layer
    if not 0 <= target < model.n_layers:
        raise InputError(
            f"layer to attribute at in {model.name}: got {target}, need 0 to {model.n_layers - 1}"
        )
    return target


def check_heads(model: ChatModel, heads: tuple[Head, ...]) -> None:
    """Raise InputError unless there are heads and the model has them."""
    if not heads:
        raise InputError(f"heads of {model.name}: got none, need at least one (layer, head)")
    for head in heads:
        if not (0 <= head.layer < model.n_layers and 0 <= head.head < model.n_heads):
            raise InputError(
                f"head {head} of {model.name}: not there; need a layer from 0 to "
                f"{model.n_layers - 1} and a head from 0 to {model.n_heads - 1}"
            )


def by_head(z: Tensor, n_heads: int) -> Float[Tensor, "batch pos head d_head"]:
    """Head outputs with an axis of their own, whatever axes the bridge shows them with.

    Raises InputError when they do not divide into so many heads.
    """
    flat = z.flatten(2)
    if z.ndim < 3 or flat.shape[-1] % n_heads:
        raise InputError(
            f"head outputs of shape {list(z.shape)}: do not divide into {n_heads} heads, so they cannot be told "
            "apart; this attention cannot be attributed to heads"
        )
    return flat.unflatten(-1, (n_heads, -1))


def scaled(values: Tensor, scale: Tensor | None) -> Tensor:
    """Values [*axes ...] times a scale [*axes], or as they are without one."""
    if scale is None:
        return values
    return values.to(scale.device) * scale.reshape(*scale.shape, *[1] * (values.ndim - scale.ndim))
