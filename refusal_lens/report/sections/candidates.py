"""Every candidate with its scores and the reason why it was rejected."""

from __future__ import annotations

import pandas as pd

from refusal_lens.plotting import visible
from refusal_lens.plotting.places import places_of, post_position
from refusal_lens.report.facts import passing
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Cell, Html, Section, numeric, paragraph, plain, table, text

_HEAD = ("", "place", "token", "layer", "norm", "bypass", "induce", "KL", "verdict")
_SWITCH = Html(
    '<p class="tools"><label><input type="checkbox" class="filter" data-hide="rejected"> '
    "only candidates that pass</label></p>"
)


def render(run: RunFolder) -> Section | None:
    """A table that sorts and scrolls: those that pass first, by bypass score."""
    scores = run.table("candidates.csv")
    if scores is None:
        return None
    if "passes" not in scores:
        scores["passes"] = False
    ranked = scores.assign(place=places_of(scores)).sort_values(
        ["passes", "bypass"], ascending=[False, True], kind="stable"
    )
    rows, css = [], []
    for row in ranked.to_dict("records"):
        chosen = (row["place"], row["layer"]) == run.selected
        rows.append(_cells(row, chosen=chosen))
        css.append(" ".join(("chosen" * chosen, "" if row["passes"] else "rejected")).strip())
    taken = "; of those, the one of least bypass score is taken" if scores["passes"].any() else ""
    summary = f"{len(scores)} candidates, {passing(run)} pass the rule{taken}. A column head sorts."
    parts = (paragraph(summary), _SWITCH, table(_HEAD, rows, css="sortable data", row_css=css))
    return Section("candidates", "Candidates and reasons", parts)


def _cells(row: dict[str, object], *, chosen: bool) -> list[Cell]:
    reason = str(row.get("reason") or "")
    verdict = "passes" if row["passes"] else reason or "rejected"
    mark = Cell('<span title="selected">\u2605</span>' if chosen else "", 0 if chosen else 1)
    name = str(row.get("position_name") or "")
    return [
        mark,
        _place(str(row["place"])),
        plain(visible(name) if name else "\u2013"),
        numeric(_float(row["layer"]), 0),
        numeric(_float(row.get("norm")), 3),
        numeric(_float(row["bypass"]), 3),
        numeric(_float(row["induce"]), 3),
        numeric(_float(row["kl"]), 4),
        plain("selected" if chosen else verdict),
    ]


def _place(place: str) -> Cell:
    """A post-instruction token by its position, any other place by its name, which sorts after those."""
    position = post_position(place)
    return Cell(text(place), 1.0, True) if position is None else numeric(position, 0)


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and pd.notna(value) else None
