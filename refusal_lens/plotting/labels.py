"""What figures and pages call things: the kinds of prompts, the behaviour and its score."""

from __future__ import annotations

from dataclasses import dataclass

from refusal_lens.behaviours.words import Words


def capital(text: str) -> str:
    """The text with a capital first letter, the others as they are.

    >>> capital("poetry by AI")
    'Poetry by AI'
    """
    return text[:1].upper() + text[1:]


@dataclass(frozen=True)
class Labels:
    """The two kinds of prompts, positive first, the behaviour's words, its score's unit and threshold.

    Every text here is data: what writes it into a figure or a page escapes it.
    """

    kinds: tuple[str, str]
    words: Words
    unit: str = "nats"
    threshold: float = 0.0

    def prompts(self, side: int) -> str:
        """The prompts of a kind, 0 the positive one.

        >>> Labels(("verse", "prose"), Words.of("poetry")).prompts(1)
        'prose prompts'
        """
        return f"{self.kinds[side]} {self.words.prompts}"

    @property
    def score(self) -> str:
        """The score with its unit, as an axis names it.

        >>> Labels(("verse", "prose"), Words.of("poetry")).score
        'Poetry score (nats)'
        """
        return f"{capital(self.words.score)} ({self.unit})"
