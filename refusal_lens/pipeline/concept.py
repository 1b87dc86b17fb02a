"""A concept as data: two kinds of prompts, what tells them apart, and the words for it, read from a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..behaviours import Behaviour, Continuations, FirstTokens, Words, choose_first_tokens
from ..behaviours.words import REFUSAL
from ..chat.places import Place
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..judges import Judge, PhraseJudge, phrase_judge
from ..model import ChatModel
from ..prompts import Contrast, PromptPair
from ..prompts.files import FORMATS
from ..runs.opening import LARGEST_JSON, read_bytes
from ..runs.schema import converted

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Prompts = str | tuple[str, ...]
"""A file or data set's name, or the prompts themselves."""
SIZES = {"n_train": 128, "n_val": 32, "n_test": 100}


class _Continuations(Struct, frozen=True, forbid_unknown_fields=True):
    positive: list[str]
    negative: list[str]


class _Behaviour(Struct, frozen=True, forbid_unknown_fields=True):
    first_tokens: list[str | int] | None = None
    against: list[str | int] = []
    continuations: _Continuations | None = None


class _Judge(Struct, frozen=True, forbid_unknown_fields=True):
    phrases: list[str]


class _Words(Struct, frozen=True, forbid_unknown_fields=True):
    noun: str | None = None
    shows: str | None = None
    lacks: str | None = None
    score: str | None = None
    prompts: str | None = None


class _Sizes(Struct, frozen=True, forbid_unknown_fields=True):
    n_train: int = SIZES["n_train"]
    n_val: int = SIZES["n_val"]
    n_test: int = SIZES["n_test"]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    positive: str | list[str]
    negative: str | list[str]
    kinds: tuple[str, str] = ("positive", "negative")
    places: list[str] = []
    behaviour: _Behaviour = _Behaviour()
    judge: _Judge | None = None
    words: _Words = _Words()
    sizes: _Sizes = _Sizes()


class _Saved(Struct, frozen=True):
    name: str
    kinds: tuple[str, str]
    words: dict[str, Any]
    places: list[str] = []
    first_tokens: list[str | int] | None = None
    against: list[str | int] = []
    continuations: _Continuations | None = None
    phrases: list[str] | None = None


_PROMPTS = ("positive", "negative", "sizes")


