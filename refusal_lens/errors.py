"""The exceptions that are for people: input that cannot be used, and requirements that do not hold."""

from __future__ import annotations

LONGEST = 400
"""Letters of the longest message; the middle of a longer one is left out."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one complete line.

    The line says what was wrong, where, what is needed and what to try, so that the command line
    can print it as it stands and a notebook user can act on it.

    >>> len(str(InputError("file " + "x" * 5000 + ": cannot be read")))
    400
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
        self.whole = message


class UnmetError(InputError):
    """What was asked for was measured, and a requirement on it does not hold."""


def one_line(message: str) -> str:
    r"""A message on one line of readable length.

    >>> one_line("no such\nfile")
    'no such file'
    """
    line = " ".join(message.split("\n"))
    if len(line) <= LONGEST:
        return line
    kept = LONGEST - len(" ... ")
    return f"{line[: kept * 2 // 3]} ... {line[-(kept - kept * 2 // 3) :]}"
