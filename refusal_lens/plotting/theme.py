"""What every figure shares: one template, one meaning per colour, text that cannot act as markup.

Colours are Okabe and Ito's (2008), told apart under every common colour blindness. Colour says
which kind of prompts (positive, negative), and so does the marker of a line; a dash or a hatch says
which condition (baseline, ablation, addition, subtraction, another model), grey says chance, and
yellow is kept for the selected candidate.
Places, which are neither, take the colours that are left.
"""

from __future__ import annotations

import html
from collections.abc import Container, Sequence

import plotly.graph_objects as go

from refusal_lens.evaluation.conditions import CONDITIONS

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PINK = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, RULE, INK = "#999999", "#5A5A5A", "#222222"
SHADE, VEIL = "rgba(0, 0, 0, 0.06)", "rgba(255, 255, 255, 0.4)"

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
KIND_COLOURS, KIND_SYMBOLS = (VERMILLION, BLUE), ("circle", "diamond-open")
"""Of the positive and of the negative prompts."""
DASHES = {
    "baseline": "solid",
    "ablation": "dot",
    "addition": "dash",
    "subtraction": "dash",
    "chat": "solid",
    "base": "dash",
}
HATCHES = {"baseline": "", "ablation": "/", "addition": ".", "subtraction": "x"}
MODELS = {"chat": "chat model", "base": "base model"}
_PLACE_COLOURS = (BLACK, GREEN, ORANGE, PINK, SKY)
_PLACE_DASHES = ("solid", "dash", "dot")
_PLACE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
_SPARE_COLOURS = (GREEN, PINK, SKY, ORANGE)
_SPARE_SYMBOLS = ("square", "triangle-up", "cross", "x")
_SPARE_DASHES = ("dashdot", "longdashdot", "10px,3px,3px,3px", "2px,8px")
_LONGEST_LABEL, _LONGEST_TITLE = 28, 160

_AXIS = {
    "showline": True,
    "linecolor": "#8A8A8A",
    "ticks": "outside",
    "tickcolor": "#8A8A8A",
    "ticklen": 4,
    "gridcolor": "#ECECEC",
    "zeroline": False,
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 13}},
}
TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": [VERMILLION, BLUE, GREEN, ORANGE, PINK, SKY, BLACK],
        "margin": {"l": 64, "r": 24, "t": 40, "b": 52},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left", "namelength": -1},
        "legend": {"bgcolor": "rgba(255, 255, 255, 0)", "font": {"size": 12}, "tracegroupgap": 4},
        "annotationdefaults": {"font": {"size": 13}, "showarrow": False},
        "barcornerradius": 1,
    }
)


def visible(text: str) -> str:
    r"""The text on one line with nothing hidden: `\n` as two characters, edge spaces as `␣`.

    >>> visible("\n\n"), visible(" I"), visible("")
    ('\\n\\n', '␣I', '∅')
    """
    if not text:
        return "\u2205"
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text)
    body = shown.strip(" ")
    lead = len(shown) - len(shown.lstrip(" "))
    tail = len(shown) - lead - len(body)
    return "\u2423" * lead + body + "\u2423" * tail


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def label(text: str, longest: int = _LONGEST_LABEL) -> str:
    """Text made safe for a figure: visible, short, and free of the tags that plotly would obey."""
    shown = visible(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "\u2026"
    return html.escape(shown, quote=False)


def title(text: str) -> str:
    """A title or axis title made safe, longer than a label may be.

    >>> title("score of <b>verse</b>")
    'score of &lt;b&gt;verse&lt;/b&gt;'
    """
    return label(text, _LONGEST_TITLE)


def number(value: float) -> str:
    """A measurement to four significant digits."""
    return f"{value:.4g}"


def kind_colour(kind: str, kinds: tuple[str, str], shown: Sequence[str] = ()) -> str:
    """The colour of a set of prompts; one of neither kind takes a spare colour by its place among those shown."""
    if kind in kinds:
        return KIND_COLOURS[kinds.index(kind)]
    return _spare(kind, shown, kinds, _SPARE_COLOURS)


def kind_symbol(kind: str, kinds: tuple[str, str], shown: Sequence[str] = ()) -> str:
    """The marker of a set of prompts, which tells it from others without its colour."""
    if kind in kinds:
        return KIND_SYMBOLS[kinds.index(kind)]
    return _spare(kind, shown, kinds, _SPARE_SYMBOLS)


def edit_label(condition: str) -> str:
    """A condition as an edit, or the model that it is."""
    known = CONDITIONS.get(condition)
    return known.edit if known else MODELS.get(condition, label(condition))


def condition_dash(condition: str, conditions: Sequence[str] = ()) -> str:
    """The dash of a condition; an unknown one takes a spare dash by its place."""
    return DASHES.get(condition) or _spare(condition, conditions, DASHES, _SPARE_DASHES)


def _spare(name: str, names: Sequence[str], known: Container[str], spare: Sequence[str]) -> str:
    """What is left for a name without one of its own, by its place among such names."""
    others = [other for other in names if other not in known]
    return spare[others.index(name) % len(spare) if name in others else 0]


def faded(colour: str, opacity: float) -> str:
    """A hex colour as rgba with this opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {opacity})"


def place_style(index: int) -> tuple[str, str, str]:
    """Colour, dash and marker of the index-th place; unique for the first 15, and templates have 3 to 12 tokens."""
    n = len(_PLACE_COLOURS)
    dash = _PLACE_DASHES[(index // n) % len(_PLACE_DASHES)]
    return _PLACE_COLOURS[index % n], dash, _PLACE_SYMBOLS[index % len(_PLACE_SYMBOLS)]


def finish(figure: go.Figure, height: int, *, legend: str = "right") -> go.Figure:
    """Put a figure into the house template, its legend right of the axes or on top of them."""
    figure.update_layout(template=TEMPLATE, height=height)
    if legend == "top":
        figure.update_layout(
            legend={"orientation": "h", "yref": "container", "y": 1, "yanchor": "top", "x": 0},
            margin={"t": 72},
        )
    else:
        figure.update_layout(legend={"x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    return figure


def left_titles(figure: go.Figure, n_titles: int) -> None:
    """Move the first n subplot titles from the middle to the left edge of their panels."""
    axes = list(figure.select_xaxes())
    for title, axis in zip(figure.layout.annotations[:n_titles], axes, strict=False):
        title.update(x=axis.domain[0], xanchor="left", align="left", font={"size": 13})
