"""The verbs: `sweep`, with all that it can tell, and `score_candidates` for the table alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from ...activations import as_rendered
from ...chat import Rendered
from ...display import shown
from ...door import at_least, checked
from ...errors import InputError
from ...metrics import check_token_ids
from ...model import ChatModel
from ...progress import Progress
from ..candidates import Candidates
from .batches import Load, common_prefix, unpadded
from .budget import Memory, Shape, load_for, memory_of
from .checked import checked_road
from .engine import Engine
from .plans import Rule, exhaustive, lazy
from .state import NAMES, Checkpoint, Index, Scores, Stats, key_of

Mode = Literal["exhaustive", "lazy"]
LEAST_PREFIX = 2
"""Fewer shared tokens than this are not worth a pass of their own."""


@shown()
@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores of the candidates, what they cost, and the checkpoint of the finished sweep."""

    table: pd.DataFrame
    stats: Stats
    checkpoint: Checkpoint


@checked
def score_candidates(
    model: ChatModel,
    candidates: Candidates,
    *,
    positive: Sequence[str] | Rendered,
    negative: Sequence[str] | Rendered,
    refusal_tokens: Sequence[int],
    mode: Mode = "exhaustive",
    rule: Rule | None = None,
    budget: int | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    on_progress: Progress | None = None,
    resume: Checkpoint | None = None,
    on_block: Callable[[Checkpoint], None] | None = None,
) -> pd.DataFrame:
    """bypass, induce and kl of every candidate (paper, appendix C.1); see `sweep`.

    One row per candidate: position, position_name, layer, norm, bypass, induce, kl. A lazy table
    has a column skipped besides: why a NaN score was not needed, or "".
    """
    return sweep(
        model,
        candidates,
        positive=positive,
        negative=negative,
        refusal_tokens=refusal_tokens,
        mode=mode,
        rule=rule,
        budget=budget,
        memory=memory,
        batch_size=batch_size,
        on_progress=on_progress,
        resume=resume,
        on_block=on_block,
    ).table


@checked
def sweep(
    model: ChatModel,
    candidates: Candidates,
    *,
    positive: Sequence[str] | Rendered,
    negative: Sequence[str] | Rendered,
    refusal_tokens: Sequence[int],
    mode: Mode = "exhaustive",
    rule: Rule | None = None,
    budget: int | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    on_progress: Progress | None = None,
    resume: Checkpoint | None = None,
    on_block: Callable[[Checkpoint], None] | None = None,
) -> Sweep:
    """Score candidates: mean refusal metric and KL under the edit that each stands for.

    bypass: mean refusal metric of the positive prompts under ablation. induce: of the negative
    prompts with the raw candidate added at its layer. kl: mean KL(plain || ablated) at the last
    position of the negative prompts. Candidates of norm at most 1e-8 are rounding noise: they score
    as the unedited model.

    mode: "exhaustive" scores everything; "lazy" only what the rule's choice needs, which is the
    same choice (with the same error when there is none), and leaves NaN elsewhere. budget: tokens
    per pass, at least one prompt; by default what suits the model's shape. memory: bytes that
    passes may hold, by default a quarter of what is free, in powers of two. The same sweep gives
    the same bits each time, stopped and resumed or not, while device, threads and memory are the
    same; `Stats.load` tells the size of its passes. batch_size: at most so many prompts side by side.
    on_progress: called with "scores", work done and work in all (tokens times blocks; an estimate in lazy
    mode). on_block: called with a checkpoint after each block of candidates; resume: one of these,
    to go on from. Raises InputError for NaN logits of the unedited model, and for a checkpoint of
    another sweep.
    """
    started = time.perf_counter()
    if mode not in ("exhaustive", "lazy"):
        raise InputError(f'sweep mode: got {mode!r}, need "exhaustive" or "lazy"')
    if mode == "lazy" and rule is None:
        raise InputError(
            "lazy sweep: no rule, need the Thresholds of the selection; try rule=Thresholds()"
        )
    at_least(1, budget=budget, memory=memory, batch_size=batch_size)
    check_token_ids(refusal_tokens, model.d_vocab)
    n_layers, d_model = candidates.mean_diffs.shape[1:]
    if (n_layers, d_model) != (model.n_layers, model.d_model):
        raise InputError(
            f"candidates for {model.name}: got {n_layers} layers of width {d_model}, need {model.n_layers} of "
            f"{model.d_model}; are they another model's?"
        )
    sides = [unpadded(as_rendered(model, side)) for side in (positive, negative)]
    key = key_of(candidates, sides[0], sides[1], refusal_tokens)
    if resume is not None and resume.key != key:
        raise InputError(
            "sweep checkpoint: of other candidates, prompts or refusal tokens; start afresh"
        )
    prompts = [*sides[0], *sides[1]]
    prefix = common_prefix(prompts) if resume is None else resume.prefix
    prefix = prefix if prefix >= LEAST_PREFIX else 0
    held = memory_of(model, memory)
    with checked_road(model, candidates, prompts, prefix=prefix) as road:
        load = _load(model, held, budget, resume)
        tried = time.perf_counter() - started
        engine = Engine(
            model,
            road,
            candidates,
            positive=sides[0],
            negative=sides[1],
            refusal_tokens=refusal_tokens,
            load=load,
            memory=held,
            at_most=batch_size,
            known=_resumed(resume),
        )
        _run(engine, candidates.index(), mode, rule, on_progress, on_block, key)
        stats = Stats(
            road=road.name,
            load=load,
            prefix=road.prefix,
            passes=engine.count.passes,
            block_tokens=engine.count.block_tokens,
            unembedded=engine.count.unembedded,
            evaluations=dict(engine.count.evaluations),
            seconds=time.perf_counter() - started,
            trial_seconds=tried,
        )
        return Sweep(_table(candidates, engine.scores), stats, _checkpoint(engine, key))


