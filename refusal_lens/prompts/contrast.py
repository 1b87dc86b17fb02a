"""Contrast: two kinds of prompts, in disjoint splits for training, validation and test."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from ..conversations import (
    Conversation,
    Prompt,
    instruction_of,
    prompt_json,
    row_of_prompt,
    texts_of,
)
from ..display import shown
from ..door import checked
from ..errors import InputError
from .sources import Source, is_folder, is_unicode, read_dataset, read_file

SPLITS = ("train", "val", "test")
_MOST = 10**9
_USUAL = {"n_train": 128, "n_val": 32, "n_test": 100}
"""The paper's sizes of the splits, for each kind."""
_OPTIONS = "--n-train, --n-val and --n-test"


@shown()
@checked
@dataclass(frozen=True)
class PromptPair:
    """Prompts of the two kinds: positive (harmful) and negative (harmless).

    A conversation of a single message without reply becomes that text.
    """

    positive: tuple[Prompt, ...]
    negative: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        for kind in ("positive", "negative"):
            prompts = getattr(self, kind)
            if isinstance(prompts, str) or not isinstance(prompts, Sequence):
                raise InputError(f"{kind} prompts: got {prompts!r:.60}, need a tuple of prompts")
            object.__setattr__(self, kind, tuple(_prompts(prompts, kind)))


