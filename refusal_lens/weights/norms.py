"""What a norm after an output does to it, measured on the norm module itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..display import shown
from ..errors import InputError
from ..shapes import Vector

SMALLEST_GAIN = 1e-4
"""Gains below this share of the largest cannot be divided by."""


@shown()
@dataclass(frozen=True, eq=False)
class Gain:
    """A norm as ``g * (y - m) / size(y) + b``: its gain g [d_model], and whether it subtracts the mean m."""

    gain: Vector
    centred: bool

    def rank_one(self, r_hat: Vector) -> tuple[Vector, Vector]:
        """Left and right vectors a, b with ``r^ . norm(y - a (b . y)) = 0`` and ``a . b = 1``.

        Without centring ``a = r^ / g`` and ``b = g r^``, which leaves the output's direction what it would be
        after a projection behind the norm, so that only its length differs. With centring the smallest
        change of y that has no output along r^.
        """
        if self.centred:
            u = self.gain * r_hat
            u = u - u.mean()
            return u / (u @ u), u
        return r_hat / self.gain, self.gain * r_hat


def measure_gain(
    module: nn.Module, d_model: int, values: Mapping[str, Tensor] | None = None
) -> Gain:
    """Measure a norm module on two random vectors.

    values: its parameters, for a module without values. Raises InputError when it is neither an RMS norm
    nor a layer norm, or has gains too small to divide by.
    """
    norm = _with_values(module, values) if values is not None else module
    parameter = next(iter(norm.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    dtype = parameter.dtype if parameter is not None else torch.float32
    generator = torch.Generator().manual_seed(0)
    y = 3 * torch.randn(2, d_model, generator=generator, dtype=torch.float32).to(dtype)
    with torch.no_grad():
        out = norm(y.to(device)).double().cpu()
        zero = norm(torch.zeros_like(y).to(device)).double().cpu()[0]
    y = y.double()
    close = 0.05 if dtype in (torch.bfloat16, torch.float16) else 1e-3
    for centred in (False, True):
        centre = y.mean(-1, keepdim=True) if centred else 0.0
        standard = y - centre
        standard = standard / standard.square().mean(-1, keepdim=True).sqrt()
        gains = (out - zero) / standard
        gain = (gains * standard.square()).sum(0) / standard.square().sum(0)
        if torch.allclose(
            gain * standard, out - zero, atol=close * float(out.abs().max()), rtol=close
        ):
            return Gain(_usable(gain, module), centred)
    raise InputError(
        f"norm {type(module).__name__}: neither an RMS norm nor a layer norm, so it cannot be folded; "
        "keep the edit as hooks"
    )


def _usable(gain: Tensor, module: nn.Module) -> Tensor:
    smallest, largest = float(gain.abs().min()), float(gain.abs().max())
    if not smallest > SMALLEST_GAIN * largest:
        raise InputError(
            f"norm {type(module).__name__}: got a gain of {smallest:.2g} beside one of {largest:.2g}, too "
            "small to divide by, so it cannot be folded; keep the edit as hooks"
        )
    return gain


def _with_values(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module without values that holds these."""
    real: Any = copy.copy(module)
    real._parameters = {
        name: None if old is None else nn.Parameter(values[name].float(), requires_grad=False)
        for name, old in module._parameters.items()
    }
    real._forward_hooks, real._forward_pre_hooks = {}, {}
    return real
