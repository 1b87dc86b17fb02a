"""The command `refusal-lens`: arguments in, verbs called, one line when something is wrong.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Exit codes are
in `codes`; everything printed goes through `output`.
"""

from __future__ import annotations

import gc
import sys

OBJECTS = 100_000
"""New objects between two looks for garbage: at Python's 700, imports alone look for a second."""


def main() -> None:
    """Run the command line of this process, then exit."""
    gc.set_threshold(OBJECTS)
    from refusal_lens.cli.codes import INTERRUPTED
    from refusal_lens.cli.output import guard, say

    guard()
    try:
        from refusal_lens.cli.shell import app

        app(prog_name="refusal-lens")
    except KeyboardInterrupt:
        # Before the command began, or while it was ending.
        say("interrupted")
        sys.exit(INTERRUPTED)
