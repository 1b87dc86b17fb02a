"""Scores of behaviours that no single forward pass decides: by hooks, one candidate at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...interventions import Ablate, Add, Edit, applied
from ...shapes import PerPrompt
from .batches import Batch
from .engine import SweepEngine
from .rows import Prompts, ScoredSide
from .state import Index


class HookedEngine(SweepEngine):
    """A sweep engine whose bypass and induce are the behaviour's own scores under each edit.

    prompts: the positive and the negative ones. Prompts without a score (a judge may not be able to tell) are left out
    of the mean. Raises InputError where none of a kind has one in the unedited model.
    """

    def __init__(self, *args: Any, prompts: tuple[Prompts, Prompts], **more: Any) -> None:
        super().__init__(*args, **more)
        self.prompts = prompts

    def run_baseline(self) -> None:
        """The logits for KL, and whether the behaviour has scores at all."""
        super().run_baseline()
        for kind, side in (("positive", self.rows.positive), ("negative", self.rows.negative)):
            if bool(self.baseline_scores(side).isnan().all()):
                raise InputError(
                    f"{self.behaviour.name} of the {kind} prompts: got no score for any reply of the unedited model, "
                    "need some; try another judge"
                )

    def baseline_scores(self, side: ScoredSide) -> PerPrompt:
        """The scores of one kind of prompts under no edit, measured once."""
        scores = self._baseline[side.numbers]
        if bool(scores.isnan().all()):
            scores = self._baseline[side.numbers] = self._scored(side)
        return scores

    def block_size(self, batches: Sequence[Batch], wanted: int) -> int:
        """One candidate: a checkpoint after each."""
        return 1

    def ablate(
        self, block: Sequence[Index], batches: Sequence[Batch], names: Sequence[str]
    ) -> None:
        """Score bypass or kl or both of a block of candidates."""
        if self.recalls(block, names):
            return
        for candidate in block:
            if "bypass" in names:
                edit = Ablate(self._vector(candidate))
                self.store("bypass", candidate, self._mean_under(edit, self.rows.positive))
        if "kl" in names:
            super().ablate(block, self.batches(self.kl, 1), ("kl",))

    def induce(
        self,
        layer: int,
        block: Sequence[Index],
        batches: Sequence[Batch],
        *,
        threshold: float | None = None,
    ) -> None:
        """Score induce of candidates of one layer; none is given up early."""
        for candidate in block:
            edit = Add(self._vector(candidate), layer)
            self.store("induce", candidate, self._mean_under(edit, self.rows.negative))

    def _mean_under(self, edit: Edit, side: ScoredSide) -> float:
        with applied(self.model, edit):
            scores = self._scored(side)
        for batch in self.batches(side.numbers, 1):
            self._counted(batch, 1, self.n_layers)
        return self.mean(scores)

    def _scored(self, side: ScoredSide) -> PerPrompt:
        prompts = self.prompts[0 if side is self.rows.positive else 1]
        return self.behaviour.scores(self.model, prompts, batch_size=self.at_most or 32)

    def _numbers(self, batch: Batch, logits: Tensor, places: Sequence[int]) -> Tensor:
        return torch.full((len(places),), torch.nan, dtype=torch.float64)

    @staticmethod
    def mean(values: Tensor | Sequence[float]) -> float:
        """The mean in float32 of the scores that there are."""
        return float(torch.as_tensor(values, dtype=torch.float32).nanmean())
