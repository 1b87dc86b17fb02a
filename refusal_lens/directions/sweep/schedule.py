"""What to score, in which order: everything, or only what the exact choice needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol, runtime_checkable

from .batches import Batch, in_turns
from .engine import SweepEngine
from .state import NAMES, Index

GOLDEN = (5**0.5 - 1) / 2
PRIOR_SHARE = 0.25
"""Share of admissible candidates expected to pass the induce test before any was scored."""
PRIOR_WEIGHT = 4
EXPECTED_KL = 1
"""How many KL scores a lazy sweep expects to need."""


@runtime_checkable
class Rule(Protocol):
    """The part of the selection rule that says what need not be scored."""

    @property
    def kl_threshold(self) -> float:
        """The largest admissible kl."""

    @property
    def induce_threshold(self) -> float:
        """The least admissible induce."""

    def layer_bound(self, n_layers: int) -> int:
        """The first layer that is never taken."""


@dataclass(frozen=True)
class BlockWork:
    """One block of candidates: its work, how to do it, and the work expected to come after it."""

    units: float
    do: Callable[[], None]
    rest: Callable[[], float]


def exhaustive(engine: SweepEngine, candidates: Sequence[Index]) -> Iterator[BlockWork]:
    """Every score of every candidate."""
    blocks = [*_induce_work(engine, candidates), *_ablation_work(engine, candidates, NAMES)]
    yield from _with_rest(blocks, lambda: 0.0)


def lazy(engine: SweepEngine, candidates: Sequence[Index], rule: Rule) -> Iterator[BlockWork]:
    """Score induce of admissible layers, bypass where it passes, KL by ascending bypass until one
    passes.

    When none passes, the admissible candidates are scored in full, for the reasons.
    """
    scores = engine.scores
    bound = rule.layer_bound(engine.n_layers)
    admissible = [c for c in candidates if c[1] < bound]
    for candidate in candidates:
        if candidate[1] >= bound:
            scores.skipped[candidate] = f"layer >= {bound}"
    wanted = sorted(admissible, key=lambda c: (c[1] * GOLDEN % 1, c[0]))
    threshold = rule.induce_threshold
    first = _induce_work(engine, wanted, threshold=threshold)
    live = [c for c in admissible if c not in engine.noise]
    yield from _with_rest(first, lambda: _expected(engine, live, threshold), engine)

    passing = []
    for candidate in admissible:
        induced = scores.get("induce", candidate)
        if induced >= threshold:
            passing.append(candidate)
        elif scores.has("induce", candidate):
            scores.skipped[candidate] = f"induce {induced:.3g} < {threshold:g}"
    per_kl = engine.units(engine.batches(engine.kl, 1), 1, engine.n_layers)
    second = _ablation_work(engine, passing, ("bypass",))
    yield from _with_rest(second, lambda: EXPECTED_KL * per_kl)

    ranked = [c for c in passing if not math.isnan(scores.get("bypass", c))]
    ranked.sort(key=lambda c: (scores.get("bypass", c), c))
    for i, candidate in enumerate(ranked):
        more = min(EXPECTED_KL - 1, len(ranked) - i - 1) * per_kl
        yield from _with_rest(_ablation_work(engine, [candidate], ("kl",)), partial(float, more))
        if scores.get("kl", candidate) <= rule.kl_threshold:
            for other in ranked[i + 1 :]:
                scores.skipped[other] = "one with less bypass passes"
            return
    for candidate in admissible:
        scores.skipped.pop(candidate, None)
    rest = [*_induce_work(engine, admissible), *_ablation_work(engine, admissible, NAMES)]
    yield from _with_rest(rest, lambda: 0.0)


def _expected(engine: SweepEngine, live: Sequence[Index], threshold: float) -> float:
    """Work that bypass and KL will take, judging by the candidates whose induce test is done."""
    scores = engine.scores
    done = [c for c in live if scores.has("induce", c) or c in scores.skipped]
    passed = sum(scores.get("induce", c) >= threshold for c in done)
    share = (passed + PRIOR_SHARE * PRIOR_WEIGHT) / (len(done) + PRIOR_WEIGHT)
    n = math.ceil(share * len(live))
    bypass = engine.units(engine.batches(engine.positive, n), n, engine.n_layers)
    return bypass + EXPECTED_KL * engine.units(
        engine.batches(engine.kl, 1), 1, engine.n_layers
    )


def _with_rest(
    blocks: Sequence[BlockWork], after: Callable[[], float], engine: SweepEngine | None = None
) -> Iterator[BlockWork]:
    """The blocks, each knowing what comes after it within this list and beyond.

    With an engine, blocks may take less than planned, and those to come are taken to do likewise.
    """
    left, planned = sum(block.units for block in blocks), 0.0
    before = 0.0 if engine is None else engine.count.units
    for block in blocks:
        left, planned = left - block.units, planned + block.units

        def rest(left: float = max(left, 0.0), planned: float = planned) -> float:
            taken = 0.0 if engine is None else engine.count.units - before
            return left * (taken / planned if taken else 1.0) + after()

        yield BlockWork(block.units, block.do, rest)


def _induce_work(
    engine: SweepEngine, candidates: Sequence[Index], *, threshold: float | None = None
) -> list[BlockWork]:
    """A block per layer, in the order in which the candidates' layers first come."""
    missing = [c for c in candidates if not engine.scores.has("induce", c)]
    missing = [c for c in missing if threshold is None or c not in engine.scores.skipped]
    if not missing:
        return []
    layers = list(dict.fromkeys(layer for _, layer in missing))
    by_layer = {layer: [c for c in missing if c[1] == layer] for layer in layers}
    most = max(len(block) for block in by_layer.values())
    batches = engine.batches(engine.negative, most)
    bands = engine.bands(sorted(layers), batches)
    work: list[BlockWork] = []
    for band in bands:
        for layer in sorted(band, key=layers.index):
            blocks = engine.n_layers - layer if engine.path.skips else engine.n_layers
            units = engine.units(batches, len(by_layer[layer]), blocks)
            if layer == min(band, key=layers.index):
                units += engine.advance_units(band, batches)
            work.append(
                BlockWork(
                    units, _induce(engine, layer, by_layer[layer], batches, band, threshold), float
                )
            )
    return work


