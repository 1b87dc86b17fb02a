"""The exceptions that are for people: input that cannot be used, and requirements that do not hold."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one complete line.

    The line says what was wrong, where, what is needed and what to try, so that the command line
    can print it as it stands and a notebook user can act on it.
    """


class UnmetError(InputError):
    """What was asked for was measured, and a requirement on it does not hold."""
