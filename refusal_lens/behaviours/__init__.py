"""What a direction is about: behaviours that score prompts, and the words for them."""

from .behaviour import Behaviour, LogitBehaviour, Reading
from .first_tokens import FirstTokens
from .words import Words

__all__ = ["Behaviour", "FirstTokens", "LogitBehaviour", "Reading", "Words"]
