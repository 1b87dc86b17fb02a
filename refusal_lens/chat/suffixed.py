"""Text appended to the last user message, inside its turn, and exactly which tokens hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..conversations import Conversation, Prompt
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..shapes import Spans
from .format import ChatFormat
from .rendered import Rendered


@shown()
@dataclass(frozen=True, eq=False)
class Suffixed:
    """Rendered prompts whose last user message is instruction + suffix, tokenised in one piece.

    `suffix` spans the tokens that hold a character of the suffix. A token that straddles the border holds both: it
    is in the span, and its row is marked in `merged`.
    """

    rendered: Rendered
    suffix: Spans
    merged: Bool[Tensor, " batch"]

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Tokens of each row's suffix."""
        return tuple((self.suffix[:, 1] - self.suffix[:, 0]).tolist())


@checked
def render_suffixed(
    chat: ChatFormat, prompts: Sequence[Prompt], suffixes: Sequence[str]
) -> Suffixed:
    """Render each prompt with its suffix behind the last user message, as a user would have typed the two.

    A reply that a conversation has belongs to the message without suffix and is left out. Raises InputError unless
    there is one suffix for each prompt, for an empty one, and for one of which the template leaves nothing (some trim
    white space).
    """
    if len(suffixes) != len(prompts):
        raise InputError(f"suffixes: got {len(suffixes)}, need one for each of {len(prompts)} prompts")
    plain = [Conversation.of(prompt) for prompt in prompts]
    texts = [c.instruction + suffix for c, suffix in zip(plain, suffixes, strict=True)]
    longer = [c.with_instruction(text).prompt for c, text in zip(plain, texts, strict=True)]
    rendered = chat.render(longer)
    spans, merged = [], []
    for row, turn in enumerate(chat.user_turns(longer)):
        trimmed = texts[row].find(turn.text)
        border = len(plain[row].instruction) - trimmed
        inside = [i for i, (_, stop) in enumerate(turn.tokens) if stop > border]
        if trimmed < 0 or not suffixes[row] or not inside:
            raise InputError(
                f"suffix of prompt {row}: got {suffixes[row]!r}, of which the chat template leaves no "
                "token; need text that is more than white space"
            )
        first = int(rendered.instruction[row, 0])
        spans.append((first + inside[0], first + inside[-1] + 1))
        merged.append(turn.tokens[inside[0]][0] < border)
    return Suffixed(rendered, torch.tensor(spans), torch.tensor(merged))
