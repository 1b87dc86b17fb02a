"""From a traced pass to the map of writers: what each parameter is in the model, and how an edit reaches it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ...door import checked
from ...errors import InputError
from .empty import empty_model, trace_empty
from .trace import Trace, trace
from .tracer import Write
from .writers import Treatment, Writer, Writers, name_pattern

MIXERS = re.compile(
    r"attn|attention|mixer|mamba|conv|temporal|operator|lstm|ssm|recurrent|linear_out"
)


@checked
def writers_of(model: nn.Module) -> Writers:
    """The map of a model that is in memory: a Hugging Face model, under hooks or not.

    Runs it once on a few tokens. Raises InputError when its blocks cannot be found or run, or its stream
    cannot be followed; what is found but not understood is in `obstacles`.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InputError(
            f"map of writers: got {type(model).__name__}, need a Hugging Face model; try ChatModel.hf"
        )
    return classified(model, trace(model))


@checked
def writers_of_config(config: Any, *, trust_remote_code: bool = False) -> tuple[nn.Module, Writers]:
    """The empty model of the model that a configuration describes, and its map; no weights needed.

    Errors as for `writers_of`, and InputError when transformers cannot build the model.
    """
    model = empty_model(config, trust_remote_code=trust_remote_code)
    return model, classified(model, trace_empty(model))


def classified(model: nn.Module, traced: Trace) -> Writers:
    """The map of what a trace found in a model."""
    writes = _by_parameter([*traced.writes, *_like_those_traced(traced)])
    writers = [_writer(model, traced, write) for write in writes]
    return Writers(
        architecture=type(model).__name__,
        writers=tuple(sorted(writers, key=_in_order_of_the_model(traced))),
        obstacles=tuple(f"{o.where}: {o.what}" for o in traced.obstacles),
        idle=_idle(traced),
        blocks=traced.blocks,
        n_layers=traced.n_layers,
        d_model=traced.d_model,
        tied=_tied(model, traced),
        beside=traced.beside,
        calls={
            name: calls for name, calls in traced.calls.items() if name in {w.site for w in writers}
        },
    )


def _in_order_of_the_model(traced: Trace) -> Callable[[Writer], int]:
    order = {name: index for index, name in enumerate(traced.shapes)}
    return lambda writer: order.get(writer.parameter, len(order))


def _by_parameter(writes: list[Write]) -> list[Write]:
    """Writes by parameter; one that is reached with and without a norm keeps both in its path."""
    known: dict[str, Write] = {}
    for write in writes:
        other = known.setdefault(write.parameter, write)
        if other is not write and other.through != write.through:
            both = (*other.through, *write.through, "and on another path without")
            known[write.parameter] = replace(other, through=both, scale=None)
    return list(known.values())


def _like_those_traced(traced: Trace) -> list[Write]:
    """Experts that no token was sent to: same name but for the numbers, same shape, never run."""
    patterns = {name_pattern(write.parameter): write for write in traced.writes}
    reached = {write.parameter for write in traced.writes}
    alike = []
    for name, shape in traced.shapes.items():
        model = patterns.get(name_pattern(name))
        if model is None or name in reached or traced.shapes[model.parameter] != shape:
            continue
        if name not in traced.used:
            alike.append(replace(model, parameter=name))
    return alike


def _writer(model: nn.Module, traced: Trace, write: Write) -> Writer:
    layer = _layer(write.parameter, traced.blocks)
    ties = traced.ties.get(write.parameter, (write.parameter,))
    treatment, why = _treatment(write)
    return Writer(
        parameter=write.parameter,
        shape=tuple(traced.shapes[write.parameter]),
        axis=write.axis,
        layer=layer,
        role=_role(write, traced.shapes[write.parameter], layer),
        lookup=write.lookup,
        norms=write.through,
        scale=write.scale,
        treatment=treatment,
        why=why,
        site=write.site,
        late=write.late,
        apart=write.apart,
        copies=ties[1:],
    )


def _treatment(write: Write) -> tuple[Treatment, str]:
    if not write.through:
        return "edited", ""
    if len(write.through) == 1:
        return (
            "folded",
            "a norm rescales its output: the projection goes to 0, a scale per token remains",
        )
    return "not editable", "its output passes several norms on the way to the stream"


def _layer(parameter: str, blocks: str) -> int | None:
    numbered = re.match(rf"{re.escape(blocks)}\.(\d+)\.", parameter)
    return int(numbered.group(1)) if numbered else None


def _role(write: Write, shape: tuple[int, ...], layer: int | None) -> str:
    """What the parameter is, in words."""
    inside = (
        write.parameter.rpartition(".")[0]
        if layer is None
        else write.parameter.partition(f".{layer}.")[2]
    )
    is_bias = not write.lookup and (len(shape) == 1 or "bias" in write.parameter.rpartition(".")[2])
    if layer is None:
        position = re.search(r"wpe|position", inside)
        kind = "position embedding" if position else "token embedding"
        kind = kind if write.lookup else "embedding"
    else:
        experts = "expert " if "expert" in inside or len(shape) == 3 else ""
        kind = "attention output" if MIXERS.search(inside) else f"{experts}MLP output"
    return f"{kind} bias" if is_bias else kind


def _idle(traced: Trace) -> tuple[str, ...]:
    """Modules that take no part in a forward pass on text although they are wide enough to write."""
    written = {name_pattern(write.parameter) for write in traced.writes}
    names = (
        re.sub(r"\.\d+\..*", "", name.rpartition(".")[0])
        for name, shape in traced.shapes.items()
        if name not in traced.used
        and "_original_component" not in name  # a bridge keeps split copies of fused matrices
        and traced.d_model in shape
        and name_pattern(name) not in written
    )
    return tuple(sorted(set(names)))


def _output_embeddings(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _tied(model: nn.Module, traced: Trace) -> str:
    """Name of the unembedding matrix when it shares its values with a writer, or nothing."""
    written = {write.parameter for write in traced.writes}
    weight = getattr(_output_embeddings(model), "weight", None)
    for names in traced.ties.values():
        if written & set(names) and weight is not None:
            heads = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
            shared = [n for n in heads if n in names and n not in written]
            if shared:
                return shared[0]
    return ""
