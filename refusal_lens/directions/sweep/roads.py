"""Two roads to a candidate's logits: TransformerLens hooks, and plain passes of the Hugging Face
model.

Both score many candidates in one pass. Rows go candidate by candidate: with n prompts, row ``c n +
i`` is prompt i under candidate c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ...interventions import Ablate, Add, applied, unit
from ...model import ChatModel
from ...model.plain import PlainModel
from ...model.prefix import fresh_cache, has_sliding_windows, is_shareable, share
from ...shapes import Activation, LastLogits, TokenIds, as_float64
from .batches import Batch

MemberVectors = Float[Tensor, "member d_model"]
MemberLogits = Float[Tensor, "member batch d_vocab"]
Streams = Mapping[int, Activation]
"""resid_pre [batch pos d_model] of one batch, by layer."""


@runtime_checkable
class Trial(Protocol):
    """Candidates being tried: one edit each."""

    def logits(self, batch: Batch, members: Sequence[int], streams: Streams) -> MemberLogits:
        """Last-position logits of the batch under each of the members (by their number here)."""


@runtime_checkable
class Road(Protocol):
    """A way to run edited passes; open it around all use."""

    name: str
    prefix: int
    """How many leading tokens are computed once per candidate; batches must leave them out."""
    pads: bool
    """Whether batches may be padded."""
    skips: bool
    """Whether addition at layer l runs only the blocks from l on, given the streams there."""

    def opened(self) -> AbstractContextManager[Any]:
        """The context in which the road can be used."""

    def baseline(self, batch: Batch) -> LastLogits:
        """Logits of the unedited model."""

    def streams(self, batch: Batch, layers: Sequence[int], above: Streams) -> dict[int, Activation]:
        """Residual streams of the unedited model entering the given layers."""

    def ablation(self, vectors: MemberVectors) -> Trial:
        """``x - (x . r^) r^`` on every write to the residual stream."""

    def addition(self, vectors: MemberVectors, layer: int) -> Trial:
        """``x + r`` at resid_pre of the layer."""


class HookRoad:
    """Edits through TransformerLens hooks, for every model that the bridge supports."""

    name = "hooks"
    prefix = 0
    pads = True
    skips = False

    def __init__(self, model: ChatModel) -> None:
        self.model = model

    def opened(self) -> AbstractContextManager[Any]:
        """Nothing to open."""
        return nullcontext()

    def baseline(self, batch: Batch) -> LastLogits:
        """Logits of the unedited model."""
        return self._run(batch, 1)

    def streams(self, batch: Batch, layers: Sequence[int], above: Streams) -> dict[int, Activation]:
        """None: every pass here runs all blocks."""
        return {}

    def ablation(self, vectors: MemberVectors) -> Trial:
        """``x - (x . r^) r^`` on every write to the residual stream."""
        return _Hooked(self, vectors, Ablate)

    def addition(self, vectors: MemberVectors, layer: int) -> Trial:
        """``x + r`` at resid_pre of the layer."""
        return _Hooked(self, vectors, lambda rows: Add(rows, layer))

    def _run(self, batch: Batch, members: int) -> LastLogits:
        device = self.model.device
        ids = batch.ids.to(device).repeat(members, 1)
        mask = (
            torch.ones_like(ids) if batch.mask is None else batch.mask.to(device).repeat(members, 1)
        )
        return self.model.run(ids, mask)[:, -1]


class _Hooked:
    def __init__(self, road: HookRoad, vectors: Tensor, edit: Callable[[Tensor], Any]) -> None:
        self.road, self.vectors, self.edit = road, vectors, edit

    def logits(self, batch: Batch, members: Sequence[int], streams: Streams) -> MemberLogits:
        rows = self.vectors[list(members)].repeat_interleave(len(batch.prompts), 0)[:, None]
        with applied(self.road.model, self.edit(rows)):
            logits = self.road._run(batch, len(members))
        return logits.unflatten(0, (len(members), -1))


class PlainRoad:
    """Edits by plain PyTorch hooks on the Hugging Face modules, with everything shared that can be.

    Blocks under an addition's layer are passed through, tokens that all prompts begin with are
    computed once per candidate, and the last block's MLP runs at the last position alone.
    """

    skips = True

    def __init__(
        self,
        plain: PlainModel,
        *,
        device: torch.device,
        dtype: torch.dtype,
        prefix_ids: TokenIds | None = None,
        attention: str | None = None,
        every_block: bool = False,
    ) -> None:
        self.plain = plain
        self.device, self.dtype = device, dtype
        self.attention, self.every_block = attention, every_block
        self.prefix = 0 if prefix_ids is None else prefix_ids.shape[1]
        self.pads = True
        self._prefix_ids = None if prefix_ids is None else prefix_ids.to(device)
        self._cache: Any = None
        self._streams: dict[int, Tensor] = {}
        self.name = f"plain passes, {attention or 'own'} attention"
        if self.prefix:
            self.name += f", {self.prefix} shared tokens"

    @contextmanager
    def opened(self) -> Iterator[PlainRoad]:
        """Take the bridge's wrappers out, and run the shared prefix once."""
        with self.plain.opened(self.attention), self.plain.last_position_only():
            if self._prefix_ids is not None:
                self._run_prefix(self._prefix_ids)
            yield self

    def _run_prefix(self, ids: Tensor) -> None:
        cache = fresh_cache(self.plain.hf.config)
        with self.plain.reading(range(self.plain.n_layers)) as held:
            self.plain.last_logits(ids, cache=cache)
        if not is_shareable(cache, self.plain.n_layers):
            raise ValueError("the model keeps more than keys and values between tokens")
        self._cache, self._streams = cache, dict(held)
        self.pads = not has_sliding_windows(cache)

    def baseline(self, batch: Batch) -> LastLogits:
        """Logits of the unedited model."""
        lent = share(self._cache, [0], len(batch.prompts)) if self.prefix else None
        return self.run(batch, 1, cache=lent)

    def streams(self, batch: Batch, layers: Sequence[int], above: Streams) -> dict[int, Activation]:
        """From the nearest layer that `above` holds; only the blocks after it run."""
        below = max((layer for layer in above if layer <= min(layers)), default=None)
        lent = share(self._cache, [0], len(batch.prompts)) if self.prefix else None
        span = (
            nullcontext()
            if below is None
            else self.plain.spanning(below, above[below], stop=max(layers))
        )
        with self.plain.reading(layers) as held, span:
            self.run(batch, 1, cache=lent)
        return dict(held)

    def ablation(self, vectors: MemberVectors) -> Trial:
        """``x - (x . r^) r^`` on every write to the residual stream."""
        return _Ablated(self, unit(vectors))

    def addition(self, vectors: MemberVectors, layer: int) -> Trial:
        """``x + r`` at resid_pre of the layer."""
        return _Added(self, vectors, layer)

    def run(self, batch: Batch, members: int, *, cache: Any = None) -> LastLogits:
        """One pass of the batch for this many candidates, after the shared prefix."""
        ids = batch.ids.to(self.device).repeat(members, 1)
        if batch.mask is None:
            return self.plain.last_logits(ids, cache=cache)
        own = batch.mask.to(self.device).repeat(members, 1)
        positions = (own.cumsum(1) - 1).clamp_min(0) + self.prefix
        mask = torch.cat([own.new_ones(len(own), self.prefix), own], 1)
        return self.plain.last_logits(ids, mask=mask, positions=positions, cache=cache)

    def prefix_cache(self, members: int) -> Any:
        """The cache after one pass of the prefix for each member, under the edits of the moment."""
        if self._prefix_ids is None:
            return None
        cache = fresh_cache(self.plain.hf.config)
        self.plain.last_logits(self._prefix_ids.expand(members, -1), cache=cache)
        return cache


