"""Lists of instructions read from text files, JSON, CSV, parquet, folders and HF data sets."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError

COLUMNS = ("instruction", "prompt", "text", "goal", "behavior", "question")
"""Names under which data sets keep their instructions, in the order they are tried."""

# Alpaca-style rows ask about a second text; their instruction alone makes no sense.
_SECOND_TEXTS = ("input", "context")
_TABLES = (".parquet", ".arrow")
_FILES = (".txt", ".json", ".jsonl", ".csv", *_TABLES)


@dataclass(frozen=True)
class Source:
    """Instructions as they were found, stripped and not empty, with where they come from.

    `provenance` can be written as JSON; `skipped` counts rows that need a second text.
    """

    instructions: tuple[str, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return str(self.provenance.get("file") or self.provenance.get("dataset"))


def read_file(path: str | Path, *, column: str | None = None, verbatim: bool = False) -> Source:
    """Instructions of a .txt (one a line), .json, .jsonl, .csv or .parquet file.

    JSON holds strings, or objects with the column; without a column the first of `COLUMNS` counts.
    verbatim=True keeps every entry as it is, blank ones and white space at the ends included.
    """
    where = Path(path)
    if not where.is_file():
        raise InputError(f"prompts at {where}: got no such file, need one of {_listed(_FILES)}")
    suffix = where.suffix.lower()
    if suffix not in _FILES:
        raise InputError(f"prompts at {where}: got {suffix or 'no suffix'}, need {_listed(_FILES)}")
    provenance = {"file": str(path), "sha256": hashlib.sha256(where.read_bytes()).hexdigest()}
    if suffix in _TABLES:
        rows: Iterable[Any] = _load(suffix[1:], "train", data_files=str(where))
    else:
        rows = _parsed(where, suffix)
    return _collected(rows, str(where), column, provenance, verbatim=verbatim)


def read_dataset(
    name: str,
    *,
    column: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Source:
    """Instructions of a Hugging Face data set, or of a local folder of data files.

    A configuration follows the name after a colon: "owner/name:configuration".
    """
    folder = Path(name).is_dir()
    if not folder and (Path(name).suffix.lower() in _FILES or name.startswith(("/", "./", "~"))):
        raise InputError(f"prompts at {name}: got no such file or folder, need one that exists")
    path, _, configuration = (name, "", "") if folder else name.partition(":")
    rows = _load(path, split, name=configuration or None, revision=None if folder else revision)
    provenance = {"dataset": name, "split": split, "revision": None if folder else revision}
    return _collected(rows, f"{name} (split {split})", column, provenance)


def _load(path: str, split: str, **options: Any) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(path, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise InputError(
            f"data set {options.get('data_files', path)} (split {split}): got {reason!r}, need a "
            "data set that can be read here; try its exact name, split and revision, or a local "
            "file or folder"
        ) from error


def _parsed(path: Path, suffix: str) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"prompts at {path}: got byte {error.start} that is not UTF-8, need UTF-8 text; try "
            "saving it again as UTF-8"
        ) from error
    if suffix == ".txt":
        return iter(text.split("\n"))
    if suffix == ".csv":
        return _csv_rows(path, text)
    return iter(_json(path, text)) if suffix == ".json" else _jsonl_rows(path, text)


def _csv_rows(path: Path, text: str) -> Iterator[Any]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from reader
    except csv.Error as error:
        raise InputError(
            f"prompts at {path}, line {reader.reader.line_num}: got {error}, need CSV with a header"
        ) from error


def _json(path: Path, text: str) -> list[Any]:
    if not text.strip():
        return []
    data = _decoded(path, text, 0)
    if not isinstance(data, list):
        raise InputError(
            f"prompts at {path}: got a JSON {type(data).__name__}, need a list of texts or objects"
        )
    return data


def _jsonl_rows(path: Path, text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n")):
        if line.strip():
            yield _decoded(path, line, number)


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


def _collected(
    rows: Iterable[Any],
    where: str,
    column: str | None,
    provenance: Mapping[str, Any],
    *,
    verbatim: bool = False,
) -> Source:
    found, skipped = [], 0
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):
            key = _column(row, column, where, number)
            if key.lower() == "instruction" and any(row.get(k) for k in _SECOND_TEXTS):
                skipped += 1
                continue
            row = row[key]
        if not isinstance(row, str):
            raise InputError(f"prompts at {where}, entry {number}: got {row!r:.60}, need text")
        if not is_unicode(row):
            raise InputError(
                f"prompts at {where}, entry {number}: got a lone surrogate in {row!r:.60}, need "
                "Unicode text; try to write the character itself"
            )
        if verbatim or row.strip():
            found.append(row if verbatim else row.strip())
    if not found:
        raise InputError(f"prompts at {where}: got no instruction, need at least one")
    return Source(tuple(found), provenance, skipped)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: no half of a surrogate pair stands alone in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _column(row: Mapping[Any, Any], column: str | None, where: str, number: int) -> str:
    names = {str(key).lower(): str(key) for key in row}
    for wanted in COLUMNS if column is None else (column,):
        if wanted.lower() in names:
            return names[wanted.lower()]
    raise InputError(
        f"prompts at {where}, entry {number}: got columns {_listed(names.values())}, need "
        f"{column or _listed(COLUMNS)}; try column="
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
