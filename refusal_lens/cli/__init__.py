"""The command `refusal-lens`: arguments in, verbs called, one line when something is wrong.

Nothing heavy is imported before a command runs, so that `--help` answers at once. Exit codes: 0
done, 1 failed with one line that says why, 2 bad usage, 130 interrupted.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process, then exit."""
    from refusal_lens.cli.shell import app

    app(prog_name="refusal-lens")
