"""Judges under the name of the room that uses them most; they live in `refusal_lens.judges`."""

from __future__ import annotations

from ..judges import (
    REFUSAL_PHRASES,
    Disagreement,
    Judge,
    Score,
    disagreement,
    paper_judge,
    phrase_judge,
)

__all__ = [
    "REFUSAL_PHRASES",
    "Disagreement",
    "Judge",
    "Score",
    "disagreement",
    "paper_judge",
    "phrase_judge",
]
