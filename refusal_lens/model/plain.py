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
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..errors import InputError
from ..shapes import Activation, ReadLogits, TokenIds
from .sites import Site
from .threads import Users

if TYPE_CHECKING:
    from .chat_model import ChatModel

Edit = Callable[[Tensor], Tensor]
"""A map of an activation [batch pos d_model]; it may change it in place."""


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
        owners = _owners(model)
        self.blocks = [_plain(owners, model, "resid_pre", layer) for layer in range(self.n_layers)]
        outputs = [s for s in model.writes() if s.kind in ("attn_out", "mlp_out")]
        more = [s.module for s in model.writes() if s.kind == "output"]
        self._writers = [_plain(owners, model, s.kind, s.layer) for s in outputs]
        self._writers += [_inside(self.hf.get_submodule(name)) for name in more]
        self.complete = len(outputs) == 2 * self.n_layers and not model.missed_writes
        """Whether every block has an attention and an MLP whose outputs can be edited."""
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
                for one in self._wrapped:
                    one.parent._modules[one.name] = one.plain
                if attention is not None and attention != before:
                    self.hf.set_attn_implementation(attention)
                yield self
            finally:
                if self.hf.config._attn_implementation != before:
                    self.hf.set_attn_implementation(before)
                for one in self._wrapped:
                    one.parent._modules[one.name] = one.wrapper

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
    def editing(self, edit: Edit, *, every_block: bool) -> Iterator[None]:
        """Apply edit to every write to the residual stream.

        The embedding (the stream entering block 0), every attention output and every MLP output;
        with every_block also the stream entering each block and the final one, which changes
        nothing but rounding unless the model writes by other ways too.
        """
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                if layer == 0 or every_block:
                    stack.callback(
                        block.register_forward_pre_hook(_on_input(edit), with_kwargs=True).remove
                    )
            for writer in self._writers:
                stack.callback(writer.register_forward_hook(_on_output(edit)).remove)
            if every_block:
                stack.callback(self.blocks[-1].register_forward_hook(_on_output(edit)).remove)
            yield

    @contextmanager
    def reading(self, layers: Sequence[int]) -> Iterator[dict[int, Activation]]:
        """Collect resid_pre [batch pos d_model] of the given layers during the context's passes."""
        held: dict[int, Tensor] = {}

        def keep(layer: int) -> Edit:
            def look(x: Tensor) -> Tensor:
                held[layer] = x
                return x

            return look

        def note(layer: int) -> Callable[..., None]:
            def look(_module: nn.Module, _args: Any, output: Any) -> None:
                self._tuples[layer] = len(output) if isinstance(output, tuple) else 0

            return look

        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                stack.callback(block.register_forward_hook(note(layer)).remove)
                if layer in layers:
                    stack.callback(
                        block.register_forward_pre_hook(
                            _on_input(keep(layer)), with_kwargs=True
                        ).remove
                    )
            yield held

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
        enter = self.blocks[start].register_forward_pre_hook(
            _on_input(lambda _: stream), with_kwargs=True
        )
        try:
            for layer, block in enumerate(self.blocks):
                if not start <= layer < stop:
                    saved.append((block, block.__dict__.get("forward")))
                    block.__dict__["forward"] = _pass_through(self._tuples[layer])
            yield
        finally:
            enter.remove()
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

        with ExitStack() as stack:
            pre = self._last_mlp.register_forward_pre_hook(_on_input(cut), with_kwargs=True)
            stack.callback(pre.remove)
            stack.callback(self._last_mlp.register_forward_hook(_on_output(filled)).remove)
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


def _owners(model: ChatModel) -> dict[int, tuple[str, nn.Module]]:
    """Whose input or output each hook point shows: id of the point to ("in" | "out", module)."""
    owners: dict[int, tuple[str, nn.Module]] = {}
    for module in model.bridge.modules():
        plain = module._modules.get("_original_component")
        if plain is None:
            continue
        for end in ("in", "out"):
            point = module._modules.get(f"hook_{end}")
            if point is not None:
                owners[id(point)] = (end, plain)
    return owners


def _plain(
    owners: dict[int, tuple[str, nn.Module]], model: ChatModel, kind: str, layer: int
) -> nn.Module:
    """The module whose input (resid_pre) or output (the writes) a site shows.

    Where a bridge computes a write after the module, such as by scaling its output, the module
    itself: what an edit that commutes with scaling does there is the same.
    """
    site = Site(kind, layer)
    end, plain = owners.get(id(model._points[site.hook_name]), ("", model.bridge))
    if end == ("in" if kind == "resid_pre" else "out"):
        return plain
    part = getattr(model.bridge.blocks[layer], kind.removesuffix("_out"), None)
    whole = None if part is None else part._modules.get("_original_component")
    if whole is None:
        raise InputError(
            f"plain passes of {model.name}: {site.hook_name} is no module's own {kind}"
        )
    return whole


def _inside(module: nn.Module) -> nn.Module:
    """What a wrapper wraps, or the module itself."""
    inner = module._modules.get("_original_component")
    return module if inner is None else inner


def _on_input(edit: Edit) -> Callable[..., Any]:
    """A forward pre-hook that edits the hidden states, wherever they are among the arguments."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
        return args, {**kwargs, name: edit(kwargs[name])}

    return hook


def _on_output(edit: Edit) -> Callable[..., Any]:
    """A forward hook that edits the output, or the first of several."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook


def _pass_through(length: int) -> Callable[..., Any]:
    """A block's forward that returns its input, as a tensor or as the first of a tuple."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        return (x, *[None] * (length - 1)) if length else x

    return forward
