"""Follow the residual stream back through a recorded pass, to the parameters that write to it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ...display import shown
from . import graph
from .graph import NodeAxis
from .record import IN_PLACE_SUMS, Record

NORMS = frozenset({"NativeLayerNorm", "FusedRmsNorm", "RmsNorm", "NativeGroupNorm"})


@dataclass(frozen=True)
class Write:
    """One way in which a parameter reaches the residual stream.

    axis is the parameter's axis of d_model; through names the norm modules that its product passes before
    it is added, the last one first; scale is what the product is multiplied with on the way (None when
    that differs from token to token, as an expert's routing weight does); site the module whose output is
    what is added; late says that nothing in its block reads the stream after it; apart that it is not in the
    output of its own module.
    """

    parameter: str
    axis: int
    lookup: bool
    through: tuple[str, ...]
    scale: float | None
    site: str
    late: bool = True
    apart: bool = False


@dataclass(frozen=True)
class Obstacle:
    """Something that reaches the residual stream and is not a parameter's linear product."""

    where: str
    what: str


@dataclass(frozen=True)
class _Path:
    """How a place is connected to the stream: the norms on the way, the factor, whose outputs they are.

    marks are the marked places on the way, nearest to the stream first.
    """

    through: tuple[str, ...] = ()
    scale: float | None = 1.0
    near: str = ""
    into: Any = None
    passed: frozenset[str] = frozenset()
    marks: tuple[str, ...] = ()


@shown()
class Tracer:
    """Follows the stream back; every place is visited once for each set of norms on the way."""

    def __init__(self, record: Record, model: nn.Module) -> None:
        assert record.last is not None
        start = graph.axis_of(record.last)
        assert start is not None
        self.record, self.start = record, start
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.modules = dict(model.named_modules())
        self.writes: dict[tuple[str, int, tuple[str, ...]], Write] = {}
        self.made_by: dict[tuple[str, int, tuple[str, ...]], Any] = {}
        self.obstacles: list[Obstacle] = []
        self.blocks_passed: set[int] = set()
        self.visited: set[tuple[Any, int]] = set()
        self.unscaled: set[tuple[Any, int]] = set()
        """What of that is reached without passing a norm."""
        self.marks: dict[tuple[str, int, tuple[str, ...]], tuple[str, ...]] = {}

    def follow(self) -> None:
        """Visit everything that the stream behind the last block is a sum of."""
        queue: deque[tuple[NodeAxis, _Path]] = deque([(self.start, _Path())])
        seen: set[tuple[NodeAxis, tuple[str, ...]]] = set()
        while queue:
            place, path = queue.popleft()
            if (place, path.through) in seen:
                continue
            seen.add((place, path.through))
            queue.extend(self._before(place, path))

    def _before(self, place: NodeAxis, path: _Path) -> list[tuple[NodeAxis, _Path]]:
        """What `place` is made of, one step back; writers and obstacles are noted on the way."""
        key = (place.node, place.output)
        self.visited.add(key)
        if not path.through:
            self.unscaled.add(key)
        if key in self.record.marks:
            path = replace(path, marks=(*path.marks, self.record.marks[key]))
        self.blocks_passed |= self.record.entered.get(key, set())
        if path.through and key in self.record.entered:
            self._obstacle(path, "a norm rescales the stream itself, not only what is added to it")
            return []
        for name, source in self.record.made.get(key, []):
            path = replace(path, near=name, passed=path.passed | {name})
            if is_norm(self.modules[name]) and name not in path.through:
                return self._through_norm(name, source, path)
        return self._step(place, path)

    def _through_norm(
        self, name: str, source: NodeAxis | None, path: _Path
    ) -> list[tuple[NodeAxis, _Path]]:
        for leaf, bias in self.modules[name].named_parameters():
            if leaf.rpartition(".")[2] != "bias":
                continue
            by = source.node if source is not None else None
            place = NodeAxis(_Leaf(bias), 0, bias.ndim - 1)
            self._note(place, path, lookup=False, by=by, norm=name)
        if source is None:
            self._obstacle(path, "a norm whose input is not known")
            return []
        through = (*path.through, name)
        return [(source, replace(path, through=through, near=name, into=None))]

    def _step(self, place: NodeAxis, path: _Path) -> list[tuple[NodeAxis, _Path]]:
        name = graph.operation(place.node)
        if graph.is_leaf(place.node):
            return self._note(place, path, lookup=False, by=path.into)
        if name == "Embedding":
            return self._looked_up(place, path)
        if name in ("Mm", "Addmm", "Bmm", "Baddbmm", "Linear"):
            return self._product(place, path, name)
        if name in ("Mul", "Div"):
            return self._scaled(place, path)
        if place.node in self.record.fixed:
            self._obstacle(
                path, "something that is no parameter is added (fixed positions, perhaps)"
            )
        if name in graph.MERGE:
            return self._merged(place, path, graph.operands(place))
        if name == "CopySlices" and self.record.in_place.get(place.node) in IN_PLACE_SUMS:
            return self._merged(place, path, graph.laid_over(place))
        before = graph.viewed(place)
        if before is not None:
            return [(before, path)]
        what = "a norm outside a norm module" if name in NORMS else f"operation {name}"
        self._obstacle(path, f"{what}, which is not a sum, a scaling or a product with one matrix")
        return []

    def _looked_up(self, place: NodeAxis, path: _Path) -> list[tuple[NodeAxis, _Path]]:
        child = graph.inputs(place.node)[0]
        table = None if child is None else NodeAxis(*child, len(graph.shape_of(*child)) - 1)
        behind = None if table is None else graph.parameter_behind(table)
        if behind is None or place.axis != len(place.shape) - 1:
            self._obstacle(path, "a lookup in something that is not a parameter")
            return []
        return self._note(behind, path, lookup=True, by=place.node)

    def _product(self, place: NodeAxis, path: _Path, name: str) -> list[tuple[NodeAxis, _Path]]:
        """A product with a matrix: the matrix writes, its input is not part of the stream."""
        children = graph.inputs(place.node)
        added, left, right = children if len(children) == 3 else [None, *children]
        if name == "Linear":
            self._obstacle(path, "an opaque linear operation")
            return []
        columns = place.axis == len(place.shape) - 1
        factor = right if columns else left
        behind = None
        if factor is not None and place.axis >= len(place.shape) - 2:
            behind = graph.parameter_behind(NodeAxis(*factor, place.axis))
        if behind is None:
            self._obstacle(path, "a product of two activations")
            return []
        self._note(behind, path, lookup=False, by=place.node)
        if added is None:
            return []
        bias = [operand for operand in graph.operands(place) if operand is None or operand[:2] == added]
        return self._merged(place, path, bias[:1])

    def _merged(
        self, place: NodeAxis, path: _Path, operands: Iterable[NodeAxis | None]
    ) -> list[tuple[NodeAxis, _Path]]:
        before = []
        scale = None if graph.operation(place.node) == "Where" else path.scale
        for operand in operands:
            if operand is None:
                self._obstacle(path, "one number is added to all coordinates")
            else:
                before.append((operand, replace(path, scale=scale, into=place.node)))
        return before

    def _scaled(self, place: NodeAxis, path: _Path) -> list[tuple[NodeAxis, _Path]]:
        """A product of a vector per token with one number, or with one number per token."""
        children = graph.inputs(place.node)
        places = [None if c is None else graph.operand(place, c) for c in children]
        vectors = [i for i, operand in enumerate(places) if operand is not None]
        if len(vectors) != 1:
            self._obstacle(path, "two vectors are multiplied element by element")
            return []
        index = vectors[0]
        vector, factor = places[index], children[1 - index]
        assert vector is not None
        if factor is None:
            constant = graph.constant_factor(place.node, index)
            other = getattr(place.node, "_saved_self" if index else "_saved_other", None)
            if constant is None and other is not None and other.ndim and other.shape[-1] != 1:
                self._obstacle(path, "a fixed vector scales the coordinates one by one")
                return []
            known = constant is not None and path.scale is not None
            scale = constant * path.scale if known else None  # type: ignore[operator]
            return [(vector, replace(path, scale=scale, into=None))]
        if graph.depends_on(factor, vector.node):
            self._obstacle(path, "a rescaling by its own size outside a norm module")
            return []
        return [(vector, replace(path, scale=None, into=None))]

    def _note(
        self, place: NodeAxis, path: _Path, *, lookup: bool, by: Any, norm: str = ""
    ) -> list[tuple[NodeAxis, _Path]]:
        name = self.names.get(id(place.node.variable))
        if name is None:
            self._obstacle(path, "a tensor that is no parameter of the model")
            return []
        key = (name, place.axis, path.through)
        known = self.writes.get(key)
        scale = path.scale if known is None or known.scale == path.scale else None
        self.made_by.setdefault(key, by)
        self.marks.setdefault(key, path.marks)
        owner = norm or name.rpartition(".")[0]
        site = path.through[0] if path.through else owner
        apart = not path.through and owner not in path.passed
        self.writes[key] = Write(name, place.axis, lookup, path.through, scale, site, apart=apart)
        return []

    def _obstacle(self, path: _Path, what: str) -> None:
        self.obstacles.append(Obstacle(path.near, what))


class _Leaf:
    """A parameter where the graph would have its accumulator."""

    def __init__(self, variable: Tensor) -> None:
        self.variable = variable

    def name(self) -> str:
        """As autograd names it."""
        return "AccumulateGrad"


def is_norm(module: nn.Module) -> bool:
    """Whether a module rescales its input by the input's own size: by the name of its class.

    A bridge's module that stands for a norm counts too.
    """
    names = [c.__name__.lower() for c in type(module).__mro__]
    inside = [c for c in module.children() if type(c).__name__ != "HookPoint" and not is_norm(c)]
    return any("norm" in name for name in names) and not inside
