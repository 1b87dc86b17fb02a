"""The verbs: `sweep`, with all that it can tell, and `score_candidates` for the table alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch

from ...activations import as_rendered
from ...behaviours import Behaviour, LogitBehaviour
from ...behaviours.scoring import warn_if_slow
from ...display import shown
from ...door import at_least, checked
from ...errors import InputError
from ...model import ChatModel
from ...progress import Progress
from ..candidates import Candidates
from .batches import PassSize, common_prefix, unpadded
from .budget import Memory, Shape, memory_of, pass_size_for
from .checked import checked_path
from .engine import SweepEngine
from .hooked import HookedEngine
from .passes import PassLimits
from .paths import HookPath, ScoringPath
from .rows import Prompts, SweepRows, rows_of
from .schedule import BlockWork, Rule, exhaustive, lazy
from .state import NAMES, CandidateScores, Index, Stats, SweepCheckpoint, key_of

Mode = Literal["exhaustive", "lazy"]
LEAST_PREFIX = 2
"""Fewer shared tokens than this are not worth a pass of their own."""


@shown()
@dataclass(frozen=True, eq=False)
class Sweep:
    """Scores of the candidates, what they cost, and the checkpoint of the finished sweep."""

    table: pd.DataFrame
    stats: Stats
    checkpoint: SweepCheckpoint


@checked
def score_candidates(
    model: ChatModel,
    candidates: Candidates,
    *,
    positive: Prompts,
    negative: Prompts,
    behaviour: Behaviour,
    **options: Any,
) -> pd.DataFrame:
    """bypass, induce and kl of every candidate (paper, appendix C.1); options as of `sweep`.

    One row per candidate: place, position (of post-instruction tokens), position_name, layer, norm, bypass, induce,
    kl. A lazy table has a column skipped besides: why a NaN score was not needed, or "".
    """
    return sweep(
        model, candidates, positive=positive, negative=negative, behaviour=behaviour, **options
    ).table


@checked
def sweep(
    model: ChatModel,
    candidates: Candidates,
    *,
    positive: Prompts,
    negative: Prompts,
    behaviour: Behaviour,
    mode: Mode = "exhaustive",
    rule: Rule | None = None,
    budget: int | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    on_progress: Progress | None = None,
    resume: SweepCheckpoint | None = None,
    on_block: Callable[[SweepCheckpoint], None] | None = None,
) -> Sweep:
    """Score candidates: the behaviour's mean score and KL under the edit that each stands for.

    bypass: mean score of the positive prompts under ablation. induce: of the negative prompts with
    the raw candidate added at its layer. kl: mean KL(plain || ablated) at the last position of the
    negative prompts. Candidates of norm at most 1e-8 are rounding noise: they score as the unedited
    model. Behaviours that are no `LogitBehaviour` are scored by hooks, one candidate at a time,
    which is slow.

    mode: "exhaustive" scores everything; "lazy" only what the rule's choice needs, which is the
    same choice (with the same error when there is none), and leaves NaN elsewhere. budget: tokens
    per pass, at least one row; by default what suits the model's shape. memory: bytes that
    passes may hold, by default a quarter of what is free, in powers of two. The same sweep gives
    the same bits each time, stopped and resumed or not, while device, threads and memory are the
    same; `Stats.size` tells the size of its passes. batch_size: at most so many rows side by side.
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
    _require_fitting(model, candidates)
    prompts = (positive, negative)
    tokens = [unpadded(as_rendered(model, side)) for side in prompts]
    rows = rows_of(behaviour, prompts, tokens)
    key = key_of(candidates, tokens[0], tokens[1], behaviour)
    if resume is not None and resume.key != key:
        raise InputError(
            "sweep checkpoint: of other candidates, prompts or behaviour; start afresh"
        )
    prefix = common_prefix([*tokens[0], *tokens[1]]) if resume is None else resume.prefix
    room = memory_of(model, memory)
    with _path(model, candidates, behaviour, rows, prefix if prefix >= LEAST_PREFIX else 0) as path:
        limits = PassLimits(_pass_size(model, room, budget, resume), room, batch_size)
        tried = time.perf_counter() - started
        given: dict[str, Any] = {"rows": rows, "behaviour": behaviour, "limits": limits, "known": _known(resume)}
        engine: SweepEngine
        if isinstance(behaviour, LogitBehaviour):
            engine = SweepEngine(model, path, candidates, **given)
        else:
            engine = HookedEngine(model, path, candidates, prompts=prompts, **given)
        run = _Run(engine, key, on_progress, on_block)
        run.baseline(candidates.index())
        run.do(
            exhaustive(engine, candidates.index())
            if rule is None or mode == "exhaustive"
            else lazy(engine, candidates.index(), rule)
        )
        stats = Stats(
            path=path.name,
            size=limits.size,
            prefix=path.prefix,
            passes=engine.count.passes,
            block_tokens=engine.count.block_tokens,
            unembedded=engine.count.unembedded,
            evaluations=dict(engine.count.evaluations),
            seconds=time.perf_counter() - started,
            trial_seconds=tried,
        )
        return Sweep(_table(candidates, engine.scores), stats, run.checkpoint())


