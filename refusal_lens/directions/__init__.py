"""Directions: candidates from means, their scores, the selection rule, and the value itself."""

from ..direction import Direction
from .candidates import Candidates
from .selection import NoCandidateError, Selection, Thresholds, select
from .sweep import SweepCheckpoint, score_candidates

__all__ = [
    "Candidates",
    "Direction",
    "NoCandidateError",
    "Selection",
    "SweepCheckpoint",
    "Thresholds",
    "score_candidates",
    "select",
]
