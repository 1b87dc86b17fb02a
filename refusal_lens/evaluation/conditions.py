"""The conditions that a run measures: the plain model, and the model under each edit."""

from __future__ import annotations

from typing import NamedTuple


class Condition(NamedTuple):
    """What one condition is called: in full, and as an edit of the direction r."""

    text: str
    edit: str


CONDITIONS = {
    "baseline": Condition("no intervention", ""),
    "ablation": Condition("directional ablation", "r ablated"),
    "addition": Condition("activation addition (+r)", "r added"),
    "subtraction": Condition("activation subtraction (\u2212r)", "r subtracted"),
}
OF_KIND = (("baseline", "ablation", "subtraction"), ("baseline", "ablation", "addition"))
"""The conditions of the positive prompts and those of the negative ones."""


def condition_text(condition: str) -> str:
    """A condition in full; an unknown one as it is named."""
    return CONDITIONS[condition].text if condition in CONDITIONS else condition
