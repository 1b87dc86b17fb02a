"""From prompts to scores by forward passes: which rows a behaviour asks for, and what their logits say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..activations import as_rendered
from ..chat import Rendered
from ..conversations import Prompt
from ..errors import InputError
from ..model import ChatModel
from ..progress import Progress
from ..shapes import PerPrompt
from .behaviour import Behaviour, LogitBehaviour

log = logging.getLogger(__name__)


class ScoredRow(NamedTuple):
    """A reading of one prompt: the prompt's number, the ids that are predicted behind it, and the weight."""

    prompt: int
    ids: tuple[int, ...]
    weight: float

    @property
    def forced(self) -> tuple[int, ...]:
        """The ids that are put behind the prompt: all that are predicted but the last."""
        return self.ids[:-1]

    @property
    def n_read(self) -> int:
        """How many positions are read, at the row's end."""
        return max(1, len(self.ids))


def scored_rows(
    behaviour: LogitBehaviour, prompts: Sequence[Prompt] | Rendered
) -> list[ScoredRow]:
    """The rows of all prompts, in the prompts' order. Raises InputError for a prompt without a reading."""
    asked = prompts.prompts if isinstance(prompts, Rendered) else prompts
    readings = behaviour.readings(asked)
    if len(readings) != len(asked) or not all(readings):
        raise InputError(
            f"readings of {behaviour.name}: got {sum(map(bool, readings))} prompts with some, need at least one "
            f"for each of {len(asked)}"
        )
    return [
        ScoredRow(number, tuple(reading.ids), float(reading.weight))
        for number, of_prompt in enumerate(readings)
        for reading in of_prompt
    ]


def row_numbers(
    behaviour: LogitBehaviour,
    logits: Float[Tensor, "row k d_vocab"],
    predicted: Sequence[tuple[int, ...]],
) -> Float64[Tensor, " row"]:
    """The number of each row, on the CPU, from the logits at the last k positions.

    predicted: the ids of each row; a row with n of them is read at its last n positions, one without at the last.
    """
    numbers = torch.empty(len(predicted), dtype=torch.float64)
    for n in sorted({len(ids) for ids in predicted}):
        rows = [row for row, ids in enumerate(predicted) if len(ids) == n]
        ids = torch.tensor([predicted[row] for row in rows], dtype=torch.long).reshape(len(rows), n)
        read = logits if len(rows) == len(logits) else logits[rows]
        of_rows = behaviour.number(read[:, -max(1, n) :], ids.to(logits.device))
        numbers[rows] = of_rows.cpu().double()
    return numbers


def prompt_scores(
    rows: Sequence[ScoredRow], numbers: Float64[Tensor, "*axes row"], n_prompts: int
) -> Float64[Tensor, "*axes prompt"]:
    """Each prompt's score: the weighted sum of its rows' numbers."""
    scores = torch.zeros((*numbers.shape[:-1], n_prompts), dtype=torch.float64)
    for column, row in enumerate(rows):
        scores[..., row.prompt] += row.weight * numbers[..., column]
    return scores


class ByLogits:
    """What every behaviour of logits has in common: its scores, and no details but where it has some."""

    @torch.no_grad()
    def scores(
        self: LogitBehaviour,
        model: ChatModel,
        prompts: Sequence[Prompt] | Rendered,
        *,
        batch_size: int = 32,
        on_progress: Progress | None = None,
    ) -> PerPrompt:
        """The score of every prompt under the edits that are installed; batch_size counts rows.

        Raises InputError for a prompt that does not fit the model with what is put behind it.
        """
        rendered = as_rendered(model, prompts)
        rows = scored_rows(self, prompts)
        longer = rendered
        if any(row.ids for row in rows):
            longer = rendered[[row.prompt for row in rows]].followed_by(
                [row.forced for row in rows], pad_id=model.chat.pad_id
            )
            model.require_room(longer, 0)
        numbers, done = torch.empty(len(rows), dtype=torch.float64), 0
        for index, batch in longer.batches(batch_size):
            asked = [rows[i] for i in index.tolist()]
            logits = model.logits(batch, last=max(row.n_read for row in asked))
            numbers[index.cpu()] = row_numbers(self, logits, [row.ids for row in asked])
            done += len(batch)
            if on_progress is not None:
                on_progress(self.words.score, done, len(rows))
        return prompt_scores(rows, numbers, len(rendered))

    def details(self) -> dict[str, Any]:
        """Nothing."""
        return {}


def warn_if_slow(behaviour: Behaviour, n_prompts: int, what: str) -> None:
    """Log how many prompts are to be scored, where no single forward pass decides a score."""
    if not isinstance(behaviour, LogitBehaviour):
        log.warning(
            "%s of %s is slow: %d prompts are scored one set at a time, by generating and judging replies where the "
            "behaviour asks for them",
            what,
            behaviour.name,
            n_prompts,
        )
