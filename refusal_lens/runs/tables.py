"""What a table of a run must hold: which columns are words, whole numbers and other numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_lens.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

MOST_LAYERS = 10_000
"""No model has so many layers, nor a template so many tokens."""
MOST = 10**12

LAYER = (0, MOST_LAYERS - 1)
POSITION = (-MOST_LAYERS, -1)
COUNT = (0, MOST)
"""Bounds of whole numbers: layers, post-instruction positions, and counts or ids."""


@dataclass(frozen=True)
class Table:
    """Columns by what they hold.

    whole: whole numbers with their bounds; partly: likewise, or empty cells beside a place. numbers: NaN is allowed.
    words: text. Each must be there; those in `more` are checked where they are. flags: true or false, may be absent.
    filled: there is no such table without rows.
    """

    whole: Mapping[str, tuple[int, int]]
    numbers: tuple[str, ...]
    words: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    more_words: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    filled: bool = False
    partly: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """The columns that hold text, whatever is in them."""
        return (*self.words, *self.more_words)


def checked_table(frame: pd.DataFrame, table: Table, path: Path) -> pd.DataFrame:
    """The frame when it has the columns of `table`, with its whole numbers as such.

    Raises:
        InputError: a column is missing, or holds something else.

    """
    needed = (*table.whole, *table.partly, *table.numbers, *table.words)
    if missing := [name for name in needed if name not in frame]:
        raise InputError(f"{path}: got no column {', '.join(missing)}; make it again")
    if table.filled and frame.empty:
        raise InputError(f"{path}: got no rows, need some; make it again")
    if frame.columns.duplicated().any():
        raise InputError(f"{path}: got a column twice; make it again")
    for name in (*table.whole, *table.partly, *table.numbers, *table.more):
        if name in frame and len(frame):
            _require_numbers(frame[name], path)
    for name, (least, most) in table.whole.items():
        frame[name] = _whole(frame[name], path, least, most)
    for name, (least, most) in table.partly.items():
        known = frame[name].dropna() if "place" in frame else frame[name]
        whole = _whole(known, path, least, most)
        frame[name] = whole if len(known) == len(frame) else whole.astype("Int64").reindex(frame.index)
    for name in table.flags:
        if name in frame:
            _require_flags(frame[name], path)
    return frame


def _require_numbers(column: Any, path: Path) -> None:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        raise InputError(f"{path}: got words in column {column.name}, need numbers; make it again")


def _whole(column: Any, path: Path, least: int, most: int) -> Any:
    if not ((column >= least) & (column <= most) & (column % 1 == 0)).all():
        raise InputError(
            f"{path}: got others in column {column.name}, need whole numbers from {least} to "
            f"{most}; make it again"
        )
    return column.astype("int64")


def _require_flags(column: Any, path: Path) -> None:
    if not set(column.astype(str).str.lower()) <= {"true", "false", "1", "0", ""}:
        raise InputError(f"{path}: got words in column {column.name}, need True or False")
