"""Keys and values of a prefix that many rows share, for transformers' caches.

The rows of a pass come in runs of equal length, one run per member of the prefix's batch, such as
the prompts that are tried with one candidate. The shared cache holds each member once and lends it
to its run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

SHAREABLE = (DynamicLayer, DynamicSlidingWindowLayer)
"""Layers whose state is keys and values alone; recurrent states cannot be shared this way."""


def fresh_cache(config: Any) -> DynamicCache:
    """An empty cache for one pass over the prefix."""
    return DynamicCache(config=config)


def is_shareable(cache: Cache, n_layers: int) -> bool:
    """Whether `share` can lend this cache, after a pass filled it."""
    return len(cache.layers) == n_layers and all(type(one) in SHAREABLE for one in cache.layers)


def has_sliding_windows(cache: Cache) -> bool:
    """Whether some layer forgets tokens by their distance in columns."""
    return any(cache.is_sliding)


def share(
    filled: Cache, members: Sequence[int], run: int, *, below: Cache | None = None, start: int = 0
) -> Cache:
    """A cache of ``len(members) x run`` rows over a prefix; passes do not change it.

    filled: the cache after the prefix pass. Layers under start take their sizes from below (their
    blocks pass through, and hold nothing of their own).
    """
    layers: list[Any] = []
    for i, layer in enumerate(filled.layers):
        if i < start and below is not None:
            layers.append(_Lent(below.layers[i], [0], run))
        else:
            layers.append(_Lent(layer, members, run))
    return Cache(layers=layers)


class _Lent(DynamicLayer):
    """One layer's keys and values [member head pos d_head], read by runs of rows."""

    def __init__(self, layer: Any, members: Sequence[int], run: int) -> None:
        super().__init__()
        every = len(members) == len(layer.keys)
        self.keys: Tensor = layer.keys if every else layer.keys[list(members)]
        self.values: Tensor = layer.values if every else layer.values[list(members)]
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True
        self.is_sliding = layer.is_sliding
        self._layer, self._run = layer, run

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, prefix: Tensor, new: Tensor) -> Tensor:
        """Prefix and new states in one copy, [member x run head seen+pos d_head]."""
        lent = prefix[:, None].expand(-1, self._run, -1, -1, -1)
        states = new.unflatten(0, (prefix.shape[0], self._run))
        return torch.cat([lent, states], dim=-2).flatten(0, 1)

    def get_seq_length(self) -> int:
        return self._layer.get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._layer.get_mask_sizes(query_length)
