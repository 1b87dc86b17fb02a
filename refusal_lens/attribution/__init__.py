"""One number split over what made it: heads, MLPs, embeddings, source tokens.

Direct feature attribution (DFA; Kissane 2024, Makelov 2024) of a direction, and the causal check
that belongs beside it.
"""

from __future__ import annotations

from .causal import (
    head_effects,
    last_head_outputs,
    mean_head_outputs,
    random_head_sets,
    replaced_heads,
)
from .direct import Attribution, attribute
from .heads import Head
from .regions import Regions
from .sources import SourceAttribution, attribute_sources

__all__ = [
    "Attribution",
    "Head",
    "Regions",
    "SourceAttribution",
    "attribute",
    "attribute_sources",
    "head_effects",
    "last_head_outputs",
    "mean_head_outputs",
    "random_head_sets",
    "replaced_heads",
]
