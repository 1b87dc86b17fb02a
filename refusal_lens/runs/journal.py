"""What a long step has finished so far, a line per part, readable after a kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from refusal_lens.errors import InputError
from refusal_lens.runs.files import said_clearly
from refusal_lens.runs.opening import BINARY, NO_LINK, NO_WAIT, kind_of, read_bytes

SUFFIX = ".journal"
OF_A_KEY = 12
"""Letters of a step's key that its journal's name has."""
_DIGEST = 16
_NAME = re.compile(rf"(?P<step>.+)\.(?P<key>[0-9a-f]{{{OF_A_KEY}}})\{SUFFIX}", re.DOTALL)


def journal_name(step: str, key: str) -> str:
    """The name of a step's journal, for one key."""
    return f"{step}.{key[:OF_A_KEY]}{SUFFIX}"


def journals(folder: Path) -> Iterator[tuple[Path, str, str]]:
    """Every journal in a folder: its path, its step's name, and the beginning of its key."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        named = _NAME.fullmatch(path.name)
        if named:
            yield path, named["step"], named["key"]


class Journal:
    """Records appended to a file one by one; a line that was cut short or altered ends them.

    Floats come back bit for bit, NaN included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0
        self.records: list[dict[str, Any]] = []
        for line in _contents(path).splitlines(keepends=True):
            record = _record(line)
            if record is None:
                break
            self.records.append(record)
            self._whole += len(line)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record and wait until it is on the disk.

        Raises:
            OSError: it cannot be written; strerror is one clear line.

        """
        line = _line(record)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | NO_LINK | NO_WAIT | BINARY
            with os.fdopen(os.open(self.path, flags, 0o666), "wb") as file:
                status = os.fstat(file.fileno())
                # Of two names of one file the other may be somebody else's.
                if kind_of(status.st_mode) or status.st_nlink > 1:
                    raise InputError(f"{self.path}: got a file of others; remove it")
                file.truncate(self._whole)
                file.seek(self._whole)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise said_clearly(error, self.path) from error
        self._whole += len(line)
        self.records.append(dict(record))

    def remove(self) -> None:
        """Forget all of it."""
        self.path.unlink(missing_ok=True)
        self.records, self._whole = [], 0


def _contents(path: Path) -> bytes:
    return read_bytes(path) if os.path.lexists(path) else b""


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(dict(record)).encode("ascii")
    return hashlib.sha256(text).hexdigest()[:_DIGEST].encode("ascii") + b" " + text + b"\n"


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line, None when the line is not as it was written."""
    digest, _, text = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or digest != hashlib.sha256(text).hexdigest()[:_DIGEST].encode():
        return None
    try:
        record = json.loads(text)
    except (RecursionError, ValueError):
        return None
    return record if isinstance(record, dict) else None
