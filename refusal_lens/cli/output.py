"""Everything that a command prints: results to the standard output, messages to the standard error.

A terminal that cannot encode, a reader that has gone, a full disk or a closed stream never raises
where something is printed. Messages get lost then; that a result got lost is said (`show`) or is a
failure (`deliver`).
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import select
import sys
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 400
"""Characters of a message; the middle of a longer one is left out."""
ELIDED = " ... (--debug shows all of it) ... "
PATIENCE = 0.5
"""Seconds without a word after which a command says that it is loading."""
RESULTS_GO_TO = "standard output"

_silence: threading.Timer | None = None


class Unfailing(io.RawIOBase):
    """The end of a standard stream; after the first error it takes bytes and drops them."""

    def __init__(self, raw: Any, error: OSError | None = None, *, within: Any = None) -> None:
        self._raw = raw
        # The stream that this one replaces would close the file when it is forgotten.
        self._within = within
        self.error = error
        self.told = False

    def write(self, data: Any) -> int:
        """Write some of the bytes; how many are done with."""
        while self.error is None:
            try:
                written = self._raw.write(data)
                if written is not None:
                    return int(written)
                # A pipe that somebody else made non-blocking is full.
                select.select([], [self._raw], [])
            except (OSError, ValueError) as error:
                self.error = (
                    error if isinstance(error, OSError) else OSError(errno.EBADF, str(error))
                )
        return len(data)

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """The file descriptor below."""
        return int(self._raw.fileno())

    def isatty(self) -> bool:
        """Whether a terminal is below."""
        return bool(self._raw.isatty())


def guard() -> None:
    """Let the standard streams of this process be there, take every character and never raise."""
    _open_closed_descriptors()
    sys.stdout = guarded(sys.stdout, 1)
    sys.stderr = guarded(sys.stderr, 2)
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8")
    elif isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are no text become lone surrogates, which whoever reads them can name.
        sys.stdin.reconfigure(errors="surrogateescape")


def guarded(stream: Any, descriptor: int) -> Any:
    """A standard stream (None when it is closed) over an `Unfailing` end."""
    if stream is None:
        closed = OSError(errno.EBADF, "it is closed")
        raw = Unfailing(io.FileIO(descriptor, "w", closefd=False), closed)
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    buffer = getattr(stream, "buffer", None)
    if not isinstance(stream, io.TextIOWrapper) or buffer is None:
        return stream
    try:
        stream.flush()
        failed = None
    except OSError as error:
        failed = error
    raw = Unfailing(getattr(buffer, "raw", buffer), failed, within=stream)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering or descriptor == 2,
        write_through=stream.write_through,
    )


def _open_closed_descriptors() -> None:
    """Point closed ones at nothing: a result file opened next would get their number, and prints."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


# -------------------------------------------------------------------------------- results


def show(text: str) -> None:
    """Print news of results that are on the disk; when nobody can read it, say so and go on."""
    _print(text)
    end = _end()
    if end is not None and end.error is not None and not end.told:
        end.told = True
        say(f"warning: {RESULTS_GO_TO}: {end.error.strerror}; the results are whole, on the disk")


def deliver(text: str) -> None:
    """Print what was asked for itself. Raises OSError when it cannot be delivered."""
    _print(text)
    require_delivered()


def require_delivered() -> None:
    """Raise OSError unless all that was printed so far got to the standard output."""
    sys.stdout.flush()
    end = _end()
    if end is not None and end.error is not None and not end.told:
        end.told = True
        raise OSError(end.error.errno, end.error.strerror, RESULTS_GO_TO)


def deliver_json(value: Any) -> None:
    """Deliver one line of JSON, ASCII only; NaN and infinities are null."""
    from refusal_lens.runs.files import plain

    deliver(json.dumps(plain(value)))


def _print(text: str) -> None:
    _break_silence()
    print(visible(text, but="\n\t"), flush=True)


def _end() -> Unfailing | None:
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw if isinstance(raw, Unfailing) else None


# -------------------------------------------------------------------------------- messages


def say(line: str) -> None:
    """Write one line to the standard error."""
    _break_silence()
    print(line, file=sys.stderr, flush=True)


def debugging() -> bool:
    """Whether --debug was given."""
    return logging.getLogger("refusal_lens").isEnabledFor(logging.DEBUG)


def quiet() -> bool:
    """Whether --quiet was given."""
    return not logging.getLogger("refusal_lens").isEnabledFor(logging.INFO)


def one_line(text: str) -> str:
    r"""`text` on one line of readable length, its control characters spelt out; all of it with --debug.

    >>> one_line("no\nsuch \x1b[2Jfile")
    'no such \\x1b[2Jfile'
    """
    line = visible(" ".join(text.split()))
    if len(line) <= LONGEST or debugging():
        return line
    half = (LONGEST - len(ELIDED)) // 2
    return line[:half] + ELIDED + line[-half:]


def visible(text: str, *, but: str = "") -> str:
    r"""`text` with the characters that could command a terminal, or that none can show, spelt out.

    `but` holds those that stay as they are.

    >>> visible("a\x00b\udcff")
    'a\\x00b\\udcff'
    """
    return "".join(
        letter if only_shows(letter) or letter in but else letter.encode("unicode_escape").decode()
        for letter in text
    )


def only_shows(letter: str) -> bool:
    r"""Whether a character is nothing but seen: no control, no direction of writing, no half of one.

    >>> [only_shows(letter) for letter in ("a", "\u202f", "\x1b", "\u202e")]
    [True, True, False, False]
    """
    return letter.isprintable() or unicodedata.category(letter) == "Zs"


@contextmanager
def breaking_silence() -> Iterator[None]:
    """Say that the command is loading when a terminal has seen nothing for `PATIENCE` seconds."""
    global _silence
    if not sys.stderr.isatty():
        yield
        return
    _silence = threading.Timer(PATIENCE, _say_loading)
    _silence.daemon = True
    _silence.start()
    try:
        yield
    finally:
        _break_silence()


def _say_loading() -> None:
    if not quiet():
        print("loading ...", file=sys.stderr, flush=True)


def _break_silence() -> None:
    global _silence
    if _silence is not None:
        _silence.cancel()
        _silence = None
