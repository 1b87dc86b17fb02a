"""A step: one measurement as one value, of which its files, its part of the summary and its section derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..report.entry import Entry
from ..runs import OpenStep
from ..runs.forms import Form


def nothing(job: Any) -> Mapping[str, Any]:
    """No inputs, or no part of the summary."""
    return {}


def always(job: Any) -> bool:
    """Whatever the run is asked for."""
    return True


@dataclass(frozen=True)
class Step:
    """One measurement of a run, from its work to its section of the page.

    Each function takes the job, which has the run's settings and model and reads what earlier steps left.

    name: unique in a run; a name of a step, file or step before it may hold {positive} and {negative}, the names
    of the two kinds of prompts.
    work: takes the job and the open step, and writes the step's files.
    after: the steps whose files it reads. A step after "selection" needs a direction, and is left out where
    there is none.
    inputs: what else determines its results; a change of these, or of a step before it, does it again.
    wanted: whether the run is asked for it.
    files: what it writes, by name or pattern: the columns of a table, the form of JSON.
    summary: its keys of summary.json, with their forms in summary_forms; absent holds what these are in a run
    without it.
    sections: its sections of the page, with the names of their figures.
    addition: whether it is added to a finished run rather than a part of it.
    """

    name: str
    work: Callable[[Any, OpenStep], None]
    after: tuple[str, ...] = ()
    inputs: Callable[[Any], Mapping[str, Any]] = nothing
    wanted: Callable[[Any], bool] = always
    files: Mapping[str, Form] = field(default_factory=dict)
    summary: Callable[[Any], Mapping[str, Any]] = nothing
    summary_forms: Mapping[str, Form] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    sections: tuple[Entry, ...] = ()
    addition: bool = False

    @property
    def needs_direction(self) -> bool:
        """Whether it is left out of a run that selects no direction."""
        return "selection" in self.after

    def of(self, kinds: tuple[str, str]) -> Step:
        """The step with the kinds' names in its own and in those before it."""
        names = dict(zip(("positive", "negative"), kinds, strict=True))
        after = tuple(name.format(**names) for name in self.after)
        return replace(self, name=self.name.format(**names), after=after)
