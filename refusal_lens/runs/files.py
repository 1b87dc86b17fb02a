"""Files that are either whole or absent: written beside their place, synced, then moved into it."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refusal_lens.door import checked
from refusal_lens.errors import InputError
from refusal_lens.runs import schema
from refusal_lens.runs.opening import (
    BINARY,
    LARGEST,
    LARGEST_JSON,
    NO_LINK,
    open_regular,
    read_bytes,
)
from refusal_lens.runs.tables import Table, checked_table

TEMPORARY = ".tmp"
_OURS = re.compile(r"\..+\.(?:[0-9]{1,10}|[0-9a-f]{12})\.tmp", re.DOTALL)
_KEPT_OF_A_NAME = 40
"""Letters of a file's name that its temporary one keeps: names may be as long as the disk allows."""


def temporary_name(name: str) -> str:
    """A name for what is to become `name`, that no other process and no earlier kill has.

    >>> is_temporary(temporary_name("scores.csv")), is_temporary(".draft.tmp")
    (True, False)
    """
    return f".{name[:_KEPT_OF_A_NAME]}.{secrets.token_hex(6)}{TEMPORARY}"


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that `temporary_name` gives, or that an earlier version gave."""
    return _OURS.fullmatch(name) is not None


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its place on a clean exit.

    After an exception, or a kill, `path` is what it was before. The folder is made when missing. The
    file may be read by whom the umask allows, whatever wrote it.

    Raises:
        OSError: the file cannot be written (disk full, read-only); strerror is one clear line.

    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = _made(temporary)
        yield temporary
        if os.stat(temporary).st_mode & 0o777 != mode:
            os.chmod(temporary, mode)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except Exception as error:
        if (failed := _of_the_disk(error)) is None:
            raise
        raise said_clearly(failed, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _made(path: Path) -> int:
    """Make a new empty file; the permissions that it got."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK | BINARY
    descriptor = os.open(path, flags, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Let a whole file take its place, in the same file system; the folder is made when missing.

    Raises:
        OSError: it cannot; strerror is one clear line.

    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        _sync(target.parent)
    except OSError as error:
        raise said_clearly(error, target) from error


def _of_the_disk(error: Exception) -> OSError | None:
    """The OSError that an exception is or, as safetensors' own class does, only tells of."""
    if isinstance(error, OSError):
        return error
    # Named rather than imported: importing safetensors takes longer than most commands.
    told = re.search(r"\(os error (\d+)\)", str(error))
    if type(error).__name__ != "SafetensorError" or told is None:
        return None
    number = int(told[1])
    return OSError(number, os.strerror(number))


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def said_clearly(error: OSError, path: Path) -> OSError:
    """`error` with a line that names the file and the remedy; its errno is kept."""
    what = error.strerror or str(error)
    line = f"{path}: could not be written: {what}; what is done is kept, make room and run it again"
    return OSError(error.errno or 0, line)


def plain(value: Any, *, spelt: bool = False) -> Any:
    """`value` as JSON knows it: mappings, lists, strings, numbers; NaN and infinities become None.

    Arrays and tensors become lists, dataclasses mappings, paths strings. `spelt` makes words of
    NaN and infinities, for where one must not pass for another.

    >>> plain({"kl": float("nan"), 3: (1, 2.5)})
    {'kl': None, '3': [1, 2.5]}
    >>> plain([float("inf"), float("-inf")], spelt=True)
    ['inf', '-inf']

    Raises:
        TypeError: there is no JSON for it.

    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return str(float(value)) if spelt else None
    if isinstance(value, Mapping):
        return {str(name): plain(item, spelt=spelt) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return plain(named, spelt=spelt)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), spelt=spelt)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [plain(item, spelt=spelt) for item in value]
    raise TypeError(f"{type(value).__name__} has no JSON form: got {value!r:.80}")


@checked
def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with writing(path) as temporary:
        # A lone surrogate has no UTF-8; to lose a run to one would be worse than to spell it out.
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


@checked
def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN becomes null."""
    write_text(path, _json(value, indent=2) + "\n")


@checked
def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, whole or not at all."""
    write_text(path, "".join(_json(row) + "\n" for row in rows))


def _json(value: Any, *, indent: int | None = None) -> str:
    """JSON that reads as written, escaped only where UTF-8 could not carry it (lone surrogates)."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    if text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text):
        return text
    return json.dumps(plain(value), indent=indent, ensure_ascii=True, allow_nan=False)


@checked
def write_csv(path: Path, frame: Any) -> None:
    """Write a pandas DataFrame without its index, whole or not at all; NaN is an empty cell."""
    write_text(path, frame.to_csv(index=False, lineterminator="\n"))


@checked
def read_json(path: Path, form: Any = None) -> Any:
    """Read JSON; a bare NaN (which JSON does not have but Python and others write) is a float.

    form: the msgspec type that the contents must have; None for any.

    Raises:
        InputError: the file is missing, no regular file, not JSON, or of another form.

    """
    return schema.checked(_json_of(path), form, f"{path}")


def _json_of(path: Path) -> Any:
    try:
        return json.loads(_text(path, LARGEST_JSON))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno}: got something that is not JSON ({error.msg}); "
            "restore the file or make it again"
        ) from error
    except InputError:
        raise
    except (RecursionError, ValueError) as error:
        raise InputError(
            f"{path}: got JSON nested too deeply or with a number too long to read; "
            "restore the file or make it again"
        ) from error


@checked
def read_jsonl(path: Path, form: Any = None) -> list[dict[str, Any]]:
    """Read one JSON object per line; form: the msgspec type that each must have, None for any.

    Raises:
        InputError: the file is missing, no regular file, or a line is not such an object.

    """
    # Not splitlines(): a completion may hold U+2028 or other separators that JSON leaves unescaped.
    lines = [line for line in _text(path, LARGEST).split("\n") if line.strip()]
    return [
        schema.checked(_object(line, path, number), form, f"{path} line {number}")
        for number, line in enumerate(lines, start=1)
    ]


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (RecursionError, ValueError):
        row = None
    if not isinstance(row, dict):
        raise InputError(f"{path} line {number}: got {line[:40]!r}, need a JSON object")
    return row


@checked
def read_csv(path: Path, table: Table | None = None, *, text: Sequence[str] = ()) -> Any:
    """Read what `write_csv` wrote into a pandas DataFrame, every float bit for bit.

    An empty cell is NaN in a column of numbers and "" in one of text; "NA" and "None" are text. A
    column with nothing but empty cells is one of numbers unless `text` or `table` names it as text.
    table: the columns that it must have; None for any.

    Raises:
        InputError: the file is missing, no regular file, not CSV, or not such a table.

    """
    import pandas as pd

    # Before 3.1 pandas' own parser was off by a bit in the last place; now the option warns.
    old = tuple(int(part) for part in pd.__version__.split(".")[:2]) < (3, 1)
    try:
        frame = pd.read_csv(
            io.StringIO(_text(path, LARGEST)),
            float_precision="round_trip" if old else None,
            keep_default_na=False,
            na_values=[""],
            dtype=dict.fromkeys({*text, *(table.texts if table else ())}, str),
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, OverflowError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: got something that is not CSV ({why})") from error
    words = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    frame[words] = frame[words].fillna("")
    return frame if table is None else checked_table(frame, table, path)


def _text(path: Path, largest: int) -> str:
    try:
        return read_bytes(path, largest=largest).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: got bytes that are not UTF-8 text; make it again") from error


@checked
def sha256_of(path: Path) -> str:
    """Hash a regular file's bytes, a piece at a time."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
