"""One file to its rows: texts stay the texts that the file holds, whatever they look like."""

from __future__ import annotations

import csv
import io
import json
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from .rows import COLUMNS, plain_name

TABLES = (".parquet", ".arrow")
FORMATS = (".txt", ".json", ".jsonl", ".csv", ".tsv", *TABLES)
LARGEST = 2**30
"""Bytes of a prompt file that are read; more is taken for a mistake."""

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_DELIMITERS = (",", ";", "\t", "|")
# Where JSON files keep their rows when these are not the whole of it, the likeliest first.
_LISTS = ("data", "rows", "instructions", "prompts", "examples", "questions", "behaviors", "train")


def rows_of(path: Path, *, column: str | None = None) -> Iterable[Any]:
    """The rows of a file in one of `FORMATS`: texts, or mappings of columns to values.

    Raises InputError for a file that cannot be read as what its suffix says.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"prompts at {path}: got {suffix or 'no suffix'}, need {', '.join(FORMATS)}"
        )
    regular_file(path, "prompts at")
    if suffix in TABLES:
        return _table(path, suffix)
    text = read_text(path, "prompts at")
    if suffix == ".txt":
        return re.split(r"\r\n|\r|\n", text)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, text, column, ("\t",) if suffix == ".tsv" else _DELIMITERS)
    return _json_rows(path, text, column, by_line=suffix == ".jsonl")


def regular_file(path: Path, what: str, *, most: int = LARGEST) -> None:
    """InputError unless the path is an ordinary file of `most` bytes; `what` begins the message."""
    try:
        status = path.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "no such file" if missing else str(error.strerror)
        raise InputError(f"{what} {path}: got {reason}, need a file that can be read") from error
    except ValueError as error:
        raise InputError(f"{what} {str(path)!r:.80}: got no path ({error}), need a file") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or device"
        raise InputError(f"{what} {path}: got {kind}, need an ordinary file; try to save it as one")
    if status.st_size > most:
        raise InputError(
            f"{what} {path}: got {status.st_size / 2**20:.0f} MiB, need at most {most // 2**20}; try "
            "the part that is needed alone"
        )


def read_text(path: Path, what: str) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 behind their byte order mark.

    Raises InputError for other bytes; `what` begins the message.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror})") from error
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "utf-8")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
        raise InputError(
            f"{what} {path}: got byte {error.start} that is not {name}, need {name} text; try "
            "saving it again as UTF-8"
        ) from error
    if "\0" in text:
        raise InputError(
            f"{what} {path}: got a NUL character, need text; try saving it again as UTF-8"
        )
    return text


def _csv_rows(
    path: Path, text: str, column: str | None, delimiters: Sequence[str]
) -> Iterator[dict[str, str]]:
    told = re.match(r'"?sep=(.)"?\r?\n', text)
    if told:
        text, delimiters = text[told.end() :], (told[1],)
    delimiter = _delimiter(text, column, delimiters)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    header: list[str] | None = None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = _header(path, row, column)
            elif any(row[len(header) :]):
                raise InputError(
                    f"prompts at {path}, line {reader.line_num}: got {len(row)} cells, need "
                    f"{len(header)} as in the header; try quotes round texts with {delimiter!r}, "
                    "or a .txt file"
                )
            else:
                cells = [*row, *[""] * (len(header) - len(row))]
                yield dict(zip(header, cells[: len(header)], strict=True))
    except csv.Error as error:
        raise InputError(
            f"prompts at {path}, line {reader.line_num}: got {error}, need CSV with a header"
        ) from error


def _delimiter(text: str, column: str | None, delimiters: Sequence[str]) -> str:
    """The delimiter with which the first line names a column of instructions, else the first one."""
    head = next((line for line in text.splitlines() if line.strip()), "")
    wanted = {plain_name(name) for name in ((column,) if column else COLUMNS)}
    for delimiter in delimiters:
        try:
            names = next(csv.reader([head], delimiter=delimiter), [])
        except csv.Error:
            continue
        if wanted & {plain_name(name) for name in names}:
            return delimiter
    return delimiters[0]


def _header(path: Path, names: Sequence[str], column: str | None) -> list[str]:
    """The names of a table's columns; unnamed and repeated ones are told apart by their number."""
    wanted = {plain_name(name) for name in ((column,) if column else COLUMNS)}
    header: list[str] = []
    for number, name in enumerate((name.strip() for name in names), start=1):
        if name in header and plain_name(name) in wanted:
            raise InputError(f"prompts at {path}: got two columns {name!r:.40}, need one of them")
        header.append(name if name and name not in header else f"{name} ({number})".strip())
    return header


