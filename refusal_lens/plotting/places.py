"""The places of a table's candidates or curves: their order, and how figures and pages name them."""

from __future__ import annotations

import re

import pandas as pd

from refusal_lens.plotting import theme

_POST = re.compile(r"post\[(-\d+)\]")


def places_of(table: pd.DataFrame) -> pd.Series:
    """The place of each row; a table without such a column is one of post-instruction positions.

    >>> places_of(pd.DataFrame({"position": [-2, -1]})).tolist()
    ['post[-2]', 'post[-1]']
    """
    if "place" in table:
        return table["place"].astype(str)
    return "post[" + table["position"].astype(str) + "]"


def post_position(place: str) -> int | None:
    """The negative position of a post-instruction token, None for any other place.

    >>> post_position("post[-3]"), post_position("t_inst")
    (-3, None)
    """
    match = _POST.fullmatch(place)
    return int(match[1]) if match else None


def in_order(table: pd.DataFrame) -> list[str]:
    """The places of a table, once each: post-instruction tokens from the last one back, then the others.

    >>> in_order(pd.DataFrame({"place": ["t_inst", "post[-2]", "post[-1]"]}))
    ['post[-1]', 'post[-2]', 't_inst']
    """
    places = list(dict.fromkeys(places_of(table)))
    positions = {place: post_position(place) for place in places}
    post = [place for place in places if positions[place] is not None]
    others = [place for place in places if positions[place] is None]
    return [*sorted(post, key=lambda place: -(positions[place] or 0)), *others]


def place_text(place: str) -> str:
    """A place as pages name it.

    >>> place_text("t_inst")
    't_inst'
    """
    position = post_position(place)
    return place if position is None else f"position {_minus(position)}"


def place_label(place: str, token: str = "") -> str:
    """A place at an axis or in a legend, with the token that is there in every prompt."""
    position = post_position(place)
    name = theme.label(place) if position is None else _minus(position)
    return f"{name}  {theme.label(token)}" if token else name


def tokens_of(table: pd.DataFrame) -> dict[str, str]:
    """Place to its token, "" where none is known."""
    names = table["position_name"] if "position_name" in table else [""] * len(table)
    return {
        place: "" if pd.isna(name) else str(name)
        for place, name in zip(places_of(table), names, strict=True)
    }


def _minus(position: int) -> str:
    return str(position).replace("-", "\u2212")
