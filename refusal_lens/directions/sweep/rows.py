"""What a sweep runs: the rows that score each kind of prompts, and those that KL is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from ...behaviours import Behaviour, LogitBehaviour
from ...behaviours.scoring import ScoredRow, prompt_scores, scored_rows
from ...chat import Rendered
from ...conversations import Prompt
from .batches import Row, Tokens

Prompts = Sequence[Prompt] | Rendered


@dataclass(frozen=True, eq=False)
class ScoredSide:
    """The rows of one kind of prompts: their numbers among all rows, and what each says of which prompt."""

    numbers: list[int]
    scored: list[ScoredRow]
    n_prompts: int

    def scores(self, values: Float64[Tensor, "*axes row"]) -> Float64[Tensor, "*axes prompt"]:
        """Each prompt's score from the values of the side's rows."""
        return prompt_scores(self.scored, values, self.n_prompts)

    def unseen(self, seen: set[int]) -> list[int]:
        """Prompts with a row that is not among those seen (by their numbers among all rows)."""
        pairs = zip(self.numbers, self.scored, strict=True)
        return sorted({row.prompt for number, row in pairs if number not in seen})


@dataclass(frozen=True, eq=False)
class SweepRows:
    """All rows of a sweep: those of the positive prompts, then of the negative ones, then for KL alone.

    kl are the numbers of the rows that KL is measured on, the negative prompts as they are, at their last token.
    """

    rows: list[Row]
    positive: ScoredSide
    negative: ScoredSide
    kl: list[int]

    @property
    def scored(self) -> list[ScoredRow]:
        """What the rows of both kinds are, in the order of their numbers."""
        return [*self.positive.scored, *self.negative.scored]


def rows_of(
    behaviour: Behaviour, prompts: Sequence[Prompts], tokens: Sequence[Sequence[Tokens]]
) -> SweepRows:
    """The rows of the positive and the negative prompts, given with their unpadded tokens.

    For a behaviour that no forward pass decides, the prompts themselves: they tell how much work there is.
    """
    sides: list[ScoredSide] = []
    rows: list[Row] = []
    for asked, ids in zip(prompts, tokens, strict=True):
        scored = [ScoredRow(number, (), 1.0) for number in range(len(ids))]
        if isinstance(behaviour, LogitBehaviour):
            scored = scored_rows(behaviour, asked)
        first = len(rows)
        rows += [_row(ids[row.prompt], row) for row in scored]
        sides.append(ScoredSide(list(range(first, len(rows))), scored, len(ids)))
    positive, negative = sides
    as_they_are = [(n, row.prompt) for n, row in zip(negative.numbers, negative.scored, strict=True) if not row.ids]
    kl = [number for number, _ in as_they_are]
    if [prompt for _, prompt in as_they_are] != list(range(len(tokens[1]))):
        kl = list(range(len(rows), len(rows) + len(tokens[1])))
        rows += [Row(ids) for ids in tokens[1]]
    return SweepRows(rows, positive, negative, kl)


def _row(prompt: Tokens, row: ScoredRow) -> Row:
    if not row.forced:
        return Row(prompt, row.n_read)
    return Row(torch.cat([prompt, prompt.new_tensor(row.forced)]), row.n_read)
