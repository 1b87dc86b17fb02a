"""The one exception for input that cannot be used."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one complete line.

    The line says what was wrong, where, what is needed and what to try, so that the command line
    can print it as it stands and a notebook user can act on it.
    """
