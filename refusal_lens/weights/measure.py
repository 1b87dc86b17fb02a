"""Does an edited model equal the hooks? Measured, on random tokens, at every layer."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..display import shown
from ..door import checked
from ..errors import InputError
from ..interventions import Ablate, Add, unit
from ..model import ChatModel
from ..model.hooks import ModuleInput, installed, on_every_write, stream_kept
from ..model.stream.mapping import writers_of
from ..model.stream.writers import Writers
from ..shapes import TokenIds
from .edits import Orthogonalise, WeightEdit
from .memory import PostNorm, edited, huggingface

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 3e-1}
"""Largest difference of two logits that rounding explains, as a share of the largest logit (at least 1)."""
CLEAN = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest |x . r^| / ||x|| that rounding explains."""


@shown("line")
@dataclass(frozen=True)
class Equivalence:
    """Edited weights against hooks: logits, KL in nats, and the stream along r^ at every layer.

    projections: largest ``|x . r^| / ||x||`` at the entry of each block and behind the last, edited;
    before: the same without the edit.
    """

    logits: float
    kl: float
    largest_logit: float
    projections: tuple[float, ...]
    before: tuple[float, ...]
    tolerance: float
    clean: float

    @property
    def equal(self) -> bool:
        """Whether the logits are the hooks', up to rounding."""
        return self.logits <= self.tolerance * max(1.0, self.largest_logit)

    @property
    def leak(self) -> int | None:
        """The first layer where the stream has a component along r^ although it should not."""
        return next((i for i, p in enumerate(self.projections) if p > self.clean), None)

    @property
    def line(self) -> str:
        """The figures in one line."""
        return (
            f"logits differ by {self.logits:.2g} of {self.largest_logit:.3g}, KL {self.kl:.2g}, stream along r^ "
            f"at most {max(self.projections):.2g} (was {max(self.before):.2g})"
        )


def random_ids(d_vocab: int, *, rows: int = 2, length: int = 12, seed: int = 0) -> TokenIds:
    """Random token ids [rows length]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, d_vocab, (rows, length), generator=generator)


@checked
def equivalence(
    model: ChatModel | nn.Module,
    edit: WeightEdit,
    *,
    ids: TokenIds | None = None,
    post_norm: PostNorm = "fold",
    allow_partial: bool = False,
    writers: Writers | None = None,
) -> Equivalence:
    """Edit a model in memory, compare with hooks, and put it back. Errors as for `edited`."""
    module = huggingface(model)
    writers = writers or writers_of(module)
    reference = _with_hooks(module, writers, edit, ids)
    with edited(module, edit, post_norm=post_norm, allow_partial=allow_partial, writers=writers):
        return _compared(reference, module, writers, edit)


@checked
def verify(
    original: ChatModel | nn.Module,
    other: ChatModel | nn.Module,
    edit: WeightEdit,
    *,
    ids: TokenIds | None = None,
) -> Equivalence:
    """Compare any edited model with hooks on the original one, whoever edited it.

    Raises InputError when the two do not have the same blocks, width and vocabulary.
    """
    module, other_module = huggingface(original), huggingface(other)
    ours, theirs = writers_of(module), writers_of(other_module)
    if (ours.n_layers, ours.d_model) != (theirs.n_layers, theirs.d_model):
        raise InputError(
            f"edited model: got {theirs.n_layers} layers of width {theirs.d_model}, need {ours.n_layers} "
            f"of width {ours.d_model} as the original has"
        )
    return _compared(_with_hooks(module, ours, edit, ids), other_module, theirs, edit)


class _Reference(NamedTuple):
    """What hooks make of token ids: logits [batch pos d_vocab], and the stream along r^ without them."""

    ids: TokenIds
    logits: Tensor
    before: tuple[float, ...]


def _with_hooks(
    module: nn.Module, writers: Writers, edit: WeightEdit, ids: TokenIds | None
) -> _Reference:
    ids = random_ids(_d_vocab(module)) if ids is None else ids
    before = projections(module, writers, edit, ids)
    with hooked(module, writers, edit):
        return _Reference(ids, logits_of(module, ids), before)


def _compared(
    reference: _Reference, module: nn.Module, writers: Writers, edit: WeightEdit
) -> Equivalence:
    """A model whose weights are edited, against what hooks make of the original one."""
    wanted, got = reference.logits, logits_of(module, reference.ids)
    p, q = wanted.double().log_softmax(-1), got.double().log_softmax(-1)
    full = isinstance(edit, Orthogonalise) and edit.strength == 1
    dtype = _dtype(module)
    return Equivalence(
        logits=float((wanted - got).abs().max()),
        kl=float((p.exp() * (p - q)).sum(-1).mean()),
        largest_logit=float(wanted.abs().max()),
        projections=projections(module, writers, edit, reference.ids),
        before=reference.before,
        tolerance=TOLERANCE[dtype],
        clean=CLEAN[dtype] if full else float("inf"),
    )


@torch.no_grad()
def projections(
    module: nn.Module, writers: Writers, edit: WeightEdit, ids: TokenIds
) -> tuple[float, ...]:
    """Largest ``|x . r^| / ||x||`` at the entry of each block and behind the last one."""
    r_hat = unit(edit.vector)
    with stream_kept(module, writers) as stream:
        logits_of(module, ids)
    xs = [x.double().cpu() for x in stream]
    return tuple(float(((x @ r_hat).abs() / x.norm(dim=-1).clamp_min(1e-30)).max()) for x in xs)


def hooked(
    module: nn.Module, writers: Writers, edit: WeightEdit
) -> AbstractContextManager[None]:
    """A weight edit as hooks on a Hugging Face model: what edited weights are compared with.

    Errors as for `on_every_write`.
    """
    if isinstance(edit, Orthogonalise):
        return on_every_write(module, writers, Ablate(edit.vector, edit.strength))
    block = module.get_submodule(f"{writers.blocks}.{edit.layer}")
    return installed([(ModuleInput(block), Add(edit.vector, edit.layer, edit.strength))])


@torch.no_grad()
def logits_of(module: nn.Module, ids: Tensor) -> Tensor:
    """Logits [batch pos d_vocab] in float32, without a cache."""
    device = next(module.parameters()).device
    config: Any = module.config
    options = {"use_cache": False} if hasattr(config.get_text_config(), "use_cache") else {}
    return module(input_ids=ids.to(device), **options).logits.float().cpu()


def _d_vocab(module: Any) -> int:
    return int(module.get_input_embeddings().weight.shape[0])


def _dtype(module: nn.Module) -> torch.dtype:
    return next(p.dtype for p in module.parameters() if p.is_floating_point())
