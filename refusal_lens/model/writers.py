"""What stands between an attention layer's heads and the residual stream.

The output matrix and its bias, and in some families a norm (Gemma-2 and 3, OLMo-2) or a constant
multiplier (Granite). With the norm's scale frozen at its value in the forward pass, all of it is
affine, so that one vector per head says how much the head writes along a direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..display import shown
from ..errors import InputError
from ..shapes import Vector, as_float64
from .chat_model import ChatModel
from .norms import Norm, measure_norm
from .sites import Site

HeadVectors = Float64[Tensor, "head d_head"]
"""``W_O[h] u`` for every head h."""


@shown()
@dataclass(frozen=True, eq=False)
class AttentionWriter:
    """One layer's path from head outputs z [.. head d_head] to attn_out.

    ``attn_out = multiplier * norm(sum_h z[h] W_O[h] + b_O)``; norm None is the identity. heads_first says that
    the layer's values are held [batch head pos d_head].
    """

    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Vector | None  # noqa: N815
    norm: Norm | None
    multiplier: float
    heads_first: bool = False

    def pull_back(self, u: Vector) -> Vector:
        """The vector that the sum over heads is projected on, up to the norm's scale; float64."""
        u = u.cpu().double() * self.multiplier
        return u if self.norm is None else self.norm.pull_back(u)

    def head_vectors(self, u: Vector) -> HeadVectors:
        """``W_O[h] u'`` for every head: ``<z[h], W_O[h] u'>`` is what h writes along u.

        Up to the norm's scale. One head at a time in float64, so that no copy of W_O is made.
        """
        back = self.pull_back(u)
        return torch.stack([as_float64(head) @ back.to(as_float64(head).device) for head in self.W_O])

    def bias_along(self, u: Vector) -> tuple[float, float]:
        """What b_O writes along u, up to the norm's scale, and what the norm's shift writes."""
        inside = 0.0 if self.b_O is None else float(self.b_O.cpu().double() @ self.pull_back(u))
        shift = None if self.norm is None else self.norm.bias
        return inside, 0.0 if shift is None else self.multiplier * float(shift @ u.cpu().double())

    def head_sum(self, z: Float[Tensor, "*axes head d_head"]) -> Float[Tensor, "*axes d_model"]:
        """``sum_h z[h] W_O[h] + b_O``, the norm's input, in float32 at least."""
        wide = torch.promote_types(self.W_O.dtype, torch.float32)
        flat = self.W_O.reshape(-1, self.W_O.shape[-1])
        summed = (z.flatten(-2).to(flat) @ flat).to(wide)
        return summed if self.b_O is None else summed + self.b_O.to(summed)


@torch.no_grad()
def attention_writer(model: ChatModel, layer: int) -> AttentionWriter:
    """The way from heads to the residual stream in one layer, for bridges and HookedTransformers.

    Raises InputError for a layer without softmax attention heads, or whose output matrix is not made of them.
    """
    attention = getattr(model.bridge.blocks[layer], "attn", None)
    if attention is None or not model.has(Site("z", layer)):
        raise InputError(
            f"layer {layer} of {model.name}: has no attention heads to attribute to "
            "(a recurrent or convolutional mixer); try a model with attention in every layer"
        )
    try:
        weight, bias = attention.W_O, attention.b_O
        by_head = weight.detach().reshape(model.n_heads, -1, model.d_model)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"layer {layer} of {model.name}: its output matrix cannot be split over {model.n_heads} heads of "
            f"{model.d_model} dimensions ({(str(error).splitlines() or ['?'])[0]:.80}), so there is nothing to "
            "attribute to; choose another model or an earlier layer"
        ) from error
    norm, multiplier = _on_the_way(model, layer, attention)
    return AttentionWriter(
        # Latent attention has values of another width than its keys, which the weight tells.
        W_O=by_head,
        b_O=None if bias is None else bias.detach(),
        norm=norm,
        multiplier=multiplier,
        heads_first=any(c.__name__ == "MLAAttentionBridge" for c in type(attention).__mro__),
    )


def _on_the_way(model: ChatModel, layer: int, attention: Any) -> tuple[Norm | None, float]:
    """The norm and the factor between an attention's output matrix and the stream, from the map of writers."""
    if model.hf is None:
        after = getattr(model.bridge.cfg, "use_normalization_before_and_after", False)
        module = model.bridge.blocks[layer].ln1_post if after else None
        return None if module is None else measure_norm(module, model.d_model), 1.0
    inside = {id(parameter) for parameter in attention.parameters()}
    writers = () if model.writers is None else model.writers.writers
    matrices = [w for w in writers if not w.is_vector and id(model.hf.get_parameter(w.parameter)) in inside]
    if not matrices:
        return None, 1.0
    norms, scale = matrices[0].norms, matrices[0].scale
    norm = measure_norm(model.hf.get_submodule(norms[0]), model.d_model) if norms else None
    # A factor that differs between tokens is not known here; whoever adds up the heads sees that they do not.
    return norm, 1.0 if scale is None else scale
