"""How many tokens a model can hold, and whether prompts with their replies fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..conversations import instruction_of
from ..errors import InputError

if TYPE_CHECKING:
    from ..chat import Rendered

NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
"""What configs call their number of positions, the usual name first."""
LONGEST_REPLY = 512
"""Tokens of a reply where nobody says another number."""


def max_positions(config: Any) -> int | None:
    """Tokens that a model was made for, by its config; None where nothing bounds them.

    ALiBi and recurrent models have no bound. Rotary models compute on past theirs, but on positions that
    they never saw.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if getattr(text, "alibi", False) is True:
        return None
    kinds = ("position_embedding_type", "positional_embedding_type")
    if any(getattr(text, name, None) == "alibi" for name in kinds):
        return None
    found = [getattr(text, name, None) for name in NAMES]
    return next((n for n in found if type(n) is int and n > 0), None)


def require_room(name: str, limit: int | None, rendered: Rendered, new_tokens: int) -> None:
    """Raise InputError, naming the prompt, unless every row and new_tokens fit into limit."""
    if limit is None:
        return
    lengths = rendered.lengths
    longest = int(lengths.argmax())
    n = int(lengths[longest])
    if n + new_tokens <= limit:
        return
    text = instruction_of(rendered.prompts[longest])
    shown = text if len(text) <= 40 else text[:40] + "..."
    reply = f" and {new_tokens} for the reply" if new_tokens else ""
    rest = limit - n
    remedy = (
        f"try max_new_tokens={rest} or less" if new_tokens and rest > 0 else "try a shorter one"
    )
    raise InputError(
        f"prompt {longest} ({shown!r}) on {name}: got {n} tokens{reply}, need at most {limit}, the "
        f"positions that the model has; {remedy}"
    )


def reply_length(
    limit: int | None, rendered: Rendered, asked: int | None, default: int = LONGEST_REPLY
) -> int:
    """The longest reply: as asked; by default 512, or what is left beside the longest prompt.

    Raises InputError unless a whole number of at least 1 is asked for.
    """
    if asked is not None:
        if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
            raise InputError(f"max_new_tokens: got {asked!r}, need a whole number of at least 1")
        return asked
    if limit is None:
        return default
    return max(1, min(default, limit - int(rendered.lengths.max())))
