"""Every parameter that writes to the residual stream, found by following the stream back.

One forward pass of a model without storage (fake tensors: a 70B model takes two seconds and no memory)
is recorded, and the output of the last block is followed back to the parameters it is a sum of. Nothing
is looked up by name, so a writer cannot be missed for having an unusual one; what is not understood comes
back as an obstacle, never silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ...errors import InputError
from ..hooks import Hookable
from . import graph
from .record import record_pass, text_config
from .tracer import Obstacle, Tracer, Write


@dataclass(frozen=True)
class Trace:
    """What writes to the residual stream of a model, and what could not be followed.

    used holds the parameters that took part in any way, and those of every module that ran; ties the
    names of a parameter that has several; beside the blocks that are also given an earlier state of the
    stream (the embedding, say), past the blocks between; calls, of the modules that run several times in a
    pass and write in some of these only, which ones.
    """

    writes: tuple[Write, ...]
    obstacles: tuple[Obstacle, ...]
    blocks: str
    n_layers: int
    d_model: int
    used: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    ties: Mapping[str, tuple[str, ...]]
    beside: tuple[int, ...] = ()
    calls: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def trace(model: nn.Module) -> Trace:
    """Run the model on a few tokens and follow its residual stream back to the parameters.

    The model may hold real, fake or no values; nothing in it is changed. Raises InputError when the stream
    cannot be followed through all blocks to the embedding.
    """
    return traced(followed(model), model)


def followed(model: nn.Module, places: Mapping[str, Hookable] | None = None) -> Tracer:
    """The way back through one recorded pass, with these places marked on it. Errors as for `trace`."""
    tracer = Tracer(record_pass(model, places), model)
    tracer.follow()
    _check_stream(model, tracer, {id(leaf.variable) for leaf in graph.leaves(tracer.start)})
    return tracer


def traced(tracer: Tracer, model: nn.Module) -> Trace:
    """What a tracer found."""
    record = tracer.record
    used = {id(leaf.variable) for leaf in graph.leaves(tracer.start)}
    named = dict(model.named_parameters(remove_duplicate=False))
    ran = {name for name in named if name.rpartition(".")[0] in record.executed}
    return Trace(
        writes=tuple(_with_lateness(tracer, f"{record.blocks}.")),
        obstacles=tuple(dict.fromkeys(tracer.obstacles)),
        blocks=record.blocks,
        n_layers=record.n_layers,
        d_model=int(text_config(model).hidden_size),
        used=frozenset(ran | {name for name, p in named.items() if id(p) in used}),
        shapes={name: tuple(p.shape) for name, p in named.items()},
        ties=_ties(model),
        beside=_beside(tracer),
        calls=_calls(tracer),
    )


def _calls(tracer: Tracer) -> dict[str, tuple[int, ...]]:
    """The calls of each module whose outputs are part of the stream, where that is some but not all."""
    calls = {}
    for name, outputs in tracer.record.outputs.items():
        on_stream = tuple(i for i, key in enumerate(outputs) if key in tracer.visited)
        if on_stream and len(on_stream) < len(outputs):
            calls[name] = on_stream
    return calls


def _beside(tracer: Tracer) -> tuple[int, ...]:
    """Blocks that get a state of the stream from before other blocks, next to the one at their entry."""
    record = tracer.record
    blocks = {
        layer
        for key, layer in record.beside
        if key in tracer.visited and layer not in record.entered.get(key, ())
    }
    return tuple(sorted(blocks))


def _with_lateness(tracer: Tracer, blocks: str) -> Iterator[Write]:
    """The writes, each marked by whether another one of its block depends on it."""
    of_block: dict[str, list[tuple[Write, Any]]] = {}
    for key, write in tracer.writes.items():
        inside = write.parameter.removeprefix(blocks).partition(".")[0]
        block = inside if write.parameter.startswith(blocks) else ""
        of_block.setdefault(block, []).append((write, tracer.made_by[key]))
    for members in of_block.values():
        for write, node in members:
            others = {other for _, other in members if other is not node}
            read = any(graph.depends_on((other, 0), node) for other in others)
            yield replace(write, late=not read)


def _check_stream(model: Any, tracer: Tracer, used: set[int]) -> None:
    """Raise InputError unless what was followed is the stream: through all blocks, to the embedding."""
    if tracer.obstacles:
        return
    skipped = sorted(set(range(tracer.record.n_layers)) - tracer.blocks_passed)
    if skipped or id(model.get_input_embeddings().weight) not in used:
        what = f"block {skipped[0]}" if skipped else "the token embedding"
        raise InputError(
            f"{type(model).__name__}: the residual stream could not be followed back to {what}; "
            "its blocks are not a plain stack, weight edits cannot be made for it"
        )


def _ties(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each shared parameter, and all its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {shared[0]: tuple(shared) for shared in names.values() if len(shared) > 1}
