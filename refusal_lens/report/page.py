"""A run folder to one HTML file that opens anywhere, offline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from refusal_lens import __version__
from refusal_lens.plotting.places import post_position
from refusal_lens.plotting.policy import content_policy
from refusal_lens.report.claim import Claim, make_claim
from refusal_lens.report.entry import Entry
from refusal_lens.report.facts import not_selected, passing
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Plot, Section, number, paragraph, text
from refusal_lens.report.style import DRAW, STYLE, TABLES
from refusal_lens.runs import write_text
from refusal_lens.runs.opening import place_in, read_bytes

_PLOTLY_FILE = "plotly.min.js"


def write_page(run: RunFolder, entries: Sequence[Entry]) -> Path:
    """Write report.html with these sections, and figures/, into a run's folder; returns the page's path.

    Raises:
        InputError: a file that a section reads is damaged.
        OSError: the folder cannot be written.

    """
    sections, missing = render_sections(run, entries)
    _write_figures(run.path / "figures", sections)
    page = place_in(run.path, "report.html")
    write_text(page, _page(run, make_claim(run), sections, missing))
    return page


def render_sections(
    run: RunFolder, entries: Sequence[Entry]
) -> tuple[list[Section], list[str]]:
    """The sections that the run has data for, and for each other one what it would need.

    What a run left out because it selected no direction is a section of its own, with the reason.
    """
    sections: list[Section] = []
    missing: list[str] = []
    left_out: list[str] = []
    for entry in entries:
        section = entry.render(run)
        if section is not None:
            sections.append(section)
        elif entry.of_a_direction and not_selected(run):
            left_out.append(entry.title)
        elif not entry.optional:
            missing.append(f"{entry.title} (needs {entry.needs})")
    if left_out:
        sections.insert(-1 if sections else 0, _left_out(left_out, not_selected(run)))
    return sections, missing


def _left_out(titles: Sequence[str], reason: str) -> Section:
    parts = (
        paragraph(f"No direction is selected, so that these were left out: {', '.join(titles)}."),
        paragraph(f"The reason: {reason}", css="warning"),
    )
    return Section("left_out", "Not measured", parts)


def _plots(sections: Sequence[Section]) -> Iterator[Plot]:
    for section in sections:
        yield from (part for part in section.parts if isinstance(part, Plot))


def _write_figures(folder: Path, sections: Sequence[Section]) -> None:
    plots = list(_plots(sections))
    _remove_figures(folder, {plot.name for plot in plots})
    if not plots:
        return
    write_text(folder / _PLOTLY_FILE, _plotly_js())
    for plot in plots:
        scripts = f'<script src="{_PLOTLY_FILE}"></script><script>{DRAW}</script>'
        body = f'<div class="page">{_figure(plot)}</div>{scripts}'
        page = _document(plot.name, body, policy=content_policy([DRAW], beside=True))
        write_text(folder / f"{plot.name}.html", page)


def _remove_figures(folder: Path, but: set[str]) -> None:
    """Remove the figures that an earlier page had and this one has not; nothing of anyone else's."""
    for path in sorted(folder.glob("*.html")):
        if path.stem not in but and f'src="{_PLOTLY_FILE}"'.encode() in read_bytes(path):
            path.unlink()


def _page(run: RunFolder, claim: Claim, sections: Sequence[Section], missing: Sequence[str]) -> str:
    links = "".join(f'<a href="#{s.key}">{text(s.title)}</a>' for s in sections)
    scripts = [_plotly_js(), DRAW, TABLES] if any(_plots(sections)) else [TABLES]
    body = "".join(
        (
            '<div class="page">',
            _header(run, claim),
            _damage(run),
            f'<nav aria-label="Sections">{links}</nav><main>',
            *(_section(section) for section in sections),
            f"</main>{_footer(missing)}</div>",
            *(f"<script>{script}</script>" for script in scripts),
        )
    )
    return _document(f"{_model(run)}: {run.words.noun} direction", body, policy=content_policy(scripts))


def _document(title: str, body: str, *, policy: str = "") -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{policy}<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def _plotly_js() -> str:
    """plotly.js with the line ends that an HTML parser would give it, so that its hash holds."""
    return str(get_plotlyjs()).replace("\r\n", "\n").replace("\r", "\n")


def _header(run: RunFolder, claim: Claim) -> str:
    evidence = "".join(f"<li>{text(sentence)}</li>" for sentence in claim.evidence)
    flags = "".join(f"<li>{text(sentence)}</li>" for sentence in claim.flags)
    doubts = f'<div class="flags"><p>What speaks against it</p><ul>{flags}</ul></div>' if flags else ""
    facts = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in _facts(run))
    return (
        '<header><p class="overline">refusal_lens \u00b7 '
        f"{text(run.path.resolve().name)}</p><h1>{text(claim.headline)}</h1>"
        f'{doubts}<ul>{evidence}</ul><dl class="facts">{facts}</dl></header>'
    )


def _damage(run: RunFolder) -> str:
    """What is left out because it is not what its step wrote."""
    if not run.damaged:
        return ""
    damages = "; ".join(f"{name} {what}" for name, what in run.damaged.items())
    return (
        f'<p class="warning">Left out, since it is not as its step left it: {text(damages)}. '
        "What wrote it makes it again: refusal-lens run into this folder, suffix or export.</p>"
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    facts = [("model", str(run.value("model") or "not recorded"))]
    if run.selected is not None:
        place, layer = run.selected
        position = post_position(place)
        facts.append(("layer", f"{layer}" + (f" of {run.n_layers}" if run.n_layers else "")))
        at = ("place", place) if position is None else ("position", number(position, 0))
        facts.append(at)
    measured = (
        ("bypass", run.number("scores", "bypass"), 2),
        ("induce", run.number("scores", "induce"), 2),
        ("KL", run.number("scores", "kl"), 3),
        *((f"{run.words.number}, {kind}", run.number("baseline", kind), 2) for kind in run.kinds),
        ("candidates", run.number("n_candidates") or None, 0),
    )
    facts += [(name, number(value, digits)) for name, value, digits in measured if value is not None]
    if passing(run):
        facts.append(("that pass", passing(run)))
    return facts


def _model(run: RunFolder) -> str:
    return str(run.value("model") or run.path.resolve().name)


def _section(section: Section) -> str:
    parts = (p.source if isinstance(p, Html) else _figure(p) for p in section.parts)
    return f'<section id="{section.key}"><h2>{text(section.title)}</h2>{"".join(parts)}</section>'


def _figure(plot: Plot) -> str:
    spec, height = f"spec-{plot.name}", int(plot.figure.layout.height or 450)
    return (
        f'<figure><div class="plot" data-name="{plot.name}" data-spec="{spec}" '
        f'style="min-height: {height}px"></div><script type="application/json" id="{spec}">'
        f"{_json(plot.figure)}</script><figcaption>{text(plot.caption)}</figcaption></figure>"
    )


def _json(figure: go.Figure) -> str:
    """The figure as JSON in which nothing can end a script element or start a tag."""
    source = str(figure.to_json())
    for character in "<>&\u2028\u2029":
        source = source.replace(character, f"\\u{ord(character):04x}")
    return source


def _footer(missing: Sequence[str]) -> str:
    listed = text("; ".join(missing))
    note = f'<p class="missing">Not in this run folder: {listed}.</p>' if missing else ""
    return f"<footer>{note}<p>Written by refusal_lens {text(__version__)}.</p></footer>"
