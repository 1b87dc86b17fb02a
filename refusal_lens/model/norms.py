"""What a norm does to an output before it is added to the stream, measured on the norm module itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..display import shown
from ..errors import InputError
from ..shapes import Vector

SMALLEST_GAIN = 1e-4
"""Gains below this share of the largest cannot be divided by."""
CLOSE = 1e-3
"""Share of a norm's largest output by which it may differ from what its gain and bias say."""


@shown()
@dataclass(frozen=True, eq=False)
class Norm:
    """``y = s C(x) * gain + bias``, s the inverse root mean square, C centring or nothing."""

    gain: Vector
    bias: Vector
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
        return ((y - self.bias.to(y)) * along).sum(-1) / span.clamp_min(1e-300)

    def rank_one(self, r_hat: Vector) -> tuple[Vector, Vector]:
        """Left and right vectors a, b with ``r^ . norm(y - a (b . y)) = 0`` and ``a . b = 1``.

        Without centring ``a = r^ / g`` and ``b = g r^``, which leaves the output's direction what it would be
        after a projection behind the norm, so that only its length differs. With centring the smallest
        change of y that has no output along r^. Raises InputError for gains too small to divide by.
        """
        smallest, largest = float(self.gain.abs().min()), float(self.gain.abs().max())
        if not smallest > SMALLEST_GAIN * largest:
            raise InputError(
                f"norm behind an output: got a gain of {smallest:.2g} beside one of {largest:.2g}, too "
                "small to divide by, so it cannot be folded; keep the edit as hooks"
            )
        u = self.pull_back(r_hat)
        return (u / (u @ u) if self.centred else r_hat / self.gain), u


@torch.no_grad()
def measure_norm(
    module: nn.Module, d_model: int, values: Mapping[str, Tensor] | None = None
) -> Norm:
    """A norm's gain, bias and kind, from what it does to four vectors.

    Families spell the gain differently (Gemma's is 1 + weight), so the module is asked, in float32 or its own
    finer dtype. The vectors are long, so that eps does not count, and have no entry near zero. values: the
    parameters of a module that has none. Raises InputError for what is neither an RMS norm nor a layer norm.
    """
    norm = _copy(module, values)
    parameter = next(iter(norm.parameters()), torch.zeros(()))
    ramp = torch.linspace(1.0, 2.0, d_model, dtype=torch.float64)
    ramp[1::2] *= -1
    probe = 1e3 * (ramp - ramp.mean())
    other = probe * ramp.roll(1).abs() + 300.0
    asked = torch.stack([probe, -probe, probe + 500.0, other]).to(parameter)
    up, down, moved, out = norm(asked[None])[0].double().cpu()
    gain = (up - down) / 2 * probe.square().mean().sqrt() / probe
    centred = bool(torch.allclose(moved, up, rtol=CLOSE, atol=CLOSE * float(up.abs().max())))
    measured = Norm(gain, (up + down) / 2, centred)
    standard = measured.centre(asked[-1].double().cpu())
    wanted = standard / standard.square().mean().sqrt() * gain + measured.bias
    if not torch.allclose(out, wanted, rtol=CLOSE, atol=CLOSE * float(wanted.abs().max())):
        raise InputError(
            f"norm {type(module).__name__}: neither an RMS norm nor a layer norm, so it cannot be folded; "
            "keep the edit as hooks"
        )
    return measured


def _copy(module: nn.Module, values: Mapping[str, Tensor] | None) -> nn.Module:
    """A copy of a norm without wrapper or hooks, in float32 at least, with other values if there are any."""
    inner: Any = getattr(module, "original_component", module)
    plain = copy.copy(inner)
    plain._parameters = {
        name: None if old is None else _precise(old if values is None else values[name])
        for name, old in inner._parameters.items()
    }
    plain._forward_hooks, plain._forward_pre_hooks = {}, {}
    return plain  # type: ignore[no-any-return]


def _precise(value: Tensor) -> nn.Parameter:
    dtype = torch.promote_types(value.dtype, torch.float32)
    return nn.Parameter(value.detach().to(dtype), requires_grad=False)
