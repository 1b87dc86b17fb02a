"""Reading a model over many prompts: residual streams, their means, and last-position logits.

Everything streams batch by batch, so that memory does not grow with the number of prompts unless a
value per prompt is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from .chat import Rendered
from .conversations import Prompt
from .display import shown
from .door import checked
from .errors import InputError
from .model import ChatModel, Site
from .model.engine import Engine
from .progress import Progress
from .shapes import LastLogits, PositionLayerVectors, Probabilities, PromptActivations, as_float64


@shown("n", "positions", "mean")
@dataclass(frozen=True, eq=False)
class Means:
    """Mean resid_pre over prompts, [position layer d_model] in float64, and how many prompts."""

    mean: PositionLayerVectors
    n: int
    positions: tuple[str, ...]


@checked
def mean_residuals(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Means:
    """Mean over prompts of resid_pre at every post-instruction position and layer.

    Streams in float64 (paper, section 2.3; the reference implementation accumulates likewise): memory does
    not grow with the number of prompts.
    """
    rendered = as_rendered(model, prompts)
    shape = (len(rendered.positions), model.n_layers, model.d_model)
    total = torch.zeros(shape, dtype=torch.float64)
    for _, held in _streams(model, rendered, batch_size, on_progress):
        total += as_float64(held).sum(0).cpu()
    return Means(total / len(rendered), len(rendered), rendered.positions)


@checked
def cache_residuals(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    positions: Sequence[int] | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> PromptActivations:
    """resid_pre of every prompt, [prompt position layer d_model], on the CPU in the model's dtype.

    positions: which post-instruction positions to keep, negative, e.g. ``[-1]``; default all of them.
    Raises InputError for a position that the chat format does not have.
    """
    rendered = as_rendered(model, prompts)
    every = range(-len(rendered.positions), 0)
    wanted = list(every) if positions is None else [_checked(p, every) for p in positions]
    if not wanted:
        raise InputError("positions: got none, need at least one")
    rows = torch.empty(
        (len(rendered), len(wanted), model.n_layers, model.d_model), dtype=model.dtype
    )
    for index, held in _streams(model, rendered, batch_size, on_progress):
        rows[index] = held[:, wanted].cpu()
    return rows


@checked
def map_last_logits(
    model: Engine,
    prompts: Sequence[Prompt] | Rendered,
    *,
    number: Callable[[LastLogits], Tensor] = Tensor.cpu,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Shaped[Tensor, "prompt *values"]:  # noqa: F821  (axes)
    """``number(last-position logits)`` for every prompt, in the prompts' order, on the CPU.

    number maps [batch d_vocab] to [batch ...]; by default the logits themselves.
    """
    rendered = as_rendered(model, prompts)
    values: dict[int, Tensor] = {}
    for index, batch in rendered.batches(batch_size):
        values.update(zip((int(i) for i in index), number(model.logits(batch)).cpu(), strict=True))
        if on_progress is not None:
            on_progress("logits", len(values), len(rendered))
    return torch.stack([values[i] for i in range(len(rendered))])


@checked
def mean_next_token_probabilities(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Probabilities:
    """Mean over prompts of the next-token distribution at the last position (paper, Fig. 9)."""
    rendered = as_rendered(model, prompts)
    total, done = torch.zeros(model.d_vocab, dtype=torch.float64), 0
    for _, batch in rendered.batches(batch_size):
        total += as_float64(model.logits(batch)).softmax(-1).sum(0).cpu()
        done += len(batch)
        if on_progress is not None:
            on_progress("logits", done, len(rendered))
    return total / len(rendered)


def as_rendered(model: Engine, prompts: Sequence[Prompt] | Rendered) -> Rendered:
    """Instructions rendered with the model's template; what is rendered already stays as it is.

    Raises InputError, naming a prompt, for one that is longer than the model's positions.
    """
    rendered = prompts if isinstance(prompts, Rendered) else model.chat.render(prompts)
    model.require_room(rendered, 0)
    return rendered


def _checked(position: Any, every: range) -> int:
    if isinstance(position, bool) or not isinstance(position, Integral) or int(position) not in every:
        raise InputError(
            f"position: got {position!r}, need a whole number from {every.start} to -1, one of the "
            f"{len(every)} post-instruction tokens"
        )
    return int(position)


def _streams(
    model: ChatModel, rendered: Rendered, batch_size: int, on_progress: Progress | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per batch: the rows' indices and their streams [row position layer d_model]."""
    done = 0
    for index, batch in rendered.batches(batch_size):
        held: dict[int, Tensor] = {}
        spans = batch.post.to(model.device)
        steps = torch.arange(len(rendered.positions), device=model.device)
        at = spans[:, :1] + steps

        def keep(layer: int, at: Tensor = at, held: dict[int, Tensor] = held) -> Callable[[Tensor], None]:
            def take(x: Tensor) -> None:
                where = at.to(x.device)[..., None].expand(-1, -1, x.shape[-1])
                held[layer] = x.gather(1, where).to(model.device)

            return take

        hooks = [(Site("resid_pre", layer), keep(layer)) for layer in range(model.n_layers)]
        with model.hooked(hooks):
            model.logits(batch)
        done += len(batch)
        yield torch.as_tensor(index), torch.stack([held[i] for i in range(model.n_layers)], 2)
        if on_progress is not None:
            on_progress("activations", done, len(rendered))
