"""Edits: pure maps of the residual stream, and the context that installs them.

An edit says *what* (``x -> x'``); `applied` says *where* (sites) and *when* (prompt, reply, all).
Edits hold plain vectors, one [d_model] or one per row of a batch [batch 1 d_model], so that many
directions can be tried in one forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .door import checked
from .errors import InputError
from .model import ChatModel, Site
from .shapes import Vectors, wide

When = Literal["prompt", "reply", "all"]

ZERO_NORM = 1e-8
"""A vector shorter than this is rounding noise, has no direction, and its edits change nothing."""


@runtime_checkable
class HasVector(Protocol):
    """Anything with a raw vector and the layer it came from, such as a Direction."""

    @property
    def vector(self) -> Tensor:
        """The raw vector r [d_model]."""

    @property
    def layer(self) -> int:
        """The layer whose resid_pre it was read from."""


@runtime_checkable
class Edit(Protocol):
    """A pure map ``x -> x'`` on [..., d_model] that knows the sites where it belongs by default."""

    def __call__(self, x: Tensor) -> Tensor:
        """The edited activation, same shape, dtype and device."""

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Where the edit acts unless `applied` is told otherwise."""


def unit(vector: Vectors) -> Vectors:
    """``r^ = r / ||r||`` in float64; the zero vector where ||r|| is mere rounding noise."""
    r = wide(vector)
    norm = r.norm(dim=-1, keepdim=True)
    return torch.where(norm > ZERO_NORM, r / norm.clamp_min(ZERO_NORM), torch.zeros_like(r))


def projection(x: Tensor, r_hat: Tensor) -> Tensor:
    """``x . r^`` with a trailing axis of one, in x's dtype."""
    return (x * r_hat).sum(-1, keepdim=True)


@checked
@dataclass(frozen=True, eq=False)
class Ablate:
    """``x - s (x . r^) r^`` on every write to the residual stream (paper, equation 4; s = 1 there).

    With s = 1 a second look at the stream changes nothing; any other share is taken of each write once.
    """

    vector: Vectors
    strength: float = 1.0

    @cached_property
    def unit(self) -> Vectors:
        """``r^`` in float64."""
        return unit(self.vector)

    def __call__(self, x: Tensor) -> Tensor:
        """Remove (the share ``strength`` of) the component along r."""
        r_hat = self.unit.to(x.dtype).to(x.device)
        return x - self.strength * projection(x, r_hat) * r_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Every write to the residual stream."""
        return model.writes() if self.strength == 1 else model.writes_once()


@checked
@dataclass(frozen=True, eq=False)
class Add:
    """``x + c r`` with the raw r, at the one layer it was read from (paper, equations 3 and 17)."""

    vector: Vectors
    layer: int
    coefficient: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Move by ``coefficient`` times the raw vector."""
        return x + (self.coefficient * wide(self.vector)).to(x.dtype).to(x.device)

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """resid_pre of the vector's own layer."""
        return (Site("resid_pre", self.layer),)


@checked
@dataclass(frozen=True, eq=False)
class Clamp:
    """``x + s (v - x . r^) r^``: set the component along r to a value v, at one layer.

    The first form of activation addition (the paper's LessWrong post): v is the mean projection of
    harmful prompts. With v = 0 and s = 1 it is ablation.
    """

    vector: Vectors
    layer: int
    value: float
    strength: float = 1.0

    @cached_property
    def unit(self) -> Vectors:
        """``r^`` in float64."""
        return unit(self.vector)

    def __call__(self, x: Tensor) -> Tensor:
        """Move (the share ``strength`` of) the way to ``x . r^ = value``."""
        r_hat = self.unit.to(x.dtype).to(x.device)
        return x + self.strength * (self.value - projection(x, r_hat)) * r_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """resid_pre of the vector's own layer."""
        return (Site("resid_pre", self.layer),)


