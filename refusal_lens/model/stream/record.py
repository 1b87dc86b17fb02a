"""One recorded forward pass: who made which tensor, and from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.overrides import TorchFunctionMode

from ...display import shown
from ...errors import InputError
from ..hooks import Hook, Hookable, installed
from . import graph
from .graph import NodeAxis

IN_PLACE_SUMS = frozenset(
    {"add_", "sub_", "__iadd__", "__isub__", "__setitem__", "copy_", "index_add_", "index_put_"}
    | {"zero_", "masked_fill_", "masked_scatter_", "index_copy_", "fill_"}
)
"""Changes in place that add to a part of a tensor or replace it."""
ADDITIONS = frozenset(
    {"add", "add_", "__add__", "__radd__", "__iadd__"}
    | {"sub", "sub_", "__sub__", "__rsub__", "__isub__"}
)
ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})
STILL_ZERO = frozenset(
    {"__getitem__", "view", "reshape", "expand", "expand_as", "to", "type", "float", "half", "bfloat16"}
    | {"clone", "contiguous", "unsqueeze", "squeeze", "flatten", "transpose", "permute", "detach"}
)
"""What can be done to a tensor of zeros so that it still is one."""
PROBE_TOKENS = 3
LOOKS_AT_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
"""What a pass without values ends with where the model's code depends on them."""


@shown()
@dataclass
class Record:
    """What the hooks of one forward pass kept: who made which tensor, and from what.

    outputs holds what each module made, call by call (None for no tensor that depends on parameters);
    marks the copies that stand for the places where a hook could act, by the place's name.
    """

    blocks: str
    n_layers: int
    made: dict[tuple[Any, int], list[tuple[str, NodeAxis | None]]] = field(default_factory=dict)
    entered: dict[tuple[Any, int], set[int]] = field(default_factory=dict)
    beside: list[tuple[tuple[Any, int], int]] = field(default_factory=list)
    executed: set[str] = field(default_factory=set)
    in_place: dict[Any, str] = field(default_factory=dict)
    fixed: set[Any] = field(default_factory=set)
    outputs: dict[str, list[tuple[Any, int] | None]] = field(default_factory=dict)
    marks: dict[tuple[Any, int], str] = field(default_factory=dict)
    last: Tensor | None = None


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the model's blocks. Raises InputError when there is not exactly one such list."""
    n_layers = text_config(model).num_hidden_layers
    if n_layers < 1:
        raise InputError(f"{type(model).__name__}: got {n_layers} blocks, need at least 1")
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    lists = [candidate for candidate in lists if not any(candidate[0].startswith(f"{o[0]}.") for o in lists)]
    if not lists:
        raise InputError(
            f"{type(model).__name__}: no list of {n_layers} blocks in it; need a decoder with blocks"
        )
    language = [candidate for candidate in lists if "vision" not in candidate[0] and "audio" not in candidate[0]]
    return (language or lists)[0]


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model, which a multimodal one wraps."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def record_pass(model: nn.Module, places: Mapping[str, Hookable] | None = None) -> Record:
    """Run the model on a few tokens with gradients on, and keep what the stream is made of.

    places: where hooks can act, by name; what they hold is marked if it is [1, pos, d_model].
    Nothing in the model is changed. Raises InputError when its blocks cannot be found or do not run.
    """
    name, blocks = blocks_of(model)
    record = Record(blocks=name, n_layers=len(blocks))
    fake: Any = getattr(next(model.parameters()), "fake_mode", None)
    with (
        _recording(model, blocks, record),
        installed(_marks(places or {}, int(text_config(model).hidden_size), record)),
        _transparent_experts(model),
        fake or nullcontext(),
    ):
        _forward(model, record)
    if record.last is None or record.last.grad_fn is None:
        raise InputError(f"{type(model).__name__}: the last block did not run on a few tokens")
    return record


def _forward(model: nn.Module, record: Record) -> None:
    device = next(model.parameters()).device
    ids = torch.zeros((1, PROBE_TOKENS), dtype=torch.long, device=device)
    options: dict[str, Any] = {"input_ids": ids}
    if getattr(text_config(model), "use_cache", None) is not None:
        options["use_cache"] = False
    try:
        with _NoteWhatGraphsDoNot(record.in_place, record.fixed):
            model(**options)
    except LOOKS_AT_VALUES:
        if record.last is None:
            raise
    except (
        *(RuntimeError, TypeError, ValueError, AttributeError),
        *(LookupError, ArithmeticError, AssertionError),
    ) as error:
        # What comes after the last block, the unembedding, is not part of the stream.
        if record.last is None:
            raise InputError(
                f"{type(model).__name__}: cannot be run on a few tokens "
                f"({(str(error).splitlines() or [type(error).__name__])[0]})"
            ) from error


