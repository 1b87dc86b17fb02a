"""What is said to a model and what it replies, as values: conversations and exchanges.

A prompt is a plain string, one message of a user and nothing else, or a `Conversation`: with a system prompt,
earlier turns, or the assistant's reply.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from .display import shown
from .errors import InputError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)


class Message(NamedTuple):
    """One message: who says it (system, user or assistant), and the text."""

    role: Role
    content: str


@shown("system", "turns", "instruction", "reply")
@dataclass(frozen=True)
class Conversation:
    """Messages that end with a user's, and the assistant's reply to that one where it is known.

    A system message may come first; then user and assistant take turns. Raises InputError for any other order, and
    for a message without text (a reply may be empty).

    >>> Conversation.of([{"role": "user", "content": "Hi"}]).prompt
    'Hi'
    """

    messages: tuple[Message, ...]
    reply: str | None = None

    def __post_init__(self) -> None:
        given: Any = self.messages
        if isinstance(given, str) or not isinstance(given, Sequence):
            raise InputError(f"conversation: got {given!r:.60}, need a list of messages")
        messages = tuple(_message(number, message) for number, message in enumerate(given))
        spoken = messages[1:] if messages and messages[0].role == "system" else messages
        turns = [message.role for message in spoken]
        if len(turns) % 2 == 0 or turns != [
            ("user", "assistant")[i % 2] for i in range(len(turns))
        ]:
            listed = ", ".join(message.role for message in messages) or "no message"
            raise InputError(
                f"conversation: got {listed}, need user and assistant in turns, ending with user, behind at most one "
                "system message; try the last reply as reply="
            )
        if self.reply is not None and not isinstance(self.reply, str):
            raise InputError(f"reply of a conversation: got {self.reply!r:.60}, need text")
        object.__setattr__(self, "messages", messages)

    @classmethod
    def of(cls, prompt: Prompt | Sequence[Mapping[str, str] | Message]) -> Conversation:
        """The conversation of a string, a list of messages, or a Conversation itself.

        Where the last message of a list is the assistant's, it is the reply.
        """
        if isinstance(prompt, Conversation):
            return prompt
        if isinstance(prompt, str):
            return cls((Message("user", prompt),))
        if not isinstance(prompt, Sequence):
            raise InputError(
                f"prompt: got {prompt!r:.60}, need text, a list of messages or a Conversation"
            )
        messages = [_message(number, message) for number, message in enumerate(prompt)]
        if messages and messages[-1].role == "assistant":
            return cls(tuple(messages[:-1]), messages[-1].content)
        return cls(tuple(messages))

    @property
    def instruction(self) -> str:
        """What the user says last."""
        return self.messages[-1].content

    @property
    def system(self) -> str | None:
        """The system prompt, None where there is none."""
        return self.messages[0].content if self.messages[0].role == "system" else None

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(what the user said, what the assistant replied) before the last message, the oldest first."""
        spoken = [message.content for message in self.messages if message.role != "system"]
        return tuple(zip(spoken[0:-1:2], spoken[1:-1:2], strict=True))

    @property
    def prompt(self) -> Prompt:
        """The plain string where the instruction is all there is, else the conversation itself."""
        return self.instruction if len(self.messages) == 1 and self.reply is None else self

    def with_instruction(self, instruction: str) -> Conversation:
        """The same conversation with another last message, without reply."""
        return replace(
            self, messages=(*self.messages[:-1], Message("user", instruction)), reply=None
        )

    def with_reply(self, reply: str | None) -> Conversation:
        """The same conversation with this reply, or with none."""
        return replace(self, reply=reply)

    def to_json(self) -> list[dict[str, str]]:
        """The messages, the reply as the last one: what `Conversation.of` reads."""
        listed = [message._asdict() for message in self.messages]
        return (
            listed
            if self.reply is None
            else [*listed, {"role": "assistant", "content": self.reply}]
        )


Prompt = str | Conversation
"""One prompt: a user's message, or a whole conversation."""


class Exchange(NamedTuple):
    """What was said to a model, and what it replied: what a judge sees."""

    conversation: Conversation
    reply: str


def instruction_of(prompt: Prompt) -> str:
    """What the user says last."""
    return prompt if isinstance(prompt, str) else prompt.instruction


def prompt_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON: the string, or the list of messages."""
    return prompt if isinstance(prompt, str) else prompt.to_json()


def texts_of(prompt: Prompt) -> list[str]:
    """Every text of a prompt, its reply included."""
    return [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt.to_json()]


def unanswered(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts without the replies that some have."""
    return [
        prompt if isinstance(prompt, str) else prompt.with_reply(None).prompt for prompt in prompts
    ]


def row_of_prompt(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the fields of a JSON row: its instruction, and its messages where it is a conversation."""
    row: dict[str, Any] = {"instruction": instruction_of(prompt)}
    return row if isinstance(prompt, str) else row | {"messages": prompt.to_json()}


def prompt_of_row(row: Mapping[str, Any]) -> Prompt:
    """The prompt that `row_of_prompt` wrote. Raises InputError for messages that are none."""
    messages = row.get("messages")
    return str(row["instruction"]) if messages is None else Conversation.of(messages).prompt


def _message(number: int, message: Any) -> Message:
    if isinstance(message, Mapping):
        fields = message.get("role"), message.get("content")
    elif isinstance(message, Sequence) and not isinstance(message, str) and len(message) == 2:
        fields = tuple(message)
    else:
        raise InputError(f"message {number}: got {message!r:.60}, need a role and a content")
    role, content = fields
    if role not in ROLES:
        raise InputError(
            f"role of message {number}: got {role!r:.40}, need one of {', '.join(ROLES)}"
        )
    if not isinstance(content, str) or (role == "user" and not content.strip()):
        raise InputError(f"content of message {number}: got {content!r:.60}, need text")
    return Message(role, content)