class _Ablated:
    def __init__(self, road: PlainRoad, r_hat: Tensor) -> None:
        self.road = road
        self.r_hat = r_hat.to(road.dtype).to(road.device)
        with self._edited(self.r_hat[:, None]):
            self.cache = road.prefix_cache(len(r_hat))

    def _edited(self, rows: Tensor) -> AbstractContextManager[None]:
        def ablate(x: Tensor) -> Tensor:
            r = rows.to(x.device)
            return torch.addcmul(x, (x * r).sum(-1, keepdim=True), r, value=-1)

        return self.road.plain.editing(ablate, every_block=self.road.every_block)

    def logits(self, batch: Batch, members: Sequence[int], streams: Streams) -> MemberLogits:
        n, rows = len(batch.prompts), list(members)
        lent = None if self.cache is None else share(self.cache, rows, n)
        with self._edited(self.r_hat[rows].repeat_interleave(n, 0)[:, None]):
            logits = self.road.run(batch, len(rows), cache=lent)
        return logits.unflatten(0, (len(rows), n))


class _Added:
    def __init__(self, road: PlainRoad, vectors: Tensor, layer: int) -> None:
        self.road, self.layer = road, layer
        self.vectors = as_float64(vectors)
        self.cache = None
        if road.prefix:
            with self._entering(road._streams[layer], range(len(vectors))):
                self.cache = road.prefix_cache(len(vectors))

    def _entering(self, stream: Tensor, members: Sequence[int]) -> AbstractContextManager[None]:
        r = self.vectors[list(members)].to(stream.dtype).to(stream.device)
        moved = (stream[None] + r[:, None, None]).flatten(0, 1)
        return self.road.plain.spanning(self.layer, moved)

    def logits(self, batch: Batch, members: Sequence[int], streams: Streams) -> MemberLogits:
        n, rows = len(batch.prompts), list(members)
        below = self.road._cache
        lent = (
            None
            if self.cache is None
            else share(self.cache, rows, n, below=below, start=self.layer)
        )
        with self._entering(streams[self.layer], rows):
            logits = self.road.run(batch, len(rows), cache=lent)
        return logits.unflatten(0, (len(rows), n))
