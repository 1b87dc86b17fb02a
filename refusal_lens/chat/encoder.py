"""Text to token ids, where only marked text can become a control token.

A tokenizer turns ``<|im_end|>`` into a control token wherever it stands, also inside what a user
wrote. Here the pipeline of the tokenizer (normaliser, pre-tokeniser, model) is kept, but each of
its control tokens answers to a *mark* of Unicode noncharacters instead of its own text. Template
text is marked, user text is not, and all of it is encoded in one piece, so that tokens merge
across the border of the two exactly as they do in the original.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from ..display import shown
from ..errors import InputError

# Unicode reserves the first 32 for internal use; the others are halves of characters. No text
# holds them.
_FORBIDDEN = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")
_OPEN, _BREAK, _DIGITS = "\ufdd0", "\ufdd1", [chr(c) for c in range(0xFDD2, 0xFDF0)]
_MARK_DIGITS = 4


@shown()
@dataclass(frozen=True)
class Encoded:
    """Token ids of one text, with the text they came from and each token's character span."""

    text: str
    ids: tuple[int, ...]
    offsets: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.ids)

    def is_marked(self, index: int) -> bool:
        """Whether a token came from a mark: a control token of the template."""
        return _OPEN in self.text[slice(*self.offsets[index])]

    def overlapping(self, start: int, stop: int) -> tuple[int, int] | None:
        """The half-open span of unmarked tokens that hold a character of text[start:stop]."""
        inside = [i for i, (a, b) in enumerate(self.offsets) if a < stop and b > start]
        # Some control tokens swallow the white space of the instruction next to them.
        inside = [i for i in inside if not self.is_marked(i)]
        return (inside[0], inside[-1] + 1) if inside else None


class Encoder:
    """A tokenizer's pipeline in which control tokens stand only where `mark` put them.

    Every added token counts as a control token, special or not, except the runs of white space
    (Gemma, GPT-NeoX) and single letters (DeepSeek) that some tokenizers add as mere vocabulary.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InputError(
                f"tokenizer {name_of(tokenizer)}: got {type(tokenizer).__name__}, need a fast "
                "tokenizer (tokenizer.json); try loading it with use_fast=True"
            )
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._controls = {i: t for i, t in added.items() if t.special or _is_name(t.content)}
        self.control_ids = frozenset(self._controls)
        letters = {i: t for i, t in added.items() if i not in self._controls}
        self._marks = {i: _mark(n) for n, i in enumerate(self._controls)}
        self._pipeline = _bare(backend)
        # What the model makes of a letter that no vocabulary holds; byte fallback makes no use of it.
        unknown = self._pipeline.encode(_DIGITS[0], add_special_tokens=False).ids
        self.unknown_ids = self.control_ids.intersection(unknown)
        if leaks := self._leaks():
            names = {self._controls[i].content: self._marks[i] for i in leaks}
            self._pipeline = _renamed(backend, names)
        self._ids = _install(self._pipeline, [*self._new_tokens(), *letters.items()])
        plain = [re.escape(t.content) for t in self._controls.values() if not t.special]
        self._not_special = re.compile("|".join(plain) or "(?!)")

    def mark(self, text: str, *, special: bool = True) -> str:
        """`text` with a mark for each control token that the tokenizer sees in it.

        special=False leaves special tokens as plain text and marks only the other added tokens.
        """
        if not special and not self._not_special.search(text):
            return text
        encoding = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        parts, done = [], 0
        for token, (start, stop) in zip(
            encoding["input_ids"], encoding["offset_mapping"], strict=True
        ):
            control = self._controls.get(token)
            at = -1 if control is None else text.find(control.content, start, stop)
            if control is None or at < 0 or (control.special and not special):
                continue
            parts += [text[done:at], self._marks[token]]
            done = at + len(control.content)
        return "".join(parts) + text[done:]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of marked texts, in the numbering of the original tokenizer."""
        return [
            self._translated(text, encoding.ids, encoding.offsets)
            for text, encoding in zip(
                texts,
                self._pipeline.encode_batch(list(texts), add_special_tokens=False),
                strict=True,
            )
        ]

    def extend(self, encoded: Sequence[Encoded], additions: Sequence[str]) -> list[Encoded]:
        """Each text with its addition, its tokens so far unchanged.

        The addition is tokenised in context. Where a token would merge across the border, or the
        context would change the tokens before it, the border is held by force.
        """
        longer = self.encode([e.text + a for e, a in zip(encoded, additions, strict=True)])
        torn = [i for i, e in enumerate(encoded) if longer[i].ids[: len(e)] != e.ids]
        joined = self.encode([encoded[i].text + _BREAK + additions[i] for i in torn])
        for i, replacement in zip(torn, joined, strict=True):
            longer[i] = replacement
        return longer

    def _translated(
        self, text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]
    ) -> Encoded:
        original = [self._ids.get(i, i) for i in ids]
        if _BREAK in text:
            offsets = [span for span, i in zip(offsets, original, strict=True) if i is not None]
        return Encoded(text, tuple(i for i in original if i is not None), offsets)

    def _new_tokens(self) -> list[tuple[int | None, AddedToken]]:
        marks: list[tuple[int | None, AddedToken]] = [
            (i, _like(token, self._marks[i])) for i, token in self._controls.items()
        ]
        return [(None, AddedToken(_BREAK, normalized=False)), *marks]

    def _leaks(self) -> list[int]:
        """Control tokens that the bare model would still make of their plain text."""
        controls = list(self._controls.items())
        # At the start, between spaces, between line ends, between marks.
        names = [token.content for _, token in controls]
        spelt = [f"{name} a {name} a\n{name}\na.{name}." for name in names]
        encodings = self._pipeline.encode_batch(spelt, add_special_tokens=False)
        return [
            i
            for (i, _), encoding in zip(controls, encodings, strict=True)
            if i in encoding.ids and i not in self.unknown_ids
        ]


