"""What random directions and random moves do, beside what r does."""

from __future__ import annotations

import pandas as pd

from refusal_lens.evaluation.conditions import CONDITIONS
from refusal_lens.plotting.nulls import null_of
from refusal_lens.report.facts import scores_of
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Cell, Section, numeric, paragraph, plain, table

_EFFECTS = ("ablation", "addition")
"""The edit of each kind that the nulls are beside."""
_TEXT = (
    "Each null repeats the edit with directions drawn evenly from the sphere: ablated, or moved "
    "along by as much as ablating r moves, or added at r\u2019s layer with its norm. Lowest, "
    "highest and SD are over draws."
)


def render(run: RunFolder) -> Section | None:
    """A row per null and kind, after the rows of the effect itself."""
    nulls = run.table("nulls.csv")
    if nulls is None:
        return None
    effects = [row for side in (0, 1) if (row := _effect(run, side))]
    draws = [_draws(run, str(null), str(kind), rows) for (null, kind), rows in _groups(nulls)]
    head = _head(run)
    body = table(head, [*effects, *draws], css="data", row_css=["effect"] * len(effects))
    return Section("nulls", "Nulls", (paragraph(_TEXT), body))


def _head(run: RunFolder) -> tuple[str, ...]:
    words = run.words
    prompts = ("edit", "kind", words.prompts, "draws")
    return (*prompts, f"{words.noun} rate", "lowest", "highest", f"mean {words.number}", "SD")


def _groups(nulls: pd.DataFrame) -> list[tuple[tuple[str, str], pd.DataFrame]]:
    return list(nulls.groupby(["null", "kind"], sort=False))


def _draws(run: RunFolder, null: str, kind: str, draws: pd.DataFrame) -> list[Cell]:
    known = null_of(null, run.kinds.index(kind)) if kind in run.kinds else None
    rates, scores = draws["rate"], draws["score"]
    prompts = float(draws["n"].max()) if "n" in draws else None
    return [
        plain(known.text if known else null),
        plain(kind),
        numeric(prompts, 0),
        numeric(len(draws), 0),
        *(numeric(value) for value in (rates.mean(), rates.min(), rates.max())),
        numeric(scores.mean()),
        numeric(scores.std(ddof=0)),
    ]


def _effect(run: RunFolder, side: int) -> list[Cell]:
    """What the edit itself does on one kind of prompts; no cells where that was not measured."""
    condition = _EFFECTS[side]
    rate, scores = run.rates_of(side).get(condition, {}), scores_of(run, side, condition)
    if not rate and scores is None:
        return []
    n = rate.get("n", None if scores is None else float(scores.values.size))
    return [
        plain(CONDITIONS[condition].edit),
        plain(run.kinds[side]),
        numeric(n, 0),
        numeric(None),
        numeric(rate.get("rate")),
        numeric(None),
        numeric(None),
        numeric(None if scores is None else scores.mean),
        numeric(None),
    ]