@dataclass(frozen=True)
class Replies:
    """Replies to a prompt that show a behaviour, and such that do not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@shown()
@checked
@dataclass(frozen=True)
class Concept:
    """What a run is about: two kinds of prompts and what the model does with them.

    positive, negative: a file of prompts, a data set's name, or the prompts; None both for the organism's own.
    places: where candidates are read, none for all post-instruction tokens. The behaviour is scored by
    first_tokens (with against: the log-odds of the two), by continuations, or, with neither, by first tokens
    that are discovered. phrases: what a reply that shows the behaviour contains; None for the refusal judge
    where the concept is refusal, and for no judge elsewhere. words: what a page calls it. sizes: prompts of
    each kind in each split. Raises InputError for a behaviour that is given in two ways, or a place or kind
    that cannot be one.
    """

    name: str = "refusal"
    kinds: tuple[str, str] = ("harmful", "harmless")
    positive: Prompts | None = None
    negative: Prompts | None = None
    places: tuple[str, ...] = ()
    first_tokens: tuple[str | int, ...] | None = None
    against: tuple[str | int, ...] = ()
    continuations: Replies | None = None
    phrases: tuple[str, ...] | None = None
    words: Words = REFUSAL
    sizes: Mapping[str, int] = field(default_factory=lambda: dict(SIZES))

    def __post_init__(self) -> None:
        if self.first_tokens is not None and self.continuations is not None:
            raise InputError(
                f"behaviour of {self.name!r}: got first tokens and continuations, need one of them"
            )
        if self.against and self.first_tokens is None:
            raise InputError(
                f"behaviour of {self.name!r}: got tokens against and none for, need first_tokens too"
            )
        if self.phrases is not None and not all(phrase.strip() for phrase in self.phrases):
            raise InputError(f"judge of {self.name!r}: got an empty phrase, need some text in each")
        places = tuple(str(Place.parse(place)) for place in self.places)
        object.__setattr__(self, "places", places)
        if self.words is REFUSAL:
            object.__setattr__(self, "words", Words.of(self.name))

    @classmethod
    @checked
    def read(cls, path: str | Path) -> Concept:
        """The concept of a TOML file; files of prompts are named from its folder.

        Raises InputError, with one line, for a file that is missing, no TOML, has a name that is not known, or
        a value of another type.
        """
        path = Path(path)
        try:
            contents = tomllib.loads(read_bytes(path, largest=LARGEST_JSON, follow=True).decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            why = " ".join(str(error).split())[:100]
            raise InputError(f"concept at {path}: got something that is not TOML ({why})") from error
        read: _File = converted(
            contents, _File, f"concept at {path}", remedy="see the example in experiments/08_toy_concept"
        )
        given = {name: word for name, word in _fields(read.words).items() if word is not None}
        tokens = read.behaviour.first_tokens
        return cls(
            read.name,
            read.kinds,
            _prompts(read.positive, path),
            _prompts(read.negative, path),
            tuple(read.places),
            None if tokens is None else tuple(tokens),
            tuple(read.behaviour.against),
            _replies(read.behaviour.continuations),
            None if read.judge is None else tuple(read.judge.phrases),
            replace(Words.of(given.get("noun", read.name)), **given),
            _fields(read.sizes),
        )

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Concept:
        """The concept that `to_json` wrote. Raises InputError for anything else."""
        read: _Saved = converted(dict(facts), _Saved, "concept of a run")
        return cls(
            read.name,
            read.kinds,
            phrases=None if read.phrases is None else tuple(read.phrases),
            places=tuple(read.places),
            first_tokens=None if read.first_tokens is None else tuple(read.first_tokens),
            against=tuple(read.against),
            continuations=_replies(read.continuations),
            words=Words(**read.words),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the prompts, which a run keeps apart."""
        return {name: value for name, value in asdict(self).items() if name not in _PROMPTS}

    def contrast(self, **sizes: Any) -> Contrast | None:
        """The prompts in seeded splits of these sizes; None where the concept names no prompts.

        Raises InputError for a list of one kind and a file of the other, or too few prompts.
        """
        positive, negative = self.positive, self.negative
        facts: dict[str, Any] = {"kinds": self.kinds, "name": self.name, **sizes}
        if positive is None or negative is None:
            return None
        if isinstance(positive, str) and isinstance(negative, str):
            load = Contrast.from_files if is_local(positive) else Contrast.from_datasets
            return load(positive, negative, **facts)
        if isinstance(positive, str) or isinstance(negative, str):
            raise InputError(
                f"prompts of {self.name!r}: got a list of one kind and a file of the other, need two of a sort"
            )
        return Contrast.of(positive, negative, **facts)

    @property
    def judge(self) -> Judge | None:
        """Who judges replies: by the phrases, by those of refusals where that is the concept, else nobody."""
        if self.phrases is not None:
            return PhraseJudge(self.phrases)
        return phrase_judge if self.name == "refusal" else None

    def behaviour(self, model: ChatModel, pair: PromptPair, **options: Any) -> Behaviour:
        """What scores prompts: as the concept says, else first tokens that are found on a pair of prompts.

        options: batch_size and on_progress of the search. Raises NoFirstTokens where it finds none, and InputError
        for tokens or replies that the model cannot begin with.
        """
        facts: dict[str, Any] = {"name": self.name, "words": self.words, "judge": self.judge}
        if self.continuations is not None:
            return Continuations.of(model, **asdict(self.continuations), **facts)
        if self.first_tokens is not None:
            return FirstTokens.of(model, self.first_tokens, against=self.against, **facts)
        return choose_first_tokens(model, pair, **facts, **options)

    @property
    def scored(self) -> dict[str, Any]:
        """What determines the behaviour's scores and verdicts, JSON-able."""
        names = ("name", "kinds", "first_tokens", "against", "continuations", "phrases")
        return {name: value for name, value in asdict(self).items() if name in names}


def is_local(source: str) -> bool:
    """Whether a source of prompts is a file or folder, there or missing, rather than a data set's name."""
    return Path(source).exists() or Path(source).suffix.lower() in FORMATS


def _prompts(source: str | list[str], path: Path) -> Prompts:
    """Prompts as they stand, or a file's path from the folder of the concept, or a data set's name."""
    if not isinstance(source, str):
        return tuple(source)
    beside = path.parent / source
    return str(beside) if beside.exists() else source


def _replies(read: _Continuations | None) -> Replies | None:
    return None if read is None else Replies(tuple(read.positive), tuple(read.negative))


def _fields(struct: Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}
