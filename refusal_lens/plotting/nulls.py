"""What the nulls of a run are called, in every place that shows them."""

from __future__ import annotations

from typing import NamedTuple

_DIRECTION = "the effect is not special to this direction"
_SIZE = "the size of the move alone may explain it"


class Null(NamedTuple):
    """A null on one kind of prompts (side 0 positive, 1 negative) and its names.

    text: in a table. tick: at an axis. instead: in a sentence. doubt: what it means where it does as much as r.
    """

    name: str
    side: int
    text: str
    tick: str
    instead: str
    doubt: str


NULLS = (
    Null(
        "random_direction", 0, "random direction ablated", "Null: random<br>direction ablated",
        "random directions ablated instead", _DIRECTION,
    ),
    Null(
        "norm_matched_move", 0, "random move as large as ablation\u2019s",
        "Null: random<br>move, equal size", "random moves as large as the ablation\u2019s", _SIZE,
    ),
    Null(
        "norm_matched_move", 1, "random move of norm \u2016r\u2016 added",
        "Null: random<br>move, norm \u2016r\u2016", "random moves as large as r", _SIZE,
    ),
)  # fmt: skip


def null_of(name: str, side: int) -> Null | None:
    """The null of this name on one kind of prompts; None for one that is not known."""
    return next((null for null in NULLS if (null.name, null.side) == (name, side)), None)
