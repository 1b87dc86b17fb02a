"""One process per run folder: a lock that the operating system lets go of when its holder dies."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from refusal_lens.errors import InputError

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"


class FolderLock:
    """An exclusive flock on `folder/.lock`, held until `release` or the end of the process.

    A file that only existed would outlive a killed process and block the next; a flock does not.

    Raises:
        InputError: another process holds it.

    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(folder)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, folder: Path) -> None:
        if sys.platform == "win32":
            return  # no flock there: two processes in one folder are the user's to avoid
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            raise InputError(
                f"run folder at {folder}: got one that process {holder or 'unknown'} writes to, "
                "need one to itself; wait for it or give another --out"
            ) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let the folder go; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
