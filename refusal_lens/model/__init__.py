"""Models behind TransformerLens hooks: sites, loading, reading, editing, generating."""

from .chat_model import ChatModel
from .generation import Reply
from .hooks import Hook
from .loading import fingerprint
from .sites import Site

__all__ = ["ChatModel", "Hook", "Reply", "Site", "fingerprint"]
