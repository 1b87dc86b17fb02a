"""What an edit does: completions and judges, losses, geometry, and the nulls beside every effect."""

from ..judges import (
    REFUSAL_PHRASES,
    Disagreement,
    Judge,
    Score,
    disagreement,
    paper_judge,
    phrase_judge,
)
from .base_model import agreement, cosine_in_both
from .completions import Completion, Rate, complete, refusal_rate
from .geometry import cosine_by_layer, principal_components
from .losses import Loss, reply_loss
from .nulls import nulls, random_units

__all__ = [
    "REFUSAL_PHRASES",
    "Completion",
    "Disagreement",
    "Judge",
    "Loss",
    "Rate",
    "Score",
    "agreement",
    "complete",
    "cosine_by_layer",
    "cosine_in_both",
    "disagreement",
    "nulls",
    "paper_judge",
    "phrase_judge",
    "principal_components",
    "random_units",
    "refusal_rate",
    "reply_loss",
]
