"""What generates and gives next-token logits: a model behind hooks, exported weights, or a served model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from ..chat import ChatFormat, Rendered
from ..conversations import Prompt
from ..progress import Progress
from ..shapes import LastLogits
from .generation import Reply


@runtime_checkable
class Engine(Protocol):
    """Something that generates and gives next-token logits, such as a ChatModel."""

    name: str
    chat: ChatFormat

    def logits(self, rendered: Rendered) -> LastLogits:
        """Next-token logits [batch d_vocab] at the last position of each row."""

    def replies(
        self,
        prompts: Sequence[Prompt] | Rendered,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        on_progress: Progress | None = None,
    ) -> list[Reply]:
        """Greedy replies, in the order of the prompts."""

    def require_room(self, rendered: Rendered, max_new_tokens: int | None = None) -> None:
        """Raise InputError unless every prompt fits with its reply."""

    def reply_room(self, rendered: Rendered, wanted: int) -> int:
        """Tokens for a reply where nobody asked for a number: wanted, or what the positions leave."""
