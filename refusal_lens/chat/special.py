"""The ids that begin, end and pad a prompt."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .encoder import name_of

logger = logging.getLogger(__name__)


def bos_prefix(
    tokenizer: PreTrainedTokenizerBase, leading: Sequence[int], *, wanted: bool | None
) -> tuple[int, ...]:
    """What goes in front of every prompt: the tokenizer's BOS, unless the template writes it.

    leading: the control tokens that the template writes before the instruction, behind white space or a
    system prompt too.
    """
    if wanted is False:
        return ()
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    ends = [k for k in range(len(full) - len(bare) + 1) if full[k : k + len(bare)] == bare]
    prefix = tuple(full[: ends[0]]) if ends else ()
    if wanted and not prefix:
        if tokenizer.bos_token_id is None:
            raise InputError(
                f"bos at tokenizer {name_of(tokenizer)}: got bos=True, need a tokenizer that has "
                "a BOS token; try bos=None"
            )
        prefix = (tokenizer.bos_token_id,)
    starts = range(len(leading) - len(prefix) + 1)
    written = any(tuple(leading[k : k + len(prefix)]) == prefix for k in starts)
    if not prefix or written or tokenizer.bos_token_id in leading:
        return ()
    logger.info("BOS is put in front: tokenizer %s adds it by itself", name_of(tokenizer))
    return prefix


def stop_ids(eos: int | None, end_of_turn: int | None, extra: Sequence[int]) -> tuple[int, ...]:
    """The ids that end an answer, each once."""
    return tuple(dict.fromkeys(i for i in (eos, end_of_turn, *extra) if i is not None))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token, else end of sequence, else another special token."""
    named = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    for token in (*named, *tokenizer.all_special_ids):
        if token is not None:
            return int(token)
    raise InputError(
        f"tokenizer {name_of(tokenizer)}: got no special token, need one to pad with; try "
        "tokenizer.add_special_tokens({'pad_token': '<pad>'})"
    )
