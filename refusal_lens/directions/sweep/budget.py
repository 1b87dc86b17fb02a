"""How many tokens to put into one pass: enough to be worth starting it, as many as memory allows.

All of it follows from the model's shape and the kind of device, in powers of two, so that the same
run has the same passes, and with them the same last digits, each time and at any load of the machine.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any

import torch

from ...model import ChatModel
from .batches import PassSize

log = logging.getLogger(__name__)

LEAST = {"cpu": 256}
LEAST_ELSEWHERE = 4096
"""Tokens that keep a device busy; on a CPU small passes stay in its caches."""
START = {"cpu": 2e8}
START_ELSEWHERE = 5e10
"""Floating-point operations of a block that could be done while one more is started."""
MOST_MEMORY = {"cpu": 4 << 30}
MOST_MEMORY_ELSEWHERE = 16 << 30
"""Bytes that passes are ever given: more would not make them faster."""


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


@dataclass(frozen=True)
class Shape:
    """The widths of a block that a token passes through."""

    d_model: int
    d_mlp: int
    """Of all experts that a token is given to."""
    d_heads: int
    d_kv: int

    @classmethod
    def of(cls, model: ChatModel) -> Shape:
        """As the model's configuration has it."""
        cfg: Any = model.bridge.cfg
        d_mlp = getattr(cfg, "d_mlp", None) or 4 * model.d_model
        experts = (
            getattr(cfg, "num_experts_per_tok", None)
            or getattr(cfg, "experts_per_token", None)
            or 1
        )
        d_head = getattr(cfg, "d_head", None) or model.d_model // model.n_heads
        kv_heads = getattr(cfg, "n_key_value_heads", None) or model.n_heads
        return cls(model.d_model, d_mlp * experts, model.n_heads * d_head, kv_heads * d_head)

    @property
    def operations(self) -> int:
        """Floating-point operations per token, in its matrix products."""
        d = self.d_model
        return 2 * d * (3 * self.d_mlp + 2 * self.d_heads + 2 * self.d_kv)


def memory_of(model: ChatModel, limit: int | None) -> Memory:
    """An estimate from the model's shape; limit: bytes, by default a quarter of what is free."""
    shape = Shape.of(model)
    item = torch.empty(0, dtype=model.dtype).element_size()
    widths = 6 * model.d_model + 4 * shape.d_mlp + 4 * shape.d_heads
    most = MOST_MEMORY.get(model.device.type, MOST_MEMORY_ELSEWHERE)
    return Memory(
        limit=limit or min(most, _power_of_two(free_memory(model.device) // 4)),
        per_token=item * widths,
        per_stream=item * model.d_model,
        per_cached=item * 2 * model.n_layers * shape.d_kv,
    )


def _power_of_two(value: float) -> int:
    """The largest power of two that is at most the value, at least 1."""
    return 1 << max(0, int(value).bit_length() - 1)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 4 << 30


def pass_size_for(kind: str, shape: Shape, memory: Memory) -> PassSize:
    """Passes of so many tokens that starting one, on this kind of device, costs less than it."""
    overhead = START.get(kind, START_ELSEWHERE) / shape.operations
    wanted = max(LEAST.get(kind, LEAST_ELSEWHERE), 2 * _power_of_two(overhead))
    size = PassSize(min(wanted, _power_of_two(memory.tokens)), round(overhead, 3))
    log.info("passes of %d tokens; starting one counts as %.0f tokens", size.tokens, size.overhead)
    return size
