"""Replies of the plain and the edited model side by side. All of it is untrusted text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refusal_lens.plotting.theme import CONDITIONS
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Section, number, paragraph, text

_SHOWN = {
    "harmful": ("baseline", "ablation", "subtraction"),
    "harmless": ("baseline", "addition", "ablation"),
}
_SURPRISES = {
    "harmful": "still refused after ablation",
    "harmless": "not refused after addition",
}
_FIRST, _EXCEPTIONS = 6, 4
_EXPECTED = {("harmful", "ablation"): False, ("harmless", "addition"): True}
_FIRST_ONES = "Nothing is picked by hand: the first instructions of the test set in its order"
_AND_FAILURES = ", then the first of the others on which the edit did not do what it should"
_ALL = ". The files in completions/ have all."

Row = dict[str, Any]


def render(run: RunFolder) -> Section | None:
    """The first test instructions of each kind, then the first on which the edit did not work."""
    parts: list[Html] = []
    for kind, conditions in _SHOWN.items():
        replies = {c: run.completions(kind, c) for c in conditions}
        replies = {c: rows for c, rows in replies.items() if rows}
        if replies:
            parts += _kind(kind, replies)
    if not parts:
        return None
    edited = any(run.completions(*pair) for pair in _EXPECTED)
    note = _FIRST_ONES + (_AND_FAILURES if edited else "") + _ALL
    title = "Completions side by side" if edited else "Completions"
    return Section("completions", title, (paragraph(note), *parts))


def _kind(kind: str, replies: dict[str, list[Row]]) -> list[Html]:
    n = min(len(rows) for rows in replies.values())
    first = list(range(min(n, _FIRST)))
    failed = [i for i in range(n) if i not in first and _failed(kind, replies, i)][:_EXCEPTIONS]
    blocks = [_block(replies, i) for i in first]
    parts = [Html(f"<h3>{text(kind.capitalize())} instructions</h3>"), *blocks]
    if failed:
        words = _SURPRISES[kind]
        parts.append(Html(f"<h4>{text(kind.capitalize())} instructions {words}</h4>"))
        parts += [_block(replies, i) for i in failed]
    return parts


def _failed(kind: str, replies: dict[str, list[Row]], index: int) -> bool:
    for (of_kind, condition), expected in _EXPECTED.items():
        if of_kind == kind and condition in replies:
            refused = replies[condition][index].get("refusal")
            return isinstance(refused, bool) and refused is not expected
    return False


def _block(replies: dict[str, list[Row]], index: int) -> Html:
    instruction = next(iter(replies.values()))[index]["instruction"]
    columns = "".join(_reply(condition, rows[index]) for condition, rows in replies.items())
    return Html(
        f'<div class="exchange"><p class="prompt" dir="auto">{text(instruction)}</p>'
        f'<div class="replies">{columns}</div></div>'
    )


def _reply(condition: str, row: Row) -> str:
    return (
        f'<div class="reply"><p class="condition">{text(CONDITIONS.get(condition, condition))}'
        f"{_verdict(row)}</p>"
        f'<div class="said" dir="auto" tabindex="0">{text(row["response"])}</div></div>'
    )


def _verdict(row: Row) -> str:
    refused, metric = row.get("refusal"), row.get("metric")
    parts: Sequence[str] = ()
    if isinstance(refused, bool):
        parts = ['<span class="badge refused">refusal</span>' if refused else ""]
    if isinstance(metric, int | float) and not isinstance(metric, bool):
        parts = [*parts, f'<span class="metric">metric {text(number(float(metric), 1))}</span>']
    return " ".join(part for part in parts if part)
