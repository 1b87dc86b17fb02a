"""One typography for all text: what judges compare."""

from __future__ import annotations

import html
import re
import unicodedata

_APOSTROPHES = (
    "\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02bd\u02c8\u2032\u2035\u00b4\u0384"
    "\u055a\u05f3\u1fbd\u1fbf\ua78c\uff07"
)
_TO_APOSTROPHE = str.maketrans(dict.fromkeys(_APOSTROPHES, "'"))
_EMPHASIS = re.compile(
    r"</?(?:b|i|u|em|strong|mark|span|font)(?:\s[^<>]{0,80})?>|[*_~]+|\\(?=['\"`*_~])", re.I
)
_BREAK = re.compile(r"<(?:br|p|/p)\s*/?>|\n[ \t]*>+", re.I)
_ARABIC_MARKS = re.compile("[\u0640\u064b-\u0652]")


def plain_typography(text: str) -> str:
    """The text in one typography: lower case, ' for every apostrophe, single spaces, no emphasis.

    >>> plain_typography("I\u00a0CAN\u2019T\u200b  **do** that")
    "i can't do that"
    """
    text = html.unescape(text).translate(_TO_APOSTROPHE)
    # A backtick inside a word is an apostrophe; elsewhere it marks code.
    text = re.sub(r"(?<=\w)`(?=\w)", "'", text).replace("`", "")
    text = _EMPHASIS.sub("", _BREAK.sub(" ", text))
    text = unicodedata.normalize("NFKC", text)
    visible = (c for c in text if c.isspace() or not _is_invisible(c))
    return " ".join(
        _ARABIC_MARKS.sub("", "".join(visible)).translate(_TO_APOSTROPHE).casefold().split()
    )


def _is_invisible(character: str) -> bool:
    """Soft hyphens, joiners, direction marks, control characters, variation selectors."""
    if unicodedata.category(character) in ("Cf", "Cc"):
        return True
    return "\ufe00" <= character <= "\ufe0f" or character == "\u034f"