@shown("name", "kinds", "sizes")
@checked
@dataclass(frozen=True)
class Contrast:
    """D_harmful and D_harmless of the paper (section 2.3), or any other pair of kinds.

    Every prompt stands in one split and kind only: white space at the ends of its texts aside, none occurs twice.

    Attributes:
        train: for the difference of means.
        val: for the scores that select a candidate.
        test: for the evaluation.
        kinds: names of the positive and the negative kind; files of a run are named after them.
        name: the concept that the kinds differ in.
        source: where the texts come from (JSON-able).
        duplicates_removed: how many repeated prompts were left out.
    """

    train: PromptPair
    val: PromptPair
    test: PromptPair
    kinds: tuple[str, str] = ("harmful", "harmless")
    name: str = "refusal"
    source: Mapping[str, Any] = field(default_factory=dict, compare=False)
    duplicates_removed: int = 0

    def __post_init__(self) -> None:
        _check_names(self.kinds, self.name)
        for split in SPLITS:
            if not isinstance(getattr(self, split), PromptPair):
                raise InputError(
                    f"{split} prompts: got {getattr(self, split)!r:.60}, need a PromptPair"
                )
        seen: set[Hashable] = set()
        for split, kind, prompt in self._rows():
            if odd := [text for text in texts_of(prompt) if not is_unicode(text)]:
                raise InputError(
                    f"{kind} prompts at split {split}: got a lone surrogate in {odd[0]!r:.60}, need "
                    "Unicode text"
                )
            if _identity(prompt) in seen:
                raise InputError(
                    f"{kind} prompts at split {split}: got {instruction_of(prompt)[:60]!r} a second time, need "
                    "splits and kinds without common prompts; try Contrast.from_files"
                )
            seen.add(_identity(prompt))

    @property
    def sha256(self) -> str:
        """Hash of all prompts, by split and kind."""
        texts = {
            split: [
                list(map(prompt_json, prompts))
                for prompts in (self.pair(split).positive, self.pair(split).negative)
            ]
            for split in SPLITS
        }
        return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()

    @property
    def is_for_the_organism(self) -> bool:
        """Whether these are the organism's own sentences, and nobody asked to give them to another model."""
        return self.source.get("bundled") == "organism" and not self.source.get("anyway")

    @property
    def sizes(self) -> dict[str, int]:
        """How many prompts of both kinds each split holds."""
        pairs = {split: self.pair(split) for split in SPLITS}
        return {split: len(pair.positive) + len(pair.negative) for split, pair in pairs.items()}

    @checked
    def pair(self, split: str) -> PromptPair:
        """The prompts of "train", "val" or "test"."""
        if split not in SPLITS:
            raise InputError(f"split: got {split!r}, need one of {', '.join(SPLITS)}")
        pair: PromptPair = getattr(self, split)
        return pair

    def frame(self) -> pd.DataFrame:
        """One row per prompt: split, kind, instruction, and messages where any prompt is a conversation."""
        rows = [
            {"split": split, "kind": kind, **row_of_prompt(prompt)}
            for split, kind, prompt in self._rows()
        ]
        columns = ["split", "kind", "instruction"]
        if any("messages" in row for row in rows):
            columns.append("messages")
        return pd.DataFrame(rows, columns=columns)

    def _rows(self) -> list[tuple[str, str, Prompt]]:
        return [
            (split, kind, prompt)
            for split in SPLITS
            for kind, prompts in zip(
                self.kinds, (self.pair(split).positive, self.pair(split).negative), strict=True
            )
            for prompt in prompts
        ]

    @classmethod
    @checked
    def of(
        cls,
        positive: Sequence[Prompt | Sequence[Mapping[str, str]]],
        negative: Sequence[Prompt | Sequence[Mapping[str, str]]],
        *,
        n_train: int | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        seed: int = 0,
        kinds: tuple[str, str] = ("positive", "negative"),
        name: str = "concept",
    ) -> Contrast:
        """Seeded disjoint splits of two lists of texts, conversations or lists of messages.

        Sizes are prompts of each kind. By default a fifth each (and two or more) is for val and test and the rest
        for train, but no more than the paper's 128, 32 and 100. Duplicates are removed first; a prompt of both
        kinds counts as the first.
        """
        _check_names(kinds, name)
        given = [
            Source(tuple(_prompts(prompts, kind)), {"list": len(prompts)})
            for kind, prompts in zip(kinds, (positive, negative), strict=True)
        ]
        distinct = min(len(set(map(_identity, source.prompts))) for source in given)
        sizes = _sizes(**_shares(distinct, {"n_train": n_train, "n_val": n_val, "n_test": n_test}))
        return _split(given, sizes, seed, kinds, name)

    @classmethod
    @checked
    def toy(
        cls,
        *,
        n_train: int = 128,
        n_val: int = 32,
        n_test: int = 100,
        seed: int = 0,
        anyway: bool = False,
    ) -> Contrast:
        """The toy instructions that the bundled organism was trained to refuse and to follow.

        They mean nothing to another model: a direction of one is not sought in them unless anyway=True.
        """
        # The organism makes these sentences; only this contrast needs it.
        from ..organism.world import instructions

        sizes = _sizes(n_train, n_val, n_test)
        _check_seed(seed)
        drawn = {
            (split, kind): list(instructions(kind, split, n, seed))
            for split, n in sizes.items()
            for kind in ("harmful", "harmless")
        }
        source = {"bundled": "organism", "seed": seed, **({"anyway": True} if anyway else {})}
        return _assembled(drawn, ("harmful", "harmless"), "refusal", source, sizes)

    @classmethod
    @checked
    def from_files(
        cls,
        positive: str | Path,
        negative: str | Path,
        *,
        n_train: int = 128,
        n_val: int = 32,
        n_test: int = 100,
        seed: int = 0,
        column: str | None = None,
        kinds: tuple[str, str] = ("harmful", "harmless"),
        name: str = "refusal",
    ) -> Contrast:
        """Seeded disjoint splits of two files: .txt (one prompt a line), JSON, CSV, parquet.

        Rows are texts or conversations: ``messages``, or ``prompt`` with ``response``. A folder of data files is
        read as one data set. Duplicates are removed first; a prompt of both kinds counts as the first. Rows that
        need a second text are skipped and counted in `source`.
        """
        _check_names(kinds, name)
        read = [
            read_dataset(str(path), column=column)
            if is_folder(path)
            else read_file(path, column=column)
            for path in (positive, negative)
        ]
        return _split(read, _sizes(n_train, n_val, n_test), seed, kinds, name)

    @classmethod
    @checked
    def from_datasets(
        cls,
        positive: str,
        negative: str,
        *,
        column: str | tuple[str | None, str | None] | None = None,
        split: str | tuple[str, str] = "train",
        revision: str | tuple[str | None, str | None] | None = None,
        n_train: int = 128,
        n_val: int = 32,
        n_test: int = 100,
        seed: int = 0,
        kinds: tuple[str, str] = ("harmful", "harmless"),
        name: str = "refusal",
    ) -> Contrast:
        """Seeded disjoint splits of two Hugging Face data sets (or local folders).

        `column`, `split` and `revision` hold for both, or are pairs. Rows with a second text
        (`input`, `context`, ...) are skipped and counted in `source`.
        """
        _check_names(kinds, name)
        both = (_both(column, "column"), _both(split, "split"), _both(revision, "revision"))
        read = [
            read_dataset(source, column=c, split=s or "train", revision=r)
            for source, c, s, r in zip((positive, negative), *both, strict=True)
        ]
        return _split(read, _sizes(n_train, n_val, n_test), seed, kinds, name)

    @classmethod
    @checked
    def from_reference_splits(
        cls,
        folder: str | Path,
        *,
        n_train: int = 128,
        n_val: int = 32,
        n_test: int = 100,
        seed: int = 42,
    ) -> Contrast:
        """The paper's own prompts: the reference implementation's split folder, its sampling.

        ``{harmful,harmless}_{train,val,test}.json``, lists of {"instruction", "category"}. One
        generator draws harmful train, harmless train, harmful val, harmless val, harmless test, as
        the reference does; harmful test (which it does not sample) is drawn last, without
        repetitions. Texts stay as they are, white space at their ends included.
        """
        sizes = _sizes(n_train, n_val, n_test)
        order = [(s, k) for s in ("train", "val") for k in ("harmful", "harmless")]
        order += [("test", "harmless"), ("test", "harmful")]
        generator = random.Random(_check_seed(seed))
        if not is_folder(folder):
            raise InputError(
                f"splits at {folder}: got no such folder, need one with harmful_train.json"
            )
        drawn, files = {}, {}
        for split, kind in order:
            path = Path(folder) / f"{kind}_{split}.json"
            read = read_file(path, column="instruction", verbatim=True)
            texts: Sequence[Prompt] = read.prompts
            if (split, kind) == ("test", "harmful"):
                texts = list({_identity(text): text for text in texts}.values())
            _need(len(texts), {split: sizes[split]}, f"{kind} {split} prompts at {path}")
            drawn[split, kind] = generator.sample(texts, sizes[split])
            files[path.name] = read.provenance["sha256"]
        source = {"reference_splits": str(folder), "sha256": files, "seed": seed}
        return _assembled(drawn, ("harmful", "harmless"), "refusal", source)


