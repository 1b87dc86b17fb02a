"""The ids that begin, end and pad a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .encoder import name_of


def bos_prefix(tokenizer: PreTrainedTokenizerBase, *, wanted: bool | None) -> tuple[int, ...]:
    """What goes in front of every prompt whose template does not write it: the tokenizer's BOS."""
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
    return prefix


def is_written(prefix: Sequence[int], leading: Sequence[int], bos_id: int | None) -> bool:
    """Whether a template writes the prefix, or BOS alone, by itself.

    leading: the control tokens that the template writes before the instruction, behind white space or a
    system prompt too.
    """
    starts = range(len(leading) - len(prefix) + 1)
    written = any(tuple(leading[k : k + len(prefix)]) == tuple(prefix) for k in starts)
    return written or bos_id in leading


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
