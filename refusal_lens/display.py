"""What a value looks like where people read it: one short line, and a small table in a notebook."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from operator import attrgetter
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

LONGEST = 240
"""Characters of a whole line."""
OF_A_VALUE = 56
"""Characters of one value on a line."""
OF_A_CELL = 200
"""Characters of one value in a table."""


def shown(*names: str) -> Callable[[Class], Class]:
    """Give a class a short `repr` and a table for notebooks, both of these attributes.

    Tensors and tables are shown by shape, long texts and sequences by their beginning and length. A
    name may have dots ("choice.layer"). Without names they are a dataclass' fields but for those that
    hold their default, and those that say repr=False.

    >>> @shown("layer", "texts")
    ... class Example:
    ...     layer, texts = 3, ("a", "b", "c", "d", "e")
    >>> Example()
    Example(layer=3, texts=('a', 'b', 'c', ... 5 in all))
    """

    def decorate(cls: Class) -> Class:
        def rows(value: Any) -> list[tuple[str, Any]]:
            if names:
                return [(name.rpartition(".")[2], attrgetter(name)(value)) for name in names]
            return _changed(value)

        def line(self: Any) -> str:
            parts = [f"{name}={brief(value)}" for name, value in rows(self)]
            return _cut(f"{type(self).__name__}({', '.join(parts)}", LONGEST) + ")"

        def table(self: Any) -> str:
            return table_of(type(self).__name__, rows(self))

        for name, method in (("__repr__", line), ("_repr_html_", table)):
            setattr(cls, name, method)
        return cls

    return decorate


def _changed(value: Any) -> list[tuple[str, Any]]:
    """The fields of a dataclass that do not hold their default."""
    assert is_dataclass(value)
    held = [(field, getattr(value, field.name)) for field in fields(value) if field.repr]
    return [(field.name, each) for field, each in held if not _is_default(field, each)]


def _is_default(field: Field[Any], value: Any) -> bool:
    """Whether a field holds its default; a tensor never does, and comparing one gives a tensor."""
    if field.default is MISSING:
        return False
    return value is field.default or (not hasattr(value, "shape") and value == field.default)


def brief(value: Any, longest: int = OF_A_VALUE) -> str:
    """A value in a few words.

    >>> brief("x" * 100, 12), brief({"kl": 0.01234567}), brief(range(100))
    ("'xxxxxxxx...", "{'kl': 0.01235}", '(0, 1, 2, ... 100 in all)')
    """
    if isinstance(value, bool | int) or value is None:
        return _cut(repr(value), longest)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str | bytes):
        # No more of it is looked at than can be shown.
        return _cut(repr(value[:longest]) if len(value) > longest else repr(value), longest)
    if isinstance(value, os.PathLike):
        return _cut(repr(os.fspath(value)), longest)
    if hasattr(value, "columns") and hasattr(value, "index"):
        return f"table of {len(value)} rows"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, Mapping):
        pairs = [f"{brief(k, 20)}: {brief(v, 20)}" for k, v in list(value.items())[:4]]
        return _cut("{" + _listed(pairs, len(value)) + "}", longest)
    if isinstance(value, Sequence | Set) and not hasattr(value, "_fields"):
        items = [brief(item, 20) for item, _ in zip(value, range(3), strict=False)]
        return _cut(f"({_listed(items, len(value))})", longest)
    return _cut(repr(value), longest)


def _listed(items: Sequence[str], total: int) -> str:
    more = f", ... {total} in all" if total > len(items) else ""
    return ", ".join(items) + more


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."


def table_of(title: str, rows: Sequence[tuple[str, Any]]) -> str:
    """A small HTML table; every text in it is escaped.

    >>> table_of("A", [("text", "<b>")])
    '<table><caption>A</caption><tr><th>text</th><td>&#x27;&lt;b&gt;&#x27;</td></tr></table>'
    """
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(brief(value, OF_A_CELL))}</td></tr>"
        for name, value in rows
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
