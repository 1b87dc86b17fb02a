"""Nulls: what edits of the same kind and size do in random directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from ..behaviours import Behaviour
from ..behaviours.last_token import last_token_scores, reads_last_token
from ..conversations import Prompt, unanswered
from ..direction import Direction
from ..door import at_least, at_most, checked
from ..errors import InputError
from ..interventions import Ablate, Add, Edit, NormMatchedMove, applied
from ..judges import Judge, judged
from ..model import ChatModel
from ..progress import Progress
from ..shapes import PerPrompt
from .completions import exchanges, rate_of

MOST = 1_000_000
"""Directions that can be drawn together, and their dimensions."""
COLUMNS = ["null", "index", "kind", "score", "rate", "n", "n_unjudged"]


@checked
def random_units(n: int, d_model: int, *, seed: int) -> Tensor:
    """Unit vectors drawn evenly from the sphere, [n d_model] float64."""
    at_least(0, n=n)
    at_least(1, d_model=d_model)
    at_most(MOST, n=n, d_model=d_model)
    noise = torch.randn(
        n, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return noise / noise.norm(dim=-1, keepdim=True)


@checked
def nulls(
    model: ChatModel,
    direction: Direction,
    *,
    prompts: Mapping[str, Sequence[Prompt]],
    behaviour: Behaviour,
    judge: Judge | None = None,
    n: int = 32,
    n_moves: int = 8,
    seed: int = 0,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """The behaviour under random edits: columns null, index, kind, score, rate, n, n_unjudged (replies).

    prompts: kind -> prompts, the positive kind first and the negative one second. random_direction: ablate u on the
    positive prompts, for n directions u. norm_matched_move, for the first n_moves of them: on the positive prompts
    ``x - (x . r^) u`` (as far as ablation moves), on the negative ones ``x + ||r|| u`` at r's layer (as far as
    addition moves). score is the mean over prompts. judge: by default the behaviour's. batch_size: rows, prompts
    times directions, side by side.
    """
    at_least(1, n=n, max_new_tokens=max_new_tokens, batch_size=batch_size)
    at_least(0, n_moves=n_moves)
    if len(prompts) != 2:
        raise InputError(
            f"prompts of nulls: got {len(prompts)} kinds, need the positive and the negative one"
        )
    (kind, positive), (other, negative) = prompts.items()
    r = direction.vector.double().cpu()
    size = float(r.norm())
    units = random_units(n, r.shape[-1], seed=seed)
    moved = units[:n_moves]
    random_edits = [
        _RandomEdits("random_direction", kind, positive, units, Ablate),
        _RandomEdits("norm_matched_move", kind, positive, moved, lambda u: NormMatchedMove(r, u)),
        _RandomEdits(
            "norm_matched_move", other, negative, moved, lambda u: Add(size * u, direction.layer)
        ),
    ]
    measurement = _Measurement(
        model, behaviour, judge or behaviour.judge, max_new_tokens, batch_size
    )
    total = sum(len(edits.units) for edits in random_edits)
    rows: list[dict] = []
    for edits in random_edits:

        def tell(done: int, before: int = len(rows)) -> None:
            if on_progress is not None:
                on_progress("nulls", before + done, total)

        rows += measurement.rows(edits, tell)
    return pd.DataFrame(rows)[COLUMNS]


@dataclass(frozen=True)
class _RandomEdits:
    """One null on one kind of prompts; make gives the edit of unit vectors [rows 1 d_model], one for each row."""

    null: str
    kind: str
    prompts: Sequence[Prompt]
    units: Tensor
    make: Callable[[Tensor], Edit]


@dataclass(frozen=True)
class _Measurement:
    """What is measured under random edits, many directions and prompts of like length to a batch."""

    model: ChatModel
    behaviour: Behaviour
    judge: Judge | None
    max_new_tokens: int
    batch_size: int

    def rows(self, edits: _RandomEdits, tell: Callable[[int], None]) -> list[dict]:
        """Mean score and rate per direction."""
        prompts = unanswered(edits.prompts)
        rendered = self.model.chat.render(prompts)
        self.model.require_room(rendered, self.max_new_tokens)
        units = edits.units
        n_side_by_side = max(1, min(len(units), self.batch_size))
        scores = torch.zeros((len(units), len(prompts)), dtype=torch.float64)
        shows: list[list[bool | None]] = [[] for _ in units]
        by_length = torch.argsort(rendered.lengths, stable=True)
        at_last = reads_last_token(self.behaviour, prompts)
        done = 0
        for chunk in by_length.split(max(1, self.batch_size // n_side_by_side)):
            texts = [prompts[i] for i in chunk.tolist()]
            for start in range(0, len(units), n_side_by_side):
                few = units[start : start + n_side_by_side]
                edit = edits.make(few.repeat_interleave(len(texts), 0)[:, None])
                values, verdicts = self._batch(texts * len(few), edit, at_last)
                if values is not None:
                    scores[start : start + len(few), chunk] = values.view(len(few), -1)
                for row, verdict in enumerate(verdicts):
                    shows[start + row // len(texts)].append(verdict)
                done += len(verdicts)
                tell(done // len(prompts))
        if not at_last:
            scores = self._scores_one_by_one(prompts, edits)
        return [
            {"null": edits.null, "kind": edits.kind, "index": index, "score": score}
            | rate_of(verdicts)._asdict()
            for index, (score, verdicts) in enumerate(
                zip(scores.mean(1).tolist(), shows, strict=True)
            )
        ]

    def _batch(
        self, prompts: list[Prompt], edit: Edit, at_last: bool
    ) -> tuple[PerPrompt | None, list[bool | None]]:
        """The rows' scores, where the last token decides them, and the judge's verdicts."""
        batch = self.model.chat.render(prompts)
        with applied(self.model, edit):
            replies, logits = self.model.reply(batch, max_new_tokens=self.max_new_tokens)
        verdicts = [score.shows for score in judged(self.judge, exchanges(prompts, replies))]
        return last_token_scores(self.behaviour, logits).cpu() if at_last else None, verdicts

    def _scores_one_by_one(self, prompts: list[Prompt], edits: _RandomEdits) -> Tensor:
        """Scores [direction prompt] of a behaviour that batches its own passes, under one edit at a time."""
        scores = torch.zeros((len(edits.units), len(prompts)), dtype=torch.float64)
        for index, u in enumerate(edits.units):
            with applied(self.model, edits.make(u[None, None])):
                scores[index] = self.behaviour.scores(
                    self.model, prompts, batch_size=self.batch_size
                )
        return scores
