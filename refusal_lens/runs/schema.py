"""What each file of a run must hold, known by its name; the one place where types are checked.

More fields than these are allowed, as a later version or a study may write them; a missing field
without a default, another type, or a number out of bounds is one clear line.
"""

from __future__ import annotations

import re
from pathlib import Path
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
    asked: dict[str, str | None] = {}


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


class Selected(Struct):
    """The selected candidate."""

    layer: Layer
    position: Position | None = None
    place: str | None = None
    position_name: str | None = None
    norm: Number = None


class Rate(Struct):
    """A refusal rate."""

    rate: Share | None
    se: Number = None
    n: Number = None


class Kept(Struct):
    """How many prompts behaved as their kind should."""

    kept: Count
    of: Count


class Loss(Struct):
    """Cross-entropy of one condition."""

    ce: Number = None
    perplexity: Number = None
    n_tokens: Number = None


class Flag(Struct):
    """What a reviewer would object to."""

    name: str
    text: str


class Agreement(Struct):
    """Whether the rule takes what a reference run took."""

    agrees: bool | None = None
    verdict: str = ""
    files: list[str] = []
    missing: list[str] = []
    notes: list[str] = []


class Summary(Struct):
    """summary.json; what a run did not come to is null or absent."""

    model: str | None = None
    revision: str | None = None
    n_layers: Annotated[int, Meta(ge=1, le=MOST_LAYERS)] | None = None
    d_model: Annotated[int, Meta(ge=1, le=10**9)] | None = None
    dtype: str | None = None
    device: str | None = None
    refusal_tokens: list[TokenId] | None = None
    refusal_token_texts: list[str] | None = None
    positions: list[str] | None = None
    selected: Selected | None = None
    scores: dict[str, Number] | None = None
    not_selected: str | None = None
    baseline: dict[str, Number] | None = None
    refusal_rate: dict[str, dict[str, Rate]] | None = None
    nulls: dict[str, dict[str, dict[str, Number]]] | None = None
    losses: dict[str, Loss] | None = None
    n_candidates: Count | None = None
    n_passing: Count | None = None
    kept_prompts: dict[str, dict[str, Kept]] | None = None
    thresholds: dict[str, Number] | None = None
    seconds: dict[str, Seconds] | None = None
    flags: list[Flag] | None = None
    reference: Agreement | None = None
    schema_version: Count | None = None
    version: str | None = None


class Tokens(Struct):
    """The refusal tokens in behaviour.json."""

    ids: list[TokenId]
    texts: list[str] = []
    source: str = ""


class Behaviour(Struct):
    """behaviour.json."""

    refusal_tokens: Tokens | None
    model: dict[str, Any]
    kept_prompts: dict[str, dict[str, Kept]] | None = None
    baseline: dict[str, Number] | None = None


class Prompt(Struct):
    """A line of prompts.jsonl."""

    split: str
    kind: str
    instruction: str
    kept: bool
    metric: Number = None


class Completion(Struct):
    """A line of completions/*.jsonl."""

    instruction: str
    response: str
    refusal: bool | None = None
    refusal_exact: bool | None = None
    metric: Number = None
    reply_ids: list[TokenId] | None = None


class Suffixed(Struct):
    """A line of suffix/completions.jsonl."""

    condition: str
    prompt: Count
    instruction: str
    response: str
    refusal: bool | None = None
    metric: Number = None


class Condition(Struct):
    """One condition of the suffix study."""

    refusal_rate: Rate
    dfa: Number
    attention: dict[str, Number]
    n: Count | None = None
    metric: Number = None
    cosine: Number = None
    projection: Number = None


class Correlation(Struct):
    """How two losses go together over prompts."""

    first: str
    second: str
    pearson: Number
    spearman: Number
    n: Count


class AtLevel(Struct):
    """Layers at the harmless level."""

    n: Count
    of: Count


class Checks(Struct):
    """What the suffix study checked of itself."""

    instruction_unchanged: float
    attribution_error: float