class _NoteWhatGraphsDoNot(TorchFunctionMode):
    """Keeps what the graph itself does not tell.

    The name of what changed a view in place, and the sums that have an operand which depends on no
    parameter and is not zero.
    """

    def __init__(self, names: dict[Any, str], fixed: set[Any]) -> None:
        super().__init__()
        self.names, self.fixed = names, fixed
        self.zeros: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run `func`, then look at its operands and its result."""
        name = getattr(func, "__name__", "")
        fixed = name in ADDITIONS and any(self._is_fixed(operand) for operand in args[:2])
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            if fixed and result.grad_fn is not None:
                self.fixed.add(result.grad_fn)
            if name in ZEROS or (name in STILL_ZERO and args and id(args[0]) in self.zeros):
                self.zeros[id(result)] = result
        if args and isinstance(args[0], Tensor) and (name.endswith("_") and args[0].requires_grad):
            whole = args[0]._base if args[0]._base is not None else args[0]
            if whole.grad_fn is not None and graph.operation(whole.grad_fn) == "CopySlices":
                known = self.names.setdefault(whole.grad_fn, name)
                if known in IN_PLACE_SUMS and name not in IN_PLACE_SUMS:
                    self.names[whole.grad_fn] = name
        return result

    def _is_fixed(self, operand: Any) -> bool:
        """Whether this is a number or a tensor without parameters behind it, and not known to be zero."""
        if not isinstance(operand, Tensor):
            return isinstance(operand, int | float) and operand != 0
        if operand.requires_grad or not operand.numel() or id(operand) in self.zeros:
            return False
        try:
            return bool((operand != 0).any())
        except DataDependentOutputException:
            return True


@contextmanager
def _transparent_experts(model: nn.Module) -> Iterator[None]:
    """Run mixtures of experts as plain batched products, without an opaque kernel or a loop over data."""
    configs: dict[int, Any] = {
        id(c): c for m in model.modules() if (c := getattr(m, "config", None))
    }
    name = "_experts_implementation"
    before = {key: getattr(c, name) for key, c in configs.items() if hasattr(c, name)}
    try:
        for key in before:
            setattr(configs[key], name, "batched_mm")
        yield
    finally:
        for key, implementation in before.items():
            setattr(configs[key], name, implementation)


@contextmanager
def _recording(model: nn.Module, blocks: nn.ModuleList, record: Record) -> Iterator[None]:
    """Hooks on every module, gradients on; both as before afterwards."""
    wanted = {p: p.requires_grad for p in model.parameters() if p.is_floating_point()}
    training = model.training
    handles = [
        module.register_forward_hook(_note_output(record, name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    for layer, block in enumerate(blocks):
        handles.append(
            block.register_forward_pre_hook(_note_entry(record, layer), with_kwargs=True)
        )
    handles.append(blocks[-1].register_forward_hook(_note_last(record)))
    try:
        model.eval()
        for parameter in wanted:
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter, before in wanted.items():
            parameter.requires_grad_(before)
        for handle in handles:
            handle.remove()
        model.train(training)


def _marks(places: Mapping[str, Hookable], d_model: int, record: Record) -> Iterator[tuple[Hookable, Hook]]:
    """Hooks that let each place hand on something new: the graph then shows who uses it behind the place."""
    shape = (1, PROBE_TOKENS, d_model)

    def marker(name: str) -> Hook:
        def mark(activation: Tensor) -> Tensor | None:
            if not isinstance(activation, Tensor) or tuple(activation.shape) != shape:
                return None
            if activation.grad_fn is None:
                return None
            # Not a mere copy: some bridges look whether a hook changed anything. The values do not matter.
            changed = -activation
            record.marks[changed.grad_fn, changed.output_nr] = name
            return changed

        return mark

    return ((place, marker(name)) for name, place in places.items())


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one of a tuple, list or mapping."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((t for t in map(first_tensor, value) if t is not None), None)
    return None


def _note_output(record: Record, name: str) -> Any:
    def note(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        record.executed.add(name)
        made, given = first_tensor(output), first_tensor([*args, *kwargs.values()])
        calls = record.outputs.setdefault(name, [])
        if made is None or made.grad_fn is None:
            calls.append(None)
            return
        calls.append((made.grad_fn, made.output_nr))
        same = given is not None and given.shape[-1:] == made.shape[-1:]
        source = (
            graph.axis_of(given)
            if given is not None and same and given.is_floating_point()
            else None
        )
        record.made.setdefault((made.grad_fn, made.output_nr), []).append((name, source))

    return note


def _note_entry(record: Record, layer: int) -> Any:
    def note(_module: Any, args: Any, kwargs: Any) -> None:
        given = [
            t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.grad_fn is not None
        ]
        for index, tensor in enumerate(given):
            key = (tensor.grad_fn, tensor.output_nr)
            if index == 0:
                record.entered.setdefault(key, set()).add(layer)
            else:
                record.beside.append((key, layer))

    return note


def _note_last(record: Record) -> Any:
    def note(_module: Any, _args: Any, output: Any) -> None:
        record.last = first_tensor(output)

    return note
