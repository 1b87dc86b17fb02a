"""The shell around the commands: what they share, and how errors leave them."""

from __future__ import annotations

import logging
import os
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from refusal_lens import __version__
from refusal_lens.cli import chat, export, report, run, suffix
from refusal_lens.cli.codes import EPILOG, FAILED, INTERRUPTED, UNMET
from refusal_lens.cli.options import configure_logging
from refusal_lens.cli.output import (
    breaking_silence,
    debugging,
    one_line,
    require_delivered,
    say,
)
from refusal_lens.errors import InputError, UnmetError

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""Of click, or of the copy of click that newer versions of typer carry."""


class Shell(TyperGroup):
    """A group of commands that turns the errors a user can act on into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; help and usage that nobody could read are a failure too."""
        try:
            return super().main(*args, **kwargs)
        except SystemExit as leaving:
            if leaving.code:
                raise
            try:
                require_delivered()
            except OSError as error:
                say(f"error: {one_line(line_of(error))}")
                raise SystemExit(FAILED) from None
            raise

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options that stand before the command."""
        try:
            return super().make_context(*args, **kwargs)
        except UsageError as error:
            raise _readable(error) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command; with --debug its errors show their tracebacks, causes included."""
        try:
            with breaking_silence():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            goes_on = "; finished steps are kept, the same command goes on after them"
            say("interrupted" + (goes_on if ctx.invoked_subcommand == "run" else ""))
            raise typer.Exit(INTERRUPTED) from None
        except UsageError as error:
            _show_traceback(error)
            raise _readable(error) from None
        except (InputError, OSError, MemoryError, RuntimeError) as error:
            line = line_for(error)
            if line is None:
                raise
            _show_traceback(error)
            say(f"error: {one_line(line)}")
            raise typer.Exit(UNMET if isinstance(error, UnmetError) else FAILED) from None


def _readable(error: Any) -> Exception:
    """A usage error with its message on one line of readable length; a help text stays one."""
    if type(error).__name__ != "NoArgsIsHelpError":
        error.message = one_line(error.message)
    return error


def _show_traceback(error: BaseException) -> None:
    if debugging():
        say("".join(traceback.format_exception(error)).rstrip())


def line_for(error: BaseException) -> str | None:
    """What a user can do about an error; None for a bug, and for what is no error."""
    if isinstance(error, InputError):
        return error.whole if debugging() else str(error)
    if isinstance(error, OSError):
        return line_of(error)
    # torch's own class, named rather than imported: importing torch takes seconds.
    if type(error).__name__ in ("MemoryError", "OutOfMemoryError"):
        return "out of memory; try a smaller --batch-size, another --dtype or --device-map"
    return None


def line_of(error: OSError) -> str:
    """What the system said, and of which file, on one line.

    >>> line_of(FileNotFoundError(2, "No such file or directory", "prompts.txt"))
    'prompts.txt: No such file or directory'
    """
    what = " ".join((error.strerror or str(error) or type(error).__name__).split())
    return one_line(f"{os.fspath(error.filename)}: {what}" if error.filename else what)


def show_version(wanted: bool) -> bool:
    """Print the version and leave, if that is wanted."""
    if wanted:
        # Whether anybody could read it is looked at where the command line ends.
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
    epilog=EPILOG,
)


@app.callback()
def shared(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Print it.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print results and errors only.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show every decision, and tracebacks of errors.")
    ] = False,
) -> None:
    """Find, test and show the direction in a chat model that makes it refuse."""
    level = logging.ERROR if quiet else logging.INFO
    configure_logging(logging.DEBUG if debug else level)


app.command("run", epilog=EPILOG)(run.run)
app.command("report", epilog=EPILOG)(report.report)
app.command("chat", epilog=EPILOG)(chat.chat)
app.command("suffix", epilog=EPILOG)(suffix.suffix)
app.command("export", epilog=EPILOG)(export.export)
