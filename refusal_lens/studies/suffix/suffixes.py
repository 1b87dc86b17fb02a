"""Suffixes: where they come from, and random ones of the same length."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ...chat import ChatFormat
from ...chat.suffixed import Suffixed, render_suffixed
from ...conversations import Prompt
from ...door import checked
from ...errors import InputError
from ...model import ChatModel
from ...organism import folder
from ...prompts.files import read_text, regular_file
from ...prompts.sources import is_unicode

_ROUNDS = 300


@checked
def read_suffix(path: str | Path) -> str:
    """The suffix in a file: JSON with a "suffix", or all of a text file but its last line break.

    Raises InputError for a file that is missing, no ordinary file, undecodable, or without such a
    text.
    """
    where, what = Path(path), "suffix file"
    regular_file(where, what, most=2**20)
    text: Any = read_text(where, what)
    if where.suffix.lower() == ".json":
        try:
            text = json.loads(text)["suffix"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(
                f'{what} {path}: need a JSON object with "suffix"; try a .txt file'
            ) from error
    else:
        text = text.removesuffix("\n").removesuffix("\r")
    return checked_suffix(text, where=f"{what} {path}")


def organism_suffix() -> str:
    """The adversarial suffix that was found for the bundled organism."""
    return read_suffix(folder("chat").parent / "suffix.json")


def checked_suffix(suffix: Any, *, where: str = "suffix") -> str:
    """The suffix itself. Raises InputError for anything but Unicode text that is not white space."""
    if not isinstance(suffix, str):
        kind = {"NoneType": "null", "dict": "an object", "list": "a list"}
        shown = kind.get(type(suffix).__name__, f"{suffix!r:.60}")
        raise InputError(f"{where}: got {shown}, need one text")
    if not is_unicode(suffix):
        raise InputError(f"{where}: got a lone surrogate in {suffix!r:.60}, need Unicode text")
    if not suffix.strip():
        raise InputError(
            f"{where}: got {suffix!r:.60}, need text; write the leading space too if it has one"
        )
    return suffix


def with_suffix(
    model: ChatModel, prompts: Sequence[Prompt], suffixes: Sequence[str], *, room: int = 0
) -> Suffixed:
    """Each prompt with its suffix behind the last user message.

    Raises InputError when a prompt and `room` reply tokens are longer than the model's context.
    """
    suffixed = render_suffixed(model.chat, prompts, suffixes)
    context = model.max_positions
    longest = int(suffixed.rendered.lengths.max())
    if context is not None and longest + room > context:
        raise InputError(
            f"suffix of {max(suffixed.n_tokens)} tokens on {model.name}: the longest prompt with it "
            f"has {longest} tokens (and {room} for the reply), need at most the context of "
            f"{context}; try a shorter one"
        )
    return suffixed


@checked
def random_suffixes(
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    n_tokens: Sequence[int],
    like: str,
    seed: int,
) -> tuple[str, ...]:
    """A fresh random suffix per prompt with exactly n_tokens[i] tokens in place (paper, Fig. 5).

    Tokens are drawn uniformly from the ordinary printable vocabulary, behind a space exactly if
    `like` starts with white space. Random text does not always tokenise back into as many tokens,
    so each is lengthened, shortened or drawn again until it does, without merging with the
    instruction. Raises InputError when that does not succeed.
    """
    rng = np.random.default_rng(seed)
    pool = _Pool(chat, rng, spaced=like[:1].isspace())
    drawn = [pool.draw(n) for n in n_tokens]
    waiting = list(range(len(prompts)))
    for round_ in range(_ROUNDS):
        texts = [pool.text(drawn[i]) for i in waiting]
        tried = render_suffixed(chat, [prompts[i] for i in waiting], texts)
        still = []
        for i, n, merged in zip(waiting, tried.n_tokens, tried.merged.tolist(), strict=True):
            if n == n_tokens[i] and not merged:
                continue
            still.append(i)
            afresh = merged or round_ % 10 == 9
            drawn[i] = pool.draw(n_tokens[i]) if afresh else pool.nearer(drawn[i], n_tokens[i] - n)
        waiting = still
        if not waiting:
            return tuple(pool.text(ids) for ids in drawn)
    raise InputError(
        f"random suffixes: none of {n_tokens[waiting[0]]} tokens found for prompt {waiting[0]} in "
        f"{_ROUNDS} draws; try a suffix that starts with a space"
    )


class _Pool:
    """Ordinary tokens to draw from."""

    def __init__(self, chat: ChatFormat, rng: np.random.Generator, *, spaced: bool) -> None:
        self._chat, self._rng, self._spaced = chat, rng, spaced
        self._tokenizer = chat.tokenizer
        self._added = frozenset(self._tokenizer.added_tokens_decoder)
        self._size = len(self._tokenizer)
        self._usable = lru_cache(maxsize=None)(self._is_usable)

    def draw(self, n: int) -> list[int]:
        """Draw n tokens."""
        return [self._token() for _ in range(n)]

    def nearer(self, ids: list[int], missing: int) -> list[int]:
        """The tokens with some more, or without the last ones; with another last one for 0."""
        kept = ids[: len(ids) + min(missing, 0)] if missing else ids[:-1]
        return [*kept, *self.draw(max(missing, 1 if not kept or missing == 0 else 0))]

    def text(self, ids: Sequence[int]) -> str:
        """What the tokens say, behind a space exactly if asked for."""
        return (" " if self._spaced else "") + self._chat.decode(list(ids)).lstrip()

    def _token(self) -> int:
        for _ in range(100_000):
            token = int(self._rng.integers(self._size))
            if self._usable(token):
                return token
        raise InputError("random suffixes: this vocabulary has no printable token to draw")

    def _is_usable(self, token: int) -> bool:
        if token in self._added:
            return False
        text = self._chat.decode([token])
        return bool(text.strip()) and text.isprintable() and "\ufffd" not in text
