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
    are ("instructions"). transitive: whether a reply does it to its prompt ("refusal of instructions",
    "refuses instructions") rather than in answer to it ("poetry on prompts", "shows poetry on prompts").
    Raises InputError for a word that is empty, longer than 60 characters or more than one line.
    """

    noun: str
    shows: str
    lacks: str
    score: str
    prompts: str = "prompts"
    transitive: bool = False

    def __post_init__(self) -> None:
        for name, word in asdict(self).items():
            if name == "transitive":
                continue
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
            return REFUSAL
        return cls(name, f"shows {name}", f"shows no {name}", f"{name} score")

    @property
    def noun_on(self) -> str:
        """The noun before prompts.

        >>> Words.of("poetry").noun_on, Words.of("refusal").noun_on
        ('poetry on', 'refusal of')
        """
        return f"{self.noun} {'of' if self.transitive else 'on'}"

    @property
    def shows_on(self) -> str:
        """The verb before prompts.

        >>> Words.of("poetry").shows_on, Words.of("refusal").shows_on
        ('shows poetry on', 'refuses')
        """
        return self.shows if self.transitive else f"{self.shows} on"

    @property
    def number(self) -> str:
        """The score in one word, where its name has been said before.

        >>> Words.of("refusal").number
        'metric'
        """
        return self.score.split()[-1]


REFUSAL = Words("refusal", "refuses", "answers", "refusal metric", "instructions", transitive=True)
"""The words for refusal. Behaviours of another name that are given no words take those of `Words.of`."""
