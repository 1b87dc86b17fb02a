"""Directions: candidates from means, their scores, the selection rule, and the value itself."""

from ..direction import Direction
from .candidates import Candidates
from .finding import Selection, find_direction
from .refusal_tokens import NoRefusalTokens
from .selection import Choice, NoCandidateError, Thresholds, select
from .sweep import Checkpoint, score_candidates

__all__ = [
    "Candidates",
    "Checkpoint",
    "Choice",
    "Direction",
    "NoCandidateError",
    "NoRefusalTokens",
    "Selection",
    "Thresholds",
    "find_direction",
    "score_candidates",
    "select",
]
