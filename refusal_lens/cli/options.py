"""What the commands share: options that each takes, and values that are wrong before anything is read."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any

import typer

from refusal_lens.cli.output import debugging, one_line, quiet, say
from refusal_lens.errors import InputError

SHARED = ("json", "quiet", "debug")
"""Options of every command that are no settings of its work."""


class ToStandardError(logging.Handler):
    """Lines to whatever the standard error is by then: a progress bar stands in for it at times."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        say(one_line(self.format(record)))


def configure_logging(level: int) -> None:
    """Show this package's decisions from `level` on, and of other libraries only errors."""
    # Read when the libraries are imported; they have opinions on many things that are not ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if level > logging.INFO or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = ToStandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().setLevel(logging.ERROR)
    ours = logging.getLogger("refusal_lens")
    ours.handlers[:] = [handler]
    ours.setLevel(level)


def be_quiet(wanted: bool) -> bool:
    """Print results and errors only, unless --debug wants more."""
    if wanted and not debugging():
        configure_logging(logging.ERROR)
    return wanted


def be_loud(wanted: bool) -> bool:
    """Print every decision."""
    if wanted:
        configure_logging(logging.DEBUG)
    return wanted


def finite(value: float) -> float:
    """The value of an option, unless it is NaN or infinite."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"got {value}, need a finite number")
    return value


def no_nan(value: float) -> float:
    """The value of an option, unless it is NaN."""
    if math.isnan(value):
        raise typer.BadParameter("got NaN, need a number")
    return value


Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", callback=be_quiet, help="Print results and errors only.")
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug", callback=be_loud, help="Show every decision, and tracebacks of errors."
    ),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the results as JSON, one line of the standard output.")
]


@contextmanager
def usage() -> Iterator[None]:
    """Make bad usage of an InputError: what is wrong is known from the options alone."""
    try:
        yield
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def check_place(dtype: str | None, device: str | None, device_map: str | None = None) -> None:
    """Raise bad usage for a dtype that is none, or a device that is not there."""
    from refusal_lens.model.loading import resolve_device, resolve_dtype

    with usage():
        if device is not None and device_map is not None:
            raise InputError("device and device_map: got both, need one of them")
        if device is not None:
            resolve_device(device)
        if dtype is not None:
            resolve_dtype(dtype, None)


def progress() -> AbstractContextManager[Any]:
    """How far long steps are, on the standard error; nothing with --quiet."""
    from refusal_lens.progress import bars

    return bars(quiet=quiet())
