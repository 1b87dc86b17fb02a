"""Read an autograd graph backwards: where a tensor's residual coordinates come from.

A forward pass with gradients switched on leaves a record of every operation. Followed back from the
residual stream, through sums, reshapes and scalings, it ends at the parameters whose products are added
to the stream. No module needs to be known by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException

SAME = frozenset(
    {"Clone", "ToCopy", "Alias", "Detach", "Contiguous", "Neg"}
    | {"NativeDropout", "MaskedFill", "LiftFresh"}
)
"""Operations that keep every axis where it is."""
PICK = frozenset(
    {"Slice", "Split", "SplitWithSizes", "Gather", "IndexSelect", "Repeat", "Flip", "Roll"}
)
"""Operations that pick along one axis and keep the number of axes."""
MERGE = frozenset(
    {"Add", "Sub", "Rsub", "Where", "IndexAdd", "IndexPut", "Cat", "Stack", "MaskedScatter"}
)
"""Operations that add or lay several tensors together."""


class NodeAxis(NamedTuple):
    """One axis of one output of an operation in the graph."""

    node: Any
    output: int
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of that output."""
        return shape_of(self.node, self.output)

    @property
    def size(self) -> int:
        """Length of that axis."""
        return self.shape[self.axis]


def operation(node: Any) -> str:
    """Name of an operation: ``AddmmBackward0`` and ``torch::autograd::CopySlices`` without trimmings."""
    return str(node.name()).split("::")[-1].rstrip("0123456789").removesuffix("Backward")


def is_leaf(node: Any) -> bool:
    """Whether this is where a parameter enters the graph."""
    return operation(node) == "AccumulateGrad"


def shape_of(node: Any, output: int) -> tuple[int, ...]:
    """Shape of one output of an operation."""
    if is_leaf(node):
        return tuple(node.variable.shape)
    return tuple(int(size) for size in node._input_metadata[output].shape)


def axis_of(tensor: Tensor, axis: int = -1) -> NodeAxis | None:
    """Where a tensor is made; None when it does not depend on parameters."""
    if tensor.grad_fn is None:
        return None
    return NodeAxis(tensor.grad_fn, tensor.output_nr, axis % tensor.ndim)


def inputs(node: Any) -> list[tuple[Any, int] | None]:
    """The operations that made the operands, None for an operand without gradient."""
    return [None if child is None else (child, number) for child, number in node.next_functions]


def viewed(place: NodeAxis) -> NodeAxis | None:
    """The place that `place` is a view, copy, pick or permutation of; None when it is none of these."""
    name, children = operation(place.node), inputs(place.node)
    if not children or children[0] is None:
        return None
    child, number = children[0]
    before = shape_of(child, number)
    axis = _axis_before(place, name, before)
    if axis is None or not 0 <= axis < len(before) or before[axis] != place.size:
        return None
    return NodeAxis(child, number, axis)


def _axis_before(place: NodeAxis, name: str, before: tuple[int, ...]) -> int | None:
    """Axis that the residual coordinates had in the operand of a view-like operation."""
    node, axis, after = place.node, place.axis, place.shape
    if name in SAME:
        return axis
    if name in PICK:
        return None if _dim(node, "dim", len(after)) == axis else axis
    if name == "T":
        return 1 - axis
    if name == "Transpose":
        swapped = _dim(node, "dim0", len(after)), _dim(node, "dim1", len(after))
        return swapped[1 - swapped.index(axis)] if axis in swapped else axis
    if name == "Permute":
        return int(node._saved_dims[axis]) % len(after)
    if name in ("Select", "Unbind"):
        dim = _dim(node, "dim", len(before))
        return axis + (axis >= dim)
    if name == "Unsqueeze":
        dim = _dim(node, "dim", len(after))
        return None if dim == axis else axis - (axis > dim)
    if name in ("Expand", "Index", "IndexCopy"):
        return axis - (len(after) - len(before))
    if name in ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "AsStrided", "Sum"):
        return _same_stride(after, axis, before)
    return None


def _dim(node: Any, name: str, ndim: int) -> int:
    """A saved dimension; autograd stores negative ones as unsigned integers."""
    saved = int(getattr(node, f"_saved_{name}", ndim))
    if saved >= 1 << 63:
        saved -= 1 << 64
    return saved % ndim if saved < ndim else -1


def _same_stride(after: Sequence[int], axis: int, before: Sequence[int]) -> int | None:
    """The axis of `before` with the size and the trailing product of ``after[axis]``."""
    trailing = math.prod(after[axis + 1 :])
    for candidate, size in enumerate(before):
        if size == after[axis] and math.prod(before[candidate + 1 :]) == trailing:
            return candidate
    return None


def parameter_behind(place: NodeAxis) -> NodeAxis | None:
    """The parameter that `place` is a view of, with the axis of the coordinates in it."""
    here: NodeAxis | None = place
    while here is not None and not is_leaf(here.node):
        here = viewed(here)
    return here


def laid_over(place: NodeAxis) -> Iterator[NodeAxis | None]:
    """Operands of a change in place: the tensor before, and what was added to or laid over a view of it."""
    for child in filter(None, inputs(place.node)):
        axis = _same_stride(place.shape, place.axis, shape_of(*child))
        yield None if axis is None else NodeAxis(*child, axis)


def operands(place: NodeAxis) -> Iterator[NodeAxis | None]:
    """Operands of an elementwise or merging operation, each with its own axis of the coordinates."""
    return (operand(place, child) for child in inputs(place.node) if child is not None)


def operand(place: NodeAxis, child: tuple[Any, int]) -> NodeAxis | None:
    """One of them; None for what is broadcast along the coordinates."""
    before = shape_of(*child)
    axis = place.axis - (len(place.shape) - len(before))
    if operation(place.node) == "Stack":
        axis = place.axis - (place.axis > _dim(place.node, "dim", len(place.shape)))
    fits = 0 <= axis < len(before) and before[axis] == place.size
    return NodeAxis(*child, axis) if fits else None


def leaves(place: NodeAxis) -> Iterator[Any]:
    """Where parameters enter, of everything that `place` was computed from."""
    seen, stack = set(), [place.node]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if is_leaf(node):
            yield node
        stack += [child[0] for child in inputs(node) if child is not None]


def depends_on(factor: tuple[Any, int], source: Any) -> bool:
    """Whether the operation `factor` was computed from what `source` made (not only from before it)."""
    since = source._sequence_nr()
    seen, stack = set(), [factor[0]]
    while stack:
        node = stack.pop()
        if node is source:
            return True
        if node in seen or is_leaf(node) or node._sequence_nr() < since:
            continue
        seen.add(node)
        stack += [child[0] for child in inputs(node) if child is not None]
    return False


def constant_factor(node: Any, operand: int) -> float | None:
    """The number that the product `node` multiplies its operand with; None unless it is one number."""
    other = getattr(node, "_saved_self" if operand else "_saved_other", None)
    if other is None or other.numel() != 1:
        return None
    try:
        value = float(other.item())
    except DataDependentOutputException:
        return None
    return 1 / value if operation(node) == "Div" else value
