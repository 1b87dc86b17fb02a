"""Which sites an edit needs so that hooks do what edited weights do, on every write to the stream.

TransformerLens' own sites are taken wherever they suffice. What they miss (a mixer beside the attention, an
embedding that is read a second time) gets a site at a module's output. Whether a site suffices is read from a
recorded pass in which every site hands on something of its own: whoever uses that is behind the site.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...errors import InputError
from ..sites import Site
from . import graph
from .record import HookPlace, with_first
from .trace import followed
from .walk import Walk, Write

STREAM = ("resid_pre", "resid_post")
Key = tuple[Any, int]
"""An output of an operation in the graph."""


@dataclass(frozen=True)
class Coverage:
    """The sites for an edit of the stream, and what no site reaches.

    every: where a projection must act so that nothing of it is left for any reader. once: the sites that see
    each write exactly once, None when there are none such. missed: one line for each write that the sites
    leave out, or for why that cannot be told. outputs: what is behind the sites of kind "output", by module.
    """

    every: tuple[Site, ...]
    once: tuple[Site, ...] | None
    missed: tuple[str, ...] = ()
    outputs: Mapping[str, ModuleOutput] = field(default_factory=dict)


def coverage(hf: nn.Module | None, points: Mapping[Site, HookPlace], n_layers: int) -> Coverage:
    """Work out the sites of a model under a bridge from one pass on a few tokens.

    points: TransformerLens' hook points of the stream at every block, of the attention and MLP outputs and of
    the final stream. Where the pass cannot be followed, these are all that is known, and `missed` says so;
    for a HookedTransformer (hf None), whose own code puts a hook on every write, they are all there is.
    """
    entry = Site("resid_pre", 0)
    own = tuple(points)
    usual = (entry, *(s for s in own if s.kind in ("attn_out", "mlp_out")))
    complete = len(usual) == 2 * n_layers + 1
    if hf is None:
        return Coverage(own, usual if complete else None)
    modules = {n: m for n, m in hf.named_modules() if n and type(m).__name__ != "HookPoint"}
    places: dict[str, HookPlace] = {name: ModuleOutput(module) for name, module in modules.items()}
    places |= {site.hook_name: point for site, point in points.items()}
    try:
        with _undisturbed(points.values()):
            walk = followed(hf, places)
    except InputError as error:
        return Coverage(own, usual if complete else None, (str(error),))
    if walk.obstacles:
        unknown = tuple(dict.fromkeys(f"{_plainly(o.where)}: {o.what}" for o in walk.obstacles))
        return Coverage(own, usual if complete else None, unknown)
    found = _Found(walk)
    # An output that a norm rescales before it is added is not yet what is written.
    kept = tuple(s for s in own if s.kind in STREAM or not found.is_elsewhere(s.hook_name))
    every, missed = found.completed({s.hook_name for s in kept})
    names = tuple(s.hook_name for s in usual)
    once = names if complete and found.sees_once(names) else found.outputs_once()
    named = {site.hook_name: site for site in own}

    def sites(names: Iterable[str]) -> tuple[Site, ...]:
        return tuple(named.get(n) or _output(n, walk.record.blocks) for n in names)

    extra = [n for n in (*every, *(once or ())) if n not in named]
    return Coverage(
        (*kept, *sites(every)),
        None if once is None else sites(once),
        tuple(f"{_plainly(parameter)}: no hook reaches what it writes" for parameter in missed),
        {name: ModuleOutput(modules[name]) for name in dict.fromkeys(extra)},
    )


@contextmanager
def _undisturbed(points: Iterable[Any]) -> Iterator[None]:
    """Take what is installed at hook points away for the length of the context."""
    before = [(point, point._forward_hooks, point.fwd_hooks) for point in points]
    try:
        for point, *_ in before:
            point._forward_hooks, point.fwd_hooks = OrderedDict(), []
        yield
    finally:
        for point, hooks, handles in before:
            point._forward_hooks, point.fwd_hooks = hooks, handles


def _plainly(name: str) -> str:
    """A module's or parameter's name as it is without the bridge around it."""
    inside = [part for part in name.split(".") if part != "_original_component"]
    return ".".join(part for part in inside if not part.startswith("hook_")) or "the stream"


def _output(module: str, blocks: str) -> Site:
    number = module.removeprefix(f"{blocks}.").partition(".")[0]
    inside = module.startswith(f"{blocks}.") and number.isdigit()
    return Site("output", int(number) if inside else 0, module)


class _Found:
    """A walk, asked who uses what."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.behind: dict[str, list[Key]] = defaultdict(list)
        for key, name in walk.record.marks.items():
            self.behind[name].append(key)

    @cached_property
    def users(self) -> Mapping[Key, Sequence[Any]]:
        """The operations that use each output, of everything that the last block's output is made of."""
        users: dict[Key, list[Any]] = defaultdict(list)
        seen, stack = set(), [self.walk.start.node]
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            for child in graph.inputs(node):
                if child is not None:
                    users[child].append(node)
                    stack.append(child[0])
        return users

    @cached_property
    def of_the_stream(self) -> Mapping[Any, Sequence[Key]]:
        """The outputs of each operation that are summands of the stream, unscaled by any norm."""
        outputs: dict[Any, list[Key]] = defaultdict(list)
        for key in self.walk.unscaled:
            outputs[key[0]].append(key)
        return outputs

    def is_elsewhere(self, site: str) -> bool:
        """Whether a site holds something in any pass that is not a summand of the stream."""
        return any(key not in self.walk.unscaled for key in self.behind[site])

    def covered(self, start: Key, sites: Collection[str]) -> bool:
        """Whether all that is made of `start` passes one of the sites before anything reads it."""
        marks, seen, stack = self.walk.record.marks, {start}, [start]
        while stack:
            key = stack.pop()
            if marks.get(key) in sites:
                continue
            users = self.users.get(key, ())
            if not users:
                return False
            for node in users:
                summed = self.of_the_stream.get(node)
                if summed is None:
                    return False
                stack += [each for each in summed if each not in seen]
                seen.update(summed)
        return True

    def is_behind_another(self, sites: Collection[str]) -> bool:
        """Whether what passed one of the sites passes one of them again, as part of the stream."""
        marks = self.walk.record.marks
        stack = [key for name in sites for key in self.behind[name]]
        seen: set[Key] = set()
        while stack:
            for node in self.users.get(stack.pop(), ()):
                new = [each for each in self.of_the_stream.get(node, ()) if each not in seen]
                if any(marks.get(each) in sites for each in new):
                    return True
                stack += new
                seen.update(new)
        return False

    def starts(self, write: Write) -> list[Key]:
        """Where a write first is what is added: the outputs of its module, or of the norm behind it."""
        if write.apart:
            return [(leaf, 0) for leaf in graph.leaves(self.walk.start) if self._is(leaf, write)]
        made = self.walk.record.outputs.get(write.site, [])
        return [key for key in made if key is not None and key in self.walk.unscaled]

    def _is(self, leaf: Any, write: Write) -> bool:
        return self.walk.names.get(id(leaf.variable)) == write.parameter

    @cached_property
    def writes(self) -> Sequence[tuple[Write, list[Key]]]:
        """Every write and where it starts."""
        return [(write, self.starts(write)) for write in self.walk.writes.values()]

    def reached(self, starts: Sequence[Key], sites: Collection[str]) -> bool:
        """Whether sites cover a write in every place where it starts."""
        return bool(starts) and all(self.covered(start, sites) for start in starts)

    def completed(self, sites: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The module outputs that are needed beside these sites, and the parameters that none reaches."""
        more: dict[str, None] = {}
        missed: dict[str, None] = {}
        for write, starts in self.writes:
            if self.reached(starts, {*sites, *more}):
                continue
            chosen = next((n for n in self.places(write) if self.reached(starts, {n})), None)
            if chosen is None:
                missed[write.parameter] = None
            else:
                more[chosen] = None
        return tuple(more), tuple(missed)

    def sees_once(self, sites: Collection[str]) -> bool:
        """Whether the sites see every write, and none twice, and nothing else."""
        return (
            not any(self.is_elsewhere(name) for name in sites)
            and all(self.reached(starts, sites) for _, starts in self.writes)
            and not self.is_behind_another(sites)
        )

    def outputs_once(self) -> tuple[str, ...] | None:
        """Outputs of modules that see every write once: whole mixers and MLPs, or the writers alone."""
        for nearest in (0, -1):
            chosen: dict[str, None] = {}
            for write, starts in self.writes:
                fit = [n for n in self.places(write) if self.reached(starts, {n})]
                if not fit:
                    return None
                if not any(self.reached(starts, {n}) for n in chosen):
                    chosen[fit[nearest]] = None
            if self.sees_once(chosen):
                return tuple(chosen)
        return None

    def places(self, write: Write) -> Iterator[str]:
        """Modules whose output holds a write but not the stream before it, the largest first."""
        key = (write.parameter, write.axis, write.through)
        first = any(start in self.before_the_blocks for start in self.starts(write))
        for name in self.walk.marks[key]:
            if name not in self.walk.modules or self.is_elsewhere(name):
                continue
            if first or not any(self._holds_the_stream(each) for each in self.behind[name]):
                yield name

    def _holds_the_stream(self, place: Key) -> bool:
        """Whether what entered some block is a summand of this."""
        return any(key in self.walk.record.entered for key in self._summands([place]))

    @cached_property
    def before_the_blocks(self) -> set[Key]:
        """What entered the first block, and its summands."""
        entered = self.walk.record.entered.items()
        return set(self._summands([key for key, layers in entered if 0 in layers]))

    def _summands(self, places: Iterable[Key]) -> Iterator[Key]:
        """These places of the stream, and what they are sums of."""
        stack = [place for place in places if place in self.walk.unscaled]
        seen = set(stack)
        while stack:
            key = stack.pop()
            yield key
            for child in graph.inputs(key[0]):
                if child is not None and child in self.walk.unscaled and child not in seen:
                    seen.add(child)
                    stack.append(child)


class ModuleOutput:
    """A module's output as a hook point: what `ChatModel.hooked` asks of one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._handles: dict[int, list[RemovableHandle]] = defaultdict(list)

    def add_hook(self, hook: Any, *, level: int) -> None:
        """Let a hook of TransformerLens' kind see the output, or the first of several, and replace it."""

        def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            held = output[0] if isinstance(output, tuple) and output else output
            new = hook(held, hook=self)
            return None if new is None else with_first(output, new)

        self._handles[level].append(self.module.register_forward_hook(on_output))

    def remove_hooks(self, *, dir: str, level: int) -> None:
        """Take the hooks of one level away."""
        for handle in self._handles.pop(level, []):
            handle.remove()
