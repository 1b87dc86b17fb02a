"""Edits: pure maps of the residual stream, and the context that installs them.

An edit says *what* (``x -> x'``); `applied` says *where* (sites) and *when* (prompt, reply, all).
Edits hold plain vectors, one [d_model] or one per row of a batch [batch 1 d_model], so that many
directions can be tried in one forward pass, and gradients flow through them, to the vector too. Those made of a
Direction remember it, and are refused on other weights. What would turn an edit into no edit is refused when the
edit is made: NaN, infinity, a vector without a direction, a layer that is no whole number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .direction import ZERO_NORM, Direction, unit
from .display import shown
from .door import checked
from .errors import InputError
from .model import ChatModel, Site
from .model.engine import Engine
from .model.sites import whole
from .shapes import Vectors, as_float64

When = Literal["prompt", "reply", "all"]


@runtime_checkable
class Edit(Protocol):
    """A pure map ``x -> x'`` on [..., d_model] that knows the sites where it belongs by default."""

    def __call__(self, x: Tensor) -> Tensor:
        """The edited activation, same shape, dtype and device."""

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Where the edit acts unless `applied` is told otherwise."""


def projection(x: Tensor, r_hat: Tensor) -> Tensor:
    """``x . r^`` with a trailing axis of one, in x's dtype."""
    return (x * r_hat).sum(-1, keepdim=True)


def _unit_of(edit: Any, name: str, x: Tensor) -> Tensor:
    """The unit vector of an edit's field as x needs it: worked out once, or each time for one that is learned."""
    vector, kept = getattr(edit, name), vars(edit)
    if vector.requires_grad:
        return unit(vector).to(x.dtype).to(x.device)
    if f"_unit_{name}" not in kept:
        kept[f"_unit_{name}"] = unit(vector)
    return kept[f"_unit_{name}"].to(x.dtype).to(x.device)


@shown()
@checked
@dataclass(frozen=True, eq=False)
class Ablate:
    """``x - s (x . r^) r^`` on every write to the residual stream (paper, equation 4; s = 1 there).

    With s = 1 a second look at the stream changes nothing; any other share is taken of each write once.
    """

    vector: Vectors
    strength: float = 1.0
    direction: Direction | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_vector(self.vector, "vector of an ablation")
        require_number(self.strength, "strength of an ablation")

    def __call__(self, x: Tensor) -> Tensor:
        """Remove (the share ``strength`` of) the component along r."""
        r_hat = _unit_of(self, "vector", x)
        return x - self.strength * projection(x, r_hat) * r_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Every write to the residual stream."""
        return model.writes(once=self.strength != 1)


@shown()
@checked
@dataclass(frozen=True, eq=False)
class Add:
    """``x + s r`` with the raw r, at the one layer it was read from (paper, equations 3 and 17)."""

    vector: Vectors
    layer: int
    strength: float = 1.0
    direction: Direction | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_vector(self.vector, "vector of an addition")
        object.__setattr__(self, "layer", whole(self.layer, "layer of an addition"))
        require_number(self.strength, "strength of an addition")

    def __call__(self, x: Tensor) -> Tensor:
        """Move by ``strength`` times the raw vector."""
        return x + (self.strength * as_float64(self.vector)).to(x.dtype).to(x.device)

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """resid_pre of the vector's own layer."""
        return (Site("resid_pre", self.layer),)


@shown()
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
    direction: Direction | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        require_vector(self.vector, "vector of a clamp")
        object.__setattr__(self, "layer", whole(self.layer, "layer of a clamp"))
        require_number(self.value, "value of a clamp")
        require_number(self.strength, "strength of a clamp")

    def __call__(self, x: Tensor) -> Tensor:
        """Move (the share ``strength`` of) the way to ``x . r^ = value``."""
        r_hat = _unit_of(self, "vector", x)
        return x + self.strength * (self.value - projection(x, r_hat)) * r_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """resid_pre of the vector's own layer."""
        return (Site("resid_pre", self.layer),)


