"""Nulls: what edits of the same kind and size do in random directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from ..direction import Direction
from ..door import at_least, at_most, checked
from ..interventions import Ablate, Add, Edit, NormMatchedMove, applied
from ..judges import Judge, phrase_judge
from ..metrics import first_token_log_odds
from ..model import ChatModel
from ..progress import Progress
from ..shapes import as_float64

MOST = 1_000_000
"""Directions that can be drawn together, and their dimensions."""
MakeEdit = Callable[[Tensor], Edit]
"""From random unit vectors [rows 1 d_model] to the edit that is the null, one vector per row."""


@checked
def random_units(n: int, d_model: int, *, seed: int) -> Tensor:
    """N directions drawn evenly from the sphere, [n d_model] float64."""
    at_least(0, n=n)
    at_least(1, d_model=d_model)
    at_most(MOST, n=n, d_model=d_model)
    noise = torch.randn(n, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=-1, keepdim=True)


@checked
def nulls(
    model: ChatModel,
    direction: Direction,
    *,
    positive: Sequence[str],
    negative: Sequence[str],
    kinds: tuple[str, str] = ("harmful", "harmless"),
    refusal_tokens: Sequence[int],
    n: int = 32,
    n_moves: int = 8,
    seed: int = 0,
    max_new_tokens: int = 16,
    batch_size: int = 64,
    judge: Judge = phrase_judge,
    on_progress: Progress | None = None,
) -> pd.DataFrame:
    """Refusal under random edits: columns null, index, kind, metric, refusal_rate, n (prompts).

    random_direction: ablate u on the positive prompts, for n directions. norm_matched_move, for the first
    n_moves of them: on the positive prompts
    ``x - (x . r^) u`` (as far as ablation moves), on the negative ones ``x + ||r|| u`` at r's layer (as far as
    addition moves). batch_size: rows, prompts times directions, side by side.
    """
    at_least(1, n=n, max_new_tokens=max_new_tokens, batch_size=batch_size)
    at_least(0, n_moves=n_moves)
    r = direction.vector.double().cpu()
    size = float(r.norm())
    units = random_units(n, r.shape[-1], seed=seed)
    moved = units[:n_moves]
    sorts: list[tuple[str, str, Sequence[str], Tensor, MakeEdit]] = [
        ("random_direction", kinds[0], positive, units, Ablate),
        ("norm_matched_move", kinds[0], positive, moved, lambda u: NormMatchedMove(r, u)),
        ("norm_matched_move", kinds[1], negative, moved, lambda u: Add(size * u, direction.layer)),
    ]
    total = len(units) + 2 * len(moved)
    rows: list[dict] = []
    for null, kind, prompts, drawn, make in sorts:
        measured = _measure(
            model,
            prompts,
            drawn,
            make=make,
            refusal_tokens=refusal_tokens,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            judge=judge,
            on_rows=None if on_progress is None else partial(_tell, on_progress, len(rows), total),
        )
        rows += [{"null": null, "kind": kind, "n": len(prompts)} | row for row in measured]
    return pd.DataFrame(rows)[["null", "index", "kind", "metric", "refusal_rate", "n"]]


def _tell(on_progress: Progress, before: int, total: int, done: int) -> None:
    on_progress("nulls", before + done, total)


def _measure(
    model: ChatModel,
    prompts: Sequence[str],
    units: Tensor,
    *,
    make: MakeEdit,
    refusal_tokens: Sequence[int],
    max_new_tokens: int,
    batch_size: int,
    judge: Judge,
    on_rows: Callable[[int], None] | None,
) -> list[dict]:
    """Mean metric and refusal rate per random direction: many directions, and prompts of like length, to
    a batch.
    """
    number = partial(first_token_log_odds, ids=tuple(refusal_tokens))
    rendered = model.chat.render(prompts)
    model.require_room(rendered, max_new_tokens)
    dirs = min(len(units), batch_size)
    metric = torch.full((len(units), len(prompts)), float("nan"), dtype=torch.float64)
    refused = metric.clone()
    for chunk in torch.argsort(rendered.lengths, stable=True).split(max(1, batch_size // dirs)):
        texts = [prompts[i] for i in chunk.tolist()]
        for start in range(0, len(units), dirs):
            some = units[start : start + dirs]
            batch = model.chat.render(texts * len(some))
            with applied(model, make(some.repeat_interleave(len(texts), 0)[:, None])):
                replies, logits = model.reply(batch, max_new_tokens=max_new_tokens)
            judged = torch.tensor([float(judge(reply).value or 0) for reply in replies])
            own = slice(start, start + len(some))
            metric[own, chunk] = as_float64(number(logits)).cpu().view(len(some), -1)
            refused[own, chunk] = judged.double().view(len(some), -1)
            if on_rows is not None:
                on_rows(int(metric.isfinite().sum()) // len(prompts))
    means = zip(metric.mean(1).tolist(), refused.mean(1).tolist(), strict=True)
    return [
        {"index": i, "metric": mean, "refusal_rate": rate} for i, (mean, rate) in enumerate(means)
    ]
