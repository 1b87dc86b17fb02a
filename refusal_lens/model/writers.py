"""What stands between an attention layer's heads and the residual stream.

The output matrix and its bias, and in some families a norm (Gemma-2 and 3, OLMo-2) or a constant
multiplier (Granite). With the norm's scale frozen at its value in the forward pass, all of it is
affine, so that one vector per head says how much the head writes along a direction.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..display import shown
from ..errors import InputError
from ..shapes import Vector, as_float64
from .chat_model import ChatModel
from .sites import Site

HeadVectors = Float64[Tensor, "head d_head"]
"""``W_O[h] u`` for every head h."""


@shown()
@dataclass(frozen=True, eq=False)
class PostNorm:
    """``y = s C(x) * gain + shift``, s the inverse root mean square, C centring or nothing."""

    gain: Vector
    shift: Vector
    centred: bool

    def centre(self, x: Tensor) -> Tensor:
        """``C(x)``: LayerNorm subtracts the mean, RMSNorm nothing."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def pull_back(self, u: Vector) -> Vector:
        """The u' with ``<C(x) * gain, u> = <x, u'>`` for all x."""
        return self.centre(self.gain * u)

    def scale(self, x: Float[Tensor, "*axes d_model"], y: Float[Tensor, "*axes d_model"]) -> Tensor:
        """S [*axes] from what went in and what came out, by least squares: eps is not needed."""
        along = self.centre(x) * self.gain.to(x)
        span = (along * along).sum(-1)
        return ((y - self.shift.to(y)) * along).sum(-1) / span.clamp_min(1e-300)


@shown()
@dataclass(frozen=True, eq=False)
class AttentionWriter:
    """One layer's path from head outputs z [.. head d_head] to attn_out.

    ``attn_out = multiplier * norm(sum_h z[h] W_O[h] + b_O)``; norm None is the identity. heads_first says that
    the layer's values are held [batch head pos d_head].
    """

    W_O: Float[Tensor, "head d_head d_model"]
    b_O: Vector | None  # noqa: N815
    norm: PostNorm | None
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
        shift = None if self.norm is None else self.norm.shift
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
    return AttentionWriter(
        # Latent attention has values of another width than its keys, which the weight tells.
        W_O=by_head,
        b_O=None if bias is None else bias.detach(),
        norm=_post_norm(model, layer),
        multiplier=float(getattr(_config(model), "residual_multiplier", None) or 1.0),
        heads_first=any(c.__name__ == "MLAAttentionBridge" for c in type(attention).__mro__),
    )


def _config(model: ChatModel) -> Any:
    return getattr(model.hf, "config", model.bridge.cfg)


def _post_norm(model: ChatModel, layer: int) -> PostNorm | None:
    """The norm whose output is attn_out, if there is one.

    attn_out is an alias on bridges; the name of what it stands for says which module wrote it.
    """
    block = model.bridge.blocks[layer]
    written_by = str(model._points[Site("attn_out", layer).hook_name].name).split(".")
    owner = written_by[-2] if len(written_by) >= 2 else ""
    if owner.startswith("ln"):
        return probe_norm(getattr(block, owner), model.d_model)
    if model.hf is None and getattr(model.bridge.cfg, "use_normalization_before_and_after", False):
        return probe_norm(block.ln1_post, model.d_model)
    return None


@torch.no_grad()
def probe_norm(module: Any, d_model: int) -> PostNorm:
    """A norm's gain, shift and kind, from what it does to four vectors.

    Families spell the gain differently (Gemma's is 1 + weight), so the module is asked, in
    float32. The probes are long, so that eps does not count, and have no entry near zero.
    """
    plain = copy.deepcopy(getattr(module, "original_component", module)).float()
    device = next((p.device for p in plain.parameters()), torch.device("cpu"))
    ramp = torch.linspace(1.0, 2.0, d_model, dtype=torch.float64)
    ramp[1::2] *= -1
    probe = 1e3 * (ramp - ramp.mean())
    asked = torch.stack([probe, -probe, probe + 500.0]).float().to(device)
    up, down, moved = plain(asked[None])[0].double().cpu()
    shift = (up + down) / 2
    gain = (up - down) / 2 * probe.square().mean().sqrt() / probe
    centred = bool(torch.allclose(moved, up, rtol=1e-3, atol=1e-3 * float(up.abs().max())))
    return PostNorm(gain, shift, centred)
