"""The measurements of a run, a file each: whatever module here has STEPS is one.

Files, sections and the form of the summary follow from the steps, so that a new measurement is a new module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from msgspec import defstruct

from ...report.entry import Entry
from ...runs import Forms
from ..step import Step

SELECTION, OUTCOME = "selection", "summary"
"""The step that selects a direction, and the last one of a run, which builds on all others."""


def _steps() -> Iterator[Step]:
    for module in sorted(module.name for module in iter_modules(__path__)):
        yield from import_module(f"{__name__}.{module}").STEPS


def _in_order(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Steps behind those that they build on: those of the selection, those without direction, others, the outcome."""
    named = {step.name: step for step in sorted(steps, key=lambda step: step.needs_direction)}
    ordered: dict[str, Step] = {}

    def place(name: str) -> None:
        for before in named[name].after:
            place(before)
        ordered.setdefault(name, named[name])

    for name in (SELECTION, *(name for name in named if name != OUTCOME), OUTCOME):
        place(name)
    return tuple(ordered.values())


def _summary_form(steps: Sequence[Step]) -> Any:
    """The form of summary.json: what a run did not come to is null or absent."""
    forms = {name: form for step in steps for name, form in step.summary_forms.items()}
    return defstruct("Summary", [(name, form | None, None) for name, form in forms.items()])


ALL = tuple(_steps())
STEPS = _in_order([step for step in ALL if not step.addition])
"""The steps of the main job in their order; names may hold those of the kinds."""
FORMS = Forms(
    {name: form for step in ALL for name, form in step.files.items()}
    | {"summary.json": _summary_form(ALL)}
)
SECTIONS: tuple[Entry, ...] = tuple(
    sorted(
        {entry.rank: entry for step in ALL for entry in step.sections}.values(),
        key=lambda entry: entry.rank,
    )
)
"""The sections of the page in reading order."""
