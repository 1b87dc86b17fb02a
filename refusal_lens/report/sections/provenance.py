"""What the run was made with: summary and manifest, as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Section, plain, table

_LONGEST = 600


def render(run: RunFolder) -> Section | None:
    """A table of dotted names for each of the two files."""
    parts: list[Html] = []
    for name, values in (("summary.json", run.summary), ("manifest.json", run.manifest)):
        if values:
            rows = [[plain(key), plain(value)] for key, value in _flat(values)]
            body = table(("name", "value"), rows, css="names").source
            parts.append(Html(f"<details open><summary>{name}</summary>{body}</details>"))
    return Section("provenance", "Provenance", tuple(parts)) if parts else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        shown = value if value.isprintable() and value.strip() else json.dumps(value)
    elif isinstance(value, float):
        shown = f"{value:.6g}"
    else:
        shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}\u2026"
