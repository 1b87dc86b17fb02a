"""What a direction is about: behaviours that score prompts, and the words for them."""

from .behaviour import Behaviour, LogitBehaviour, Reading
from .continuations import Continuations, ReplyPair
from .discovery import NoFirstTokens, choose_first_tokens
from .first_tokens import FirstTokens
from .functions import LogitFunction, from_logits
from .replies import Replies, from_replies
from .stored import behaviour_from_json
from .words import Words

__all__ = [
    "Behaviour",
    "Continuations",
    "FirstTokens",
    "LogitBehaviour",
    "LogitFunction",
    "NoFirstTokens",
    "Reading",
    "Replies",
    "ReplyPair",
    "Words",
    "behaviour_from_json",
    "choose_first_tokens",
    "from_logits",
    "from_replies",
]
