"""One row of a data set to its prompt: a text that stands alone, or a conversation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..conversations import Conversation, Prompt
from ..errors import InputError

COLUMNS = ("instruction", "prompt", "text", "goal", "behavior", "question")
"""Names under which data sets keep their instructions, in the order they are tried."""

SECOND_TEXTS = (
    *("input", "inputs", "context", "contexts", "contextstring", "passage", "document", "article"),
    *(
        "paragraph",
        "history",
        "choices",
        "options",
        "image",
        "images",
        "imagefilename",
        "imagepath",
    ),
)
"""Columns of what an instruction is about, in Alpaca, Dolly, HarmBench, SQuAD, MMLU and others."""

CONVERSATIONS = ("messages", "conversations", "conversation", "turns", "dialogue")
"""Names under which data sets keep whole conversations, tried after `COLUMNS`."""

_REPLIES = ("response", "completion")
"""Columns beside ``prompt`` that hold the assistant's reply."""
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""What ShareGPT's files call the roles, where it is something else."""
# How data sets write "there is no second text".
_NOTHING = frozenset(("", "<noinput>", "noinput", "none", "nan", "null", "[]"))


def plain_name(name: object) -> str:
    """A column's name as it is compared: case, spaces, "_" and "-" do not matter.

    >>> plain_name("Context_String")
    'contextstring'
    """
    return re.sub(r"[\s_-]+", "", str(name)).lower()


def needs_more(row: Mapping[Any, Any], key: str) -> bool:
    """Whether a row's text asks about something in another column, and makes no sense without it."""
    return any(
        plain_name(name) in SECOND_TEXTS and str(name) != key and not _is_nothing(value)
        for name, value in row.items()
    )


def prompt_column(row: Mapping[Any, Any], column: str | None, where: str) -> str:
    """The name of the column with the prompt: `column`, else the first of `COLUMNS` or `CONVERSATIONS` there.

    Raises InputError where there is none, or two that differ in spelling only.
    """
    if column is not None and column in row:
        return column
    names: dict[str, list[str]] = {}
    for key in row:
        names.setdefault(plain_name(key), []).append(str(key))
    for wanted in (*COLUMNS, *CONVERSATIONS) if column is None else (column,):
        spelt = names.get(plain_name(wanted), [])
        if len(spelt) > 1:
            raise InputError(f"prompts at {where}: got columns {_listed(spelt)}, need one of them")
        if spelt:
            return spelt[0]
    raise InputError(
        f"prompts at {where}: got columns {_listed(map(str, row))}, need "
        f"{column or _listed((*COLUMNS, CONVERSATIONS[0]))}; try column="
    )


def prompt_in(row: Mapping[Any, Any], key: str, *, alone: bool) -> Any:
    """What a row asks: the value of its prompt's column, or a conversation where that or a reply makes one.

    A reply is a ``response`` or ``completion`` beside ``prompt``, and a ``system`` stands beside messages. alone: what
    other columns hold does not count. Raises InputError for messages that are no conversation.
    """
    value, beside = row[key], {} if alone else row
    if is_conversation(value) or (plain_name(key) in CONVERSATIONS and not alone):
        return _with_reply(conversation_in(value, _named(beside, ("system",))), beside, key)
    if not isinstance(value, str) or not value.strip():
        return value
    return _with_reply(Conversation.of(value.strip()), beside, key)


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, right or wrong."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def conversation_in(value: Any, system: Any = None) -> Conversation:
    """The conversation of a list of messages: role and content, or from and value as ShareGPT has them.

    Raises InputError for anything else.
    """
    if not isinstance(value, list):
        raise InputError(f"got {value!r:.60} for a conversation, need a list of messages")
    messages = [_message(message) for message in value]
    if isinstance(system, str) and system.strip() and messages and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": system})
    return Conversation.of(messages)


def _message(message: Any) -> Any:
    """A message with the usual names of its fields and roles."""
    if not isinstance(message, Mapping) or "role" in message or "from" not in message:
        return message
    role = message["from"]
    return {"role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": message.get("value")}


def _with_reply(conversation: Conversation, row: Mapping[Any, Any], key: str) -> Prompt:
    reply: Any = _named(row, _REPLIES) if plain_name(key) == "prompt" else None
    if is_conversation(reply) and len(reply) == 1:
        reply = reply[0].get("content")
    if not isinstance(reply, str) or _is_nothing(reply):
        return conversation.prompt
    if conversation.reply is not None:
        raise InputError("got a reply both in the prompt and beside it, need one of them")
    return conversation.with_reply(reply)


def _named(row: Mapping[Any, Any], names: Iterable[str]) -> Any:
    """The value of the first of these columns that is there; None without."""
    values = {plain_name(key): value for key, value in row.items()}
    return next((values[name] for name in names if name in values), None)


def _is_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    # A missing number is NaN in a table, which equals nothing, itself included.
    return value is None or value != value or value in ([], {}, ())


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
