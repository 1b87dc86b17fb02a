"""Edited passes over many candidates at once, and the scores that they give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from ...behaviours import Behaviour, LogitBehaviour
from ...behaviours.scoring import row_numbers
from ...errors import InputError
from ...interventions import ZERO_NORM
from ...metrics import kl_divergence
from ...model import ChatModel
from ...shapes import PerPrompt
from ..candidates import Candidates
from .batches import Batch
from .passes import Passes, PassLimits
from .paths import ScoringPath
from .rows import ScoredSide, SweepRows
from .state import CandidateScores, Index

ROUNDING = 1e-5
"""Room for the float32 mean when a score is bounded before all prompts are seen, as a share of the numbers' size."""


class SweepEngine(Passes):
    """Scores blocks of candidates along one open path, and remembers what it found.

    known: what a stopped sweep found. The blocks are those of a sweep that was never stopped, and one that is known
    as a whole is taken over. So each candidate shares its passes with the same others, and has the same last digits.
    """

    def __init__(
        self,
        model: ChatModel,
        path: ScoringPath,
        candidates: Candidates,
        *,
        rows: SweepRows,
        behaviour: Behaviour,
        limits: PassLimits,
        known: CandidateScores | None = None,
    ) -> None:
        super().__init__(
            path, rows.rows, limits, n_layers=candidates.n_layers, pad_id=model.chat.pad_id
        )
        self.model, self.behaviour = model, behaviour
        self.scores, self.known = CandidateScores(), known or CandidateScores()
        self.given_up: dict[Index, str] = dict(self.known.skipped)
        self.vectors = candidates.mean_diffs
        self.rows = rows
        self.positive, self.negative, self.kl = rows.positive.numbers, rows.negative.numbers, rows.kl
        self.noise: set[Index] = set()
        self._plain: dict[int, Tensor] = {}
        self._baseline = torch.full((len(rows.rows),), math.nan, dtype=torch.float64)

    # ---------------------------------------------------------------- the unedited model

    def run_baseline(self) -> None:
        """One pass over every row: the numbers of the unedited model, and the logits for KL."""
        kl = set(self.kl)
        for batch in self.batches(list(range(len(self.all_rows))), 1):
            logits = self.path.baseline(batch)
            self._counted(batch, 1, self.n_layers)
            self._require_numbers(batch, logits)
            scored = [place for place, row in enumerate(batch.rows) if row < len(self.rows.scored)]
            self._baseline[[batch.rows[place] for place in scored]] = self._numbers(batch, logits, scored)
            for place, row in enumerate(batch.rows):
                if row in kl:
                    self._plain[row] = logits[place, -1].clone()

    def _require_numbers(self, batch: Batch, logits: Tensor) -> None:
        """Raise InputError for NaN or infinity where a row is read; padding may hold anything."""
        n_read = torch.tensor([self.all_rows[row].n_read for row in batch.rows])
        read = torch.arange(batch.n_read)[None, :] >= batch.n_read - n_read[:, None]
        real = logits[read.to(logits.device)]
        if bool(torch.isnan(real).any()) or bool(torch.isposinf(real).any()):
            raise InputError(
                "logits of the unedited model: got NaN or infinity; try another dtype "
                "(bfloat16 or float32)"
            )

    def settle_noise(self, admissible: Iterable[Index]) -> None:
        """Candidates that are rounding noise change nothing: their scores are the baselines'."""
        noise = [c for c in admissible if float(self._vector(c).norm()) <= ZERO_NORM]
        if not noise:
            return
        bypass, induce = (
            self.mean(self.baseline_scores(side)) for side in (self.rows.positive, self.rows.negative)
        )
        for candidate in noise:
            self.noise.add(candidate)
            values = self.scores.values
            values["bypass"][candidate], values["induce"][candidate] = bypass, induce
            values["kl"][candidate] = 0.0

    def baseline_scores(self, side: ScoredSide) -> PerPrompt:
        """The scores of one kind of prompts under no edit."""
        return side.scores(self._baseline[side.numbers])

    # ---------------------------------------------------------------- blocks of candidates

    def ablate(
        self, block: Sequence[Index], batches: Sequence[Batch], names: Sequence[str]
    ) -> None:
        """Score bypass or kl or both, of the block's candidates, from the batches' rows."""
        if self.recalls(block, names):
            return
        edited = self.path.ablation(self._stack(block))
        self._counted_prefix(len(block), self.n_layers)
        numbers = torch.full((len(block), len(self.all_rows)), math.nan, dtype=torch.float64)
        kl = numbers.clone()
        for batch in batches:
            for members, logits in self._passes(edited, batch, range(len(block)), {}, self.n_layers):
                for c, of_rows in zip(members, logits, strict=True):
                    self._note(batch, of_rows, numbers[c], kl[c])
        for c, candidate in enumerate(block):
            if "bypass" in names:
                bypass = self.rows.positive.scores(numbers[c, self.positive])
                self.store("bypass", candidate, self.mean(bypass))
            if "kl" in names:
                self.store("kl", candidate, float(kl[c, self.kl].mean()))

    def _note(self, batch: Batch, logits: Tensor, numbers: Tensor, kl: Tensor) -> None:
        """What one candidate's logits say about the batch's rows: numbers of positive prompts, KL of negative."""
        rows = torch.tensor(batch.rows)
        of_positive = rows < len(self.positive)
        if bool(of_positive.any()):
            places = of_positive.nonzero().squeeze(1).tolist()
            numbers[rows[of_positive]] = self._numbers(batch, logits, places)
        if not bool(of_positive.all()):
            plain = torch.stack([self._plain[row] for row in rows[~of_positive].tolist()])
            ablated = logits[(~of_positive).to(logits.device), -1]
            kl[rows[~of_positive]] = kl_divergence(plain, ablated).cpu()

    def induce(
        self,
        layer: int,
        block: Sequence[Index],
        batches: Sequence[Batch],
        *,
        threshold: float | None = None,
    ) -> None:
        """Score induce of candidates of one layer, from streams that `advance_to` put at hand.

        With a threshold, a candidate whose mean can no longer reach it is left without a score.
        """
        edited = self.path.addition(self._stack(block), layer)
        blocks = self.n_layers - layer if self.path.skips else self.n_layers
        self._counted_prefix(len(block), blocks)
        numbers = torch.zeros((len(block), len(self.negative)), dtype=torch.float64)
        alive = list(range(len(block)))
        seen: set[int] = set()
        for batch, streams in zip(batches, self._streams, strict=True):
            columns = torch.tensor(batch.rows) - len(self.positive)
            every = range(len(batch.rows))
            for members, logits in self._passes(edited, batch, alive, streams, blocks):
                for c, of_rows in zip(members, logits, strict=True):
                    numbers[c, columns] = self._numbers(batch, of_rows, every)
            seen.update(batch.rows)
            most_of_one = self.behaviour.bounds[1]
            if threshold is not None and math.isfinite(most_of_one):
                most = self._most(numbers, seen)
                room = ROUNDING * max(1.0, abs(most_of_one), abs(threshold))
                alive = [c for c in alive if not most[c] < threshold - room]
        for c, candidate in enumerate(block):
            if c in alive:
                self.store("induce", candidate, self.mean(self.rows.negative.scores(numbers[c])))
            else:
                self.scores.skipped[candidate] = f"induce surely < {threshold:g}"
                self.given_up[candidate] = self.scores.skipped[candidate]

    def _most(self, numbers: Tensor, seen: set[int]) -> Float64[Tensor, " member"]:
        """The largest mean that is possible with these numbers of the rows seen so far."""
        scores = self.rows.negative.scores(numbers)
        scores[:, self.rows.negative.unseen(seen)] = self.behaviour.bounds[1]
        return scores.mean(1)

    def recalls_induce(self, block: Sequence[Index], threshold: float | None) -> bool:
        """Take the block's induce scores over from what is known, if all of them are."""
        if threshold is None:
            return self.recalls(block, ("induce",))
        left = [c for c in block if c not in self.known.skipped]
        if not self.recalls(left, ("induce",)):
            return False
        for candidate in block:
            if candidate in self.known.skipped:
                self.scores.skipped[candidate] = self.known.skipped[candidate]
        return True

    def recalls(self, block: Sequence[Index], names: Sequence[str]) -> bool:
        """Take the block's scores of these names over from what is known, if all of them are."""
        if not all(self.known.has(name, candidate) for candidate in block for name in names):
            return False
        for candidate in block:
            for name in names:
                self.scores.values[name][candidate] = self.known.get(name, candidate)
        return True

    def all_values(self, name: str) -> dict[Index, float]:
        """Every value of this score that was known or is by now."""
        return {**self.known.values[name], **self.scores.values[name]}

    def store(self, name: str, candidate: Index, value: float) -> None:
        """Keep a score that was measured."""
        self.scores.values[name][candidate] = value
        self.count.evaluations[name] = self.count.evaluations.get(name, 0) + 1

    # ---------------------------------------------------------------- numbers

    def _vector(self, candidate: Index) -> Tensor:
        position, layer = candidate
        return self.vectors[position, layer]

    def _stack(self, block: Sequence[Index]) -> Tensor:
        return torch.stack([self._vector(candidate) for candidate in block])

    def _numbers(self, batch: Batch, logits: Tensor, places: Sequence[int]) -> Tensor:
        """The numbers of some of the batch's rows, by their places in it, from its logits."""
        assert isinstance(self.behaviour, LogitBehaviour)
        scored = self.rows.scored
        predicted = [scored[batch.rows[place]].ids for place in places]
        some = logits if len(places) == len(batch.rows) else logits[list(places)]
        return row_numbers(self.behaviour, some, predicted)

    @staticmethod
    def mean(values: Tensor | Sequence[float]) -> float:
        """The mean in float32, as the reference implementation stores and averages."""
        return float(torch.as_tensor(values, dtype=torch.float32).mean())
