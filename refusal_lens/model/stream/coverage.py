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

from ...errors import InputError
from ..hooks import Hookable, ModuleOutput
from ..sites import Site
from . import graph
from .mapping import classified
from .trace import followed, traced
from .tracer import Tracer, Write
from .writers import Writers

STREAM = ("resid_pre", "resid_post")
Key = tuple[Any, int]
"""An output of an operation in the graph."""


@dataclass(frozen=True)
class Coverage:
    """The sites for an edit of the stream, and what no site reaches.

    every: where a projection must act so that nothing of it is left for any reader. once: the sites that see
    each write exactly once, None when there are none such. missed: one line for each write that the sites
    leave out, or for why that cannot be told. outputs: what is behind the sites of kind "output", by module;
    makers: the modules that make what other sites show. writers: the map, where the stream could be followed.
    """

    every: tuple[Site, ...]
    once: tuple[Site, ...] | None
    missed: tuple[str, ...] = ()
    outputs: Mapping[str, ModuleOutput] = field(default_factory=dict)
    makers: Mapping[Site, str] = field(default_factory=dict)
    writers: Writers | None = None


def coverage(hf: nn.Module | None, points: Mapping[Site, Hookable], n_layers: int) -> Coverage:
    """Work out the sites of a model under a bridge from one pass on a few tokens.

    points: TransformerLens' hook points of the stream at every block, of the attention and MLP outputs and of
    the final stream. Where the pass cannot be followed, these are all that is known, and `missed` says so;
    for a HookedTransformer (hf None), whose own code puts a hook on every write, they are all there is.
    """
    entry = Site("resid_pre", 0)
    offered = tuple(points)
    usual = (entry, *(s for s in offered if s.kind in ("attn_out", "mlp_out")))
    complete = len(usual) == 2 * n_layers + 1
    if hf is None:
        return Coverage(offered, usual if complete else None)
    modules = {n: m for n, m in hf.named_modules() if n and type(m).__name__ != "HookPoint"}
    places: dict[str, Hookable] = {name: ModuleOutput(module) for name, module in modules.items()}
    places |= {site.hook_name: point for site, point in points.items()}
    try:
        with _undisturbed(points.values()):
            tracer = followed(hf, places)
    except InputError as error:
        return Coverage(offered, usual if complete else None, (str(error),))
    writers = classified(hf, traced(tracer, hf))
    if tracer.obstacles:
        unknown = dict.fromkeys(f"{_plainly(o.where)}: {o.what}" for o in tracer.obstacles)
        return Coverage(offered, usual if complete else None, tuple(unknown), writers=writers)
    reach = _Reach(tracer)
    # An output that a norm rescales before it is added is not yet what is written.
    kept = tuple(s for s in offered if s.kind in STREAM or not reach.is_elsewhere(s.hook_name))
    every, missed = reach.completed({s.hook_name for s in kept})
    names = tuple(s.hook_name for s in usual)
    once = names if complete and reach.sees_once(names) else reach.outputs_once()
    named = {site.hook_name: site for site in offered}

    def sites(names: Iterable[str]) -> tuple[Site, ...]:
        return tuple(named.get(n) or _output(n, writers.blocks) for n in names)

    extra = [n for n in (*every, *(once or ())) if n not in named]
    return Coverage(
        (*kept, *sites(every)),
        None if once is None else sites(once),
        tuple(f"{_plainly(parameter)}: no hook reaches what it writes" for parameter in missed),
        {name: ModuleOutput(modules[name]) for name in dict.fromkeys(extra)},
        {site: maker for site in offered if (maker := reach.maker(site.hook_name))},
        writers,
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


class _Reach:
    """A traced pass, asked who uses what."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer
        self.behind: dict[str, list[Key]] = defaultdict(list)
        for key, name in tracer.record.marks.items():
            self.behind[name].append(key)

    @cached_property
    def users(self) -> Mapping[Key, Sequence[Any]]:
        """The operations that use each output, of everything that the last block's output is made of."""
        users: dict[Key, list[Any]] = defaultdict(list)
        seen, stack = set(), [self.tracer.start.node]
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
        for key in self.tracer.unscaled:
            outputs[key[0]].append(key)
        return outputs

    def is_elsewhere(self, site: str) -> bool:
        """Whether a site holds something in any pass that is not a summand of the stream."""
        return any(key not in self.tracer.unscaled for key in self.behind[site])

    def maker(self, site: str) -> str:
        """The module whose output comes to a site, with nothing but a factor between; "" for none."""
        for key, marks in self.tracer.marks.items():
            if site in marks:
                norm = self.tracer.writes[key].through[:1]
                for name in (*marks[marks.index(site) + 1 :], *norm):
                    if name in self.tracer.modules and not self.is_elsewhere(name):
                        return name
        return ""

    def covered(self, start: Key, sites: Collection[str]) -> bool:
        """Whether all that is made of `start` passes one of the sites before anything reads it."""
        marks, seen, stack = self.tracer.record.marks, {start}, [start]
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
                stack += [output for output in summed if output not in seen]
                seen.update(summed)
        return True

    def is_behind_another(self, sites: Collection[str]) -> bool:
        """Whether what passed one of the sites passes one of them again, as part of the stream."""
        marks = self.tracer.record.marks
        stack = [key for name in sites for key in self.behind[name]]
        seen: set[Key] = set()
        while stack:
            for node in self.users.get(stack.pop(), ()):
                new = [output for output in self.of_the_stream.get(node, ()) if output not in seen]
                if any(marks.get(output) in sites for output in new):
                    return True
                stack += new
                seen.update(new)
        return False

    def starts(self, write: Write) -> list[Key]:
        """Where a write first is what is added: the outputs of its module, or of the norm behind it."""
        if write.apart:
            return [(leaf, 0) for leaf in graph.leaves(self.tracer.start) if self._is(leaf, write)]
        made = self.tracer.record.outputs.get(write.site, [])
        return [key for key in made if key is not None and key in self.tracer.unscaled]

    def _is(self, leaf: Any, write: Write) -> bool:
        return self.tracer.names.get(id(leaf.variable)) == write.parameter

    @cached_property
    def writes(self) -> Sequence[tuple[Write, list[Key]]]:
        """Every write and where it starts."""
        return [(write, self.starts(write)) for write in self.tracer.writes.values()]

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
        for name in self.tracer.marks[key]:
            if name not in self.tracer.modules or self.is_elsewhere(name):
                continue
            if first or not any(self._holds_the_stream(output) for output in self.behind[name]):
                yield name

    def _holds_the_stream(self, place: Key) -> bool:
        """Whether what entered some block is a summand of this."""
        return any(key in self.tracer.record.entered for key in self._summands([place]))

    @cached_property
    def before_the_blocks(self) -> set[Key]:
        """What entered the first block, and its summands."""
        entered = self.tracer.record.entered.items()
        return set(self._summands([key for key, layers in entered if 0 in layers]))

    def _summands(self, places: Iterable[Key]) -> Iterator[Key]:
        """These places of the stream, and what they are sums of."""
        stack = [place for place in places if place in self.tracer.unscaled]
        seen = set(stack)
        while stack:
            key = stack.pop()
            yield key
            for child in graph.inputs(key[0]):
                if child is not None and child in self.tracer.unscaled and child not in seen:
                    seen.add(child)
                    stack.append(child)
