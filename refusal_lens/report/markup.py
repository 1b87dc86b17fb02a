"""HTML written by hand: every text passes through `text`, which escapes it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

# Controls, surrogates and the characters that turn the direction of the text after them.
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MINUS = "\u2212"


@dataclass(frozen=True)
class Html:
    """A piece of a page whose texts are escaped already."""

    source: str


@dataclass(frozen=True)
class Plot:
    """A figure with its name (also its file's) and a caption, which is plain text."""

    name: str
    figure: go.Figure
    caption: str


@dataclass(frozen=True)
class Section:
    """A titled part of the report. `key` is its anchor."""

    key: str
    title: str
    parts: tuple[Html | Plot, ...]


@dataclass(frozen=True)
class Cell:
    """A table cell; `sort` orders it, `number` sets it right, and `html` is already escaped."""

    html: str
    sort: float | str = ""
    number: bool = False


def text(value: object) -> str:
    """The value as escaped HTML text; characters that hide or reorder text become visible codes."""
    plain = str(value).replace("\r\n", "\n")
    shown = _INVISIBLE.sub(lambda match: f"\\u{ord(match.group()):04x}", plain)
    return html.escape(shown, quote=True)


def paragraph(value: object, *, css: str = "") -> Html:
    """One paragraph of plain text."""
    return Html(f'<p class="{css}">{text(value)}</p>' if css else f"<p>{text(value)}</p>")


def number(value: float | None, digits: int = 3) -> str:
    """A number with a real minus sign; an en dash for none and NaN."""
    if value is None or value != value:
        return "\u2013"
    return f"{value:.{digits}f}".replace("-", MINUS)


def percent(rate: float) -> str:
    """A rate as a percentage, with a decimal only where it matters."""
    shown = f"{100 * rate:.1f}"
    return f"{shown.removesuffix('.0')}\u202f%"


def numeric(value: float | None, digits: int = 3) -> Cell:
    """A right-aligned cell that sorts as a number, NaN last."""
    missing = value is None or value != value
    return Cell(number(value, digits), float("inf") if missing else float(value or 0.0), True)


def plain(value: object) -> Cell:
    """A cell of text."""
    return Cell(text(value), str(value))


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    css: str = "",
    row_css: Sequence[str] = (),
) -> Html:
    """A table in a frame that scrolls; with the class `sortable` its heads are buttons."""
    sortable = "sortable" in css.split()
    body = []
    numbers = [False] * len(head)
    for index, row in enumerate(rows):
        numbers = [was or cell.number for was, cell in zip(numbers, row, strict=True)]
        cells = "".join(_cell(cell, sortable=sortable) for cell in row)
        style = f' class="{row_css[index]}"' if index < len(row_css) and row_css[index] else ""
        body.append(f"<tr{style}>{cells}</tr>")
    heads = "".join(
        _head(title, number=is_number, sortable=sortable)
        for title, is_number in zip(head, numbers, strict=True)
    )
    return Html(
        f'<div class="scroll" tabindex="0"><table class="{css}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _head(title: str, *, number: bool, sortable: bool) -> str:
    css = ' class="num"' if number else ""
    label = f'<button type="button">{text(title)}</button>' if sortable else text(title)
    return f'<th scope="col"{css}>{label}</th>'


def _cell(cell: Cell, *, sortable: bool) -> str:
    css = ' class="num"' if cell.number else ""
    key = f' data-sort="{text(cell.sort)}"' if sortable else ""
    return f"<td{css}{key}>{cell.html}</td>"
