"""One row of a data set to its instruction, where the row holds one that stands alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import InputError

COLUMNS = ("instruction", "prompt", "text", "goal", "behavior", "question")
"""Names under which data sets keep their instructions, in the order they are tried."""

SECOND_TEXTS = (
    *("input", "inputs", "context", "contexts", "contextstring", "passage", "document", "article"),
    *(
        "paragraph",
        "history",
        "choices",
        "options",
        "image",
        "images",
        "imagefilename",
        "imagepath",
    ),
)
"""Columns of what an instruction is about, in Alpaca, Dolly, HarmBench, SQuAD, MMLU and others."""

_CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "dialogue")
# How data sets write "there is no second text".
_NOTHING = frozenset(("", "<noinput>", "noinput", "none", "nan", "null", "[]"))


def plain_name(name: object) -> str:
    """A column's name as it is compared: case, spaces, "_" and "-" do not matter.

    >>> plain_name("Context_String")
    'contextstring'
    """
    return re.sub(r"[\s_-]+", "", str(name)).lower()


def needs_more(row: Mapping[Any, Any], key: str) -> bool:
    """Whether a row's text asks about something in another column, and makes no sense without it."""
    return any(
        plain_name(name) in SECOND_TEXTS and str(name) != key and not _is_nothing(value)
        for name, value in row.items()
    )


def instruction_column(row: Mapping[Any, Any], column: str | None, where: str) -> str:
    """The name of the column with the instruction: `column`, else the first of `COLUMNS` there.

    Raises InputError where there is none, or two that differ in spelling only.
    """
    if column is not None and column in row:
        return column
    names: dict[str, list[str]] = {}
    for key in row:
        names.setdefault(plain_name(key), []).append(str(key))
    for wanted in COLUMNS if column is None else (column,):
        found = names.get(plain_name(wanted), [])
        if len(found) > 1:
            raise InputError(f"prompts at {where}: got columns {_listed(found)}, need one of them")
        if found:
            return found[0]
    spoken = next((names[name][0] for name in _CONVERSATIONS if name in names), None)
    if spoken is not None and column is None:
        raise InputError(
            f"prompts at {where}: got conversations in {spoken!r}, need one text a row; try a column "
            f"{COLUMNS[0]} with the user's text"
        )
    raise InputError(
        f"prompts at {where}: got columns {_listed(map(str, row))}, need "
        f"{column or _listed(COLUMNS)}; try column="
    )


def _is_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    # A missing number is NaN in a table, which equals nothing, itself included.
    return value is None or value != value or value in ([], {}, ())


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
