"""Which tensors of a checkpoint hold a parameter: the names and layouts that transformers converts.

Since version 5, transformers loads many checkpoints under other names than they have, and joins, say,
the experts of a layer into one parameter. Its own tables say how; the axis of d_model in the file's layout
is found by sending small numbered tensors through the conversion.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from ..errors import InputError

PROBE_SIZES = (3, 5, 7, 11)


@dataclass(frozen=True)
class Source:
    """A tensor of the checkpoint that holds (a part of) a parameter; axis is its own axis of d_model."""

    name: str
    axis: int


@dataclass(frozen=True)
class FileNames:
    """A checkpoint's tensors by the parameter of a model that they become.

    shapes are the tensors' in the files; converters transformers' conversions of those that it changes, with
    the pattern of their names; unread the tensors that belong to no parameter.
    """

    model: Any
    shapes: Mapping[str, Sequence[int]]
    by_parameter: Mapping[str, tuple[str, ...]]
    converters: Mapping[str, Any]
    unread: tuple[str, ...]

    def sources(self, parameter: str, axis: int) -> tuple[Source, ...]:
        """The tensors that hold a parameter whose axis of d_model is `axis`, each with its own.

        Raises InputError when a tensor is missing, or laid out so that no one axis is d_model.
        """
        stored = self.by_parameter.get(parameter, ())
        if not stored:
            raise InputError(
                f"{parameter}: no tensor of the checkpoint becomes it; is a shard missing?"
            )
        wanted = tuple(self.model.get_parameter(parameter).shape)
        numbers = sum(torch.Size(self.shapes[name]).numel() for name in stored)
        if numbers != torch.Size(wanted).numel():
            raise InputError(
                f"{parameter}: {len(stored)} tensors of the checkpoint with {numbers} numbers become it, need "
                f"{torch.Size(wanted).numel()} as config.json describes; is a shard missing?"
            )
        if stored[0] not in self.converters:
            if tuple(self.shapes[stored[0]]) != wanted:
                raise InputError(
                    f"{stored[0]}: got shape {tuple(self.shapes[stored[0]])}, need {wanted} as config.json describes"
                )
            return tuple(Source(name, axis) for name in stored)
        return tuple(self._converted(parameter, axis))

    def _converted(self, parameter: str, axis: int) -> Iterator[Source]:
        """The sources of a parameter that transformers makes of them, by the pattern that their names follow."""
        size = self.model.get_parameter(parameter).shape[axis]
        by_pattern: dict[str, list[str]] = {}
        for name in self.by_parameter[parameter]:
            by_pattern.setdefault(self.converters[name][0], []).append(name)
        for pattern, members in by_pattern.items():
            for axis_in_file in range(len(self.shapes[members[0]])):
                if self.shapes[members[0]][axis_in_file] != size:
                    continue
                if self._lands_on(parameter, by_pattern, pattern, axis_in_file) == axis:
                    yield from (Source(name, axis_in_file) for name in members)
                    break
            else:
                raise InputError(
                    f"{members[0]}: laid out in the checkpoint so that no single axis is d_model; "
                    "load the model and use weights.apply, then save it"
                )

    def _lands_on(
        self, parameter: str, by_pattern: Mapping[str, list[str]], pattern: str, axis_in_file: int
    ) -> int | None:
        """The axis of the parameter along which it counts up when one axis of its sources does."""
        first = next(iter(by_pattern.values()))[0]
        converter = copy.deepcopy(self.converters[first][1])
        whole = tuple(self.model.get_parameter(parameter).shape)
        converter.operations = [
            op if not getattr(op, "check_dims", False) else Transpose(op.dim0, op.dim1)
            for op in converter.operations
            if not (getattr(op, "check_dims", False) and tuple(self.shapes[first]) == whole)
        ]
        for other_pattern, members in by_pattern.items():
            for name in members[:2]:
                shape = PROBE_SIZES[: len(self.shapes[name])]
                counted = torch.arange(shape[axis_in_file]).view(
                    [-1 if i == axis_in_file else 1 for i in range(len(shape))]
                )
                probe = (
                    counted.expand(shape)
                    if other_pattern == pattern
                    else torch.zeros(shape, dtype=torch.long)
                )
                converter.add_tensor(parameter, name, other_pattern, probe.contiguous())
        if not converter.operations:
            return axis_in_file
        try:
            made = converter.convert(parameter, model=self.model, config=self.model.config)  # type: ignore[arg-type]
        except (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError):
            return None
        result = made.get(parameter)
        result = result[0] if isinstance(result, list) else result
        if result is None:
            return None
        for axis, size in enumerate(result.shape):
            if size != PROBE_SIZES[axis_in_file]:
                continue
            line = torch.arange(size).view([-1 if i == axis else 1 for i in range(result.ndim)])
            if torch.equal(result, line.expand(result.shape)):
                return axis
        return None


def file_names(model: Any, shapes: Mapping[str, Sequence[int]]) -> FileNames:
    """Match the tensors of a checkpoint (name to shape) with the parameters of an empty model."""
    state = model.state_dict()
    prefix = getattr(model, "base_model_prefix", "")
    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    by_parameter: dict[str, list[str]] = {}
    used: dict[str, Any] = {}
    unread = []
    for name in sorted(shapes, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            unread.append(name)
            continue
        by_parameter.setdefault(target, []).append(name)
        if pattern is not None:
            used[name] = (pattern, by_pattern[pattern])
    return FileNames(
        model, shapes, {k: tuple(v) for k, v in by_parameter.items()}, used, tuple(unread)
    )