@shown()
@checked
@dataclass(frozen=True, eq=False)
class NormMatchedMove:
    """``x - (x . r^) u^``: as far as ablating r goes, but in another direction u.

    The norm-matched null of ablation: what is left of its effect is due to the size of the move alone. Each
    write is moved once; r's component stays in the stream, and a second look would move it again.
    """

    vector: Vectors
    other: Float[Tensor, "*rows d_model"]

    def __post_init__(self) -> None:
        require_vector(self.vector, "vector of a norm-matched move")
        require_vector(self.other, "other vector of a norm-matched move")
        if self.vector.shape[-1] != self.other.shape[-1]:
            raise InputError(
                f"vectors of a norm-matched move: got {self.vector.shape[-1]} and {self.other.shape[-1]} "
                "dimensions, need as many in both"
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Move by the component along r, in the direction of u."""
        r_hat, u_hat = _unit_of(self, "vector", x), _unit_of(self, "other", x)
        return x - projection(x, r_hat) * u_hat

    def sites(self, model: ChatModel) -> tuple[Site, ...]:
        """Every write to the residual stream, once."""
        return model.writes(once=True)


@checked
def ablate(direction: Direction | Vectors, *, strength: float = 1.0) -> Ablate:
    """Directional ablation, ``x - s (x . r^) r^`` (paper, equation 4). strength is s, 1 for all of it."""
    if isinstance(direction, Direction):
        return Ablate(direction.vector, strength, direction)
    return Ablate(direction, strength)


@checked
def add(direction: Direction, *, strength: float = 1.0) -> Add:
    """Activation addition, ``x + s r`` at r's layer, all positions (paper, equation 3)."""
    return Add(direction.vector, direction.layer, strength, direction)


@checked
def subtract(direction: Direction, *, strength: float = 1.0) -> Add:
    """``x - s r`` at r's layer: the bypass by activation addition (paper, equation 17)."""
    return add(direction, strength=-strength)


@checked
def clamp(direction: Direction, value: float, *, strength: float = 1.0) -> Clamp:
    """Set ``x . r^`` to value (in activation units) at r's layer."""
    return Clamp(direction.vector, direction.layer, value, strength, direction)


@checked
def affine(direction: Direction, reference: Vectors, *, strength: float = 1.0) -> Clamp:
    """Set ``x . r^`` to that of a reference activation [d_model], such as the harmless mean.

    Affine concept editing (Marshall, Scherlis and Belrose 2024): the component goes to what is usual
    without the concept, which need not be zero. Raises InputError for a reference of another shape than the vector.
    """
    if reference.shape != direction.vector.shape:
        raise InputError(
            f"reference activation: got {list(reference.shape)}, need [{direction.d_model}] as the vector has"
        )
    value = float(direction.unit @ as_float64(reference).cpu())
    return clamp(direction, value, strength=strength)


@contextmanager
def applied(
    model: Engine,
    edit: Edit | Sequence[Edit],
    *,
    at: Sequence[Site | int] | None = None,
    when: When = "all",
) -> Iterator[ChatModel]:
    """Apply an edit (or several, in order) to every forward pass inside the context.

    at: sites, by default the edit's own; a whole number is resid_pre of that layer, the stream entering it. when:
    "prompt", "reply" (prefilled and generated tokens) or "all"; the same tokens are edited with and without a
    key-value cache. Raises InputError for a vector or sites that do not fit the model, and for a direction of
    other weights.
    """
    if not isinstance(model, ChatModel):
        raise InputError(
            f"model of applied: got {type(model).__name__}, need a ChatModel: edits are hooks in a model of this "
            "process; try ChatModel.load, or export edited weights"
        )
    if when not in ("prompt", "reply", "all"):
        raise InputError(f'when: got {when!r}, need "prompt", "reply" or "all"')
    need = "an edit, such as ablate(direction), or a list of them"
    edits: list[Edit] = _listed([edit] if callable(edit) else edit, "edit", need)
    hooks = []
    for single in edits:
        _check_fits(single, model)
        for site in _default_sites(single, model) if at is None else _listed_sites(at):
            _require_editable(single, site)
            hooks.append((site, _restricted(single, model, when)))
    with model.hooked(hooks):
        yield model


def _listed(given: Any, what: str, need: str) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"{what}: got {type(given).__name__}, need {need}")
    return list(given)


def _listed_sites(at: Any) -> list[Site]:
    need = 'a list of layers or sites, such as [5, Site("mlp_out", 5)]'
    sites = []
    for site in _listed(at, "at", need):
        is_layer = isinstance(site, Integral) and not isinstance(site, bool)
        if not is_layer and not isinstance(site, Site):
            raise InputError(f"at: got {site!r} in the list, need {need}")
        sites.append(Site("resid_pre", whole(site, "layer in at")) if is_layer else site)
    if not sites:
        raise InputError(f"at: got no site, where the edit would change nothing; need {need}")
    return sites


def _default_sites(edit: Any, model: ChatModel) -> tuple[Site, ...]:
    if not hasattr(edit, "sites"):
        raise InputError(
            f"edit: got {type(edit).__name__}, which does not know its sites; need an edit such as "
            "ablate(direction), or tell the sites with at=[...]"
        )
    return edit.sites(model)


def _require_editable(edit: Any, site: Site) -> None:
    if site.kind == "resid_mid":
        raise InputError(
            "edit at resid_mid: a change there would miss the skip connection; "
            "edit attn_out of the layer or resid_pre of the next"
        )
    if hasattr(edit, "vector") and site.kind in ("z", "v", "pattern"):
        raise InputError(
            f"edit at {site.kind}: got a vector of the residual stream, which {site.kind} does not hold; need "
            "resid_pre, resid_post, attn_out, mlp_out or embed"
        )


def _check_fits(edit: Any, model: ChatModel) -> None:
    """Raise InputError unless the edit's direction, vector and layer fit the model."""
    direction = getattr(edit, "direction", None)
    if direction is not None:
        direction.check_weights(model)
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


def require_vector(vector: Any, what: str) -> None:
    """Raise InputError unless these are finite vectors with a direction, [d_model] or [batch 1 d_model]."""
    if not isinstance(vector, Tensor):
        raise InputError(f"{what}: got {type(vector).__name__}, need a tensor [d_model]")
    shape = tuple(vector.shape)
    if vector.ndim not in (1, 3) or 0 in shape or shape[1:-1] not in ((), (1,)):
        raise InputError(f"{what}: got shape {shape}, need [d_model] or, a row each, [batch 1 d_model]")
    if not bool(vector.isfinite().all()):
        raise InputError(f"{what}: got NaN or infinity in it, need finite numbers")
    if not bool((as_float64(vector).norm(dim=-1) > ZERO_NORM).all()):
        raise InputError(
            f"{what}: got length 0 (or below {ZERO_NORM:g}, rounding noise), which edits nothing; need a "
            "vector with a direction"
        )


def require_number(value: Any, what: str) -> None:
    """Raise InputError unless this is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"{what}: got {value!r}, need a finite number")