def _prompts(given: Sequence[Any], kind: str) -> list[Prompt]:
    """Texts and conversations as prompts. InputError, naming the kind and the number, for what is neither."""
    prompts = []
    for number, prompt in enumerate(given):
        if isinstance(prompt, str) and not prompt.strip():
            raise InputError(f"{kind} prompt {number}: got {prompt!r:.60}, need text")
        try:
            prompts.append(Conversation.of(prompt).prompt)
        except InputError as error:
            raise InputError(f"{kind} prompt {number}: {error}") from error
    return prompts


def _identity(prompt: Prompt) -> Hashable:
    """What two prompts share that count as one: all texts but for white space at their ends."""
    if isinstance(prompt, str):
        return prompt.strip()
    return tuple((message["role"], message["content"].strip()) for message in prompt.to_json())


def _shares(n: int, asked: Mapping[str, int | None]) -> dict[str, int]:
    """How many of n prompts each split gets, where nobody says: 3/5, 1/5 and 1/5, up to the paper's numbers."""
    left = max(0, n - sum(size for size in asked.values() if size is not None))
    sizes = {split: size for split, size in asked.items() if size is not None}
    for split in ("n_test", "n_val"):
        if split not in sizes:
            share = left // 5 if asked["n_train"] is None else left // 2
            least = 2 if split == "n_val" and left > 3 else 0
            sizes[split] = min(max(share, least), _USUAL[split])
    rest = n - sizes["n_test"] - sizes["n_val"]
    return {"n_train": max(1, min(rest, _USUAL["n_train"])), **sizes}


def _both(value: Any, what: str) -> tuple[Any, Any]:
    both = value if isinstance(value, tuple) else (value, value)
    if len(both) != 2 or not all(item is None or isinstance(item, str) for item in both):
        raise InputError(f"{what}: got {value!r:.60}, need a text, or a pair of them")
    return both