def admissible(texts: Sequence[str], what: str) -> list[str]:
    """`texts` as a list. InputError, naming the row, for what no text may hold."""
    if isinstance(texts, str):
        raise InputError(f"{what}s: got one string, need a list of them; try [{texts[:30]!r}]")
    if not isinstance(texts, Iterable):
        raise InputError(f"{what}s: got {type(texts).__name__}, need a list of texts")
    texts = list(texts)
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{what} {row}: got {text!r}, need text")
        require_admissible(text, f"{what} {row}")
    if not texts:
        raise InputError(f"{what}s: got none, need at least one")
    return texts


def require_admissible(text: str, what: str) -> None:
    """InputError, beginning with `what`, for a code point that no text may hold."""
    if forbidden := _FORBIDDEN.search(text):
        raise InputError(
            f"{what}: got U+{ord(forbidden[0]):04X}, a code point that Unicode forbids in "
            "text, need text without it; try to remove it"
        )


def name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to call a tokenizer in a message."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _is_name(content: str) -> bool:
    return len(content.replace("▁", " ").strip()) > 1


def _mark(number: int) -> str:
    digits = []
    for _ in range(_MARK_DIGITS):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return _OPEN + "".join(digits)


def _like(token: AddedToken, content: str) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
    )


def _bare(backend: Tokenizer) -> Tokenizer:
    """The same normaliser, pre-tokeniser and model, without added tokens or post-processor."""
    bare = Tokenizer(backend.model)
    if backend.normalizer is not None:
        bare.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        bare.pre_tokenizer = backend.pre_tokenizer
    return bare


def _renamed(backend: Tokenizer, names: Mapping[str, str]) -> Tokenizer:
    """A bare copy whose model has new names for some vocabulary entries.

    Needed where the model itself writes control tokens from their plain text: unigram and
    word-level vocabularies, or merges that build one.
    """
    spec: dict[str, Any] = json.loads(backend.to_str())
    model = spec["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {names.get(piece, piece): i for piece, i in model["vocab"].items()}
    if "merges" in model:
        model["merges"] = [m for m in model["merges"] if not _touches(m, names)]
    spec |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(spec))


def _touches(merge: str | list[str], names: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in names or right in names or left + right in names


def _install(
    pipeline: Tokenizer, tokens: Sequence[tuple[int | None, AddedToken]]
) -> dict[int, int | None]:
    """Add the tokens; map the pipeline's ids for them to the original ids (None: drop it)."""
    size = pipeline.get_vocab_size(with_added_tokens=False)
    known = [pipeline.token_to_id(token.content) for _, token in tokens]
    # New ids start at the size of the vocabulary. One with holes uses some of these itself: dummies
    # take them.
    if any(i is not None and i >= size for i in known) or any(
        pipeline.model.id_to_token(size + n) is not None for n in range(len(tokens))
    ):
        beyond = 1 + max(pipeline.get_vocab(with_added_tokens=False).values())
        dummies = [_OPEN + _mark(n) for n in range(beyond - size)]
        pipeline.add_tokens([AddedToken(dummy, normalized=False) for dummy in dummies])
    pipeline.add_tokens([token for _, token in tokens])
    return {_id_of(pipeline, token): original for original, token in tokens}


def _id_of(pipeline: Tokenizer, token: AddedToken) -> int:
    known = pipeline.token_to_id(token.content)
    assert known is not None, "it was just added"
    return known
