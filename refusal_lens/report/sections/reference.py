"""Whether the rule takes what the reference implementation took; only in pages made of its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Section, paragraph, plain, table


def render(run: RunFolder) -> Section | None:
    """The verdict in a sentence, then the facts behind it."""
    facts = run.value("reference")
    if not isinstance(facts, Mapping):
        return None
    known = {name: facts[key] for key, name in _FACTS.items() if key in facts}
    rows = [[plain(name), plain(_words(value))] for name, value in known.items()]
    parts = (paragraph(facts.get("verdict", "")), table(("fact", "value"), rows, css="names"))
    return Section("reference", "Agreement with the reference", parts)


_FACTS = {
    "folder": "run folder",
    "files": "files read",
    "missing": "files not there",
    "direction_is_mean_diff": "direction.pt equals its row of mean_diffs.pt",
    "notes": "notes",
}


def _words(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "not known"}[value]
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    return str(value)
