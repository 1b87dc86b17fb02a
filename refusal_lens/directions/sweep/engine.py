"""Edited passes over many candidates at once, and the numbers they give."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from ...errors import InputError
from ...interventions import ZERO_NORM
from ...metrics import METRIC_EPSILON, first_token_log_odds, kl_divergence
from ...model import ChatModel
from ...shapes import PerPrompt
from ..candidates import Candidates
from .batches import Batch, Load, Tokens, in_turns, make_batches
from .budget import Memory
from .roads import Road, Trial
from .state import Index, Scores

log = logging.getLogger(__name__)

LARGEST_METRIC = math.log1p(METRIC_EPSILON) - math.log(METRIC_EPSILON)
"""The refusal metric of one prompt lies between minus this and this."""
ROUNDING = 1e-4
"""Room for the float32 mean when a score is bounded before all prompts are seen."""

Values = Float64[Tensor, "member prompt"]


@dataclass
class Count:
    """What has been run so far."""

    passes: int = 0
    block_tokens: int = 0
    unembedded: int = 0
    units: float = 0.0
    """Block tokens, with what starting a pass costs."""
    evaluations: dict[str, int] = field(default_factory=dict)


class Engine:
    """Scores blocks of candidates along one open road, and remembers what it found.

    positive and negative are unpadded prompts; numbers of prompts run over the positive ones first.
    known: what an earlier sweep found. It is gone through in the same blocks as if nothing were, and
    a block that is known as a whole is taken over: so each candidate shares its passes with the same
    others, and has the same last digits, as in a sweep that was never stopped.
    """

    def __init__(
        self,
        model: ChatModel,
        road: Road,
        candidates: Candidates,
        *,
        positive: Sequence[Tokens],
        negative: Sequence[Tokens],
        refusal_tokens: Sequence[int],
        load: Load,
        memory: Memory,
        known: Scores | None = None,
        at_most: int | None = None,
    ) -> None:
        self.road, self.load, self.memory = road, load, memory
        self.scores, self.known = Scores(), known or Scores()
        self.given_up: dict[Index, str] = dict(self.known.skipped)
        self.refusal_tokens = list(refusal_tokens)
        self.vectors = candidates.mean_diffs
        self.n_layers = candidates.n_layers
        self.at_most = at_most
        self.prompts = [*positive, *negative]
        self.positive = list(range(len(positive)))
        self.negative = list(range(len(positive), len(self.prompts)))
        self.pad_id = model.chat.pad_id if road.pads else None
        self.count = Count()
        self.noise: set[Index] = set()
        self._plain: dict[int, Tensor] = {}
        self._metric: dict[int, float] = {}
        self._streams: list[dict[int, Tensor]] = []
        self._streams_of: Sequence[Batch] = ()

    # ---------------------------------------------------------------- the unedited model

    def run_baseline(self) -> None:
        """One pass over every prompt: metrics, and the negative prompts' logits for KL."""
        for batch in self.batches(self.positive + self.negative, 1):
            logits = self.road.baseline(batch)
            self._counted(batch, 1, self.n_layers)
            if bool(torch.isnan(logits).any()) or bool(torch.isposinf(logits).any()):
                raise InputError(
                    "logits of the unedited model: got NaN or infinity; try another dtype "
                    "(bfloat16 or float32)"
                )
            for i, metric in zip(batch.prompts, self._refusal(logits), strict=True):
                self._metric[i] = float(metric)
            for row, i in enumerate(batch.prompts):
                if i >= len(self.positive):
                    self._plain[i] = logits[row].clone()

    def settle_noise(self, admissible: Iterable[Index]) -> None:
        """Candidates that are rounding noise change nothing: their scores are the baselines'."""
        for candidate in admissible:
            if float(self._vector(candidate).norm()) <= ZERO_NORM:
                self.noise.add(candidate)
                found = self.scores.values
                found["bypass"][candidate] = self._mean([self._metric[i] for i in self.positive])
                found["induce"][candidate] = self._mean([self._metric[i] for i in self.negative])
                found["kl"][candidate] = 0.0

    # ---------------------------------------------------------------- blocks of candidates

    def batches(self, prompts: Sequence[int], members: int) -> list[Batch]:
        """The prompts in batches, for passes with so many candidates."""
        return make_batches(
            self.prompts,
            prompts,
            self.load,
            members=members,
            skip=self.road.prefix,
            pad_id=self.pad_id,
            at_most=self.at_most,
        )

    def block_size(self, batches: Sequence[Batch], wanted: int) -> int:
        """Candidates per block: enough to fill the passes, few enough to hold their prefixes."""
        fill = max(self.load.members(batch) for batch in batches)
        if self.road.prefix:
            held = self.memory.limit // (2 * self.memory.per_cached * self.road.prefix)
            fill = min(fill, max(1, held))
        typical = self.load.members(batches[len(batches) // 2])
        return max(1, min(fill, max(math.ceil(wanted / 8), typical)))

    def ablate(
        self, block: Sequence[Index], batches: Sequence[Batch], names: Sequence[str]
    ) -> None:
        """Score bypass or kl or both, of the block's candidates, from the batches' prompts."""
        if self._recalls(block, names):
            return
        trial = self.road.ablation(self._stack(block))
        self._counted_prefix(len(block), self.n_layers)
        metric = torch.full((len(block), len(self.prompts)), math.nan, dtype=torch.float64)
        kl = metric.clone()
        for batch in batches:
            for members, logits in self._passes(trial, batch, range(len(block)), {}, self.n_layers):
                for c, rows in zip(members, logits, strict=True):
                    self._note(batch, rows, metric[c], kl[c])
        for c, candidate in enumerate(block):
            if "bypass" in names:
                self._store("bypass", candidate, self._mean(metric[c, self.positive]))
            if "kl" in names:
                self._store("kl", candidate, float(kl[c, self.negative].mean()))

    def _note(self, batch: Batch, rows: Tensor, metric: Tensor, kl: Tensor) -> None:
        """What one candidate's logits say about the batch's prompts: metric of positive, KL of
        negative.
        """
        prompts = torch.tensor(batch.prompts)
        of = prompts < len(self.positive)
        if bool(of.any()):
            metric[prompts[of]] = self._refusal(rows[of.to(rows.device)]).cpu()
        if not bool(of.all()):
            plain = torch.stack([self._plain[i] for i in prompts[~of].tolist()])
            kl[prompts[~of]] = kl_divergence(plain, rows[(~of).to(rows.device)]).cpu()

    def induce(
        self,
        layer: int,
        block: Sequence[Index],
        batches: Sequence[Batch],
        *,
        threshold: float | None = None,
    ) -> None:
        """Score induce of candidates of one layer, from streams that `advance_to` put at hand.

        With a threshold, a candidate whose mean can no longer reach it is left without a score.
        """
        trial = self.road.addition(self._stack(block), layer)
        blocks = self.n_layers - layer if self.road.skips else self.n_layers
        self._counted_prefix(len(block), blocks)
        values = torch.zeros((len(block), len(self.negative)), dtype=torch.float64)
        alive = list(range(len(block)))
        seen = 0
        for batch, streams in zip(batches, self._streams, strict=True):
            columns = torch.tensor(batch.prompts) - len(self.positive)
            for members, logits in self._passes(trial, batch, alive, streams, blocks):
                for c, rows in zip(members, logits, strict=True):
                    values[c, columns] = self._refusal(rows).cpu()
            seen += len(batch.prompts)
            if threshold is not None:
                left = (len(self.negative) - seen) * LARGEST_METRIC
                most = (values.sum(1) + left) / len(self.negative)
                alive = [c for c in alive if not most[c] < threshold - ROUNDING]
        for c, candidate in enumerate(block):
            if c in alive:
                self._store("induce", candidate, self._mean(values[c]))
            else:
                self.scores.skipped[candidate] = f"induce surely < {threshold:g}"
                self.given_up[candidate] = self.scores.skipped[candidate]

    def recalls_induce(self, block: Sequence[Index], threshold: float | None) -> bool:
        """Take the block's induce scores over from what is known, if all of them are."""
        if threshold is None:
            return self._recalls(block, ("induce",))
        left = [c for c in block if c not in self.known.skipped]
        if not self._recalls(left, ("induce",)):
            return False
        for candidate in block:
            if candidate in self.known.skipped:
                self.scores.skipped[candidate] = self.known.skipped[candidate]
        return True

    def _recalls(self, block: Sequence[Index], names: Sequence[str]) -> bool:
        if not all(self.known.has(name, candidate) for candidate in block for name in names):
            return False
        for candidate in block:
            for name in names:
                self.scores.values[name][candidate] = self.known.get(name, candidate)
        return True

    def found(self, name: str) -> dict[Index, float]:
        """Every value of this score that is known or found by now."""
        return {**self.known.values[name], **self.scores.values[name]}

    def advance_to(self, layer: int, band: Sequence[int], batches: Sequence[Batch]) -> None:
        """Put the unedited streams entering the band's layers at hand, unless this layer's are."""
        if not self.road.skips:
            self._streams = [{} for _ in batches]
            return
        if self._streams_of is not batches:
            self._streams_of, self._streams = batches, [{} for _ in batches]
        if layer in self._streams[0]:
            return
        for number, batch in enumerate(batches):
            at_hand = self._streams[number]
            start = max((known for known in at_hand if known <= min(band)), default=0)
            self._streams[number] = self.road.streams(batch, band, at_hand)
            self._counted(batch, 1, max(band) - start)

    def advance_units(self, band: Sequence[int], batches: Sequence[Batch]) -> float:
        """Work of putting a band's streams at hand, from nothing."""
        if not self.road.skips:
            return 0.0
        return sum(batch.tokens + self.load.overhead for batch in batches) * max(band)

    def bands(self, layers: Sequence[int], batches: Sequence[Batch]) -> list[list[int]]:
        """The layers in runs whose streams fit into a quarter of the memory."""
        held = sum(batch.tokens for batch in batches) * self.memory.per_stream
        return list(in_turns(layers, max(1, self.memory.limit // (4 * held))))

    # ---------------------------------------------------------------- counting

    def units(self, batches: Sequence[Batch], members: int, blocks: int) -> float:
        """Work of scoring candidates: tokens, with what starting a pass costs, times blocks run."""
        cost = sum(self.load.cost(batch, members) for batch in batches)
        return (cost + members * self.road.prefix) * blocks

    def _passes(
        self,
        trial: Trial,
        batch: Batch,
        members: Sequence[int],
        streams: dict[int, Tensor],
        blocks: int,
    ) -> Iterable[tuple[list[int], Tensor]]:
        waiting = list(in_turns(members, self.load.members(batch)))
        while waiting:
            some = waiting.pop(0)
            try:
                logits = trial.logits(batch, some, streams)
            except torch.OutOfMemoryError:
                if len(some) == 1:
                    raise
                torch.cuda.empty_cache()
                half = len(some) // 2
                self.load = replace(self.load, tokens=max(1, half * batch.tokens))
                log.info("out of memory: passes of %d tokens from here on", self.load.tokens)
                waiting = [some[:half], some[half:], *waiting]
                continue
            yield some, logits
            self._counted(batch, len(some), blocks)

    def _counted(self, batch: Batch, members: int, blocks: int) -> None:
        self.count.passes += 1
        self.count.block_tokens += batch.tokens * members * blocks
        self.count.units += (batch.tokens * members + self.load.overhead) * blocks
        self.count.unembedded += members * len(batch.prompts)

    def _counted_prefix(self, members: int, blocks: int) -> None:
        if self.road.prefix:
            self.count.passes += 1
            self.count.block_tokens += self.road.prefix * members * blocks
            self.count.units += self.road.prefix * members * blocks

    def _store(self, name: str, candidate: Index, value: float) -> None:
        self.scores.values[name][candidate] = value
        self.count.evaluations[name] = self.count.evaluations.get(name, 0) + 1

    # ---------------------------------------------------------------- numbers

    def _vector(self, candidate: Index) -> Tensor:
        position, layer = candidate
        return self.vectors[position, layer]

    def _stack(self, block: Sequence[Index]) -> Tensor:
        return torch.stack([self._vector(candidate) for candidate in block])

    def _refusal(self, logits: Tensor) -> PerPrompt:
        return first_token_log_odds(logits, self.refusal_tokens)

    @staticmethod
    def _mean(values: Tensor | Sequence[float]) -> float:
        """The mean in float32, as the reference implementation stores and averages."""
        return float(torch.as_tensor(values, dtype=torch.float32).mean())
