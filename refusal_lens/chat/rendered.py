"""Rendered prompts: left-padded token ids with a span for every region of every row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..conversations import Prompt
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..shapes import Spans, TokenIds, TokenMask
from .places import Columns, Place, Region

_REGIONS = {
    "instruction": "instruction",
    "post": "post-instruction tokens",
    "reply": "reply",
    "last": "prompt",
}
"""What a message calls the regions."""


@shown()
@dataclass(frozen=True)
class Row:
    """One prompt before padding: its ids and the half-open spans of its regions."""

    ids: tuple[int, ...]
    instruction: tuple[int, int]
    post: tuple[int, int]
    answer: tuple[int, int]


@shown("ids", "positions", "prompts")
@dataclass(frozen=True, eq=False)
class Rendered:
    """Left-padded token ids of a batch of prompts, and where each region of a row lies.

    Spans are half-open (start, stop) columns of `ids`. In reading order a row holds padding, BOS
    and template, `instruction`, (template text that merges with some instructions, mostly none),
    `post`, (a header that the template writes before a reply, mostly none), `answer`, end of turn.
    `post` has one token per name in `positions`: position i (negative, -1 the last) of a row is
    column ``post[row, 1] + i``. `answer` holds the prefilled answer and the reply, without the end
    of turn; it is empty (start = stop = number of columns) when there is neither, and then
    ``post[:, 1]`` is the number of columns too.
    """

    ids: TokenIds
    mask: Int[Tensor, "batch pos"]
    instruction: Spans
    post: Spans
    answer: Spans
    positions: tuple[str, ...]
    prompts: tuple[Prompt, ...]

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Row],
        *,
        pad_id: int,
        positions: tuple[str, ...],
        prompts: Sequence[Prompt],
    ) -> Rendered:
        """Pad rows on the left to a common length."""
        width = max(len(row.ids) for row in rows)
        pads = [width - len(row.ids) for row in rows]
        ids = torch.tensor([[pad_id] * n + list(r.ids) for n, r in zip(pads, rows, strict=True)])
        shift = torch.tensor(pads)[:, None]
        return cls(
            ids=ids,
            mask=(torch.arange(width)[None, :] >= shift).long(),
            instruction=torch.tensor([row.instruction for row in rows]) + shift,
            post=torch.tensor([row.post for row in rows]) + shift,
            answer=torch.tensor([row.answer for row in rows]) + shift,
            positions=positions,
            prompts=tuple(prompts),
        )

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def t_inst(self) -> Int[Tensor, " batch"]:
        """Column of the last instruction token of each row."""
        return self.instruction[:, 1] - 1

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Number of tokens of each row, padding not counted."""
        return self.mask.sum(dim=1)

    @property
    def reply_mask(self) -> TokenMask:
        """True at answer tokens: prefilled answer and reply, without the end of turn."""
        return self._inside(self.answer)

    @property
    def instruction_mask(self) -> TokenMask:
        """True at instruction tokens."""
        return self._inside(self.instruction)

    @checked
    def at(self, place: Place | str) -> Columns:
        """Where a place lies in every row, on the CPU.

        Raises InputError, naming the row, where a row has no such token: a reply that is not there, or an index
        beyond its region.
        """
        place = Place.parse(place)
        starts, stops = self._span_of(place.region).cpu().unbind(1)
        n, index = stops - starts, place.index
        least = 1 if index is None else max(index + 1, -index)
        if short := (n < least).nonzero().flatten().tolist():
            row = short[0]
            raise InputError(
                f"place {place} at prompt {row}: got {int(n[row])} tokens of its {_REGIONS[place.region]}, need at "
                f"least {least}; try "
                + ("prompts with replies" if place.region == "reply" else "another place")
            )
        if index is not None:
            columns = ((starts if index >= 0 else stops) + index)[:, None]
            return Columns(columns, torch.ones(columns.shape, dtype=torch.float64))
        steps = torch.arange(int(n.max()))[None, :]
        columns = torch.minimum(starts[:, None] + steps, stops[:, None] - 1)
        return Columns(columns, (steps < n[:, None]).double() / n[:, None])

    def _span_of(self, region: Region) -> Spans:
        if region == "last":
            width = self.ids.shape[1]
            return torch.tensor([[width - 1, width]]).expand(len(self), 2)
        spans = {"instruction": self.instruction, "post": self.post, "reply": self.answer}
        return spans[region]

    def name_of(self, place: Place) -> str:
        """What to call a place: the text of a post-instruction token, else the place's own name."""
        position = place.position
        known = position is not None and -position <= len(self.positions)
        return self.positions[position] if known and position is not None else str(place)

    def _inside(self, spans: Spans) -> Bool[Tensor, "batch pos"]:
        column = torch.arange(self.ids.shape[1], device=self.ids.device)[None, :]
        return (column >= spans[:, :1]) & (column < spans[:, 1:])

    def followed_by(self, replies: Sequence[Sequence[int]], *, pad_id: int) -> Rendered:
        """The same prompts, each with the ids of a reply behind it, which count as answer.

        Raises InputError unless the rows end where their answers begin or go on, with one reply for each.
        """
        if len(replies) != len(self):
            raise InputError(
                f"replies: got {len(replies)}, need one for each of {len(self)} prompts"
            )
        width = self.ids.shape[1]
        if bool((self.answer[:, 1] != width).any()):
            raise InputError("replies: got prompts that have replies already, need some without")
        rows = []
        for row, (length, reply) in enumerate(zip(self.lengths.tolist(), replies, strict=True)):
            before = width - length
            spans = [
                (start - before, stop - before)
                for start, stop in (
                    region[row].tolist() for region in (self.instruction, self.post, self.answer)
                )
            ]
            ids = (*self.ids[row, before:].tolist(), *(int(i) for i in reply))
            answer = (spans[2][0], len(ids))
            rows.append(Row(ids, spans[0], spans[1], answer))
        return Rendered.from_rows(
            rows, pad_id=pad_id, positions=self.positions, prompts=self.prompts
        ).to(self.ids.device)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Rendered:
        """Some rows, without the padding that they all share."""
        index = self._row_index(rows)
        start = self.ids.shape[1] - int(self.lengths[index].max()) if len(index) else 0
        return Rendered(
            ids=self.ids[index, start:],
            mask=self.mask[index, start:],
            instruction=self.instruction[index] - start,
            post=self.post[index] - start,
            answer=self.answer[index] - start,
            positions=self.positions,
            prompts=tuple(self.prompts[i] for i in index.tolist()),
        )

    def _row_index(self, rows: slice | Sequence[int] | Tensor) -> Int[Tensor, " rows"]:
        everything = torch.arange(len(self), device=self.ids.device)
        if isinstance(rows, slice):
            return everything[rows]
        chosen = rows if isinstance(rows, Tensor) else torch.tensor(list(rows), dtype=torch.long)
        return everything[chosen.to(self.ids.device)]

    def by_length(self) -> Iterator[tuple[Int[Tensor, " rows"], Rendered]]:
        """Rows grouped by length, so that no group holds any padding: (row indices, group)."""
        lengths = self.lengths
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().squeeze(1)
            yield rows, self[rows]

    @checked
    def batches(
        self, batch_size: int, *, sort_by_length: bool = True
    ) -> Iterator[tuple[Int[Tensor, " rows"], Rendered]]:
        """Batches of at most `batch_size` rows: (row indices, batch), the longest rows first.

        Longest first, so that a batch that does not fit into memory fails at once.
        """
        if batch_size < 1:
            raise InputError(f"batch size: got {batch_size}, need at least 1")
        order = torch.arange(len(self), device=self.ids.device)
        if sort_by_length:
            order = self.lengths.argsort(descending=True, stable=True)
        for rows in order.split(batch_size):
            yield rows, self[rows]

    def to(self, device: torch.device | str) -> Rendered:
        """The same on another device."""
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)
