"""Directions: candidates from means, their scores, the selection rule, and the value itself."""

from ..direction import Direction
from .candidates import Candidates
from .finding import Finding, find_direction
from .selection import NoCandidateError, Selection, Thresholds, select
from .sweep import SweepCheckpoint, score_candidates

__all__ = [
    "Candidates",
    "Direction",
    "Finding",
    "NoCandidateError",
    "Selection",
    "SweepCheckpoint",
    "Thresholds",
    "find_direction",
    "score_candidates",
    "select",
]
