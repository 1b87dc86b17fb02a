"""The suffix study: how an adversarial suffix keeps the heads from writing the direction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from ...behaviours import LogitBehaviour
from ...conversations import row_of_prompt
from ...display import shown
from ...door import checked
from ...errors import InputError
from ...plotting.tokens import attention_view, contribution_view
from ...progress import Progress
from ...report.entry import Entry
from ...report.sections import suffix as section
from ...runs import OpenStep, Table
from ...runs.schema import Count, Layer, Number
from ...runs.tables import COUNT, MOST_LAYERS
from ...studies.suffix import SuffixStudy, organism_suffix, study_suffix
from ...studies.suffix.suffixes import checked_suffix
from ..step import Step
from .behaviour import Kept
from .completions import Rate

if TYPE_CHECKING:
    from ..finding import SavedFinding


FIGURES = (
    "suffix_cosine",
    "suffix_behaviour",
    "suffix_heads",
    "suffix_attention",
    "suffix_sources",
    "suffix_effects",
    "suffix_effects_score",
    "suffix_losses",
    "suffix_projection_map",
    "suffix_contribution_map",
)


@shown()
@checked
@dataclass(frozen=True)
class SuffixConfig:
    """Every setting of the suffix study; the names are those of the options of `refusal-lens suffix`.

    suffix: None is the bundled one, for runs on the organism. n_heads, max_new_tokens: None as in
    `study_suffix`. Raises InputError for a suffix without text.
    """

    suffix: str | None = None
    n_heads: int | None = None
    n_random_sets: int = 8
    seed: int = 0
    max_new_tokens: int | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.suffix is not None:
            checked_suffix(self.suffix)


@dataclass(frozen=True)
class SuffixJob:
    """A finished run and what its study is asked to do."""

    finding: SavedFinding
    config: SuffixConfig
    on_progress: Progress | None = None

    @property
    def suffix(self) -> str:
        """The suffix as asked, else the bundled one. Raises InputError for another model without one."""
        model = self.finding.settings["model"]
        if self.config.suffix is not None:
            return self.config.suffix
        if model != "organism":
            raise InputError(
                f"suffix for {model}: none given, and the bundled one is the organism's; "
                "name --suffix or --suffix-file"
            )
        return organism_suffix()


class Suffixed(Struct):
    """A line of suffix/completions.jsonl."""

    condition: str
    prompt: Count
    instruction: str
    response: str
    shows: bool | None = None
    score: Number = None


class Condition(Struct):
    """One condition of the suffix study."""

    rate: Rate
    dfa: Number
    attention: dict[str, Number]
    n: Count | None = None
    score: Number = None
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


class TokenRows(Struct):
    """An entry of suffix/tokens.json; a row of numbers has one for each token."""

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



def work(job: SuffixJob, step: OpenStep) -> None:
    """The study of the run's own model, direction and test prompts."""
    finding, test = job.finding, job.finding.contrast.test
    options = asdict(job.config) | {"suffix": job.suffix}
    direction, behaviour = finding.direction, finding.behaviour
    if not isinstance(behaviour, LogitBehaviour):
        raise InputError(
            f"behaviour of the suffix study: got {behaviour.name!r}, which is scored by replies; need one that a "
            "prompt's last token decides"
        )
    study = study_suffix(
        finding.model,
        direction,
        prompts=dict(zip(finding.contrast.kinds, (test.positive, test.negative), strict=True)),
        behaviour=behaviour,
        on_progress=job.on_progress,
        **options,
    )
    _write(step, study)


def inputs(job: SuffixJob) -> dict[str, Any]:
    """The settings that change numbers."""
    options = asdict(job.config) | {"suffix": job.suffix, "dtype": job.finding.dtype}
    del options["batch_size"]
    return options


def _write(step: OpenStep, study: SuffixStudy) -> None:
    step.write_json("suffix/summary.json", study.summary())
    step.write_csv("suffix/values.csv", study.frame())
    step.write_csv("suffix/effects.csv", study.effects)
    step.write_csv("suffix/lost.csv", study.lost())
    step.write_jsonl(
        "suffix/completions.jsonl",
        [
            {
                "condition": name,
                "prompt": i,
                **row_of_prompt(completion.prompt),
                "response": completion.response,
                "shows": completion.shows,
                "score": completion.score,
            }
            for name, measured in study.conditions.items()
            for i, completion in enumerate(measured.completions)
        ],
    )
    by_token = study.by_token()
    plain = [{k: v for k, v in rows.items() if k != "pattern"} for rows in by_token]
    step.write_json("suffix/tokens.json", plain)
    for rows in by_token:
        if rows["prompt"] == 0:
            name = rows["condition"].replace(" + ", "_").replace(" ", "_")
            step.write_text(f"suffix/attention_{name}.html", attention_view(rows))
            step.write_text(f"suffix/tokens_{name}.html", contribution_view(rows))


STEPS = (
    Step(
        "suffix",
        work,
        ("behaviour", "selection"),
        inputs,
        files={
            "suffix/summary.json": SuffixSummary,
            "suffix/tokens.json": list[TokenRows],
            "suffix/completions.jsonl": Suffixed,
            "suffix/values.csv": Table(
                {"prompt": COUNT},
                ("layer", "head", "value"),
                ("condition", "quantity", "region"),
                filled=True,
            ),
            "suffix/effects.csv": Table(
                {"prompt": COUNT},
                ("projection", "score"),
                ("condition", "edit", "heads"),
                filled=True,
            ),
            "suffix/lost.csv": Table({}, ("attention lost", "DFA lost", "score lost"), filled=True),
        },
        sections=(Entry(70, "suffix study", "suffix/", section.render, FIGURES, optional=True),),
        addition=True,
    ),
)
