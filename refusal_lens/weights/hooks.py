"""The same edits as forward hooks on the modules that write: what edited weights are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..interventions import Ablate, Add
from ..model.stream.record import first_tensor, with_first
from ..model.stream.writers import Writer, Writers
from .edits import Orthogonalise, Shift, WeightEdit


@contextmanager
def hooked(module: nn.Module, writers: Writers, edit: WeightEdit) -> Iterator[None]:
    """The edit as hooks on a Hugging Face model: on every output that is added to the stream.

    Exact on every architecture whose writers are known, post-norms included. Raises InputError in the end
    when a parameter was added where no hook reaches it.
    """
    if isinstance(edit, Shift):
        with shifted_entry(module, writers, edit):
            yield
        return
    sites = tuple(dict.fromkeys(each.site for each in writers.writers if not each.apart))
    apart = [each for each in writers.writers if each.apart]
    with (
        projected_outputs(module, sites, edit, writers.calls),
        _projected_beside(module, apart, edit),
    ):
        yield


@contextmanager
def projected_outputs(
    module: nn.Module,
    names: Sequence[str],
    edit: Orthogonalise,
    calls: Mapping[str, Sequence[int]],
) -> Iterator[None]:
    """``y - s (y . r^) r^`` on the output of each named module.

    calls: of the modules that do something else too in a pass of `module`, the calls to project.
    """
    ablate = Ablate(edit.vector, edit.strength)
    done: Counter[str] = Counter()

    def projector(name: str) -> Any:
        def project(_module: Any, _args: Any, output: Any) -> Any:
            number, done[name] = done[name], done[name] + 1
            if name in calls and number not in calls[name]:
                return None
            return with_first(output, ablate(_first(output)))

        return project

    def begin(_module: Any, _args: Any) -> None:
        done.clear()

    with ExitStack() as handles:
        handles.callback(module.register_forward_pre_hook(begin).remove)
        for name in names:
            handles.callback(
                module.get_submodule(name).register_forward_hook(projector(name)).remove
            )
        yield


@contextmanager
def _projected_beside(
    module: nn.Module, writers: Sequence[Writer], edit: Orthogonalise
) -> Iterator[None]:
    """The same for parameters that a module hands on as they are, next to its output."""
    ablate = Ablate(edit.vector, edit.strength)
    handed_on = {id(module.get_parameter(each.parameter)): each.parameter for each in writers}
    reached: set[str] = set()

    def project(owner: nn.Module, _args: Any, output: Any) -> Any:
        if not isinstance(output, tuple):
            return output
        own = {id(p) for p in owner.parameters(recurse=False)} & handed_on.keys()
        reached.update(handed_on[id(each)] for each in output if id(each) in own)
        return tuple(ablate(each) if id(each) in own else each for each in output)

    with ExitStack() as handles:
        for name in dict.fromkeys(each.module for each in writers):
            handles.callback(module.get_submodule(name).register_forward_hook(project).remove)
        yield
    for name in handed_on.values():
        if name not in reached:
            raise InputError(
                f"hooks on {type(module).__name__}: {name} is added beside its module's output, where no hook "
                "reaches it; edit the weights instead"
            )


@contextmanager
def shifted_entry(module: nn.Module, writers: Writers, edit: Shift) -> Iterator[None]:
    """``x + c r`` on what enters block ``layer``."""
    add = Add(edit.vector, edit.layer, edit.strength)

    def move(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (add(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": add(kwargs["hidden_states"])}

    block = module.get_submodule(f"{writers.blocks}.{edit.layer}")
    handle = block.register_forward_pre_hook(move, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def streams(module: nn.Module, writers: Writers) -> Iterator[list[Tensor]]:
    """Collect the residual stream at the entry of every block and behind the last one."""
    held: list[Tensor] = []
    last = writers.n_layers - 1

    def enter(_module: Any, args: Any, kwargs: Any) -> None:
        found = first_tensor([*args, *kwargs.values()])
        if found is not None:
            held.append(found.detach())

    def leave(_module: Any, _args: Any, output: Any) -> None:
        held.append(_first(output).detach())

    blocks = [
        module.get_submodule(f"{writers.blocks}.{layer}") for layer in range(writers.n_layers)
    ]
    with ExitStack() as handles:
        for block in blocks:
            handles.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        handles.callback(blocks[last].register_forward_hook(leave).remove)
        yield held


def _first(output: Any) -> Tensor:
    found = first_tensor(output)
    if found is None:
        raise TypeError(f"module output: got {type(output).__name__}, need a tensor in it")
    return found


@torch.no_grad()
def logits_of(module: nn.Module, ids: Tensor) -> Tensor:
    """Logits [batch pos d_vocab] in float32, without a cache."""
    device = next(module.parameters()).device
    config: Any = module.config
    options = {"use_cache": False} if hasattr(config.get_text_config(), "use_cache") else {}
    return module(input_ids=ids.to(device), **options).logits.float().cpu()
