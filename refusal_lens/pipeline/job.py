"""One run at work: its settings, folder, model and prompts, and what its finished steps left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..behaviours import Behaviour
from ..behaviours.stored import behaviour_from_json
from ..conversations import Prompt, prompt_of_row
from ..direction import Direction
from ..directions import Thresholds
from ..errors import InputError
from ..interventions import Edit, ablate, add, subtract
from ..model import ChatModel
from ..model.loading import resolve_device, resolve_dtype
from ..progress import Progress, named
from ..prompts import Contrast, PromptPair
from ..runs import Forms, Run
from .concept import Concept
from .config import RunConfig, chat_options
from .step import Step

SMALL_MODEL = 100_000_000
"""Parameters below which starting a pass costs more than the passes of 64 prompts themselves."""


@dataclass(eq=False)
class Job:
    """What a step's functions are given; the model is loaded when a step first needs it.

    steps: those that the run is asked for, in their order. forms: what each file of a run must hold.
    """

    config: RunConfig
    run: Run
    forms: Forms
    on_progress: Progress | None = None
    steps: Sequence[Step] = ()

    @cached_property
    def model(self) -> ChatModel:
        """The chat model under study."""
        return self.load(self.config.model, revision=self.config.revision)

    def load(self, name: str, **options: Any) -> ChatModel:
        """A model, loaded as the run's settings say."""
        c = self.config
        return ChatModel.load(
            name,
            device=c.device,
            dtype=None if self.dtype == "auto" else self.dtype,
            device_map=c.device_map,
            trust_remote_code=c.trust_remote_code,
            **chat_options(c.as_dict()),
            **options,
        )

    @cached_property
    def dtype(self) -> str:
        """What the model computes in: "auto" is the checkpoint's own, the default off a CPU."""
        c = self.config
        return settled_dtype(c.dtype, device=c.device, device_map=c.device_map)

    @cached_property
    def batch_size(self) -> int:
        """Prompts in a forward pass: as asked, else as many as a model of this size takes lightly."""
        if self.config.batch_size is not None:
            return self.config.batch_size
        small = sum(p.numel() for p in self.model.bridge.parameters()) < SMALL_MODEL
        return 256 if small else 64

    @cached_property
    def concept(self) -> Concept:
        """What the run is about."""
        return self.config.asked_concept()

    @cached_property
    def contrast(self) -> Contrast:
        """The prompts, split."""
        c, concept = self.config, self.concept
        asked = {name: getattr(c, name) for name in concept.sizes if getattr(c, name) is not None}
        sizes: dict[str, Any] = {**concept.sizes, **asked, "seed": c.seed}
        if c.splits is not None:
            return Contrast.from_reference_splits(c.splits, **sizes)
        return concept.contrast(**sizes) or Contrast.toy(**sizes)

    @property
    def test_prompts(self) -> dict[str, Sequence[Prompt]]:
        """The test prompts by their kind, the positive one first."""
        test = self.contrast.test
        return dict(zip(self.contrast.kinds, (test.positive, test.negative), strict=True))

    @property
    def rule(self) -> Thresholds:
        """The selection rule's settings."""
        c = self.config
        return Thresholds(c.kl_threshold, c.induce_threshold, c.prune_layers)

    def progress(self, what: str) -> Progress | None:
        """Progress of one step, or None when nobody listens."""
        return named(self.on_progress, what)

    # What earlier steps left, read back from their files so that a resumed run sees just the same.

    def path(self, name: str) -> Path:
        """A file of the run."""
        return self.run.path / name

    def read(self, name: str) -> Any:
        """What an earlier step wrote: a DataFrame, a JSON value, or a list of rows."""
        return self.forms.read(self.run.path, name)

    def made(self, step: str, name: str) -> bool:
        """Whether a step that is done left this file."""
        return name in self.run.manifest(step).outputs

    @property
    def directed(self) -> bool:
        """Whether the selection, which is done, took a direction."""
        return self.made("selection", "direction.safetensors")

    @cached_property
    def behaviour(self) -> dict[str, Any]:
        """What the first step found of the behaviour, and counts of kept prompts."""
        facts: dict[str, Any] = self.read("behaviour.json")
        return facts

    @cached_property
    def about(self) -> Behaviour | None:
        """The run's behaviour; None where its first tokens were not found."""
        return stored_behaviour(self.behaviour["behaviour"], self.concept)

    @property
    def scored_by(self) -> Behaviour:
        """The behaviour, for steps that score prompts. Raises InputError where its first tokens were not found."""
        if self.about is None:
            raise InputError(f"behaviour at {self.run.path}: got no first tokens of {self.concept.name}, need some")
        return self.about

    @cached_property
    def direction(self) -> Direction:
        """The selected direction."""
        return Direction.load(self.path("direction.safetensors"))

    def kept(self, split: str) -> PromptPair:
        """The prompts of a split that the model's own behaviour kept."""
        rows = [row for row in self.read("prompts.jsonl") if row["split"] == split and row["kept"]]
        positive, negative = (
            tuple(prompt_of_row(row) for row in rows if row["kind"] == kind)
            for kind in self.contrast.kinds
        )
        return PromptPair(positive, negative)

    def completions(self, side: int, condition: str) -> list[dict[str, Any]]:
        """The replies to one kind of prompts under a condition."""
        kind = self.contrast.kinds[side]
        rows: list[dict[str, Any]] = self.read(f"completions/{kind}_{condition}.jsonl")
        return rows

    def edit(self, condition: str) -> Edit | None:
        """The edit that a condition's name stands for."""
        makers: dict[str, Callable[[Direction], Edit]] = {
            "ablation": ablate,
            "addition": add,
            "subtraction": subtract,
        }
        return None if condition == "baseline" else makers[condition](self.direction)


def stored_behaviour(facts: Mapping[str, Any], concept: Concept) -> Behaviour | None:
    """The behaviour that a run's files describe, with the concept's judge and words; None where there is none.

    Raises InputError for one that no file can hold.
    """
    definition = facts.get("definition")
    if definition is None:
        return None
    behaviour: Any = behaviour_from_json(definition)
    return replace(behaviour, judge=concept.judge, words=concept.words)


def settled_dtype(
    dtype: str | None, *, device: str | None = None, device_map: str | None = None
) -> str:
    """The name of the dtype that a model is loaded in here; "auto" is the checkpoint's own.

    Raises InputError for a dtype or device that is not there.
    """
    where = None if device_map is not None else resolve_device(device)
    return str(resolve_dtype(dtype, where)).removeprefix("torch.")
