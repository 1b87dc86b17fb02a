"""Files of a folder that anyone may have made: never through a link, never without an end."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from refusal_lens.errors import InputError

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0)
BINARY = getattr(os, "O_BINARY", 0)
LARGEST_JSON = 64 << 20
LARGEST = 1 << 30
"""Bytes that a file of a run may have; those of large models' candidates are a quarter of it."""

_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a fifo"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind_of(mode: int) -> str:
    """What a file's mode says it is, in words; "" for a regular file."""
    return next((words for test, words in _KINDS if test(mode)), "")


def open_regular(path: Path, *, largest: int = LARGEST, follow: bool = False) -> BinaryIO:
    """Open a regular file to read, at once or not at all; `follow` allows a link at its place.

    Raises:
        InputError: it is missing, a link, a folder, a fifo or a device, or has more than `largest`
            bytes.
        OSError: it may not be read.

    """
    flags = os.O_RDONLY | NO_WAIT | BINARY | (0 if follow else NO_LINK)
    try:
        # Looked at first, since opening a device may already do something.
        _require_regular(path, os.stat(path, follow_symlinks=follow), largest)
        file = os.fdopen(os.open(path, flags), "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such file; make it again") from error
    except ValueError as error:  # a NUL in its name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)[:80]!r}: no name of a file") from error
    try:
        _require_regular(path, os.fstat(file.fileno()), largest)
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(path: Path, status: os.stat_result, largest: int) -> None:
    if kind := kind_of(status.st_mode):
        raise InputError(f"{path}: got {kind}, need a regular file; make it again")
    if status.st_size > largest:
        raise InputError(
            f"{path}: got {status.st_size} bytes, need at most {largest}; make it again"
        )


def read_bytes(path: Path, *, largest: int = LARGEST, follow: bool = False) -> bytes:
    """All of a regular file; see `open_regular`."""
    with open_regular(path, largest=largest, follow=follow) as file:
        return file.read(largest + 1)


def entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Everything in a folder and the folders in it; no link is followed."""
    waiting = [os.fspath(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                here = list(entries)
        except FileNotFoundError:  # another process took it away
            continue
        for entry in here:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)


def require_plain(folder: Path) -> None:
    """Raise InputError when a folder holds anything but regular files and folders.

    What holds no link cannot lead out of itself, whatever is read, written or removed in it later.
    """
    for entry in entries(folder):
        try:
            mode = entry.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            continue
        kind = kind_of(mode)
        if kind and not stat.S_ISDIR(mode):
            name = os.path.relpath(entry.path, folder)
            raise InputError(
                f"folder at {folder}: got {name[:80]!r}, which is {kind}, need regular files and "
                "folders alone; remove it, or copy what it stands for into its place"
            )


def is_inside(name: str) -> bool:
    """Whether a name stays inside of the folder that it is a name in, by its letters alone."""
    path = Path(name)
    return (
        bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
    )


def place_in(folder: Path, name: str) -> Path:
    """Where `name` is in a folder that may itself be a link.

    Raises:
        InputError: it is outside, or reached through a link or through what is no folder.

    """
    if not is_inside(name):
        raise InputError(f"folder at {folder}: got {name[:80]!r}, need a name inside of it")
    path = folder
    parts = Path(name).parts
    for number, part in enumerate(parts, start=1):
        path = path / part
        try:
            kind = kind_of(os.lstat(path).st_mode)
        except FileNotFoundError:
            continue
        except NotADirectoryError as error:
            raise InputError(f"{path.parent}: got a file, need a folder") from error
        if kind and not (kind == "a folder" and number < len(parts)):
            raise InputError(f"{path}: got {kind}, need a regular file; remove it")
    return path
