"""A finding: a direction with all that led to it, computed in memory or read from a run's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from .. import organism
from ..behaviours import Behaviour
from ..chat.places import Place
from ..conversations import prompt_of_row
from ..direction import Direction
from ..directions import Candidates, Selection, Thresholds, score_candidates, select
from ..directions.finding import choose_behaviour, extract_candidates, filter_by_behaviour
from ..directions.sweep.sweeping import Mode
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..progress import Progress
from ..prompts import Contrast, PromptPair
from ..report.folder import RunFolder
from ..report.markup import Plot
from ..runs import Run
from .concept import Concept
from .config import chat_options
from .job import settled_dtype, stored_behaviour
from .measurements import FORMS, SECTIONS
from .summary import behaviour_summary, selection_summary


@dataclass(frozen=True)
class LoadOptions:
    """How a run's model is loaded again; None as the run had it, or for the best device there is.

    Whether to run code that comes with a model is for the person at the keyboard to say, not for a folder.
    """

    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False


@shown("direction", "selection")
class Finding:
    """A direction with its model, behaviour, prompts, candidates, tables and figures.

    Each part is read when it is first asked for. `find_direction` and `open_run` both give one.
    """

    def __init__(self, results: RunFolder, parts: Mapping[str, Callable[[], Any]]) -> None:
        self._results = results
        self._parts = parts

    @cached_property
    def model(self) -> ChatModel:
        """The chat model under study, with the run's system prompt, prefill and thinking."""
        model: ChatModel = self._parts["model"]()
        return model

    @cached_property
    def direction(self) -> Direction:
        """The selected direction. Raises InputError, with the reason, where none is selected."""
        direction: Direction = self._parts["direction"]()
        return direction

    @cached_property
    def behaviour(self) -> Behaviour:
        """What the direction is about."""
        behaviour: Behaviour = self._parts["behaviour"]()
        return behaviour

    @cached_property
    def contrast(self) -> Contrast:
        """The prompts of both kinds in their splits, before any was left out by the model's behaviour."""
        contrast: Contrast = self._parts["contrast"]()
        return contrast

    @cached_property
    def candidates(self) -> Candidates:
        """The differences of means that the direction is one of."""
        candidates: Candidates = self._parts["candidates"]()
        return candidates

    @cached_property
    def selection(self) -> Selection:
        """What the rule takes, with every candidate's scores and reason."""
        selection: Selection = self._parts["selection"]()
        return selection

    @property
    def summary(self) -> Mapping[str, Any]:
        """What summary.json holds, or the part of it that was computed."""
        return self._results.summary

    @checked
    def frame(self, name: str) -> pd.DataFrame:
        """A table, such as "candidates", "metrics" or "completions", by its file's name without suffix.

        "completions" has the rows of all conditions, with their kind and condition. Raises InputError, with
        the names that there are, for a table that was not measured.
        """
        table = self._results.table(f"{name}.csv")
        if table is None:
            rows = self._completions() if name == "completions" else self._results.rows(f"{name}.jsonl")
            table = pd.DataFrame(rows)
        if table.empty:
            raise InputError(f"table {name!r}: got none of it in {self._where}, need one of {self._frames()}")
        return table

    @checked
    def figure(self, name: str) -> go.Figure:
        """A figure of the page, such as "sweep" or "cosine", by the name of its file in figures/.

        Raises InputError, with the names that there are, for one whose numbers were not measured.
        """
        known = [figure for entry in SECTIONS for figure in entry.figures]
        for entry in SECTIONS:
            section = entry.render(self._results) if name in entry.figures else None
            for part in () if section is None else section.parts:
                if isinstance(part, Plot) and part.name == name:
                    return part.figure
        raise InputError(
            f"figure {name!r}: got none of it in {self._where}, need one of {', '.join(known)}"
        )

    def _completions(self) -> list[dict[str, Any]]:
        names = (name.rsplit("_", 1) for name in self._results.made("completions", ".jsonl"))
        return [
            {"kind": kind, "condition": condition, **row}
            for kind, condition in names
            for row in self._results.completions(kind, condition)
        ]

    def _frames(self) -> str:
        names = [name.removesuffix(".csv") for name in FORMS.tables() if self._results.table(name) is not None]
        return ", ".join([*names, "prompts", "completions"] if self._results.current else names)

    @property
    def _where(self) -> str:
        return str(self._results.path) if self._results.current else "what find_direction computes"