def _load(model: ChatModel, memory: Memory, budget: int | None, resume: Checkpoint | None) -> Load:
    """The load of the checkpoint, else the budget asked for, else what suits the model."""
    if resume is not None:
        return resume.load
    if budget is not None:
        return Load(budget)
    return load_for(model.device.type, Shape.of(model), memory)


def _run(
    engine: Engine,
    index: Sequence[Index],
    mode: Mode,
    rule: Rule | None,
    on_progress: Progress | None,
    on_block: Callable[[Checkpoint], None] | None,
    key: str,
) -> None:
    engine.run_baseline()
    engine.settle_noise(index)
    tasks = (
        exhaustive(engine, index)
        if rule is None or mode == "exhaustive"
        else lazy(engine, index, rule)
    )
    start = engine.count.units
    for number, task in enumerate(tasks):
        if number == 0 and on_progress is not None:
            on_progress("scores", 0, max(1, round(task.units + task.rest())))
        passes = engine.count.passes
        task.do()
        if on_block is not None and engine.count.passes > passes:
            on_block(_checkpoint(engine, key))
        if on_progress is not None:
            done = engine.count.units - start
            on_progress("scores", round(done), max(1, round(done + task.rest())))


def _resumed(resume: Checkpoint | None) -> Scores:
    known = Scores()
    if resume is not None:
        for name, position, layer, value in resume.scores:
            known.values[name][position, layer] = value
        for position, layer, reason in resume.given_up:
            known.skipped[position, layer] = reason
    return known


def _checkpoint(engine: Engine, key: str) -> Checkpoint:
    rows = [
        (name, position, layer, value)
        for name in NAMES
        for (position, layer), value in engine.found(name).items()
    ]
    given_up = [(position, layer, why) for (position, layer), why in engine.given_up.items()]
    return Checkpoint(key, engine.load, engine.road.prefix, tuple(rows), tuple(given_up))


def _table(candidates: Candidates, scores: Scores) -> pd.DataFrame:
    rows = []
    for position, layer in candidates.index():
        vector = candidates.mean_diffs[position, layer]
        rows.append(
            {
                "position": position,
                "position_name": candidates.positions[position],
                "layer": layer,
                "norm": float(vector.norm()),
                **{name: scores.get(name, (position, layer)) for name in NAMES},
                "skipped": scores.skipped.get((position, layer), ""),
            }
        )
    table = pd.DataFrame(rows)
    return table if scores.skipped else table.drop(columns="skipped")
