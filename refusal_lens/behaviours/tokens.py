"""Texts to token ids as a model's reply begins with them, in the template's context."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pandas as pd

from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..shapes import Probabilities

log = logging.getLogger(__name__)

_PROBE = "hello"


def reply_tokens(model: ChatModel, replies: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each reply as it follows the generation prompt (and prefill) in the template.

    Raises InputError where the template cannot hold replies.
    """
    prompt = int(model.chat.render([_PROBE]).lengths[0])
    rendered = model.chat.render([_PROBE] * len(replies), replies=list(replies))
    starts = rendered.ids.shape[1] - rendered.lengths + prompt
    return [
        tuple(row[start:stop])
        for row, start, stop in zip(
            rendered.ids.tolist(), starts.tolist(), rendered.answer[:, 1].tolist(), strict=True
        )
    ]


def first_token(model: ChatModel, item: str | int) -> int:
    """The id of a text that is one token where a reply begins, or the id itself.

    A text of digits is an id. Raises InputError for an id that the model has not, or a text of several tokens.
    """
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise InputError(f"first token {item!r:.40}: got {type(item).__name__}, need a text or an id")
    if isinstance(item, int) or (item.isascii() and item.strip().isdigit()):
        # Python reads no number of thousands of digits; no vocabulary needs one of twenty.
        token = int(item) if len(str(item)) < 20 else -1
        if not 0 <= token < model.d_vocab:
            raise InputError(f"first token {item!s:.40}: no such id, need 0 to {model.d_vocab - 1}")
        return token
    if not item.strip():
        raise InputError(f"first token {item!r:.40}: got no text, need a word or an id")
    special = model.tokenizer.get_added_vocab().get(item)
    return int(special) if special is not None else _in_context(model, item)


def _in_context(model: ChatModel, word: str) -> int:
    """The one token that a reply which is this word begins with; a difference is logged."""
    try:
        [begun] = reply_tokens(model, [word])
    except InputError as error:
        raise InputError(
            f"first token {word!r:.40}: cannot be put where a reply begins; try its id ({error})"
        ) from error
    bare = model.tokenizer.encode(word, add_special_tokens=False)
    if len(begun) != 1 or begun[0] >= model.d_vocab:
        pieces = [token_text(model, i) for i in begun][:6]
        raise InputError(
            f"first token {word!r:.40}: is {len(begun)} tokens ({pieces}) where a reply begins, "
            f"need one; try {pieces[:1]} or an id"
        )
    if list(begun) == bare:
        return begun[0]
    if word != word.strip() and begun == reply_tokens(model, [word.strip()])[0]:
        raise InputError(
            f"first token {word!r:.40}: the chat template drops white space round a reply, which "
            f"then begins with {token_text(model, begun[0])!r}; try {word.strip()!r}, or the id {bare[:1]}"
        )
    log.warning(
        "first token %r: a reply begins with token %d here, the word alone is %s",
        word,
        begun[0],
        bare,
    )
    return begun[0]


def token_text(model: ChatModel, token: int) -> str:
    """The text of one token."""
    return str(model.tokenizer.decode([token]))


@checked
def top_tokens(model: ChatModel, probabilities: Probabilities, *, k: int = 10) -> pd.DataFrame:
    """The k likeliest next tokens by mean probability: token_id, token, probability (paper, Fig. 9)."""
    best = probabilities.topk(k)
    ids = best.indices.tolist()
    return pd.DataFrame(
        {
            "token_id": ids,
            "token": [token_text(model, i) for i in ids],
            "probability": best.values.tolist(),
        }
    )