def _check_names(kinds: Any, name: Any) -> None:
    """InputError unless the kinds are two names that files can have, and the concept has one."""
    fit = isinstance(kinds, tuple) and len(kinds) == 2 and all(map(_is_name, kinds))
    if not fit or kinds[0] == kinds[1]:
        raise InputError(
            f"kinds: got {kinds!r:.60}, need two different names of letters, digits, - and _"
        )
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"name of the concept: got {name!r:.60}, need text")


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"\w[\w-]{0,39}", name) is not None


def _check_seed(seed: Any) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: got {seed!r:.60}, need a whole number, 0 or more")
    return seed


def _sizes(n_train: int, n_val: int, n_test: int) -> dict[str, int]:
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    for split, n in sizes.items():
        least = int(split == "train")
        if isinstance(n, bool) or not isinstance(n, int) or not least <= n <= _MOST:
            shown = n if isinstance(n, int | float) and abs(n) <= _MOST else type(n).__name__
            raise InputError(
                f"number of {split} prompts: got {shown!r:.40}, need a whole number, {least} to {_MOST}"
            )
    return sizes


def _need(have: int, sizes: Mapping[str, int], what: str) -> None:
    """InputError, with the options to lower, where there are fewer prompts than the sizes ask for."""
    asked = sum(sizes.values())
    if asked <= have:
        return
    fewer = {split: n * have // asked for split, n in sizes.items()}
    options = " ".join(f"--n-{split} {n}" for split, n in fewer.items() if sizes[split])
    enough = all(n > 0 for split, n in fewer.items() if sizes[split])
    raise InputError(
        f"{what}: got {have}, need {asked}; try "
        + (f"fewer, such as {options}" if enough else f"more prompts, or fewer by {_OPTIONS}")
    )


def _split(
    read: Sequence[Source],
    sizes: Mapping[str, int],
    seed: int,
    kinds: tuple[str, str],
    name: str,
) -> Contrast:
    """Shuffle each kind, then deal test, val and train, so that a larger train moves neither."""
    drawn: dict[tuple[str, str], list[Prompt]] = {}
    taken: set[Hashable] = set()
    total = 0
    for kind, source in zip(kinds, read, strict=True):
        fresh: dict[Hashable, Prompt] = {}
        for prompt in source.prompts:
            if _identity(prompt) not in taken:
                fresh.setdefault(_identity(prompt), prompt)
        taken.update(fresh)
        pool = list(fresh.values())
        total += len(source.prompts)
        wanted = " + ".join(f"{n} {split}" for split, n in sizes.items())
        left = f" ({source.skipped} rows need a second text)" if source.skipped else ""
        _need(len(pool), sizes, f"distinct {kind} prompts{source.where}{left} for {wanted}")
        random.Random(_check_seed(seed)).shuffle(pool)
        dealt = iter(pool)
        for split in reversed(SPLITS):
            drawn[split, kind] = list(islice(dealt, sizes[split]))
    origin = {
        "seed": seed,
        **{
            kind: {**source.provenance, "skipped": source.skipped}
            for kind, source in zip(kinds, read, strict=True)
        },
    }
    return _assembled(drawn, kinds, name, origin, removed=total - len(taken))


def _assembled(
    drawn: Mapping[tuple[str, str], Sequence[Prompt]],
    kinds: tuple[str, str],
    name: str,
    source: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
    *,
    removed: int = 0,
) -> Contrast:
    """The contrast of drawn prompts; what an earlier split or kind holds is left out."""
    seen: set[Hashable] = set()
    pairs = {}
    for split in SPLITS:
        sides = []
        for kind in kinds:
            fresh: dict[Hashable, Prompt] = {}
            for prompt in drawn[split, kind]:
                if _identity(prompt) not in seen:
                    fresh.setdefault(_identity(prompt), prompt)
            seen.update(fresh)
            removed += len(drawn[split, kind]) - len(fresh)
            if sizes is not None:
                _need(len(fresh), {split: sizes[split]}, f"distinct {kind} {split} prompts")
            sides.append(tuple(fresh.values()))
        pairs[split] = PromptPair(*sides)
    return Contrast(
        **pairs, kinds=kinds, name=name, source=dict(source), duplicates_removed=removed
    )
