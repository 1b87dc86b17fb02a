"""The Hugging Face model under a bridge, run without the bridge's wrappers.

A bridge replaces every linear layer and norm by a wrapper with hook points, which for small shapes
costs as much as the model itself. `PlainModel` takes the wrappers out for the length of a context,
edits the writes to the residual stream with plain PyTorch hooks, and can run a span of blocks
alone. Whoever uses it checks its logits against `ChatModel.hooked`: what a wrapper did besides
wrapping is lost here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import InputError
from ..shapes import Activation, ReadLogits, TokenIds
from .hooks import Hook, Hookable, ModuleInput, ModuleOutput, installed, unwrapped
from .sites import Site
from .threads import Users

if TYPE_CHECKING:
    from .chat_model import ChatModel


@dataclass(frozen=True)
class _Wrapped:
    parent: nn.Module
    name: str
    wrapper: nn.Module
    plain: nn.Module


class PlainModel:
    """The blocks, attentions and MLPs that a bridge wraps, and passes through them.

    Raises InputError when the model has no Hugging Face model underneath, or when one of the sites
    that directions are read from or written to has no module of its own.
    """

    def __init__(self, model: ChatModel) -> None:
        if model.hf is None:
            raise InputError(f"plain passes of {model.name}: no Hugging Face model underneath")
        self.hf: Any = model.hf
        self._name = model.name
        self.n_layers = model.n_layers
        self._wrapped = list(_wrapped_modules(self.hf))
        writers = model.writers
        if writers is None:
            raise InputError(f"plain passes of {model.name}: {model.missed_writes[0]}")
        blocks = self.hf.get_submodule(writers.blocks)
        self.blocks = [unwrapped(block) for block in blocks]
        once = model._coverage.once
        self.complete = once is not None and not model.missed_writes
        """Whether there are places that see each write once."""
        self._once = [_place(model, site, self.blocks) for site in once or ()]
        self._every = [_place(model, site, self.blocks) for site in model.writes()]
        self._last_mlp = getattr(model.bridge.blocks[-1], "mlp", None)
        self._last_mlp = getattr(self._last_mlp, "original_component", None)
        self._accepts = frozenset(inspect.signature(type(self.hf).forward).parameters)
        self._tuples: dict[int, int] = {}

    @contextmanager
    def opened(self, attention: str | None = None) -> Iterator[PlainModel]:
        """Take the wrappers out for the length of the context; the bridge must not be used inside.

        attention: an attention implementation of transformers, such as "sdpa"; the model's own by
        default. Raises ValueError when the architecture does not offer it, InputError while another
        thread uses the model.
        """
        before = self.hf.config._attn_implementation
        with Users.of(self.hf).hooking(self._name):
            try:
                for module in self._wrapped:
                    module.parent._modules[module.name] = module.plain
                if attention is not None and attention != before:
                    self.hf.set_attn_implementation(attention)
                yield self
            finally:
                if self.hf.config._attn_implementation != before:
                    self.hf.set_attn_implementation(before)
                for module in self._wrapped:
                    module.parent._modules[module.name] = module.wrapper

    # ---------------------------------------------------------------- passes

    def last_logits(
        self,
        ids: TokenIds,
        *,
        last: int = 1,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        cache: Any = None,
    ) -> ReadLogits:
        """Logits [batch last d_vocab] at the last positions, which alone go through the last block's MLP.

        mask [batch seen+pos] and positions [batch pos] are needed for padded rows; cache holds what
        came before ids, and receives their keys and values.
        """
        asked: dict[str, Any] = {"use_cache": cache is not None, "logits_to_keep": last}
        if mask is not None:
            asked |= {"attention_mask": mask, "position_ids": positions}
        asked = {name: value for name, value in asked.items() if name in self._accepts}
        if cache is not None:
            asked["past_key_values"] = cache
        with self._last_mlp_at(last):
            return self.hf(input_ids=ids, **asked).logits[:, -last:]

    @contextmanager
    def editing(self, edit: Hook, *, every_block: bool) -> Iterator[None]:
        """Apply an edit, which may work in place, at the sites of `ChatModel.writes`.

        With every_block all of them; without, those that see each write once, which for an ablation is the
        same but for rounding.
        """
        places = self._every if every_block else self._once
        with installed((place, edit) for place in places):
            yield

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[dict[int, Activation]]:
        """Collect resid_pre [batch pos d_model] of the given layers during the context's passes."""
        kept: dict[int, Tensor] = {}

        def note(layer: int) -> Callable[..., None]:
            def look(_module: nn.Module, _args: Any, output: Any) -> None:
                self._tuples[layer] = len(output) if isinstance(output, tuple) else 0

            return look

        entries = [(ModuleInput(self.blocks[layer]), partial(kept.__setitem__, layer)) for layer in layers]
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                stack.callback(block.register_forward_hook(note(layer)).remove)
            stack.enter_context(installed(entries))
            yield kept

    @contextmanager
    def spanning(
        self, start: int, stream: Activation, *, stop: int | None = None
    ) -> Iterator[None]:
        """Run the blocks start .. stop alone, with stream entering block start.

        The others hand on what they get, in their places, so that everything that goes by a layer's
        number or type (sliding windows, caches) stays right. A pass through `reading` must have
        come before, to see what blocks return.
        """
        stop = self.n_layers if stop is None else stop
        saved: list[tuple[nn.Module, Any]] = []
        entry = (ModuleInput(self.blocks[start]), lambda _: stream)
        try:
            for layer, block in enumerate(self.blocks):
                if not start <= layer < stop:
                    saved.append((block, block.__dict__.get("forward")))
                    block.__dict__["forward"] = _pass_through(self._tuples[layer])
            with installed([entry]):
                yield
        finally:
            for block, forward in saved:
                if forward is None:
                    del block.__dict__["forward"]
                else:
                    block.__dict__["forward"] = forward

    @contextmanager
    def _last_mlp_at(self, last: int) -> Iterator[None]:
        """Run the last block's MLP at the last positions alone; logits there are the same.

        What the MLP gives at a single position is added to the stream by broadcasting, and what it gives at several
        is filled up with zeros in front. Both spoil the other positions, that nobody reads any more.
        """
        if self._last_mlp is None:
            yield
            return
        width = 0

        def cut(x: Tensor) -> Tensor:
            nonlocal width
            width = x.shape[1]
            return x[:, -last:]

        def filled(x: Tensor) -> Tensor:
            return x if last == 1 else nn.functional.pad(x, (0, 0, max(0, width - last), 0))

        mlp = self._last_mlp
        with installed([(ModuleInput(mlp), cut), (ModuleOutput(mlp), filled)]):
            yield


def _wrapped_modules(parent: nn.Module) -> Iterator[_Wrapped]:
    """Every wrapper that stands in the Hugging Face model's tree, outer ones first."""
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        plain = child._modules.get("_original_component")
        if plain is not None:
            yield _Wrapped(parent, name, child, plain)
        yield from _wrapped_modules(child if plain is None else plain)


def _place(model: ChatModel, site: Site, blocks: Sequence[nn.Module]) -> Hookable:
    """The input or output of a module that a site of `ChatModel.writes` shows."""
    if site.kind == "resid_pre":
        return ModuleInput(blocks[site.layer])
    return ModuleOutput(blocks[site.layer] if site.kind == "resid_post" else model.module_of(site))


def _pass_through(length: int) -> Callable[..., Any]:
    """A block's forward that returns its input, as a tensor or as the first of a tuple."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *[None] * (length - 1)) if length else x

    return forward
