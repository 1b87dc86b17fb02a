"""The shell around the commands: what they share, and how errors leave them."""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from refusal_lens import __version__
from refusal_lens.cli import chat, export, report, run, suffix
from refusal_lens.errors import InputError, one_line

INTERRUPTED = 130


class Shell(TyperGroup):
    """A group of commands that turns the errors a user can act on into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with --debug its errors keep their tracebacks."""
        if ctx.params.get("debug"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; finished steps are kept, the same command goes on after them"
            say("interrupted" + (goes_on if ctx.invoked_subcommand == "run" else ""))
            raise typer.Exit(INTERRUPTED) from None
        except InputError as error:
            say(f"error: {error}")
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            say(f"error: {line_of(error)}")
        except (MemoryError, RuntimeError) as error:
            # torch's own class, named rather than imported: importing torch takes seconds.
            if type(error).__name__ not in ("MemoryError", "OutOfMemoryError"):
                raise
            say("error: out of memory; try a smaller --batch-size, another --dtype or --device-map")
        raise typer.Exit(1)


def say(line: str) -> None:
    """Write one line to the standard error."""
    print(line, file=sys.stderr, flush=True)


def line_of(error: OSError) -> str:
    """What the system said, and of which file, on one line.

    >>> line_of(FileNotFoundError(2, "No such file or directory", "prompts.txt"))
    'prompts.txt: No such file or directory'
    """
    what = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return one_line(f"{os.fspath(error.filename)}: {what}" if error.filename else what)


class ToStandardError(logging.Handler):
    """Lines to whatever the standard error is by then: a progress bar stands in for it at times."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        say(self.format(record))


def configure_logging(level: int) -> None:
    """Show this package's decisions from `level` on, and of other libraries only errors."""
    # Read when the libraries are imported; they have opinions on many things that are not ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    handler = ToStandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger().setLevel(logging.ERROR)
    ours = logging.getLogger("refusal_lens")
    ours.handlers[:] = [handler]
    ours.setLevel(level)


def show_version(wanted: bool) -> bool:
    """Print the version and leave, if that is wanted."""
    if wanted:
        print(f"refusal-lens {__version__}")
        raise typer.Exit
    return wanted


app = typer.Typer(
    cls=Shell,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def shared(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print it.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings only.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show every decision, and tracebacks of errors.")
    ] = False,
) -> None:
    """Find, test and show the direction in a chat model that makes it refuse."""
    level = logging.WARNING if quiet else logging.INFO
    configure_logging(logging.DEBUG if debug else level)


app.command("run")(run.run)
app.command("report")(report.report)
app.command("chat")(chat.chat)
app.command("suffix")(suffix.suffix)
app.command("export")(export.export)
