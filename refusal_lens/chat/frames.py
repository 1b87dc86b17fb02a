"""The text round a user's last message with the template's control tokens marked, for every system prompt and past."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from ..conversations import Conversation, Message
from ..display import shown
from ..errors import InputError
from .encoder import Encoded, Encoder, name_of, require_admissible
from .special import bos_prefix, is_written
from .template import Frame, Head, Template

KEPT = 4096
"""Frames that are remembered."""

_PROBE = "Name a river"


@shown("frame")
@dataclass(frozen=True)
class MarkedFrame:
    """A frame whose control tokens are marked, and the ids that go in front of its prompts."""

    frame: Frame
    before: str
    after: str
    bos: tuple[int, ...]


class Frames:
    """The frames of one template, each made once; without a template there is a single one, of nothing.

    `usual` is that of a single message behind the template's default system prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template | None,
        encoder: Encoder,
        *,
        bos: bool | None,
    ) -> None:
        self._tokenizer, self._template, self._encoder = tokenizer, template, encoder
        self._prefix = bos_prefix(tokenizer, wanted=bos)
        self._known: dict[Head, MarkedFrame] = {}
        self.usual = self._marked(template.frame if template else Frame((), "", "", ()))

    def of(self, row: int, conversation: Conversation) -> MarkedFrame:
        """The frame of a conversation's system prompt and earlier turns.

        Raises InputError, naming the row, where the template does not write each of them once as it is, or writes
        something else than usual behind the last message.
        """
        earlier = conversation.messages[:-1]
        head = self._template.head(earlier) if self._template else earlier
        if head == self.usual.frame.head:
            return self.usual
        if head not in self._known:
            if len(self._known) >= KEPT:
                self._known.clear()
            try:
                self._known[head] = self._checked(head)
            except InputError as error:
                raise InputError(f"prompt {row}: {error}") from error
        return self._known[head]

    def is_plain(self, marked: MarkedFrame) -> bool:
        """Whether the head's texts spell no control token."""
        before = marked.frame.before
        texts = (before[span.start : span.stop] for span in marked.frame.foreign)
        return all(self._encoder.mark(text) == text for text in texts)

    def _checked(self, head: Head) -> MarkedFrame:
        if self._template is None:
            raise InputError(
                f"got {_roles(head)} before the last message for the plain format of tokenizer "
                f"{name_of(self._tokenizer)}, need the user's message alone; base models have no turns"
            )
        for message in head:
            require_admissible(message.content, f"{message.role}'s text")
        frame, usual = self._template.frame_of(head), self.usual.frame
        if frame.after != usual.after:
            raise InputError(
                f"chat template of {self._template.name}: got {frame.after!r:.60} behind the last message after "
                f"{_roles(head)}, need {usual.after!r:.60} as behind a single one; try to drop them"
            )
        return self._marked(frame)

    def _marked(self, frame: Frame) -> MarkedFrame:
        mark, parts, done = self._encoder.mark, [], 0
        for span in frame.foreign:
            text = frame.before[span.start : span.stop]
            parts += [mark(frame.before[done : span.start])]
            parts += [mark(text, special=False) if span.spoken else text]
            done = span.stop
        before, after = "".join(parts) + mark(frame.before[done:]), mark(frame.after)
        [probe] = self._encoder.encode([before + _PROBE + after])
        leading = self._leading(probe, frame, len(before))
        written = is_written(self._prefix, leading, self._tokenizer.bos_token_id)
        return MarkedFrame(frame, before, after, () if written else self._prefix)

    def _leading(self, probe: Encoded, frame: Frame, end: int) -> tuple[int, ...]:
        """The control tokens that the template writes before the instruction.

        Where one token begins texts and ends turns, those before any text.
        """
        if frame.foreign and self._tokenizer.bos_token_id == self._tokenizer.eos_token_id:
            end = len(self._encoder.mark(frame.before[: frame.foreign[0].start]))
        return tuple(
            token
            for i, token in enumerate(probe.ids)
            if probe.is_marked(i) and probe.offsets[i][1] <= end
        )


def _roles(head: tuple[Message, ...]) -> str:
    roles = [message.role for message in head]
    return ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