class SuffixSummary(Struct):
    """suffix/summary.json."""

    suffix: str
    layer: Layer
    heads: Annotated[list[str], Meta(min_length=1)]
    kept: dict[str, Kept]
    n_suffix_tokens: Annotated[list[Count], Meta(min_length=1)]
    merged_at_border: Count
    conditions: dict[str, Condition]
    layers_at_harmless_level: AtLevel
    correlations: list[Correlation]
    checks: Checks
    model: str | None = None
    seed: Count | None = None


class Story(Struct):
    """An entry of suffix/stories.json; a row of numbers has one for each token."""

    condition: str
    prompt: Count
    tokens: Annotated[list[str], Meta(min_length=1)]
    regions: list[str]
    heads: list[str]
    projection: Annotated[list[list[Number]], Meta(min_length=1, max_length=MOST_LAYERS)]
    contribution: list[list[Number]]

    def __post_init__(self) -> None:
        n = len(self.tokens)
        rows: list[Any] = [self.regions, *self.projection, *self.contribution]
        if any(len(row) != n for row in rows) or len(self.contribution) != len(self.heads):
            raise ValueError("Expected as many numbers as tokens and rows as heads")


class ParityRow(Struct):
    """Hooks against files, in one quantity."""

    quantity: str
    kind: str
    hooks: Number
    files: Number
    difference: Number
    allowed: Number
    equal: bool | None = None


class Export(Struct):
    """exports/*.json."""

    to: str
    edit: str
    strength: float
    norm_preserving: bool
    exactness: str | None
    left_unedited: list[str]
    notes: list[str]
    parity: list[ParityRow] | None
    made: str
    out: str = ""


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


_FORMS: dict[str, Any] = {
    "run.json": Mark,
    "manifest.json": Whole,
    "summary.json": Summary,
    "behaviour.json": Behaviour,
    "prompts.jsonl": Prompt,
    "suffix/summary.json": SuffixSummary,
    "suffix/stories.json": list[Story],
    "suffix/completions.jsonl": Suffixed,
}
_FOLDERS: dict[str, Any] = {
    "steps/*.json": StepFile,
    "completions/*.jsonl": Completion,
    "exports/*.json": Export,
}


def form_of(path: Path) -> Any:
    """The form of a file of a run, by its name and its folder's; None for what is not known."""
    path = Path(path)
    inside, every = f"{path.parent.name}/{path.name}", f"{path.parent.name}/*{path.suffix}"
    return _FORMS.get(inside) or _FOLDERS.get(every) or _FORMS.get(path.name)


def checked(value: Any, path: Path, *, row: int | None = None) -> Any:
    """The value, as it is, when it has the form of the file that it was read from.

    Raises:
        InputError: it has not, or is nested without reason.

    """
    where = f"{path}" if row is None else f"{path} line {row}"
    if isinstance(value, dict | list) and _is_deeper(value, DEEPEST):
        raise InputError(f"{where}: got more than {DEEPEST} levels of nesting; make it again")
    form = form_of(path)
    if form is not None:
        try:
            msgspec.convert(value, form)
        except msgspec.ValidationError as error:
            raise InputError(f"{where}: {_said(str(error))}; make it again") from error
    return value


def converted(value: Any, form: Any, where: str) -> Any:
    """A value, or JSON text, as the form's own type.

    Raises:
        InputError: it has another form, or the text is no JSON.

    """
    try:
        read = msgspec.json.decode(value) if isinstance(value, str) else value
        return msgspec.convert(read, form)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_said(str(error))}; make it again") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"{where}: got a header that is not JSON; make it again") from error


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            item
            for each in level
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, dict | list)
        ]
        if not level:
            return False
    return True


def _said(error: str) -> str:
    """What msgspec says, in this package's order of words.

    >>> _said("Expected `int | null`, got `str` - at `$.n_layers`")
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
    return what[:120] + (f" at {where[1][:80]}" if where else "")
