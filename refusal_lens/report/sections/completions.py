"""Replies of the plain and the edited model side by side. All of it is untrusted text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusal_lens.evaluation.conditions import condition_text
from refusal_lens.plotting.labels import capital
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Section, number, paragraph, text

_SHOWN = (("baseline", "ablation", "subtraction"), ("baseline", "addition", "ablation"))
_EXPECTED = (("ablation", False), ("addition", True))
"""For each kind the edit that should work, and whether replies show the behaviour under it."""
_SURPRISES = ("that still show {noun} after ablation", "that show no {noun} after addition")
_FIRST, _EXCEPTIONS = 6, 4
_FIRST_ONES = "Nothing is picked by hand: the first {prompts} of the test set in its order"
_AND_FAILURES = ", then the first of the others on which the edit did not do what it should"
_ALL = ". The files in completions/ have all."

Row = dict[str, Any]


def render(run: RunFolder) -> Section | None:
    """The first test prompts of each kind, then the first on which the edit did not work."""
    parts: list[Html] = []
    for side, conditions in enumerate(_SHOWN):
        replies = {c: run.completions(run.kinds[side], c) for c in conditions}
        replies = {c: rows for c, rows in replies.items() if rows}
        if replies:
            parts += _kind(run, side, replies)
    if not parts:
        return None
    edited = any(
        run.completions(kind, condition)
        for kind, (condition, _) in zip(run.kinds, _EXPECTED, strict=True)
    )
    note = _FIRST_ONES.format(prompts=run.words.prompts) + (_AND_FAILURES if edited else "") + _ALL
    title = "Completions side by side" if edited else "Completions"
    return Section("completions", title, (paragraph(note), *parts))


def _kind(run: RunFolder, side: int, replies: dict[str, list[Row]]) -> list[Html]:
    n = min(len(rows) for rows in replies.values())
    condition, expected = _EXPECTED[side]
    shows = [_shows(run, row) for row in replies.get(condition, [])[:n]]
    failed = [i for i, shown in enumerate(shows) if i >= _FIRST and shown is (not expected)]
    title = capital(run.labels.prompts(side))
    parts = [Html(f"<h3>{text(title)}</h3>"), *(_block(run, replies, i) for i in range(min(n, _FIRST)))]
    if failed:
        surprise = _SURPRISES[side].format(noun=run.words.noun)
        parts.append(Html(f"<h4>{text(f'{title} {surprise}')}</h4>"))
        parts += [_block(run, replies, i) for i in failed[:_EXCEPTIONS]]
    return parts


def _shows(run: RunFolder, row: Row) -> bool | None:
    """Whether a reply shows the behaviour by its judge, or where there is none its prompt by the score."""
    score = row.get("score")
    if run.behaviour.get("judge") is not None or score is None:
        shows: bool | None = row.get("shows")
        return shows
    return bool(score > run.labels.threshold)


def _block(run: RunFolder, replies: dict[str, list[Row]], index: int) -> Html:
    columns = "".join(_reply(run, condition, rows[index]) for condition, rows in replies.items())
    return Html(
        f'<div class="exchange">{_prompt(next(iter(replies.values()))[index])}'
        f'<div class="replies">{columns}</div></div>'
    )


def _prompt(row: Row) -> str:
    """The instruction, or each message with its role where the prompt is a conversation."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return f'<p class="prompt" dir="auto">{text(row["instruction"])}</p>'
    return "".join(
        f'<p class="prompt" dir="auto"><span class="role">{text(message.get("role", ""))}</span> '
        f"{text(message.get('content', ''))}</p>"
        for message in messages
        if isinstance(message, Mapping)
    )


def _reply(run: RunFolder, condition: str, row: Row) -> str:
    return (
        f'<div class="reply"><p class="condition">{text(condition_text(condition))}'
        f"{_verdict(run, row)}</p>"
        f'<div class="said" dir="auto" tabindex="0">{text(row["response"])}</div></div>'
    )


def _verdict(run: RunFolder, row: Row) -> str:
    """A badge where the reply shows the behaviour or has no verdict from its judge, then the score."""
    shows, score, parts = row.get("shows"), row.get("score"), []
    if shows is True:
        parts.append(f'<span class="badge shows">{text(run.words.noun)}</span>')
    elif shows is None and run.behaviour.get("judge") is not None:
        parts.append('<span class="badge">not judged</span>')
    if isinstance(score, int | float) and not isinstance(score, bool):
        parts.append(
            f'<span class="metric">{text(run.words.number)} {text(number(float(score), 1))}</span>'
        )
    return " ".join(parts)
