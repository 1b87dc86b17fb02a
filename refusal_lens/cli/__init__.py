"""The command `refusal-lens`: arguments in, verbs called, one line when something is wrong.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Exit codes: 0
done, 1 failed with one line that says why, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations

import gc

OBJECTS = 100_000
"""New objects between two looks for garbage: at Python's 700, imports alone look for a second."""


def main() -> None:
    """Run the command line of this process, then exit."""
    gc.set_threshold(OBJECTS)
    from refusal_lens.cli.shell import app

    app(prog_name="refusal-lens")
