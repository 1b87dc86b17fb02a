"""Text appended to an instruction inside its user turn, and exactly which tokens hold it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..display import shown
from ..errors import InputError
from ..shapes import Spans
from .format import ChatFormat
from .rendered import Rendered


@shown()
@dataclass(frozen=True, eq=False)
class Tailed:
    """Rendered prompts whose user turn is instruction + tail, tokenised in one piece.

    `tail` spans the tokens that hold a character of the tail. A token that straddles the border
    holds both: it is in the span, and its row is marked in `merged`.
    """

    rendered: Rendered
    tail: Spans
    merged: Bool[Tensor, " batch"]

    @property
    def n_tokens(self) -> tuple[int, ...]:
        """Tokens of each row's tail."""
        return tuple((self.tail[:, 1] - self.tail[:, 0]).tolist())


def render_tailed(chat: ChatFormat, instructions: Sequence[str], tails: Sequence[str]) -> Tailed:
    """Render each instruction with its tail behind it, as a user would have typed the two.

    Raises InputError for an empty tail, or one of which the template leaves nothing (some trim
    white space).
    """
    texts = [i + t for i, t in zip(instructions, tails, strict=True)]
    rendered = chat.render(texts)
    written = chat._template.written(texts) if chat._template else texts
    prompts = chat._prompts(written, texts)
    head = len(chat._before)
    spans, merged = [], []
    for row, (text, kept, prompt) in enumerate(zip(texts, written, prompts, strict=True)):
        trimmed = text.find(kept)
        border = head + len(instructions[row]) - trimmed
        tail = prompt.overlapping(border, head + len(kept)) if tails[row] else None
        whole = prompt.overlapping(head, head + len(kept))
        if trimmed < 0 or tail is None or whole is None:
            raise InputError(
                f"suffix of prompt {row}: got {tails[row]!r}, of which the chat template leaves no "
                "token; need text that is more than white space"
            )
        shift = int(rendered.instruction[row, 0]) - whole[0]
        spans.append((tail[0] + shift, tail[1] + shift))
        merged.append(prompt.offsets[tail[0]][0] < border)
    return Tailed(rendered, torch.tensor(spans), torch.tensor(merged))
