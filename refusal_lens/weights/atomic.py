"""Results that appear whole or not at all: written under a hidden name, checked, renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import InputError

if sys.platform != "win32":
    import fcntl

LONGEST = 180
"""Bytes of an output's name that hidden names begin with; file systems take 255."""

Recorded = Callable[[], AbstractContextManager[Any]]
"""Makes a context around the moment when a result appears: entered before, left when it is there."""


@contextmanager
def atomic_folder(
    out: Path,
    *,
    needed: int,
    check: Callable[[Path], None] = lambda _: None,
    recorded: Recorded = nullcontext,
) -> Iterator[Path]:
    """A hidden folder that takes the name `out` on a clean exit; otherwise it is removed.

    It lies beside `out`, or beside the folder that `out` links to. needed: bytes that will be written; check
    is called with it when it is whole, and when that raises nothing appears; recorded surrounds the renaming,
    and when it raises, before or after, `out` does not stay. Killed at any moment before that, `out` does not
    exist, and the next export to it removes what was left. Raises InputError when `out` is there and not
    empty, or too little space is free.
    """
    out = real(out)
    require_room(out, needed)
    with _hidden_beside(out) as hidden:
        with _saying(f"{out}: could not be written"):
            yield hidden
        with _saying(f"{out}: could not be checked"):
            check(hidden)
        moved = False
        try:
            with _saying(f"{out}: could not be recorded"), recorded():
                _swap(hidden, out)
                moved = True
        except BaseException:
            if moved:
                os.rename(out, hidden)
            raise


@contextmanager
def atomic_files(paths: Sequence[Path], *, recorded: Recorded = nullcontext) -> Iterator[Path]:
    """A hidden folder whose files of these names take their places on a clean exit, in this order, all or none.

    Of the last one it has its name. `recorded` and errors as for `atomic_folder`. Raises InputError when one of
    them is there already.
    """
    places = [real(path) for path in paths]
    for place in places:
        if there(place):
            raise InputError(f"output file {place}: is there already; choose another name")
    _sweep(places[-1])
    with _hidden_beside(places[-1]) as hidden:
        with _saying(f"{places[-1]}: could not be written"):
            yield hidden
            for place in places:
                _sync(hidden / place.name)
        moved: list[Path] = []
        try:
            with _saying(f"{places[-1]}: could not be recorded"), recorded():
                for place in places:
                    os.rename(hidden / place.name, place)
                    moved.append(place)
        except BaseException:
            for place in moved:
                place.unlink(missing_ok=True)
            raise


@contextmanager
def _hidden_beside(out: Path) -> Iterator[Path]:
    """A folder of a name that nothing else has, beside `out`, held with a lock; gone afterwards."""
    with _saying(f"{out}: could not be written"):
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden, lock = _made(out)
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)


def _made(out: Path) -> tuple[Path, int]:
    """A new hidden folder and the descriptor that holds its lock."""
    while True:
        hidden = out.with_name(f".{shortened(out.name)}.{secrets.token_hex(8)}.partial")
        hidden.mkdir()
        lock = os.open(hidden, os.O_RDONLY)
        # Between the two a sweep of another export may have found it unlocked and removed it.
        if _lock(lock) is not False and hidden.exists():
            return hidden, lock
        os.close(lock)


def _swap(hidden: Path, out: Path) -> None:
    """Give the folder its name; an empty folder of that name makes way."""
    with contextlib.suppress(FileNotFoundError):
        out.rmdir()
    os.rename(hidden, out)


def shortened(name: str) -> str:
    """As much of a name as leaves room for what hidden names add to it."""
    return name.encode()[:LONGEST].decode(errors="ignore")


def _lock(descriptor: int) -> bool | None:
    """Take the lock of an open folder: whether it is ours now, None where there are no such locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def there(path: Path) -> bool:
    """Whether something is at a path. Raises InputError for a name that no file can have."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"output {str(path)[:80]}: cannot be a file ({why}); choose another name"
        ) from error
    return True


@contextmanager
def _saying(what: str) -> Iterator[None]:
    """An OSError inside says what it means for the export."""
    try:
        yield
    except OSError as error:
        why = (error.strerror or str(error)).partition("; what is done")[0]
        raise OSError(error.errno or 0, f"{what}: {why}; nothing was left there") from error


def real(out: Path) -> Path:
    """The absolute place of a folder to be, through links. Raises InputError for what is no path."""
    try:
        return Path(os.path.realpath(out))
    except ValueError as error:
        raise InputError(f"output {str(out)[:80]!r}: is no path ({error})") from error


def require_outside(out: Path, model: Path) -> None:
    """Raise InputError when `out` is a model folder, or lies in it, directly or through links."""
    folder, place = model.resolve(), real(out)
    if folder == place or folder in place.parents:
        raise InputError(
            f"output {out}: lies in the model folder {model}, which is only read; choose another place"
        )


def require_room(out: Path, needed: int) -> None:
    """Raise InputError unless nothing is at `out`, and its disk can be written to and has `needed` bytes free.

    What killed exports to the same place left is removed first.
    """
    out = real(out)
    there(out)
    if os.path.ismount(out):
        raise InputError(
            f"output folder {out}: is a mount point, which cannot be replaced; name a new folder in it"
        )
    if there(out) and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"output folder {out}: is there and not empty; choose another name")
    parent = next(p for p in out.parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"output folder {out}: {parent} is a file; choose another name")
    if not os.access(parent, os.W_OK):
        raise InputError(f"output folder {out}: {parent} is read-only; choose another place")
    _sweep(out)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise InputError(
            f"output folder {out}: {size_in_words(needed)} are needed and {size_in_words(free)} free; make "
            "room or choose another disk"
        )


def size_in_words(count: int) -> str:
    """Bytes with a unit.

    >>> size_in_words(141_107_412_992), size_in_words(4_700_000), size_in_words(12)
    ('141.1 GB', '4.70 MB', '12 bytes')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:,.{1 if count >= 10 * unit else 2}f} {name}"
    return f"{count} bytes"


def _sweep(out: Path) -> None:
    """Remove what exports to the same place left when they were killed: nobody holds its lock any more."""
    for left in _hidden_folders(out):
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(lock):
                shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def leftovers(out: Path) -> bool:
    """Whether an export to this place left a hidden folder, or is writing one."""
    return bool(_hidden_folders(real(out)))


def _hidden_folders(out: Path) -> list[Path]:
    """What exports to this place work in, or left."""
    name = re.compile(rf"\.{re.escape(shortened(out.name))}\.[0-9a-f]{{16}}\.partial")
    beside = out.parent.iterdir() if out.parent.is_dir() else ()
    return [path for path in beside if name.fullmatch(path.name)]
