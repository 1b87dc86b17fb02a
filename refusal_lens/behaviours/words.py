"""What a page calls a behaviour: the words in which its numbers are told."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ..errors import InputError

LONGEST = 60


@dataclass(frozen=True)
class Words:
    """Words for one behaviour; the two kinds of prompts are named by the contrast.

    noun: what it is ("refusal"). shows, lacks: what a reply with and without it does ("refuses",
    "answers"). score: what its number per prompt is called ("refusal metric"). prompts: what its prompts
    are ("instructions"). Raises InputError for a word that is empty, longer than 60 characters or more
    than one line.
    """

    noun: str = "refusal"
    shows: str = "refuses"
    lacks: str = "answers"
    score: str = "refusal metric"
    prompts: str = "instructions"

    def __post_init__(self) -> None:
        for name, word in asdict(self).items():
            if not isinstance(word, str) or not word.strip() or len(word) > LONGEST or "\n" in word:
                raise InputError(
                    f"word {name!r} of a behaviour: got {word!r:.40}, need one line of at most {LONGEST} characters"
                )

    @classmethod
    def of(cls, name: str) -> Words:
        """Plain words for a behaviour of this name.

        >>> Words.of("poetry").score
        'poetry score'
        """
        if name == "refusal":
            return cls()
        return cls(name, f"shows {name}", f"shows no {name}", f"{name} score", "prompts")


REFUSAL = Words()
"""The words for refusal. Behaviours of another name that are given no words take those of `Words.of`."""
