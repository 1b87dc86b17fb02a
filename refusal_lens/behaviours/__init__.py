"""What a direction is about: behaviours that score prompts, and the words for them."""

from .behaviour import Behaviour, LogitBehaviour, Reading
from .words import Words

__all__ = ["Behaviour", "LogitBehaviour", "Reading", "Words"]
