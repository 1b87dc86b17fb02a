"""How often replies show the behaviour, with standard errors, beside chance."""

from __future__ import annotations

from refusal_lens.plotting import rates_by_condition
from refusal_lens.plotting.labels import capital
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_CAPTION = (
    "Share of replies in which {judge} sees {noun}{unjudged}. Bars: one standard error, "
    "sqrt(p(1\u2212p)/n), which is zero at p = 0 and p = 1."
)
_CHANCE = " Grey: chance, the mean over random draws, each draw a dot."


def render(run: RunFolder) -> Section | None:
    """Grouped bars of the summary's rates, with the draws of nulls.csv where there are any."""
    if not run.rates:
        return None
    nulls = run.table("nulls.csv")
    out = any(rate.get("n_unjudged") for rates in run.rates.values() for rate in rates.values())
    caption = _CAPTION.format(
        judge=run.judge, noun=run.words.noun, unjudged=", of those that it judged" if out else ""
    )
    caption += "" if nulls is None else _CHANCE
    figure = rates_by_condition(run.rates, nulls, labels=run.labels)
    return Section("rates", f"{capital(run.words.noun)} rates", (Plot("rates", figure, caption),))
