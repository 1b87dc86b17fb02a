"""Behaviours as JSON: what a run's folder keeps, and how it gives them back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..conversations import Conversation
from ..door import checked
from ..errors import InputError
from ..judges import Judge
from .behaviour import Behaviour
from .continuations import Continuations, ReplyPair
from .first_tokens import FirstTokens
from .judging import judge_of_json
from .replies import Replies
from .words import Words

log = logging.getLogger(__name__)

WHERE = "behaviour as JSON"


@checked
def behaviour_from_json(data: Mapping[str, Any], *, judges: Sequence[Judge] = ()) -> Behaviour:
    """The behaviour that a `to_json` wrote, with what its `details` gave where that is there too.

    judges: whom to look a judge's name up among, beside the bundled ones. Where a judge of replies is not found, the
    behaviour has none, which is logged. Raises InputError for anything else, for a behaviour of a plain function,
    which no file holds, and for one that is scored by a judge that is not found.
    """
    kind = data.get("kind")
    if kind == "function of logits":
        raise InputError(
            f"behaviour {data.get('name')!r:.60}: is the Python function {data.get('function')!r:.80}, which no file "
            "can give back; make it again with from_logits"
        )
    readers: dict[str, Callable[[], Behaviour]] = {
        "first tokens": lambda: _first_tokens(data, judges),
        "continuations": lambda: _continuations(data, judges),
        "replies": lambda: _replies(data, judges),
    }
    reader = readers.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise InputError(f"{WHERE}: got kind {kind!r:.40}, need one of {', '.join(readers)}")
    try:
        return reader()
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{WHERE}: cannot be read ({error})") from error


def _first_tokens(data: Mapping[str, Any], judges: Sequence[Judge]) -> FirstTokens:
    return FirstTokens(
        tuple(data["ids"]),
        tuple(data["against"]),
        tuple(str(text) for text in data.get("texts", ())),
        str(data.get("source", "given")),
        tuple((int(i), str(text), float(p), float(q)) for i, text, p, q in data.get("evidence", ())),
        **_name_and_words(data),
        judge=_judge(data, judges),
    )


def _continuations(data: Mapping[str, Any], judges: Sequence[Judge]) -> Continuations:
    return Continuations(
        tuple(map(tuple, data["positive"])),
        tuple(map(tuple, data["negative"])),
        tuple(
            ReplyPair(Conversation.of(pair["prompt"]).prompt, tuple(pair["positive"]), tuple(pair["negative"]))
            for pair in data["pairs"]
        ),
        _texts_of_both(data.get("texts", ((), ()))),
        **_name_and_words(data),
        judge=_judge(data, judges),
    )


def _replies(data: Mapping[str, Any], judges: Sequence[Judge]) -> Replies:
    judge = judge_of_json(data["judge"], judges)
    if judge is None:
        raise InputError(f"{WHERE}: got no judge of the replies, need one")
    return Replies(
        judge,
        data["max_new_tokens"],
        threshold=data["threshold"],
        **_name_and_words(data),
    )


def _judge(data: Mapping[str, Any], judges: Sequence[Judge]) -> Judge | None:
    """The judge of replies; None, and said, where a run was judged by a program that is not here."""
    try:
        return judge_of_json(data.get("judge"), judges)
    except InputError as error:
        log.warning("replies of %s are not judged: %s", data.get("name"), error)
        return None


def _texts_of_both(listed: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    positive, negative = (tuple(map(str, texts)) for texts in listed)
    return positive, negative


def _name_and_words(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": str(data["name"]), "words": Words(**data["words"])}
