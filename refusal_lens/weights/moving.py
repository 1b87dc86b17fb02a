"""Moving bytes: folders that appear whole or not at all, copies by reference where the disk can."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

PIECE = 32 << 20
FICLONE = 0x40049409
"""Linux' request to share all blocks of another file."""
UNSUPPORTED = frozenset(
    {
        errno.EXDEV,
        errno.ENOSYS,
        errno.EINVAL,
        errno.EOPNOTSUPP,
        errno.ENOTTY,
        errno.EBADF,
        errno.EPERM,
    }
)

Progress = Callable[[int], None]
"""Called with the number of bytes just dealt with."""


@contextmanager
def appearing(out: Path, *, needed: int) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its name on a clean exit; otherwise it is removed.

    needed: bytes that will be written. Killed at any moment, `out` does not exist, and the next export
    to it removes what was left. Raises InputError when `out` is there and not empty, or too little space
    is free.
    """
    out = Path(os.path.abspath(out))
    require_room(out, needed)
    out.parent.mkdir(parents=True, exist_ok=True)
    hidden = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        hidden.mkdir()
        yield hidden
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()
        os.rename(hidden, out)
    except OSError as error:
        what = error.strerror or str(error)
        raise OSError(
            error.errno or 0, f"{out}: could not be written: {what}; nothing was left there"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def require_room(out: Path, needed: int) -> None:
    """Raise InputError unless nothing is at `out` and its disk has `needed` bytes free.

    What killed exports to the same place left is removed first.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"output folder {out}: is there and not empty; choose another name")
    parent = next(p for p in out.parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"output folder {out}: {parent} is a file; choose another name")
    _sweep(out)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"output folder {out}: {needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB free; make room "
            "or choose another disk"
        )


def _sweep(out: Path) -> None:
    """Remove what exports to the same place left when they were killed."""
    for left in out.parent.glob(f".{out.name}.*.partial"):
        owner = left.name.removesuffix(".partial").rpartition(".")[2]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def reflink(source: Path, target: Path) -> bool:
    """Make `target` share the blocks of `source`; False where the file system cannot."""
    try:
        import fcntl
    except ImportError:
        return False
    with source.open("rb") as read, target.open("wb") as write:
        try:
            fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
        except OSError as error:
            if error.errno in UNSUPPORTED:
                return False
            raise
    return True


def copy_range(
    source: int, target: int, start: int, length: int, to: int, progress: Progress
) -> None:
    """Copy bytes between open files, inside the kernel where it can. Raises OSError when cut short."""
    while length:
        moved = _move(source, target, start, min(length, PIECE), to)
        if not moved:
            raise OSError(errno.EIO, "the source ended early")
        start, to, length = start + moved, to + moved, length - moved
        progress(moved)


def _move(source: int, target: int, start: int, length: int, to: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, length, start, to)
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    piece = os.pread(source, length, start)
    write_all(target, memoryview(piece), to)
    return len(piece)


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    array: Any = tensor.view(torch.uint8).numpy()
    return memoryview(array)


def write_all(target: int, data: memoryview, to: int) -> None:
    """Write every byte at an offset."""
    data = data.cast("B")
    while data:
        written = os.pwrite(target, data, to)
        data, to = data[written:], to + written


def read_all(source: int, data: memoryview, start: int) -> None:
    """Fill a buffer from an offset. Raises OSError when the file ends early."""
    data = data.cast("B")
    while data:
        piece = os.preadv(source, [data[: 1 << 30]], start)
        if not piece:
            raise OSError(errno.EIO, "the source ended early")
        data, start = data[piece:], start + piece
