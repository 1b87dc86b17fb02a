"""What an edit does: completions and judges, losses, geometry, and the nulls beside every effect."""

from .base_model import agreement, cosine_in_both
from .completions import Completion, Rate, complete, rate
from .geometry import cosine_by_layer, principal_components
from .losses import Loss, reply_loss
from .nulls import nulls, random_units

__all__ = [
    "Completion",
    "Loss",
    "Rate",
    "agreement",
    "complete",
    "cosine_by_layer",
    "cosine_in_both",
    "nulls",
    "principal_components",
    "random_units",
    "rate",
    "reply_loss",
]
