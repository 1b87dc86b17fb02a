"""An entry of the page: a section with its place in the reading order and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Section


@dataclass(frozen=True)
class Entry:
    """A section's renderer, which gives None where the run lacks its data, and what to say then.

    rank: where it stands on the page, the lowest first. title and needs: its name and the file that it
    needs, as the page says them where it is missing. figures: the names of its figures. optional: it is
    not missed. of_a_direction: a run that selected no direction leaves it out.
    """

    rank: int
    title: str
    needs: str
    render: Callable[[RunFolder], Section | None]
    figures: tuple[str, ...] = ()
    optional: bool = False
    of_a_direction: bool = False
