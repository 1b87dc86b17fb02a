"""What random directions and random moves do, beside what r does."""

from __future__ import annotations

from refusal_lens.plotting.theme import NULLS
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.markup import Cell, Section, numeric, paragraph, plain, table

_HEAD = (
    "edit",
    "instructions",
    "prompts",
    "draws",
    "refusal rate",
    "lowest",
    "highest",
    "mean metric",
    "SD",
)
_EFFECTS = (("harmful", "ablation", "r ablated"), ("harmless", "addition", "r added"))
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
    rows = [
        _effect(run.rates[kind][condition], kind, words)
        for kind, condition, words in _EFFECTS
        if condition in run.rates.get(kind, {})
    ]
    n_effects = len(rows)
    for (null, kind), draws in nulls.groupby(["null", "kind"], sort=False):
        rates = draws["refusal_rate"]
        metric = draws["metric"] if "metric" in draws else rates * float("nan")
        prompts = float(draws["n"].max()) if "n" in draws else None
        cells = [plain(NULLS.get((str(null), str(kind)), null)), plain(kind)]
        cells += [numeric(prompts, 0), numeric(len(draws), 0)]
        cells += [numeric(value) for value in (rates.mean(), rates.min(), rates.max())]
        rows.append([*cells, numeric(metric.mean()), numeric(metric.std(ddof=0))])
    css = ["effect"] * n_effects
    parts = (paragraph(_TEXT), table(_HEAD, rows, css="data", row_css=css))
    return Section("nulls", "Nulls", parts)


def _effect(score: Rate, kind: str, words: str) -> list[Cell]:
    none = [numeric(None) for _ in range(4)]
    counts = [numeric(score.get("n"), 0), numeric(None)]
    return [plain(words), plain(kind), *counts, numeric(score["rate"]), *none]
