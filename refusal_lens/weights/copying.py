"""Copying bytes between files: by reference where the disk can, in a few threads."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if sys.platform != "win32":
    import fcntl

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
THREADS = min(4, os.cpu_count() or 1)

OnBytes = Callable[[int], None]
"""Called with the number of bytes just dealt with."""


def reflink(source: Path, target: Path) -> bool:
    """Make the new file `target` share the blocks of `source`; False, and no file, where the disk cannot."""
    if sys.platform == "win32":
        return False
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), FICLONE, read.fileno())
            return True
        except OSError as error:
            if error.errno not in UNSUPPORTED:
                raise
    # Emptied instead, ext4 would write all of it to the disk as soon as it is closed.
    target.unlink()
    return False


def in_threads(tasks: Iterable[Callable[[], None]]) -> None:
    """Do tasks in a few threads, begun in their order; the first error ends it."""
    before = torch.get_num_threads()
    # Each thread of ours calculates alone; the pieces are too small to share out again.
    pool = ThreadPoolExecutor(THREADS, initializer=torch.set_num_threads, initargs=(1,))
    try:
        for done in [pool.submit(task) for task in tasks]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def one_thread_at_a_time(on_bytes: OnBytes) -> OnBytes:
    """The same for several threads."""
    lock = threading.Lock()

    def locked(moved: int) -> None:
        with lock:
            on_bytes(moved)

    return locked


def copy_range(
    source: int, target: int, start: int, length: int, to: int, on_bytes: OnBytes
) -> None:
    """Copy bytes between open files, inside the kernel where it can. Raises OSError when cut short."""
    while length:
        moved = _move(source, target, start, min(length, PIECE), to)
        if not moved:
            raise OSError(errno.EIO, "the source ended early")
        start, to, length = start + moved, to + moved, length - moved
        on_bytes(moved)


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


def read_rows(source: int, start: int, rows: slice, width: int, dtype: torch.dtype) -> Tensor:
    """Some of the rows [n width] that lie at an offset. Raises OSError when the file ends early."""
    values = torch.empty(rows.stop - rows.start, width, dtype=dtype)
    read_all(source, bytes_of(values), start + rows.start * width * dtype.itemsize)
    return values
