"""What JSON files of a run must hold: types and bounds, checked in one place.

The forms of what a measurement writes are its own; here are those that every run has. More fields are
allowed, as a later version may write them; a missing field without a default, another type, or a number
out of bounds is one clear line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from refusal_lens.errors import InputError
from refusal_lens.runs.tables import MOST_LAYERS

DEEPEST = 64
"""Levels of nesting that a file of a run may have."""

Layer = Annotated[int, Meta(ge=0, lt=MOST_LAYERS)]
Position = Annotated[int, Meta(ge=-MOST_LAYERS, le=-1)]
Count = Annotated[int, Meta(ge=0, le=10**12)]
TokenId = Annotated[int, Meta(ge=0, le=10**9)]
Share = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e12)]
Number = float | None
"""A number; NaN is written as null."""


class Output(Struct):
    """A file as its step left it."""

    sha256: str
    bytes: Annotated[int, Meta(ge=0)]


class StepFile(Struct):
    """steps/*.json."""

    step: str
    key: str
    inputs: dict[str, Any]
    after: dict[str, str]
    outputs: dict[str, Output]
    seconds: Seconds
    finished: str
    versions: dict[str, str]
    format: int


class Mark(Struct):
    """run.json."""

    format: int
    plan: dict[str, str | None] = {}


class Config(Struct):
    """The settings in manifest.json, as far as later commands read them."""

    model: str | UnsetType = UNSET
    revision: str | UnsetType | None = UNSET
    dtype: str | UnsetType | None = UNSET
    device: str | UnsetType | None = UNSET
    device_map: Any = None
    system: str | UnsetType | None = UNSET
    prefill: str | UnsetType = UNSET
    thinking: bool | UnsetType | None = UNSET


class DoneStep(Struct):
    """A step in manifest.json."""

    key: str
    seconds: Number = None


class Vouched(Output):
    """An output in manifest.json."""

    step: str


class Whole(Struct):
    """manifest.json, also that of a folder made of a reference run."""

    format: int | str | None = None
    config: Config | UnsetType = UNSET
    steps: dict[str, DoneStep] = {}
    outputs: dict[str, Vouched] = {}
    stale: dict[str, str] = {}
    versions: dict[str, str] = {}
    machine: dict[str, str] = {}


class CandidateFacts(Struct):
    """What the header of a candidates file says of where they come from."""

    site: str = "resid_pre"
    concept: str = "refusal"
    model: str = ""
    revision: str | None = None
    template_sha256: str = ""
    data_sha256: str = ""
    weights_sha256: str = ""
    more: dict[str, Any] = {}


class DirectionFacts(CandidateFacts, kw_only=True):
    """What the header of a direction file says."""

    layer: Layer
    position: Position | None = None
    place: str | None = None
    position_name: str = ""


def checked(value: Any, form: Any, where: str) -> Any:
    """The value, as it is, when it has this form; None allows any.

    Raises:
        InputError: it has not, or is nested without reason.

    """
    if isinstance(value, dict | list) and _is_deeper(value, DEEPEST):
        raise InputError(f"{where}: got more than {DEEPEST} levels of nesting; make it again")
    if form is not None:
        try:
            msgspec.convert(value, form)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {_reworded(str(error))}; make it again") from error
    return value


def converted(value: Any, form: Any, where: str, *, remedy: str = "make it again") -> Any:
    """A value, or JSON text, as the form's own type.

    Raises:
        InputError: it has another form, or the text is no JSON.

    """
    try:
        read = msgspec.json.decode(value) if isinstance(value, str) else value
        return msgspec.convert(read, form)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_reworded(str(error))}; {remedy}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{where}: got a header that is not JSON; make it again") from error


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _reworded(error: str) -> str:
    """What msgspec says, in this package's order of words.

    >>> _reworded("Expected `int | null`, got `str` - at `$.n_layers`")
    'got str, need int or null at n_layers'
    """
    where = re.search(r" - at `\$?\.?(.+?)`$", error)
    what = re.sub(r" - at `.*`$", "", error).replace("`", "").replace(" | ", " or ")
    wrong = re.fullmatch(r"Expected (.+), got (.+)", what)
    if wrong:
        what = f"got {wrong[2]}, need {wrong[1]}"
    elif what.startswith("Expected "):
        what = f"need {what.removeprefix('Expected ')}"
    elif what.startswith("Object missing required field "):
        what = f"got no {what.removeprefix('Object missing required field ')!r}, need it"
    elif what.startswith("Object contains unknown field "):
        what = f"got {what.removeprefix('Object contains unknown field ')!r}, which is not known"
    return what[:120] + (f" at {where[1][:80]}" if where else "")
