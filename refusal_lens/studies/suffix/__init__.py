"""Why an adversarial suffix works: heads that write refusal look away (paper, section 5).

`study_suffix` measures it, `SuffixStudy` holds every number per prompt.
"""

from __future__ import annotations

from .measure import study_suffix
from .result import CONDITIONS, SuffixStudy, TokenStory
from .suffixes import organism_suffix, random_suffixes, read_suffix

__all__ = [
    "CONDITIONS",
    "SuffixStudy",
    "TokenStory",
    "organism_suffix",
    "random_suffixes",
    "read_suffix",
    "study_suffix",
]
