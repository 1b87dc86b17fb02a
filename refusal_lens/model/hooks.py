"""The hook layer: places whose activations are read or replaced, in TransformerLens and in plain PyTorch.

A hook is a function of an activation. Where it sits is a `Hookable`: a hook point of TransformerLens, or the
input or output of a module. Nothing here switches gradients off, so a loss can be followed back through an edit.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError

if TYPE_CHECKING:
    from .stream.writers import Writer, Writers

Hook = Callable[[Tensor], "Tensor | None"]
"""Gets an activation and returns a new one, or None to leave it."""

_levels = itertools.count(1_000_000)
"""A context level of its own for every set of hooks, so that each removes just what it added.

The bridge's own ``hooks()`` context does the same but rebuilds its table of aliases for every call, 0.1 s
for a small model.
"""


@runtime_checkable
class Hookable(Protocol):
    """Where a hook can act: a HookPoint of TransformerLens, or what offers the same."""

    def add_hook(self, hook: Any, *, level: int) -> Any:
        """Call ``hook(activation, hook=self)`` in every pass; what it returns replaces the activation."""

    def remove_hooks(self, *, dir: Any, level: int) -> None:
        """Take the hooks of one level away."""


@contextmanager
def installed(hooks: Iterable[tuple[Hookable, Hook]]) -> Iterator[None]:
    """Install hooks for the length of the context; later ones see what earlier ones made."""
    level, used = next(_levels), []
    try:
        for place, hook in hooks:
            used.append(place)
            place.add_hook(_with_place(hook), level=level)
        yield
    finally:
        for place in used:
            place.remove_hooks(dir="fwd", level=level)


def _with_place(fn: Hook) -> Callable[..., Tensor | None]:
    """A hook as TransformerLens calls it, with the hook point as a second argument."""

    def with_place(activation: Tensor, hook: Any) -> Tensor | None:
        return fn(activation)

    return with_place


class _ModuleHooks:
    """PyTorch's handles of the hooks on one module, by level."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._handles: dict[int, list[RemovableHandle]] = defaultdict(list)

    def remove_hooks(self, *, dir: str, level: int) -> None:
        """Take the hooks of one level away."""
        for handle in self._handles.pop(level, []):
            handle.remove()


class ModuleInput(_ModuleHooks):
    """The hidden states that a module is given, as its first argument or by name."""

    def add_hook(self, hook: Any, *, level: int) -> None:
        """Let a hook see and replace them."""

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
            new = hook(args[0] if args else kwargs[name], hook=self)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

        handle = self.module.register_forward_pre_hook(before, with_kwargs=True)
        self._handles[level].append(handle)


class ModuleOutput(_ModuleHooks):
    """What a module returns, or the first of several.

    calls: of a module that runs several times in a pass of the model `inside`, the calls that are meant.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        calls: Iterable[int] | None = None,
        inside: nn.Module | None = None,
    ) -> None:
        super().__init__(module)
        self.calls = None if calls is None else frozenset(calls)
        self.inside = inside

    def add_hook(self, hook: Any, *, level: int) -> None:
        """Let a hook see and replace it."""
        done = 0

        def begin(_module: nn.Module, _args: Any) -> None:
            nonlocal done
            done = 0

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            nonlocal done
            number, done = done, done + 1
            if self.calls is not None and number not in self.calls:
                return None
            first = output[0] if isinstance(output, tuple) and output else output
            new = hook(first, hook=self)
            return None if new is None else with_first(output, new)

        if self.calls is not None and self.inside is not None:
            self._handles[level].append(self.inside.register_forward_pre_hook(begin))
        self._handles[level].append(self.module.register_forward_hook(after))


class ReturnedParameters(_ModuleHooks):
    """Parameters that a module returns as they are next to its output, for others to add.

    reached: the names of those that a pass has shown.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__(module)
        self.names = {id(parameter): name for name, parameter in parameters.items()}
        self.reached: set[str] = set()

    def add_hook(self, hook: Any, *, level: int) -> None:
        """Let a hook see and replace them."""

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not isinstance(output, tuple):
                return None
            self.reached.update(self.names[id(part)] for part in output if id(part) in self.names)
            return tuple(
                hook(part, hook=self) if id(part) in self.names else part for part in output
            )

        self._handles[level].append(self.module.register_forward_hook(after))


def module_outputs(hf: nn.Module, writers: Writers, names: Iterable[str]) -> list[ModuleOutput]:
    """The outputs of these modules, in those of their calls that write to the stream."""
    return [
        ModuleOutput(hf.get_submodule(name), calls=writers.calls.get(name), inside=hf)
        for name in dict.fromkeys(names)
    ]


@contextmanager
def on_every_write(hf: nn.Module, writers: Writers, hook: Hook) -> Iterator[None]:
    """Call a hook with everything that a Hugging Face model adds to its stream, each write once.

    Exact on every architecture whose writers are known, post-norms included. Raises InputError in the end
    when a parameter was added where no hook reaches it.
    """
    places: list[Hookable] = []
    places += module_outputs(hf, writers, (w.site for w in writers.writers if not w.apart))
    returned = list(_returned(hf, [writer for writer in writers.writers if writer.apart]))
    with installed((place, hook) for place in (*places, *returned)):
        yield
    for place in returned:
        for name in place.names.values():
            if name not in place.reached:
                raise InputError(
                    f"hooks on {type(hf).__name__}: {name} is added beside its module's output, where no hook "
                    "reaches it; edit the weights instead"
                )


def _returned(hf: nn.Module, writers: Iterable[Writer]) -> Iterator[ReturnedParameters]:
    by_module: dict[str, dict[str, nn.Parameter]] = defaultdict(dict)
    for writer in writers:
        by_module[writer.module][writer.parameter] = hf.get_parameter(writer.parameter)
    for name, parameters in by_module.items():
        yield ReturnedParameters(hf.get_submodule(name), parameters)


@contextmanager
def stream_kept(hf: nn.Module, writers: Writers) -> Iterator[list[Tensor]]:
    """Collect the stream at the entry of every block and behind the last one, [batch pos d_model] each."""
    kept: list[Tensor] = []
    blocks = [hf.get_submodule(f"{writers.blocks}.{layer}") for layer in range(writers.n_layers)]
    places: list[Hookable] = [*map(ModuleInput, blocks), ModuleOutput(blocks[-1])]
    with installed((place, lambda x: kept.append(x.detach())) for place in places):
        yield kept


def unwrapped(module: nn.Module) -> nn.Module:
    """What a bridge's wrapper stands for, or the module itself."""
    inner = module._modules.get("_original_component")
    return module if inner is None else inner


def with_first(output: Any, new: Tensor) -> Any:
    """A module's output with another tensor in the place of its first one.

    Raises TypeError for what is neither a tensor nor a tuple that begins with one.
    """
    if isinstance(output, Tensor):
        return new
    if isinstance(output, tuple) and isinstance(output[0], Tensor):
        return (new, *output[1:])
    raise TypeError(
        f"module output: got {type(output).__name__}, need a tensor or a tuple with one first"
    )
