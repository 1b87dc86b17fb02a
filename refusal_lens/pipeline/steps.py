"""The steps of the main job, one function each: they read files of the run and write files of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ..activations import cache_residuals
from ..behaviours import FirstTokens
from ..conversations import Prompt, prompt_of_row
from ..directions import (
    Candidates,
    Direction,
    NoCandidateError,
    Selection,
    SweepCheckpoint,
    Thresholds,
    select,
)
from ..directions.finding import extract_candidates
from ..directions.sweep import sweep
from ..errors import InputError
from ..evaluation import (
    Completion,
    complete,
    cosine_by_layer,
    cosine_in_both,
    nulls,
    principal_components,
    reply_loss,
)
from ..interventions import Edit, ablate, add, subtract
from ..judges import phrase_judge
from ..model import ChatModel
from ..model.loading import resolve_device, resolve_dtype
from ..progress import Progress, named
from ..prompts import Contrast, PromptPair
from ..prompts.files import FORMATS
from ..runs import Run, Step, read_csv, read_json, read_jsonl
from .config import RunConfig, chat_options

log = logging.getLogger(__name__)

CONDITIONS = {
    0: ("baseline", "ablation", "subtraction"),
    1: ("baseline", "ablation", "addition"),
}
"""The conditions of each kind of prompts: 0 for the positive (harmful), 1 for the negative ones."""

SMALL_MODEL = 100_000_000
"""Parameters below which starting a pass costs more than the passes of 64 prompts themselves."""


class Job:
    """One run's settings, folder and model; the model is loaded when a step first needs it."""

    def __init__(self, config: RunConfig, run: Run, on_progress: Progress | None) -> None:
        self.config = config
        self.run = run
        self.on_progress = on_progress

    @cached_property
    def model(self) -> ChatModel:
        """The chat model under study."""
        c = self.config
        return ChatModel.load(
            c.model,
            device=c.device,
            dtype=None if self.dtype == "auto" else self.dtype,
            revision=c.revision,
            device_map=c.device_map,
            trust_remote_code=c.trust_remote_code,
            **chat_options(c.as_dict()),
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
    def contrast(self) -> Contrast:
        """The prompts, split."""
        c = self.config
        sizes: dict[str, Any] = {name: getattr(c, name) for name in ("n_train", "n_val", "n_test", "seed")}
        if c.splits is not None:
            return Contrast.from_reference_splits(c.splits, **sizes)
        if c.harmful is not None and c.harmless is not None:
            load = Contrast.from_files if is_local(c.harmful) else Contrast.from_datasets
            return load(c.harmful, c.harmless, **sizes)
        return Contrast.toy(**sizes)

    def require_room(self) -> None:
        """Raise InputError for a prompt of the run that does not fit the model with its reply."""
        c, contrast = self.config, self.contrast
        train, val, test = (
            [*pair.positive, *pair.negative] for pair in (contrast.train, contrast.val, contrast.test)
        )
        own = contrast.test
        of_nulls = [*own.positive[: c.null_prompts], *own.negative[: c.null_prompts]]
        wanted = [(train, 0), (val, 0), (test, c.max_new_tokens), (of_nulls, c.null_tokens)]
        for prompts, reply in wanted if c.n_null else wanted[:-1]:
            self.model.require_room(self.model.chat.render(prompts), reply)

    def path(self, name: str) -> Any:
        """A file of the run."""
        return self.run.path / name

    def said(self, what: str) -> Progress | None:
        """Progress of one step, or None when nobody listens."""
        return named(self.on_progress, what)

    def made(self, step: str, name: str) -> bool:
        """Whether a step that is done left this file."""
        return name in self.run.manifest(step).outputs

    @property
    def directed(self) -> bool:
        """Whether the selection, which is done, took a direction."""
        return self.made("selection", "direction.safetensors")

    # What earlier steps left, read back from their files so that a resumed run sees just the same.

    @cached_property
    def behaviour(self) -> dict[str, Any]:
        """Refusal tokens and counts of kept prompts."""
        return read_json(self.path("behaviour.json"))

    @cached_property
    def refusal_tokens(self) -> tuple[int, ...]:
        """R, empty where none was found."""
        return tuple(self.behaviour["refusal_tokens"]["ids"])

    @cached_property
    def first_tokens(self) -> FirstTokens | None:
        """The refusal metric; None where no refusal tokens were found."""
        return FirstTokens(self.refusal_tokens) if self.refusal_tokens else None

    @cached_property
    def direction(self) -> Direction:
        """The selected direction."""
        return Direction.load(self.path("direction.safetensors"))

    def kept(self, split: str) -> PromptPair:
        """The prompts of a split that the model's own behaviour kept."""
        rows = read_jsonl(self.path("prompts.jsonl"))
        first, second = self.contrast.kinds
        return PromptPair(
            *(
                tuple(
                    prompt_of_row(r)
                    for r in rows
                    if r["split"] == split and r["kind"] == kind and r["kept"]
                )
                for kind in (first, second)
            )
        )

    def edit(self, condition: str) -> Edit | None:
        """The edit that a condition's name stands for."""
        makers: dict[str, Callable[[Direction], Edit]] = {"ablation": ablate, "addition": add, "subtraction": subtract}
        return None if condition == "baseline" else makers[condition](self.direction)


def settled_dtype(
    dtype: str | None, *, device: str | None = None, device_map: str | None = None
) -> str:
    """The name of the dtype that a model is loaded in here; "auto" is the checkpoint's own.

    Raises InputError for a dtype or device that is not there.
    """
    where = None if device_map is not None else resolve_device(device)
    return str(resolve_dtype(dtype, where)).removeprefix("torch.")


def is_local(source: str) -> bool:
    """Whether a source of prompts is a file or folder, there or missing, rather than a data set's name."""
    return Path(source).exists() or Path(source).suffix.lower() in FORMATS


def candidates(job: Job, step: Step) -> None:
    """Difference-of-means candidates; none where the plain model gives no ground for a direction."""
    if job.behaviour.get("no_direction"):
        return
    found = extract_candidates(
        job.model,
        job.kept("train"),
        data_sha256=job.contrast.sha256,
        concept=job.contrast.name,
        batch_size=job.batch_size,
        on_progress=job.on_progress,
    )
    with step.writing("candidates.safetensors") as path:
        found.save(path)


def scores(job: Job, step: Step) -> None:
    """bypass, induce and kl of every candidate; an interrupted sweep goes on after its last block."""
    if not job.made("candidates", "candidates.safetensors"):
        return
    c, val = job.config, job.kept("val")
    done = sweep(
        job.model,
        Candidates.load(job.path("candidates.safetensors")),
        positive=val.positive,
        negative=val.negative,
        behaviour=FirstTokens(job.refusal_tokens),
        mode=c.mode,
        rule=Thresholds(c.kl_threshold, c.induce_threshold, c.prune_layers),
        on_progress=job.said("scores"),
        resume=SweepCheckpoint.latest(step.records),
        on_block=lambda checkpoint: step.keep(checkpoint.record()),
    )
    step.write_csv("scores.csv", done.table)
    step.write_json("sweep.json", done.checkpoint.passes)


def selection(job: Job, step: Step) -> None:
    """The rule, the table with reasons, and the direction file if a candidate passes."""
    if not job.made("scores", "scores.csv"):
        return
    found = Candidates.load(job.path("candidates.safetensors"))
    try:
        selection = _selection(job, found.n_layers)
    except NoCandidateError as error:
        log.info("%s", error)
        step.write_csv("candidates.csv", error.table)
        return
    step.write_csv("candidates.csv", selection.table)
    with step.writing("direction.safetensors") as path:
        found.direction(selection.place, selection.layer).save(path)


def why_none_is_selected(job: Job) -> str:
    """The reason why there is no direction, with the nearest miss; "" when there is one."""
    if not job.made("scores", "scores.csv"):
        return str(job.behaviour.get("no_direction"))
    try:
        _selection(job, Candidates.load(job.path("candidates.safetensors")).n_layers)
    except NoCandidateError as error:
        return str(error)
    return ""


def _selection(job: Job, n_layers: int) -> Selection:
    c = job.config
    return select(
        read_csv(job.path("scores.csv"), text=("place", "position_name")),
        n_layers,
        Thresholds(c.kl_threshold, c.induce_threshold, c.prune_layers),
    )


def completions(job: Job, step: Step, *, side: int, condition: str) -> None:
    """Replies of one kind of prompts under one condition."""
    c, kind = job.config, job.contrast.kinds[side]
    done = complete(
        job.model,
        side_of(job.contrast.test, side),
        behaviour=job.first_tokens,
        judge=phrase_judge,
        edit=job.edit(condition),
        max_new_tokens=c.max_new_tokens,
        batch_size=job.batch_size,
        on_progress=job.said(f"completions, {kind}, {condition}"),
    )
    step.write_jsonl(f"completions/{kind}_{condition}.jsonl", [_row(one) for one in done])


def _row(completion: Completion) -> dict[str, Any]:
    """A line of a completions file."""
    row = completion.to_row()
    return {
        "instruction": row["instruction"],
        "response": row["response"],
        "refusal": row["shows"],
        "evidence": row["evidence"],
        "metric": row["score"],
        "reply_ids": row["reply_ids"],
        "refusal_exact": row["paper_count"],
    }


def losses(job: Job, step: Step) -> None:
    """On-distribution CE of the plain model's own harmless replies under each edit."""
    rows = read_jsonl(job.path(f"completions/{job.contrast.kinds[1]}_baseline.jsonl"))
    instructions = [row["instruction"] for row in rows]
    replies = [row["reply_ids"] for row in rows]
    if not any(replies):
        log.warning("losses: left empty, since every reply of the unedited model is")
    table = []
    for condition in ("baseline", "ablation", "addition", "subtraction"):
        loss = reply_loss(
            job.model,
            instructions,
            replies,
            edit=job.edit(condition),
            on_progress=job.said(f"losses, {condition}"),
        )
        table.append({"condition": condition, **asdict(loss), "perplexity": loss.perplexity})
    columns = ["condition", "ce", "perplexity", "n_tokens"]
    step.write_csv("losses.csv", pd.DataFrame(table)[columns])


def null_edits(job: Job, step: Step) -> None:
    """Random directions and norm-matched random moves."""
    c, test = job.config, job.contrast.test
    table = nulls(
        job.model,
        job.direction,
        prompts={
            kind: side_of(test, side)[: c.null_prompts]
            for side, kind in enumerate(job.contrast.kinds)
        },
        behaviour=FirstTokens(job.refusal_tokens),
        n=c.n_null,
        n_moves=c.n_moves,
        seed=c.seed,
        max_new_tokens=c.null_tokens,
        batch_size=job.batch_size,
        on_progress=job.said("nulls"),
    )
    table = table.rename(columns={"score": "metric", "rate": "refusal_rate"})
    step.write_csv("nulls.csv", table.drop(columns="n_unjudged"))


def geometry(job: Job, step: Step) -> None:
    """Cosine with r by layer under each condition."""
    contrast = job.contrast
    prompts = {kind: side_of(contrast.test, side) for side, kind in enumerate(contrast.kinds)}
    edits = {
        kind: {condition: job.edit(condition) for condition in CONDITIONS[side]}
        for side, kind in enumerate(contrast.kinds)
    }
    step.write_csv(
        "curves.csv",
        cosine_by_layer(
            job.model,
            job.direction,
            prompts=prompts,
            edits=edits,
            batch_size=job.batch_size,
            on_progress=job.said("cosine by layer"),
        ),
    )


def components(job: Job, step: Step) -> None:
    """Principal components of the plain model's last token, by layer."""
    streams = {
        kind: cache_residuals(
            job.model,
            side_of(job.contrast.test, side),
            places=["post[-1]"],
            batch_size=job.batch_size,
            on_progress=job.said(f"components, {kind}"),
        )
        for side, kind in enumerate(job.contrast.kinds)
    }
    step.write_csv("pca.csv", principal_components(streams))


def base_comparison(job: Job, step: Step) -> None:
    """Replies of the base model to the harmful prompts, and cosine with r by layer in both models."""
    c, contrast = job.config, job.contrast
    assert c.base_model is not None
    base = ChatModel.load(
        c.base_model,
        device=c.device,
        dtype=None if job.dtype == "auto" else job.dtype,
        device_map=c.device_map,
        trust_remote_code=c.trust_remote_code,
        **chat_options(c.as_dict()),
        base=None,
    )
    if base.d_model != job.model.d_model or base.n_layers != job.model.n_layers:
        raise InputError(
            f"base model {c.base_model}: has {base.n_layers} layers of {base.d_model}, need "
            f"{job.model.n_layers} of {job.model.d_model}; is it the base of {c.model}?"
        )
    kind = contrast.kinds[0]
    done = complete(
        base,
        contrast.test.positive,
        behaviour=job.first_tokens,
        judge=phrase_judge,
        max_new_tokens=c.max_new_tokens,
        batch_size=job.batch_size,
        on_progress=job.said(f"completions, {kind}, base model"),
    )
    step.write_jsonl(f"completions/{kind}_base.jsonl", [_row(one) for one in done])
    prompts = {kind: side_of(contrast.test, side) for side, kind in enumerate(contrast.kinds)}
    table = cosine_in_both(
        job.model,
        base,
        job.direction,
        prompts=prompts,
        batch_size=job.batch_size,
        on_progress=job.said("cosines of both models"),
    )
    step.write_csv("base_curves.csv", table)


def side_of(pair: PromptPair, side: int) -> Sequence[Prompt]:
    """The prompts of one kind: 0 for the positive, 1 for the negative ones."""
    return pair.positive if side == 0 else pair.negative
