"""Directions: candidates from means, their scores, the selection rule, and the value itself."""

from .candidates import Candidates
from .direction import Direction
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
