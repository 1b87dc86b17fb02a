"""Contrast: two kinds of instructions, in disjoint splits for training, validation and test."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from ..door import checked
from ..errors import InputError
from .sources import Source, is_unicode, read_dataset, read_file

SPLITS = ("train", "val", "test")


@checked
@dataclass(frozen=True)
class PromptPair:
    """Instructions of the two kinds: positive (harmful) and negative (harmless)."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]


@checked
@dataclass(frozen=True)
class Contrast:
    """D_harmful and D_harmless of the paper (section 2.3), or any other pair of kinds.

    Every instruction stands in one split and kind only: white space at the ends aside, no string
    occurs twice.

    Attributes:
        train: for the difference of means.
        val: for the scores that select a candidate.
        test: for the evaluation.
        kinds: names of the positive and the negative kind.
        name: the concept that the kinds differ in.
        source: where the texts come from (JSON-able).
        duplicates_removed: how many repeated instructions were left out.
    """

    train: PromptPair
    val: PromptPair
    test: PromptPair
    kinds: tuple[str, str] = ("harmful", "harmless")
    name: str = "refusal"
    source: Mapping[str, Any] = field(default_factory=dict, compare=False)
    duplicates_removed: int = 0

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for split, kind, text in self._rows():
            if not is_unicode(text):
                raise InputError(
                    f"{kind} prompts at split {split}: got a lone surrogate in {text!r:.60}, need "
                    "Unicode text"
                )
            if text.strip() in seen:
                raise InputError(
                    f"{kind} prompts at split {split}: got {text[:60]!r} a second time, need "
                    "splits and kinds without common instructions; try Contrast.from_files"
                )
            seen.add(text.strip())

    @property
    def sha256(self) -> str:
        """Hash of all texts, by split and kind."""
        texts = {s: [self.pair(s).positive, self.pair(s).negative] for s in SPLITS}
        return hashlib.sha256(json.dumps(texts, ensure_ascii=False).encode()).hexdigest()

    @checked
    def pair(self, split: str) -> PromptPair:
        """The instructions of "train", "val" or "test"."""
        if split not in SPLITS:
            raise InputError(f"split: got {split!r}, need one of {', '.join(SPLITS)}")
        pair: PromptPair = getattr(self, split)
        return pair

    def frame(self) -> pd.DataFrame:
        """One row per instruction: split, kind, instruction."""
        return pd.DataFrame(self._rows(), columns=["split", "kind", "instruction"])

    def _rows(self) -> list[tuple[str, str, str]]:
        return [
            (split, kind, text)
            for split in SPLITS
            for kind, texts in zip(
                self.kinds, (self.pair(split).positive, self.pair(split).negative), strict=True
            )
            for text in texts
        ]

    @classmethod
    @checked
    def refusal(
        cls, *, n_train: int = 128, n_val: int = 32, n_test: int = 100, seed: int = 0
    ) -> Contrast:
        """The toy instructions that the bundled organism was trained to refuse and to follow."""
        # The organism makes these sentences; only this contrast needs it.
        from ..organism.world import instructions

        sizes = _sizes(n_train, n_val, n_test)
        drawn = {
            (split, kind): list(instructions(kind, split, n, seed))
            for split, n in sizes.items()
            for kind in ("harmful", "harmless")
        }
        return _assembled(
            drawn, ("harmful", "harmless"), "refusal", {"bundled": "organism", "seed": seed}, sizes
        )

    @classmethod
    @checked
    def from_files(
        cls,
        harmful: str | Path,
        harmless: str | Path,
        *,
        n_train: int = 128,
        n_val: int = 32,
        n_test: int = 100,
        seed: int = 0,
        column: str | None = None,
        kinds: tuple[str, str] = ("harmful", "harmless"),
        name: str = "refusal",
    ) -> Contrast:
        """Seeded disjoint splits of two files: .txt (one instruction a line), JSON, CSV, parquet.

        A folder of data files is read as one data set. Duplicates are removed first; an
        instruction of both kinds counts as the first.
        """
        read = [
            read_dataset(str(path), column=column)
            if Path(path).is_dir()
            else read_file(path, column=column)
            for path in (harmful, harmless)
        ]
        return _split(read, _sizes(n_train, n_val, n_test), seed, kinds, name)

    @classmethod
    @checked
    def from_datasets(
        cls,
        harmful: str,
        harmless: str,
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

        `column`, `split` and `revision` hold for both, or are pairs. Alpaca-style rows with a
        second text (`input`) are skipped and counted in `source`.
        """
        each = zip((harmful, harmless), _both(column), _both(split), _both(revision), strict=True)
        read = [
            read_dataset(source, column=c, split=s or "train", revision=r)
            for source, c, s, r in each
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
        generator = random.Random(seed)
        drawn, files = {}, {}
        for split, kind in order:
            path = Path(folder) / f"{kind}_{split}.json"
            found = read_file(path, column="instruction", verbatim=True)
            texts: Sequence[str] = found.instructions
            if (split, kind) == ("test", "harmful"):
                texts = list({text.strip(): text for text in texts}.values())
            _need(len(texts), sizes[split], f"{kind} {split} prompts at {path}")
            drawn[split, kind] = generator.sample(texts, sizes[split])
            files[path.name] = found.provenance["sha256"]
        source = {"reference_splits": str(folder), "sha256": files, "seed": seed}
        return _assembled(drawn, ("harmful", "harmless"), "refusal", source)


def _both(value: Any) -> tuple[Any, Any]:
    return value if isinstance(value, tuple) else (value, value)


def _sizes(n_train: int, n_val: int, n_test: int) -> dict[str, int]:
    sizes = {"train": n_train, "val": n_val, "test": n_test}
    for split, n in sizes.items():
        if n < (split == "train"):
            raise InputError(
                f"number of {split} prompts: got {n}, need {int(split == 'train')} or more"
            )
    return sizes


def _need(have: int, asked: int, what: str) -> None:
    if asked > have:
        raise InputError(f"{what}: got {have}, need {asked}; try to ask for fewer")


def _split(
    read: Sequence[Source],
    sizes: Mapping[str, int],
    seed: int,
    kinds: tuple[str, str],
    name: str,
) -> Contrast:
    """Shuffle each kind, then deal test, val and train, so that a larger train moves neither."""
    drawn: dict[tuple[str, str], list[str]] = {}
    taken: set[str] = set()
    total = 0
    for kind, found in zip(kinds, read, strict=True):
        pool = [text for text in dict.fromkeys(found.instructions) if text not in taken]
        taken.update(pool)
        total += len(found.instructions)
        wanted = " + ".join(f"{n} {split}" for split, n in sizes.items())
        _need(
            len(pool), sum(sizes.values()), f"distinct {kind} prompts at {found.name} for {wanted}"
        )
        random.Random(seed).shuffle(pool)
        dealt = iter(pool)
        for split in reversed(SPLITS):
            drawn[split, kind] = list(islice(dealt, sizes[split]))
    source = {
        "seed": seed,
        **{
            kind: {**found.provenance, "skipped": found.skipped}
            for kind, found in zip(kinds, read, strict=True)
        },
    }
    return _assembled(drawn, kinds, name, source, removed=total - len(taken))


def _assembled(
    drawn: Mapping[tuple[str, str], Sequence[str]],
    kinds: tuple[str, str],
    name: str,
    source: Mapping[str, Any],
    sizes: Mapping[str, int] | None = None,
    *,
    removed: int = 0,
) -> Contrast:
    """The contrast of drawn instructions; what an earlier split or kind holds is left out."""
    seen: set[str] = set()
    pairs = {}
    for split in SPLITS:
        sides = []
        for kind in kinds:
            fresh: dict[str, str] = {}
            for text in drawn[split, kind]:
                if text.strip() not in seen:
                    fresh.setdefault(text.strip(), text)
            seen.update(fresh)
            removed += len(drawn[split, kind]) - len(fresh)
            if sizes is not None:
                _need(len(fresh), sizes[split], f"distinct {kind} {split} prompts")
            sides.append(tuple(fresh.values()))
        pairs[split] = PromptPair(*sides)
    return Contrast(
        **pairs, kinds=kinds, name=name, source=dict(source), duplicates_removed=removed
    )
