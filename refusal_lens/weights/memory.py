"""Edits of a model that is in memory: for the length of a context, or for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..display import shown
from ..door import checked
from ..errors import InputError
from ..interventions import Ablate
from ..model import ChatModel
from ..model.hooks import installed, module_outputs
from ..model.norms import Norm, measure_norm
from ..model.stream.mapping import writers_of
from ..model.stream.writers import Writers
from .arithmetic import Change, NewBias, change_in_place
from .edits import Orthogonalise, WeightEdit, changes_of, map_after

PostNorm = Literal["fold", "hook"]


@shown()
@dataclass(frozen=True)
class Edited:
    """What was done: the map of writers, the changes, and the modules that kept a hook."""

    writers: Writers
    changes: tuple[Change, ...]
    hooked: tuple[str, ...] = ()


def huggingface(model: ChatModel | nn.Module) -> nn.Module:
    """The Hugging Face model itself. Raises InputError for anything else, as a HookedTransformer."""
    module: Any = model.hf if isinstance(model, ChatModel) else model
    if module is None or not isinstance(module, nn.Module) or not hasattr(module, "config"):
        what = "a HookedTransformer" if module is None else type(module).__name__
        raise InputError(
            f"weight edit: got {what}, need a Hugging Face model or a TransformerBridge over one"
        )
    return module


@checked
@contextmanager
def edited(
    model: ChatModel | nn.Module,
    edit: WeightEdit,
    *,
    post_norm: PostNorm = "fold",
    allow_partial: bool = False,
    writers: Writers | None = None,
) -> Iterator[Edited]:
    """Edit the weights for the length of the context; afterwards every bit is as it was.

    post_norm: outputs that a norm rescales are folded into their weights (the projection goes to 0, a scale
    per token remains) or, with "hook", edited exactly by a hook behind the norm. Raises InputError when a
    writer cannot be edited, unless allow_partial.
    """
    if post_norm not in ("fold", "hook"):
        raise InputError(f'post_norm: got {post_norm!r:.40}, need "fold" or "hook"')
    module = huggingface(model)
    writers = writers or writers_of(module)
    writers.require_editable(allow_partial=allow_partial)
    hooked = (
        _behind_norms(writers) if post_norm == "hook" and isinstance(edit, Orthogonalise) else ()
    )
    changes = _planned(module, writers, edit, skip=hooked)
    writers = map_after(writers, edit, changes)
    with ExitStack() as undo:
        if writers.tied:
            undo.enter_context(_untied(module, writers.tied))
        with torch.no_grad():
            for change in changes:
                undo.enter_context(_changed(module, change))
        if hooked:
            assert isinstance(edit, Orthogonalise)
            ablate, places = Ablate(edit.vector, edit.strength), module_outputs(module, writers, hooked)
            undo.enter_context(installed((place, ablate) for place in places))
        yield Edited(writers, tuple(changes), hooked)


@checked
def apply(model: ChatModel | nn.Module, edit: WeightEdit, *, allow_partial: bool = False) -> Edited:
    """Edit the weights for good, without keeping the old ones. Errors as for `edited`.

    Where the unembedding was tied to an embedding that changes, the model's configuration says that it is
    so no more, so that `save_pretrained` writes both.
    """
    module = huggingface(model)
    writers = writers_of(module)
    writers.require_editable(allow_partial=allow_partial)
    changes = _planned(module, writers, edit, skip=())
    writers = map_after(writers, edit, changes)
    if writers.tied:
        _untie(module, writers.tied)
        config: Any = module.config
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    with torch.no_grad():
        for change in changes:
            if isinstance(change, NewBias):
                _set(module, change.parameter, _new_bias(module, change))
            else:
                _in_place(module.get_parameter(change.parameter).data, change)
    return Edited(writers, tuple(changes))


def _planned(
    module: nn.Module, writers: Writers, edit: WeightEdit, *, skip: tuple[str, ...]
) -> list[Change]:
    @cache
    def norm_of(name: str) -> Norm:
        return measure_norm(module.get_submodule(name), writers.d_model)

    # What a norm adds of its own, its bias, is in its output too: the hook behind it takes both.
    kept = [w for w in writers.writers if w.site not in skip]
    return list(changes_of(replace(writers, writers=tuple(kept)), edit, norm_of))


def _behind_norms(writers: Writers) -> tuple[str, ...]:
    return tuple(dict.fromkeys(w.norms[0] for w in writers.writers if w.treatment == "folded"))


def _set(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
    owner, _, leaf = name.rpartition(".")
    module.get_submodule(owner).register_parameter(leaf, value)


def _in_place(data: Tensor, change: Change) -> None:
    assert not isinstance(change, NewBias)
    if data.is_contiguous():
        change_in_place(data, change)
        return
    straight = data.contiguous()
    change_in_place(straight, change)
    data.copy_(straight)


@contextmanager
def _changed(module: nn.Module, change: Change) -> Iterator[None]:
    """One change, taken back by putting the old bytes in their place."""
    if isinstance(change, NewBias):
        _set(module, change.parameter, _new_bias(module, change))
        try:
            yield
        finally:
            _set(module, change.parameter, None)
        return
    data = module.get_parameter(change.parameter).data
    before = data.to("cpu", copy=True)
    try:
        _in_place(data, change)
        yield
    finally:
        with torch.no_grad():
            data.copy_(before)


def _new_bias(module: nn.Module, change: NewBias) -> nn.Parameter:
    owner = module.get_submodule(change.module)
    weight = getattr(owner, "weight", None)
    if weight is None or getattr(owner, "bias", "none") is not None:
        raise InputError(
            f"addition in {change.module}: a {type(owner).__name__} takes no bias; use hooks instead"
        )
    return nn.Parameter(change.vector.to(weight.device, weight.dtype), requires_grad=False)


@contextmanager
def _untied(module: nn.Module, name: str) -> Iterator[None]:
    """Give the unembedding a copy of its own, then the shared one again."""
    shared = _untie(module, name)
    try:
        yield
    finally:
        _set(module, name, shared)


def _untie(module: nn.Module, name: str) -> nn.Parameter:
    shared = module.get_parameter(name)
    _set(module, name, nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad))
    return shared
