"""Refusal rates with their standard errors, beside chance."""

from __future__ import annotations

from refusal_lens.plotting import refusal_rates
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_CAPTION = (
    "Share of replies that contain a refusal phrase. Bars: one standard error, "
    "sqrt(p(1\u2212p)/n), which is zero at p = 0 and p = 1."
)
_CHANCE = " Grey: chance, the mean over random draws, each draw a dot."


def render(run: RunFolder) -> Section | None:
    """Grouped bars of the summary's rates, with the draws of nulls.csv where there are any."""
    if not run.rates:
        return None
    nulls = run.table("nulls.csv")
    caption = _CAPTION if nulls is None else _CAPTION + _CHANCE
    plot = Plot("refusal_rates", refusal_rates(run.rates, nulls), caption)
    return Section("refusal", "Refusal rates", (plot,))
