"""How many tokens to put into one pass: as many as memory allows and throughput rewards."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...model import ChatModel
from .batches import Batch, Load
from .roads import Road

log = logging.getLogger(__name__)

FIRST = 256
"""Tokens in the first trial pass; every further one has twice as many."""
TRIAL_SHARE = 0.02
"""Trial passes may cost this share of the whole sweep."""
TRIAL_BLOCKS = 6
"""Trial passes run one block in so many."""
WORTH = 0.03
"""The smallest pass within this share of the best throughput is taken: small passes stay in the
caches."""


@dataclass(frozen=True)
class Memory:
    """What passes may hold, and what a token of one takes, in bytes."""

    limit: int
    per_token: int
    per_stream: int
    """A token's residual stream at one layer."""
    per_cached: int
    """A token's keys and values at all layers."""

    @property
    def tokens(self) -> int:
        """Tokens that fit into one pass."""
        return max(1, self.limit // (2 * self.per_token))


def memory_of(model: ChatModel, limit: int | None) -> Memory:
    """An estimate from the model's shape; limit: bytes, by default a quarter of what is free."""
    cfg: Any = model.bridge.cfg
    item = torch.empty(0, dtype=model.dtype).element_size()
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * model.d_model
    experts = (
        getattr(cfg, "num_experts_per_tok", None) or getattr(cfg, "experts_per_token", None) or 1
    )
    d_head = getattr(cfg, "d_head", None) or model.d_model // model.n_heads
    kv_heads = getattr(cfg, "n_key_value_heads", None) or model.n_heads
    wide = 6 * model.d_model + 4 * d_mlp * experts + 4 * model.n_heads * d_head
    return Memory(
        limit=limit or free_memory(model.device) // 4,
        per_token=item * wide,
        per_stream=item * model.d_model,
        per_cached=item * 2 * model.n_layers * kv_heads * d_head,
    )


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def measured_load(
    road: Road, batch: Batch, vectors: torch.Tensor, *, n_layers: int, most: int, work: float
) -> Load:
    """Time passes of growing size through the last blocks, and take the load that is worth it.

    batch: one prompt; vectors [candidate d_model]. most: tokens that fit into memory. work: tokens
    of the whole sweep times blocks, of which the trials may cost a small share.
    """
    trials = _Trials(road, batch, vectors, n_layers)
    size = min(FIRST, most)
    trials.time(size)
    tried = [trials.time(size)]
    spent = 2 * size * trials.blocks
    while size * 2 <= most and not _levelled(tried):
        size *= 2
        spent += size * trials.blocks
        if spent > TRIAL_SHARE * work:
            break
        tried.append(trials.time(size))
    best = max(tokens / seconds for tokens, seconds in tried)
    tokens = next(t for t, seconds in tried if t / seconds >= (1 - WORTH) * best)
    load = Load(tokens, _overhead(tried))
    log.info(
        "passes of %d tokens; starting one costs as much as %.0f tokens", tokens, load.overhead
    )
    return load


class _Trials:
    """Passes of one prompt under additions near the top, where few blocks run."""

    def __init__(self, road: Road, batch: Batch, vectors: torch.Tensor, n_layers: int) -> None:
        self.road, self.batch, self.vectors = road, batch, vectors
        self.blocks = max(1, n_layers // TRIAL_BLOCKS) if road.skips else n_layers
        self.layer = n_layers - self.blocks
        self.streams = road.streams(batch, [self.layer], {})

    def time(self, size: int) -> tuple[int, float]:
        """Tokens in a pass of about this size, and the seconds it takes."""
        members = max(1, size // self.batch.tokens)
        chosen = self.vectors[torch.arange(members) % len(self.vectors)]
        trial = self.road.addition(chosen, self.layer)
        start = time.perf_counter()
        trial.logits(self.batch, range(members), self.streams)[:, 0, 0].cpu()
        return members * self.batch.tokens, time.perf_counter() - start


def _levelled(tried: Sequence[tuple[int, float]]) -> bool:
    """Whether the last trial brought no more throughput."""
    rates = [tokens / seconds for tokens, seconds in tried]
    return len(rates) > 1 and rates[-1] < (1 + WORTH) * max(rates[:-1])


def _overhead(tried: Sequence[tuple[int, float]]) -> float:
    """Tokens that could be computed in the time that an empty pass takes, from the two smallest
    trials.
    """
    if len(tried) < 2:
        return 0.0
    (small, fast), (large, slow) = tried[:2]
    if large <= small or slow <= fast:
        return 0.0
    per_token = (slow - fast) / (large - small)
    return max(0.0, fast / per_token - small)
