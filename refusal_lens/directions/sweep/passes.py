"""Passes over batches of rows along one open path: how they are filled, what they cost, and what was run."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .batches import Batch, PassSize, Row, in_turns, make_batches
from .budget import Memory
from .paths import EditedPass, ScoringPath

log = logging.getLogger(__name__)


@dataclass
class Count:
    """What has been run so far."""

    passes: int = 0
    block_tokens: int = 0
    unembedded: int = 0
    units: float = 0.0
    """Block tokens, with what starting a pass costs."""
    evaluations: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class PassLimits:
    """What passes may take: their size, the memory they may hold, and rows side by side (None: as many as fit)."""

    size: PassSize
    memory: Memory
    at_most: int | None = None


class Passes:
    """Runs passes of many candidates over rows, and counts them.

    pad_id: with what rows of different lengths are padded.
    """

    def __init__(
        self, path: ScoringPath, rows: Sequence[Row], limits: PassLimits, *, n_layers: int, pad_id: int
    ) -> None:
        self.path, self.all_rows, self.n_layers = path, rows, n_layers
        self.size, self.memory, self.at_most = limits.size, limits.memory, limits.at_most
        self.pad_id = pad_id if path.pads else None
        self.count = Count()
        self._streams: list[dict[int, Tensor]] = []
        self._streams_of: Sequence[Batch] = ()

    def batches(self, rows: Sequence[int], members: int) -> list[Batch]:
        """The rows in batches, for passes with so many candidates."""
        return make_batches(
            self.all_rows,
            rows,
            self.size,
            members=members,
            skip=self.path.prefix,
            pad_id=self.pad_id,
            at_most=self.at_most,
        )

    def block_size(self, batches: Sequence[Batch], wanted: int) -> int:
        """Candidates per block: enough to fill the passes, few enough to hold their prefixes."""
        fill = max(self.size.members(batch) for batch in batches)
        if self.path.prefix:
            room = self.memory.limit // (2 * self.memory.per_cached * self.path.prefix)
            fill = min(fill, max(1, room))
        typical = self.size.members(batches[len(batches) // 2])
        return max(1, min(fill, max(math.ceil(wanted / 8), typical)))

    # ---------------------------------------------------------------- streams under an addition

    def advance_to(self, layer: int, band: Sequence[int], batches: Sequence[Batch]) -> None:
        """Put the unedited streams entering the band's layers at hand, unless this layer's are."""
        if not self.path.skips:
            self._streams = [{} for _ in batches]
            return
        if self._streams_of is not batches:
            self._streams_of, self._streams = batches, [{} for _ in batches]
        if layer in self._streams[0]:
            return
        for number, batch in enumerate(batches):
            at_hand = self._streams[number]
            start = max((known for known in at_hand if known <= min(band)), default=0)
            self._streams[number] = self.path.streams(batch, band, at_hand)
            self._counted(batch, 1, max(band) - start)

    def advance_units(self, band: Sequence[int], batches: Sequence[Batch]) -> float:
        """Work of putting a band's streams at hand, from nothing."""
        if not self.path.skips:
            return 0.0
        return sum(batch.tokens + self.size.overhead for batch in batches) * max(band)

    def bands(self, layers: Sequence[int], batches: Sequence[Batch]) -> list[list[int]]:
        """The layers in runs whose streams fit into a quarter of the memory."""
        taken = sum(batch.tokens for batch in batches) * self.memory.per_stream
        return list(in_turns(layers, max(1, self.memory.limit // (4 * taken))))

    # ---------------------------------------------------------------- counting

    def units(self, batches: Sequence[Batch], members: int, blocks: int) -> float:
        """Work of scoring candidates: tokens, with what starting a pass costs, times blocks run."""
        cost = sum(self.size.cost(batch, members) for batch in batches)
        return (cost + members * self.path.prefix) * blocks

    def _passes(
        self,
        edited: EditedPass,
        batch: Batch,
        members: Sequence[int],
        streams: dict[int, Tensor],
        blocks: int,
    ) -> Iterable[tuple[list[int], Tensor]]:
        waiting = list(in_turns(members, self.size.members(batch)))
        while waiting:
            together = waiting.pop(0)
            try:
                logits = edited.logits(batch, together, streams)
            except torch.OutOfMemoryError:
                if len(together) == 1:
                    raise
                torch.cuda.empty_cache()
                half = len(together) // 2
                self.size = replace(self.size, tokens=max(1, half * batch.tokens))
                log.info("out of memory: passes of %d tokens from here on", self.size.tokens)
                waiting = [together[:half], together[half:], *waiting]
                continue
            yield together, logits
            self._counted(batch, len(together), blocks)

    def _counted(self, batch: Batch, members: int, blocks: int) -> None:
        self.count.passes += 1
        self.count.block_tokens += batch.tokens * members * blocks
        self.count.units += (batch.tokens * members + self.size.overhead) * blocks
        self.count.unembedded += members * len(batch.rows) * batch.n_read

    def _counted_prefix(self, members: int, blocks: int) -> None:
        if self.path.prefix:
            self.count.passes += 1
            self.count.block_tokens += self.path.prefix * members * blocks
            self.count.units += self.path.prefix * members * blocks
