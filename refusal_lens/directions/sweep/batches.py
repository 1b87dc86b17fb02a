"""Rows in batches of equal length, and what a pass over them costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from ...chat import Rendered
from ...display import shown
from ...shapes import TokenIds

T = TypeVar("T")
Tokens = Int[Tensor, " _"]
"""The ids of one row; rows differ in length."""


class Row(NamedTuple):
    """What is run: the tokens of a prompt and what is forced behind it, and how many positions are read at its end."""

    tokens: Tokens
    n_read: int = 1


@shown()
@dataclass(frozen=True, eq=False)
class Batch:
    """Some rows, by number, as token ids [batch pos]; mask is None where nothing is padded.

    n_read: at how many positions, from the end, logits are made: what the row needs that is read the furthest.
    """

    rows: tuple[int, ...]
    ids: TokenIds
    mask: Int[Tensor, "batch pos"] | None
    n_read: int = 1

    @property
    def tokens(self) -> int:
        """Tokens that a pass computes for one candidate, padding included."""
        return self.ids.numel()


@dataclass(frozen=True)
class PassSize:
    """How passes are filled: at most `tokens` in one, and what starting one costs in tokens."""

    tokens: int
    overhead: float = 0.0

    def members(self, batch: Batch) -> int:
        """How many candidates share one pass over the batch."""
        return max(1, self.tokens // batch.tokens)

    def cost(self, batch: Batch, members: int) -> float:
        """Tokens to compute, overhead included, for this many candidates."""
        return members * batch.tokens + math.ceil(members / self.members(batch)) * self.overhead


def unpadded(rendered: Rendered) -> list[Tokens]:
    """The token ids of every prompt without padding, on the CPU."""
    rows = zip(rendered.ids.cpu(), rendered.mask.cpu().bool(), strict=True)
    return [ids[mask] for ids, mask in rows]


def common_prefix(prompts: Sequence[Tokens]) -> int:
    """How many leading tokens all prompts share, leaving each at least one that is its alone."""
    shortest = min(len(tokens) for tokens in prompts) - 1
    table = torch.stack([tokens[:shortest] for tokens in prompts])
    differs = (table != table[0]).any(0).nonzero()
    return int(differs[0]) if len(differs) else shortest


def make_batches(
    rows: Sequence[Row],
    chosen: Sequence[int],
    size: PassSize,
    *,
    members: int,
    skip: int = 0,
    pad_id: int | None = None,
    at_most: int | None = None,
) -> list[Batch]:
    """The chosen rows in batches of equal length, longest first.

    Lengths are merged, with padding on the left, where passes for `members` candidates cost more to
    start than the padding costs to compute; never without a pad_id. The first `skip` tokens are
    left out.
    """
    lengths = [len(row.tokens) for row in rows]
    by_length = sorted(chosen, key=lambda i: (lengths[i], i))
    groups = [list(same) for _, same in groupby(by_length, key=lambda i: lengths[i])]
    if pad_id is not None:
        groups = _merge([(lengths[g[0]] - skip, g) for g in groups], size, members)
    batches = []
    for group in reversed(groups):
        width = lengths[group[-1]] - skip
        most = max(1, min(size.tokens // width, at_most or len(group), len(group)))
        even = math.ceil(len(group) / math.ceil(len(group) / most))
        for numbers in in_turns(group, even):
            batches.append(_batch(rows, numbers, width, skip, pad_id))
    return batches


def _batch(
    rows: Sequence[Row], numbers: Sequence[int], width: int, skip: int, pad_id: int | None
) -> Batch:
    tokens = [rows[i].tokens[skip:] for i in numbers]
    n_read = max(rows[i].n_read for i in numbers)
    pads = [width - len(ids) for ids in tokens]
    if not any(pads):
        return Batch(tuple(numbers), torch.stack(tokens), None, n_read)
    filler = 0 if pad_id is None else pad_id
    padded = [torch.cat([t.new_full((n,), filler), t]) for t, n in zip(tokens, pads, strict=True)]
    mask = torch.arange(width)[None, :] >= torch.tensor(pads)[:, None]
    return Batch(tuple(numbers), torch.stack(padded), mask.long(), n_read)


def _merge(groups: list[tuple[int, list[int]]], size: PassSize, members: int) -> list[list[int]]:
    """The cheapest way to merge neighbouring lengths, by dynamic programming."""

    def cost(first: int, last: int) -> float:
        n = sum(len(rows) for _, rows in groups[first : last + 1])
        tokens = n * groups[last][0] * members
        return tokens + math.ceil(tokens / size.tokens) * size.overhead

    best: list[tuple[float, int]] = [(0.0, 0)]
    for last in range(len(groups)):
        best.append(min((best[first][0] + cost(first, last), first) for first in range(last + 1)))
    merged: list[list[int]] = []
    last = len(groups)
    while last:
        first = best[last][1]
        merged.append([row for _, rows in groups[first:last] for row in rows])
        last = first
    return merged[::-1]


def in_turns(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """Consecutive runs of at most `size` items."""
    for first in range(0, len(items), size):
        yield list(items[first : first + size])
