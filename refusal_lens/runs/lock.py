"""One process per run folder: a lock that the operating system lets go of when its holder dies."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from refusal_lens.errors import InputError
from refusal_lens.runs.opening import NO_LINK, NO_WAIT, kind_of, place_in

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"
_OURS = re.compile(rb"\d{0,19}\n?")


class FolderLock:
    """An exclusive flock on `folder/.lock`, held until `release` or the end of the process.

    A file that only existed would outlive a killed process and block the next; a flock does not.
    What a lock file of ours does not hold is never overwritten.

    Raises:
        InputError: another process holds it, or something else has its name.

    """

    def __init__(self, folder: Path) -> None:
        path = place_in(folder, LOCK)
        flags = os.O_RDWR | os.O_CREAT | NO_LINK | NO_WAIT
        self._descriptor = os.open(path, flags, 0o666)
        try:
            if kind := kind_of(os.fstat(self._descriptor).st_mode):
                raise InputError(f"{path}: got {kind}, need a regular file; remove it")
            self._take(folder)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, folder: Path) -> None:
        if sys.platform == "win32":
            return  # no flock there: two processes in one folder are the user's to avoid
        holder = os.pread(self._descriptor, 21, 0)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise InputError(
                f"run folder at {folder}: got one that process "
                f"{holder.decode('ascii', 'replace').strip() or 'unknown'} writes to, "
                "need one to itself; wait for it or give another --out"
            ) from error
        if not _OURS.fullmatch(holder):
            raise InputError(
                f"{folder / LOCK}: got a file that is no lock of a run; move it, or give another --out"
            )
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let the folder go; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
