"""Models behind TransformerLens hooks: sites, loading, reading, editing, generating."""

from .chat_model import ChatModel
from .loading import fingerprint
from .sites import Hook, Site

__all__ = ["ChatModel", "Hook", "Site", "fingerprint"]