def _induce(
    engine: SweepEngine,
    layer: int,
    block: Sequence[Index],
    batches: Sequence[Batch],
    band: Sequence[int],
    threshold: float | None,
) -> Callable[[], None]:
    def do() -> None:
        if not engine.recalls_induce(block, threshold):
            engine.advance_to(layer, band, batches)
            engine.induce(layer, block, batches, threshold=threshold)

    return do


def _ablation_work(
    engine: SweepEngine, candidates: Sequence[Index], names: Sequence[str]
) -> list[BlockWork]:
    """Blocks of candidates by what they still lack of the names (bypass, kl)."""
    asked = [name for name in ("bypass", "kl") if name in names]
    lacking = {
        c: tuple(name for name in asked if not engine.scores.has(name, c)) for c in candidates
    }
    work = []
    by_lack = sorted((c for c in candidates if lacking[c]), key=lambda c: lacking[c])
    for lack, same in groupby(by_lack, key=lambda c: lacking[c]):
        members = list(same)
        rows = (engine.positive if "bypass" in lack else []) + (
            engine.kl if "kl" in lack else []
        )
        size = engine.block_size(engine.batches(rows, len(members)), len(members))
        for block in in_turns(members, size):
            batches = engine.batches(rows, len(block))
            units = engine.units(batches, len(block), engine.n_layers)
            work.append(BlockWork(units, _ablate(engine, block, batches, lack), float))
    return work


def _ablate(
    engine: SweepEngine, block: Sequence[Index], batches: Sequence[Batch], names: Sequence[str]
) -> Callable[[], None]:
    return partial(engine.ablate, block, batches, names)