def _json_rows(path: Path, text: str, column: str | None, *, by_line: bool) -> Iterable[Any]:
    """Rows of a JSON list or table, or of JSON lines, by what the file holds."""
    lines = list(_lines(text))
    if not lines:
        return []
    if by_line and not (len(lines) > 1 and lines[0][1].strip() in ("[", "{")):
        rows = [_decoded(path, line, number) for number, line in lines]
        if len(rows) > 1 or not isinstance(rows[0], list):
            return rows
        return rows[0]
    try:
        data = _decoded(path, text, 0)
    except InputError as error:
        cause = error.__cause__
        if not (isinstance(cause, json.JSONDecodeError) and cause.msg == "Extra data"):
            raise
        return [_decoded(path, line, number) for number, line in lines]
    return data if isinstance(data, list) else _rows_of_object(path, data, column)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a JSON lines file that hold anything, with how many lines stand before."""
    return ((n, line) for n, line in enumerate(text.split("\n")) if line.strip())


def _rows_of_object(path: Path, data: Any, column: str | None) -> Iterable[Any]:
    """Rows of {"data": [...]}, of a table by columns (pandas), or of numbered rows."""
    if isinstance(data, Mapping):
        wanted = {plain_name(name) for name in ((column,) if column else COLUMNS)}
        whole = {key: value for key, value in data.items() if isinstance(value, list | dict)}
        if any(plain_name(key) in wanted for key in whole):
            table = {k: list(v.values()) if isinstance(v, dict) else v for k, v in whole.items()}
            if len({len(values) for values in table.values()}) == 1:
                return [
                    dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)
                ]
        lists = {key: value for key, value in data.items() if isinstance(value, list)}
        named = [key for name in _LISTS for key in lists if plain_name(key) == name]
        if named or len(lists) == 1:
            return lists[named[0] if named else next(iter(lists))]
        if data and all(isinstance(value, dict) for value in data.values()):
            return list(data.values())
    kind = (
        f"dict with {', '.join(map(str, data))}"
        if isinstance(data, Mapping)
        else type(data).__name__
    )
    raise InputError(
        f"prompts at {path}: got a JSON {kind:.80}, need a list of texts or objects, alone or under "
        f"{', '.join(_LISTS[:4])}"
    )


def _decoded(path: Path, text: str, lines_before: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"prompts at {path}, line {lines_before + error.lineno}: got broken JSON "
            f"({error.msg} at column {error.colno}), need valid JSON"
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"prompts at {path}, line {lines_before + 1}: got JSON nested too deeply or with a "
            "number too long to read, need a list of texts or objects"
        ) from error


def _table(path: Path, suffix: str) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import ipc, parquet

    try:
        if suffix == ".parquet":
            table = parquet.ParquetFile(path).read()
        else:
            with pyarrow.memory_map(str(path)) as source:
                table = _arrow(source, ipc)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"prompts at {path}: got {reason[:120]!r}, need a readable {suffix[1:]} file"
        ) from error
    return rows


def _arrow(source: Any, ipc: Any) -> Any:
    """A table of an Arrow file, or of the stream that Hugging Face's data sets write."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return (ipc.open_file if is_file else ipc.open_stream)(source).read_all()