@checked
@dataclass(frozen=True, eq=False)
class Deflect:
    """``x - (x . r^) u^``: as far as ablating r goes, but in another direction u.

    The norm-matched null of ablation: what is left of its effect is due to the size of the move alone. Each
    write is moved once; r's component stays in the stream, and a second look would move it again.
    """

    vector: Vectors
    other: Float[Tensor, "*rows d_model"]

    @cached_property
    def units(self) -> tuple[Tensor, Tensor]:
        """``r^`` and ``u^`` in float64."""
        return unit(self.vector), unit(self.other)

    def __call__(self, x: Tensor) -> Tensor:
        """Move by the component along r, in the direction of u."""
        r_hat, u_hat = (each.to(x.dtype).to(x.device) for each in self.units)
        return x - projection(x, r_hat) * u_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Every write to the residual stream, once."""
        return model.writes_once()


def ablate(direction: HasVector | Vectors, *, strength: float = 1.0) -> Ablate:
    """Directional ablation, ``x - s (x . r^) r^`` (paper, equation 4). strength is s, 1 for all of it."""
    return Ablate(_vector(direction), strength)


def add(direction: HasVector, *, coefficient: float = 1.0) -> Add:
    """Activation addition, ``x + c r`` at r's layer, all positions (paper, equation 3)."""
    return Add(_vector(direction), _layer(direction), coefficient)


@checked
def subtract(direction: HasVector, *, coefficient: float = 1.0) -> Add:
    """``x - c r`` at r's layer: the bypass by activation addition (paper, equation 17)."""
    return add(direction, coefficient=-coefficient)


def clamp(direction: HasVector, value: float, *, strength: float = 1.0) -> Clamp:
    """Set ``x . r^`` to value (in activation units) at r's layer."""
    return Clamp(_vector(direction), _layer(direction), value, strength)


@checked
def affine(direction: HasVector, reference: Vectors, *, strength: float = 1.0) -> Clamp:
    """Set ``x . r^`` to that of a reference activation [d_model], such as the harmless mean.

    Affine concept editing (Marshall, Scherlis and Belrose 2024): the component goes to what is usual
    without the concept, which need not be zero.
    """
    value = float(unit(_vector(direction)).cpu() @ wide(reference).cpu())
    return clamp(direction, value, strength=strength)


@contextmanager
def applied(
    model: ChatModel,
    edit: Edit | Sequence[Edit],
    *,
    at: Sequence[Site] | None = None,
    when: When = "all",
) -> Iterator[ChatModel]:
    """Apply an edit (or several, in order) to every forward pass inside the context.

    at: sites, by default the edit's own. when: "prompt", "reply" (prefilled and generated tokens) or "all";
    the same tokens are edited with and without a key-value cache. Raises InputError for a vector that
    does not fit the model.
    """
    if not isinstance(model, ChatModel):
        raise InputError(f"model: got {type(model).__name__}, need a ChatModel")
    if when not in ("prompt", "reply", "all"):
        raise InputError(f'when: got {when!r}, need "prompt", "reply" or "all"')
    edits: Sequence[Edit] = [edit] if callable(edit) else edit
    hooks = []
    for one in edits:
        check_fits(one, model)
        for site in one.sites(model) if at is None else at:
            if site.kind == "resid_mid":
                raise InputError(
                    "edit at resid_mid: a change there would miss the skip connection; "
                    "edit attn_out of the layer or resid_pre of the next"
                )
            hooks.append((site, _restricted(one, model, when)))
    with model.hooked(hooks):
        yield model


def check_fits(edit: Edit, model: ChatModel) -> None:
    """Raise InputError unless the edit's vector and layer fit the model."""
    vector = getattr(edit, "vector", None)
    if vector is not None and vector.shape[-1] != model.d_model:
        raise InputError(
            f"direction for {model.name}: got {vector.shape[-1]} dimensions, need d_model = {model.d_model}; "
            "is it a direction of another model?"
        )
    layer = getattr(edit, "layer", None)
    if layer is not None and not 0 <= layer < model.n_layers:
        raise InputError(
            f"layer of the edit on {model.name}: got {layer}, need 0 to {model.n_layers - 1}"
        )


def _restricted(edit: Edit, model: ChatModel, when: When) -> Callable[[Tensor], Tensor]:
    if when == "all":
        return edit

    def edit_some(x: Tensor) -> Tensor:
        reply = model.reply_mask.to(x.device)[..., None]
        return torch.where(reply if when == "reply" else ~reply, edit(x), x)

    return edit_some


def _vector(direction: Any) -> Tensor:
    return direction if isinstance(direction, Tensor) else direction.vector


def _layer(direction: Any) -> int:
    if isinstance(direction, Tensor):
        raise InputError(
            "direction: got a bare tensor, need a Direction, which knows its layer; "
            "try Add(vector, layer) or Clamp(vector, layer, value)"
        )
    return direction.layer
