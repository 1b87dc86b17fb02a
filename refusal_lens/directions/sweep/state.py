"""What a sweep has found so far: scores by candidate, counts, and what is needed to go on after a
stop.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import InputError
from ..candidates import Candidates
from .batches import Load, Tokens

Index = tuple[int, int]
"""(position, layer) of a candidate."""
NAMES = ("bypass", "induce", "kl")


@dataclass
class Scores:
    """Values found, by score and candidate; and why a missing one was not needed."""

    values: dict[str, dict[Index, float]] = field(
        default_factory=lambda: {name: {} for name in NAMES}
    )
    skipped: dict[Index, str] = field(default_factory=dict)

    def has(self, name: str, candidate: Index) -> bool:
        """Whether this score of the candidate is known."""
        return candidate in self.values[name]

    def get(self, name: str, candidate: Index) -> float:
        """The score, NaN where it is unknown."""
        return self.values[name].get(candidate, math.nan)


@dataclass(frozen=True)
class Checkpoint:
    """Finished blocks of candidates with the load that made them; give it back to go on from there.

    key identifies candidates, prompts and refusal tokens; a checkpoint of another sweep is refused.
    """

    key: str
    load: Load
    prefix: int
    scores: tuple[tuple[str, int, int, float], ...]

    def to_json(self) -> str:
        """As text; NaN is written as null."""
        rows = [[n, p, l, None if math.isnan(v) else v] for n, p, l, v in self.scores]  # noqa: E741
        load = {"tokens": self.load.tokens, "overhead": self.load.overhead}
        return json.dumps({"key": self.key, "load": load, "prefix": self.prefix, "scores": rows})

    @classmethod
    def from_json(cls, text: str) -> Checkpoint:
        """Read what `to_json` wrote. Raises InputError for anything else."""
        try:
            read = json.loads(text)
            rows = [(str(n), int(p), int(l), _number(v)) for n, p, l, v in read["scores"]]  # noqa: E741
            load = Load(int(read["load"]["tokens"]), float(read["load"]["overhead"]))
            return cls(str(read["key"]), load, int(read["prefix"]), tuple(rows))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"sweep checkpoint: cannot be read ({error})") from error


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def key_of(
    candidates: Candidates,
    positive: Sequence[Tokens],
    negative: Sequence[Tokens],
    refusal_tokens: Sequence[int],
) -> str:
    """A digest of what the scores depend on, apart from the model's weights."""
    digest = hashlib.sha256(candidates.mean_diffs.contiguous().numpy().tobytes())
    for side in (positive, negative):
        digest.update(json.dumps([tokens.tolist() for tokens in side]).encode())
    digest.update(json.dumps([int(token) for token in refusal_tokens]).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Stats:
    """What a sweep cost. Counts are of this call alone, without what a checkpoint brought."""

    road: str
    load: Load
    prefix: int
    passes: int
    block_tokens: int
    """Tokens times blocks that computed them: a full pass over T tokens counts T times n_layers."""
    unembedded: int
    """Rows whose last-position logits were computed."""
    evaluations: dict[str, int]
    """How many candidates were scored, by score."""
    seconds: float
    trial_seconds: float
    """Of these, for choosing the road and the load."""
