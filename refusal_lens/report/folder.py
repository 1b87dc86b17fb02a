"""A run folder as the report reads it: whole, partial or damaged, never trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from refusal_lens.behaviours.words import Words
from refusal_lens.display import shown
from refusal_lens.errors import InputError
from refusal_lens.plotting.labels import Labels
from refusal_lens.runs import Forms, Run
from refusal_lens.runs.opening import place_in, require_plain

_MARKS = ("manifest.json", "summary.json", "run.json", "candidates.csv")
Rate = dict[str, float]
"""A share of replies: "rate", and where known "se", "n" of it, "n_unjudged" beside it, and "paper_count"."""
_RATE = ("rate", "se", "n", "n_unjudged", "paper_count")
_NO_KINDS = ("positive", "negative")
_NO_NAME = "behaviour"


class Selected(NamedTuple):
    """The place and layer of the selected candidate."""

    place: str
    layer: int


@shown("path", "selected")
@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, finished or not; a file that is not there reads as None.

    Of a run made in steps only the files of those that are not out of date are read. `current` and
    `outdated` name the files of both kinds; current is None for a folder without steps, where every
    file is read. damaged: files that are not as their step left them, and how; they are not read.
    lack: why the folder is not that of a whole run, "" for one that is. frames: tables that are in memory
    rather than in the folder.
    """

    path: Path
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    current: frozenset[str] | None = None
    outdated: frozenset[str] = frozenset()
    damaged: Mapping[str, str] = field(default_factory=dict)
    lack: str = ""
    forms: Forms = field(default_factory=lambda: Forms({}))
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path, forms: Forms) -> RunFolder:
        """The run at this path, whose files must have these forms.

        Raises:
            InputError: the folder holds no run or a damaged one.

        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"run folder at {path}: no such folder; need one that a run wrote")
        if not any((path / mark).is_file() for mark in _MARKS):
            raise InputError(
                f"run folder at {path}: got none of {', '.join(_MARKS)}, need a folder written by "
                "refusal-lens run or by the reference implementation; try its parent or a subfolder"
            )
        require_plain(path)
        bare = _of_steps(cls(path, {}, {}, forms=forms))
        summary = bare.json("summary.json")
        has_manifest = (path / "manifest.json").is_file()
        return replace(
            bare,
            summary={} if summary is None else summary,
            manifest=forms.read(path, "manifest.json") if has_manifest else {},
        )

    def file(self, name: str) -> Path | None:
        """Where a result is; None when it is missing, unfinished, out of date or damaged."""
        counts = self.current is None or name in self.current
        if not counts or name in self.damaged:
            return None
        path = place_in(self.path, name)
        return path if path.is_file() else None

    def made(self, folder: str, suffix: str) -> dict[str, Path]:
        """Results in a folder of the run by their name without suffix, those of earlier steps too.

        Stray and damaged files are left out.
        """
        names = sorted(f"{folder}/{path.name}" for path in (self.path / folder).glob(f"*{suffix}"))
        known = names if self.current is None else self.current | self.outdated
        return {
            name.removeprefix(f"{folder}/").removesuffix(suffix): place_in(self.path, name)
            for name in names
            if name in known and name not in self.damaged
        }

    def table(self, name: str) -> pd.DataFrame | None:
        """A CSV file of the run, its columns checked; None when it is missing or has no rows.

        Raises:
            InputError: the file cannot be what it is named.

        """
        if name in self.frames:
            return self.frames[name].copy()
        frame: pd.DataFrame | None = self._contents(name)
        if frame is None or frame.empty:
            return None
        if "passes" in frame:
            frame["passes"] = frame["passes"].astype(str).str.lower().isin(("true", "1"))
        return frame

    def json(self, name: str) -> Any:
        """What a JSON file of the run holds; None when it is missing."""
        return self._contents(name)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file of the run; none when it is missing."""
        return self._contents(name) or []

    def _contents(self, name: str) -> Any:
        return None if self.file(name) is None else self.forms.read(self.path, name)

    def completions(self, kind: str, condition: str) -> list[dict[str, Any]]:
        """The rows of one completions file (instruction, response, shows, score), else none."""
        return self.rows(f"completions/{kind}_{condition}.jsonl")

    def value(self, *keys: str) -> Any:
        """summary[keys[0]][keys[1]]..., None where any of them is missing."""
        value: Any = self.summary
        for key in keys:
            if not isinstance(value, Mapping) or key not in value:
                return None
            value = value[key]
        return value

    def number(self, *keys: str) -> float | None:
        """A finite number of the summary, else None."""
        value = self.value(*keys)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None

    @property
    def selected(self) -> Selected | None:
        """The selected candidate."""
        position, layer = self.number("selected", "position"), self.number("selected", "layer")
        place = self.value("selected", "place") or (f"post[{position:.0f}]" if position else None)
        return None if place is None or layer is None else Selected(str(place), int(layer))

    @property
    def n_layers(self) -> int | None:
        """Layers of the model, when the summary tells."""
        layers = self.number("n_layers")
        return None if layers is None else int(layers)

    @cached_property
    def started(self) -> Mapping[str, Any]:
        """What is known of the run's behaviour: the summary, before there is one behaviour.json."""
        if "behaviour" in self.summary:
            return self.summary
        return self.json("behaviour.json") or {}

    @property
    def behaviour(self) -> Mapping[str, Any]:
        """What the run says of its behaviour (name, unit, threshold, judge, words, first_tokens)."""
        facts = self.started.get("behaviour")
        return facts if isinstance(facts, Mapping) else {}

    @property
    def kinds(self) -> tuple[str, str]:
        """The positive and the negative kind of prompts."""
        positive, negative = self.started.get("kinds") or _NO_KINDS
        return str(positive), str(negative)

    @property
    def words(self) -> Words:
        """The behaviour's words; plain ones where the run names none."""
        words = self.behaviour.get("words")
        return Words(**words) if words else Words.of(str(self.behaviour.get("name") or _NO_NAME))

    @property
    def labels(self) -> Labels:
        """What figures call things."""
        return Labels(
            self.kinds,
            self.words,
            unit=str(self.behaviour.get("unit") or "nats"),
            threshold=float(self.behaviour.get("threshold") or 0.0),
        )

    @property
    def judge(self) -> str:
        """Who judged the replies, in words."""
        name = self.behaviour.get("judge")
        return "the phrase judge" if name == "phrases" else f"the {name} judge" if name else "the judge"

    @property
    def token_ids(self) -> tuple[int, ...] | None:
        """The first tokens whose log-odds are the score, none where none were found; None for other scores."""
        tokens = self.behaviour.get("first_tokens")
        return None if tokens is None else tuple(tokens.get("ids") or ())

    @property
    def rates(self) -> dict[str, dict[str, Rate]]:
        """Kind to condition to rate: the well-formed entries of the summary, those with a verdict."""
        table = self.value("rates")
        rates: dict[str, dict[str, Rate]] = {}
        for kind in table if isinstance(table, Mapping) else ():
            conditions = table[kind] if isinstance(table[kind], Mapping) else {}
            scores = {condition: self._rate(kind, condition) for condition in conditions}
            rates[kind] = {condition: score for condition, score in scores.items() if score}
        return {kind: scores for kind, scores in rates.items() if scores}

    def rates_of(self, side: int) -> dict[str, Rate]:
        """Condition to rate on one kind of prompts, 0 the positive one."""
        return self.rates.get(self.kinds[side], {})

    def null_draws(self, null: str, side: int, column: str) -> np.ndarray:
        """The "rate" or mean "score" of every random draw of one null on one kind of prompts, NaN left out."""
        nulls = self.table("nulls.csv")
        if nulls is None:
            return np.array([])
        rows = nulls[(nulls["null"] == null) & (nulls["kind"] == self.kinds[side])]
        return rows[column].dropna().to_numpy(float)

    def _rate(self, kind: str, condition: str) -> Rate:
        fields = {f: self.number("rates", kind, condition, f) for f in _RATE}
        if fields["rate"] is None:
            return {}
        return {name: value for name, value in fields.items() if value is not None}


def _of_steps(bare: RunFolder) -> RunFolder:
    """The folder with what its steps say of its files, if it has any."""
    if not (bare.path / "run.json").is_file():
        whole = (bare.path / "summary.json").is_file()
        return bare if whole else replace(bare, lack="got a run that is not finished")
    run = Run.read(bare.path)
    stale, done = run.stale(), run.manifests().items()
    current = {name for step, m in done if step not in stale for name in m.outputs}
    outdated = {name for step, m in done if step in stale for name in m.outputs} - current
    damaged = run.damages()
    return replace(
        bare,
        current=frozenset(current),
        outdated=frozenset(outdated),
        damaged=damaged,
        lack=_lack(run, stale, {name: what for name, what in damaged.items() if name in current}),
    )


def _lack(run: Run, stale: Mapping[str, str], damaged: Mapping[str, str]) -> str:
    """Why a run made in steps is not whole; "" when it is."""
    if damaged:
        name, what = next(iter(damaged.items()))
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return f"got {name} that {what}{more}"
    try:
        behind = [name for name in run.whole().get("steps", {}) if name in stale]
    except InputError as error:
        return str(error).removeprefix(f"run folder at {run.path}: ")
    return f"got step {behind[0]!r}, which is out of date" if behind else ""
