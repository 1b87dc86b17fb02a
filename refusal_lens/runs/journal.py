"""What a long step has finished so far, a line per part, readable after a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusal_lens.runs.files import said_clearly


class Journal:
    """Records appended to a file one by one; a last line that a kill cut short does not count.

    Floats come back bit for bit, NaN included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._whole = 0
        self.records: list[dict[str, Any]] = []
        contents = path.read_bytes() if path.is_file() else b""
        for line in contents.splitlines(keepends=True):
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
        line = json.dumps(dict(record)).encode("ascii") + b"\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.truncate(self._whole)
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


def _record(line: bytes) -> dict[str, Any] | None:
    """The record on a line, None when the line was cut short."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
