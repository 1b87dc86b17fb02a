"""Why an adversarial suffix works: heads that write the direction look away (paper, section 5).

`study_suffix` measures it, `SuffixStudy` holds every number per prompt.
"""

from __future__ import annotations

from .measure import study_suffix
from .result import ConditionNames, SuffixStudy, TokenContributions
from .suffixes import organism_suffix, random_suffixes, read_suffix

__all__ = [
    "ConditionNames",
    "SuffixStudy",
    "TokenContributions",
    "organism_suffix",
    "random_suffixes",
    "read_suffix",
    "study_suffix",
]
