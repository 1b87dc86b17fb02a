"""Exports of the direction: what was edited, and whether the files equal the hooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from refusal_lens.errors import InputError
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Cell, Html, Section, numeric, paragraph, plain, table, text

_TEXT = (
    "Weights orthogonalised to the direction, or with it added as a bias, and files for other tools. "
    "Edited weights are for research on models that one may modify; nothing is uploaded."
)
_PARITY = (
    "Hooks against files, on the first test prompts of each kind. Where a difference is allowed it "
    "covers rounding to the checkpoint\u2019s dtype, or what a norm behind an output leaves; an export "
    "beyond it fails. For the mean {score} the difference is the largest of any prompt."
)
_WRITERS = (
    "Every parameter that writes to the residual stream, found by following the stream back through a "
    "recorded forward pass, and what the last export of weights did with it."
)


_EARLIER = "made with an earlier direction"


def render(run: RunFolder) -> Section | None:
    """A table of exports, a parity table for each that was checked, and the map of writers.

    Those of an earlier direction are in the table alone, and marked.
    """
    paths = run.made("exports", ".json")
    earlier = {name for name in paths if f"exports/{name}.json" in run.outdated}
    if not paths:
        return None
    try:
        entries = {name: run.forms.read(run.path, f"exports/{name}.json") for name in paths}
        current = {name: entry for name, entry in entries.items() if name not in earlier}
        parts = [paragraph(_TEXT), _overview(entries, earlier), *_parities(current, run.words.score)]
        parts += _writers(run, current)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"exports at {run.path / 'exports'}: damaged ({type(error).__name__} {error}); try "
            "refusal-lens export again"
        ) from error
    return Section("exports", "Edited weights and other exports", tuple(parts))


def _overview(entries: Mapping[str, Mapping[str, Any]], earlier: Set[str]) -> Html:
    rows = [
        [
            plain(name),
            plain(entry["to"]),
            plain(_edit(entry)),
            plain(entry["exactness"] or ""),
            plain("; ".join([*[_EARLIER] * (name in earlier), *entry["notes"], *entry["left_unedited"]])),
            plain(_verdict(entry["parity"])),
        ]
        for name, entry in entries.items()
    ]
    heads = ("export", "format", "edit", "class", "notes", "hooks = files")
    return table(heads, rows, css="data")


def _edit(entry: Mapping[str, Any]) -> str:
    edit = str(entry["edit"])
    if entry["strength"] != 1:
        edit += f" x {entry['strength']:g}"
    return edit + (", norm-preserving" if entry["norm_preserving"] else "")


def _verdict(rows: Sequence[Mapping[str, Any]] | None) -> str:
    if rows is None:
        return "not checked"
    asked = [row for row in rows if row["allowed"] is not None]
    if not asked:
        return "shown only"
    return "yes" if all(row["equal"] for row in asked) else "no"


def _parities(entries: Mapping[str, Mapping[str, Any]], score: str) -> list[Html]:
    parts: list[Html] = []
    for name, entry in entries.items():
        if entry["parity"]:
            parts += [Html(f"<h3>{text(name)}: hooks against files</h3>"), _parity(entry["parity"])]
    return [paragraph(_PARITY.format(score=score)), *parts] if parts else []


def _parity(rows: Sequence[Mapping[str, Any]]) -> Html:
    body = [
        [
            plain(row["quantity"]),
            plain(row["kind"]),
            _small(row["hooks"]),
            _small(row["files"]),
            _small(row["difference"]),
            _small(row["allowed"]),
        ]
        for row in rows
    ]
    heads = ("quantity", "prompts", "hooks", "files", "difference", "allowed")
    return table(heads, body, css="data")


def _small(value: float | None) -> Cell:
    """A number of any size: four digits, with an exponent where that is shorter."""
    if value is None:
        return Cell("", float("inf"), True)
    return Cell(text(f"{value:.4g}".replace("-", "\u2212")), value, True)


def _writers(run: RunFolder, entries: Mapping[str, Mapping[str, Any]]) -> list[Html]:
    """The map of writers of the export that was made last, of those that have one."""
    made = [name for name in run.made("exports", ".writers.csv") if name in entries]
    if not made:
        return []
    last = max(made, key=lambda name: str(entries[name]["made"]))
    frame = run.forms.read(run.path, f"exports/{last}.writers.csv")
    rows = [
        [
            plain(row["parameter"]),
            numeric(row["layer"], 0),
            plain(row["role"]),
            plain(row["shape"]),
            plain(row["treatment"]),
            plain(row["why"]),
        ]
        for row in frame.to_dict("records")
    ]
    heads = ("parameter", "layer", "role", "shape", "treatment", "why")
    return [
        Html("<h3>Coverage</h3>"),
        paragraph(_WRITERS),
        Html(f"<details><summary>{len(rows)} rows</summary>"),
        table(heads, rows, css="data sortable"),
        Html("</details>"),
    ]
