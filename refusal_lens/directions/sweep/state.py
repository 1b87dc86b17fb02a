"""What a sweep has found so far: scores by candidate, counts, and what is needed to go on after a
stop.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ...behaviours import Behaviour
from ...display import shown
from ...errors import InputError
from ..candidates import Candidates
from .batches import PassSize, Tokens

log = logging.getLogger(__name__)

Index = tuple[int, int]
"""(position, layer) of a candidate."""
NAMES = ("bypass", "induce", "kl")


@shown()
@dataclass
class CandidateScores:
    """Values known, by score and candidate; and why a missing one was not needed."""

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


@shown()
@dataclass(frozen=True)
class SweepCheckpoint:
    """Finished blocks of candidates with the pass size that made them; give it back to go on from there.

    key identifies candidates, prompts and behaviour; a checkpoint of another sweep is refused.
    """

    key: str
    size: PassSize
    prefix: int
    scores: tuple[tuple[str, int, int, float], ...]
    given_up: tuple[tuple[int, int, str], ...] = ()
    """Candidates, position and layer, that a lazy sweep stopped scoring, with the reason."""

    @property
    def passes(self) -> dict[str, Any]:
        """What the last digits of the scores depend on: tokens in a pass, what starting one counts
        in tokens, and how many leading tokens are shared.
        """
        return {
            "tokens": self.size.tokens,
            "overhead": self.size.overhead,
            "prefix": self.prefix,
        }

    def to_json(self) -> str:
        """As text; NaN is written as null."""
        rows = [[n, p, l, None if math.isnan(v) else v] for n, p, l, v in self.scores]  # noqa: E741
        return json.dumps(
            {
                "key": self.key,
                "size": asdict(self.size),
                "prefix": self.prefix,
                "scores": rows,
                "given_up": [list(row) for row in self.given_up],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SweepCheckpoint:
        """Read what `to_json` wrote. Raises InputError for anything else."""
        try:
            read = json.loads(text)
            rows = [(str(n), int(p), int(l), _number(v)) for n, p, l, v in read["scores"]]  # noqa: E741
            size = PassSize(int(read["size"]["tokens"]), float(read["size"]["overhead"]))
            given_up = tuple((int(p), int(l), str(why)) for p, l, why in read["given_up"])  # noqa: E741
            return cls(str(read["key"]), size, int(read["prefix"]), tuple(rows), given_up)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"sweep checkpoint: cannot be read ({error})") from error

    def record(self) -> dict[str, str]:
        """As a step remembers it."""
        return {"sweep": self.to_json()}

    @classmethod
    def latest(cls, records: Sequence[Mapping[str, Any]]) -> SweepCheckpoint | None:
        """The last of these records; None, and said, when it is none that `record` made."""
        if not records:
            return None
        try:
            return cls.from_json(records[-1].get("sweep", ""))
        except InputError as error:
            log.warning("the sweep starts again: %s", error)
            return None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def key_of(
    candidates: Candidates,
    positive: Sequence[Tokens],
    negative: Sequence[Tokens],
    behaviour: Behaviour,
) -> str:
    """A digest of what the scores depend on, apart from the model's weights."""
    digest = hashlib.sha256(candidates.mean_diffs.contiguous().numpy().tobytes())
    for side in (positive, negative):
        digest.update(json.dumps([tokens.tolist() for tokens in side]).encode())
    digest.update(json.dumps(behaviour.to_json(), sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Stats:
    """What a sweep cost. Counts are of this call alone, without what a checkpoint brought."""

    path: str
    size: PassSize
    prefix: int
    passes: int
    block_tokens: int
    """Tokens times blocks that computed them: a full pass over T tokens counts T times n_layers."""
    unembedded: int
    """Positions whose logits were computed."""
    evaluations: dict[str, int]
    """How many candidates were scored, by score."""
    seconds: float
    trial_seconds: float
    """Of these, for choosing the path and the pass size."""