def _require_fitting(model: ChatModel, candidates: Candidates) -> None:
    n_layers, d_model = candidates.mean_diffs.shape[1:]
    if (n_layers, d_model) != (model.n_layers, model.d_model):
        raise InputError(
            f"candidates for {model.name}: got {n_layers} layers of width {d_model}, need {model.n_layers} of "
            f"{model.d_model}; are they another model's?"
        )


@contextmanager
def _path(
    model: ChatModel, candidates: Candidates, behaviour: Behaviour, rows: SweepRows, prefix: int
) -> Iterator[ScoringPath]:
    """The fastest path that gives what hooks give, or hooks where the behaviour itself runs the model."""
    if isinstance(behaviour, LogitBehaviour):
        with checked_path(model, candidates, rows.rows, prefix=prefix) as path:
            yield path
        return
    n_prompts = rows.positive.n_prompts + rows.negative.n_prompts
    warn_if_slow(behaviour, len(candidates.index()) * n_prompts, "a sweep over candidates")
    with torch.no_grad():
        yield HookPath(model)


def _pass_size(
    model: ChatModel, memory: Memory, budget: int | None, resume: SweepCheckpoint | None
) -> PassSize:
    """The size of the checkpoint, else the budget asked for, else what suits the model."""
    if resume is not None:
        return resume.size
    if budget is not None:
        return PassSize(budget)
    return pass_size_for(model.device.type, Shape.of(model), memory)


@dataclass
class _Run:
    """Goes through a schedule, and tells how far it is."""

    engine: SweepEngine
    key: str
    on_progress: Progress | None
    on_block: Callable[[SweepCheckpoint], None] | None

    def baseline(self, index: Sequence[Index]) -> None:
        """The unedited model, and the candidates that change nothing."""
        self.engine.run_baseline()
        self.engine.settle_noise(index)

    def do(self, schedule: Iterator[BlockWork]) -> None:
        """Every block in turn."""
        count, start = self.engine.count, self.engine.count.units
        for number, block in enumerate(schedule):
            if number == 0 and self.on_progress is not None:
                self.on_progress("scores", 0, max(1, round(block.units + block.rest())))
            passes = count.passes
            block.do()
            if self.on_block is not None and count.passes > passes:
                self.on_block(self.checkpoint())
            if self.on_progress is not None:
                done = count.units - start
                self.on_progress("scores", round(done), max(1, round(done + block.rest())))

    def checkpoint(self) -> SweepCheckpoint:
        """What is known by now."""
        engine = self.engine
        rows = [
            (name, position, layer, value)
            for name in NAMES
            for (position, layer), value in engine.all_values(name).items()
        ]
        given_up = [(position, layer, why) for (position, layer), why in engine.given_up.items()]
        return SweepCheckpoint(self.key, engine.size, engine.path.prefix, tuple(rows), tuple(given_up))


def _known(resume: SweepCheckpoint | None) -> CandidateScores:
    known = CandidateScores()
    if resume is not None:
        for name, position, layer, value in resume.scores:
            known.values[name][position, layer] = value
        for position, layer, reason in resume.given_up:
            known.skipped[position, layer] = reason
    return known


def _table(candidates: Candidates, scores: CandidateScores) -> pd.DataFrame:
    rows = []
    for row, layer in candidates.index():
        place = candidates.places[row]
        rows.append(
            {
                "place": str(place),
                "position": place.position,
                "position_name": candidates.names[row],
                "layer": layer,
                "norm": float(candidates.mean_diffs[row, layer].norm()),
                **{name: scores.get(name, (row, layer)) for name in NAMES},
                "skipped": scores.skipped.get((row, layer), ""),
            }
        )
    table = pd.DataFrame(rows)
    if any(place.position is None for place in candidates.places):
        table["position"] = table["position"].astype("Int64")
    return table if scores.skipped else table.drop(columns="skipped")