@shown("path")
class SavedFinding(Finding):
    """A finding in a finished run's folder."""

    def __init__(self, path: Path, options: LoadOptions) -> None:
        self.path = path
        self.options = options
        self._run = Run.read(path)
        self.settings: Mapping[str, Any] = self._run.whole()["config"]
        names = ("model", "direction", "behaviour", "contrast", "candidates", "selection")
        parts = {name: getattr(self, f"_read_{name}") for name in names}
        super().__init__(RunFolder.open(path, FORMS), parts)

    def output(self, name: str) -> Path:
        """Where a file of the run is. Raises InputError where no finished step vouches for it as it is."""
        return self._run.output(name)

    @cached_property
    def dtype(self) -> str:
        """What the model computes in; "auto" is the checkpoint's own."""
        options = self.options
        return settled_dtype(
            options.dtype or self.settings["dtype"], device=options.device, device_map=options.device_map
        )

    def load(self, name: str | None = None) -> ChatModel:
        """The run's model, or another one as the run writes its conversations."""
        options, settings = self.options, self.settings
        revision = {"revision": settings["revision"]} if name is None else {}
        return ChatModel.load(
            name or settings["model"],
            dtype=None if self.dtype == "auto" else self.dtype,
            device=options.device,
            device_map=options.device_map,
            trust_remote_code=options.trust_remote_code,
            **chat_options(settings),
            **revision,
        )

    def _read_model(self) -> ChatModel:
        return self.load()

    def _read_direction(self) -> Direction:
        reason = self.summary.get("not_selected")
        if reason:
            raise InputError(f"run folder at {self.path}: selected no direction, need one: {reason}")
        return Direction.load(self.output("direction.safetensors"))

    @cached_property
    def concept(self) -> Concept:
        """What the run is about, as its manifest says."""
        facts = self._run.whole().get("concept")
        return Concept() if facts is None else Concept.from_json(facts)

    def _read_behaviour(self) -> Behaviour:
        self.output("summary.json")
        behaviour = stored_behaviour(self.summary.get("behaviour") or {}, self.concept)
        if behaviour is None:
            raise InputError(
                f"run folder at {self.path}: found no first tokens of {self.concept.name}, need a behaviour that "
                "scores prompts; its report.html shows the likeliest ones"
            )
        return behaviour

    def _read_contrast(self) -> Contrast:
        rows = self._read("prompts.jsonl")
        first, second = dict.fromkeys(row["kind"] for row in rows)
        train, val, test = (
            PromptPair(
                *(
                    tuple(prompt_of_row(r) for r in rows if (r["split"], r["kind"]) == (split, kind))
                    for kind in (first, second)
                )
            )
            for split in ("train", "val", "test")
        )
        source = self._run.whole()["prompts"]
        return Contrast(train, val, test, (first, second), self.concept.name, source)

    def _read_candidates(self) -> Candidates:
        return Candidates.load(self.output("candidates.safetensors"))

    def _read_selection(self) -> Selection:
        rule = Thresholds(**self.summary["thresholds"])
        return select(self._read("scores.csv"), self.summary["n_layers"], rule)

    def _read(self, name: str) -> Any:
        self.output(name)
        return FORMS.read(self.path, name)


@checked
def open_run(path: str | Path, options: LoadOptions | None = None) -> SavedFinding:
    """The finding of a finished run's folder; nothing is loaded before it is asked for.

    options: how its model is loaded. Raises InputError for a folder that holds no run, or one that is not
    finished or damaged.
    """
    return SavedFinding(Path(path), options or LoadOptions())


@checked
def find_direction(
    model: ChatModel,
    contrast: Contrast,
    *,
    behaviour: Behaviour | None = None,
    places: Sequence[Place | str] | None = None,
    rule: Thresholds | None = None,
    mode: Mode = "exhaustive",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Finding:
    """The direction that the paper's rule selects (section 2.3, appendix C), with all that led to it.

    behaviour: what the direction is about; by default first tokens, discovered. places: where candidates are read,
    by default every post-instruction token. rule: by default the paper's thresholds. mode "lazy" scores just what
    the same choice needs. batch_size: prompts in a pass that reads activations; the sweep finds its own.

    Filters prompts by the model's own behaviour, takes the difference of means on train, scores on val, selects.
    Raises NoCandidateError (its ``table`` has every score and reason) when no candidate passes, NoFirstTokens (its
    ``evidence`` has the likeliest first tokens) when none tells the kinds apart, and InputError when the model
    behaves so on fewer than two prompts of a kind, or when the prompts are the organism's and the model is not.
    """
    if contrast.is_for_the_organism and not organism.is_its_vocabulary(model.tokenizer.get_vocab()):
        raise InputError(
            f"prompts for {model.name}: got the bundled toy sentences, need prompts that it refuses and answers; try "
            "Contrast.from_files, or Contrast.toy(anyway=True) to see what it makes of them"
        )
    rule = rule or Thresholds()
    about: Behaviour = behaviour or choose_behaviour(
        model, contrast, batch_size=batch_size, on_progress=on_progress
    )
    train, val = (
        filter_by_behaviour(
            model, contrast.pair(split), behaviour=about, batch_size=batch_size, on_progress=on_progress
        ).require_enough(split)
        for split in ("train", "val")
    )
    candidates = extract_candidates(
        model,
        train.pair,
        data_sha256=contrast.sha256,
        concept=contrast.name,
        places=places,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    scores = score_candidates(
        model,
        candidates,
        positive=val.pair.positive,
        negative=val.pair.negative,
        behaviour=about,
        mode=mode,
        rule=rule,
        on_progress=on_progress,
    )
    selection = select(scores, model.n_layers, rule)
    direction = candidates.direction(selection.place, selection.layer)
    summary = {
        "model": model.name,
        "n_layers": model.n_layers,
        "behaviour": behaviour_summary(about),
        "kinds": list(contrast.kinds),
        "thresholds": asdict(rule),
        "kept_prompts": {
            split: dict(zip(contrast.kinds, filtered.counts.values(), strict=True))
            for split, filtered in (("train", train), ("val", val))
        },
        **selection_summary(selection.table, direction.provenance),
    }
    frames = {"scores.csv": scores, "candidates.csv": selection.table}
    results = RunFolder(Path(), summary, {}, current=frozenset(), forms=FORMS, frames=frames)
    parts = {
        "model": model,
        "direction": direction,
        "behaviour": about,
        "contrast": contrast,
        "candidates": candidates,
        "selection": selection,
    }
    return Finding(results, {name: partial(_given, part) for name, part in parts.items()})


def _given(part: Any) -> Any:
    return part
