"""How much two sets of replies share, beside what replies to different prompts share anyway."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..errors import InputError

_IDEOGRAMS = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_IDEOGRAMS}]|(?:(?![{_IDEOGRAMS}])\w)+")
MOST_SHIFTS = 16


@dataclass(frozen=True)
class Overlap:
    """Mean overlap on the same prompt and, its null, on other prompts (None for a single one)."""

    same_prompt: float
    other_prompts: float | None
    n: int


def word_pairs(text: str) -> frozenset[tuple[str, ...]]:
    """Neighbouring words in lower case; the word itself in a text of one.

    >>> sorted(word_pairs("The lamp, the garden."))
    [('lamp', 'the'), ('the', 'garden'), ('the', 'lamp')]
    """
    words = _WORD.findall(text.lower())
    return frozenset(pairwise(words)) or frozenset((word,) for word in words)


def word_overlap(mine: Sequence[str], theirs: Sequence[str]) -> Overlap | None:
    """Mean Jaccard overlap of word pairs, ``|A & B| / |A | B|``, of replies to the same prompts.

    Its null compares each of mine with theirs to other prompts, over cyclic shifts (at most 16). None without
    replies; two empty replies overlap fully. Raises InputError unless there are as many of both.

    >>> word_overlap(["a b c", "d e f"], ["a b c", "d e g"])
    Overlap(same_prompt=0.6666666666666666, other_prompts=0.0, n=2)
    """
    if len(mine) != len(theirs):
        raise InputError(f"word overlap: got {len(mine)} and {len(theirs)} replies, need as many")
    if not mine:
        return None
    n = len(mine)
    left, right = [word_pairs(reply) for reply in mine], [word_pairs(reply) for reply in theirs]
    shifts = [round(k * n / (MOST_SHIFTS + 1)) for k in range(1, MOST_SHIFTS + 1)]
    shifts = list(range(1, n)) if n <= MOST_SHIFTS + 1 else shifts
    others = [_jaccard(left[i], right[(i + k) % n]) for k in shifts for i in range(n)]
    same = [_jaccard(a, b) for a, b in zip(left, right, strict=True)]
    return Overlap(sum(same) / n, sum(others) / len(others) if others else None, n)


def _jaccard(a: frozenset[tuple[str, ...]], b: frozenset[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
