"""Reading a model over many prompts: residual streams, their means, and last-position logits.

Everything streams batch by batch, so that memory does not grow with the number of prompts unless a
value per prompt is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from .chat import Place, Rendered
from .chat.places import Columns, all_columns, by_place
from .conversations import Prompt, unanswered
from .display import shown
from .door import checked
from .errors import InputError
from .model import ChatModel, Site
from .model.engine import Engine
from .progress import Progress
from .shapes import LastLogits, PlaceLayerVectors, Probabilities, PromptActivations, as_float64


@shown("n", "names", "mean")
@dataclass(frozen=True, eq=False)
class Means:
    """Mean resid_pre over n prompts, [place layer d_model] in float64; places and their names for people."""

    mean: PlaceLayerVectors
    n: int
    places: tuple[Place, ...]
    names: tuple[str, ...]


@checked
def mean_residuals(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    places: Sequence[Place | str] | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Means:
    """Mean over prompts of resid_pre at every place and layer.

    places: by default every post-instruction token. A place that is a mean itself is averaged in each prompt first.
    Streams in float64 (paper, section 2.3; the reference implementation accumulates likewise): memory does
    not grow with the number of prompts. Replies are read where a place lies in them or behind them. Raises
    InputError for a place that a prompt does not have.
    """
    rendered, wanted = located(model, prompts, places)
    total = torch.zeros((len(wanted), model.n_layers, model.d_model), dtype=torch.float64)
    for _, streams in _streams(model, rendered, wanted, batch_size, on_progress):
        total += as_float64(streams).sum(0).cpu()
    names = tuple(rendered.name_of(place) for place in wanted)
    return Means(total / len(rendered), len(rendered), wanted, names)


@checked
def cache_residuals(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    places: Sequence[Place | str] | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> PromptActivations:
    """resid_pre of every prompt, [prompt place layer d_model], on the CPU in the model's dtype.

    places: as in `mean_residuals`, by default every post-instruction token. Raises InputError for a place that a
    prompt does not have.
    """
    rendered, wanted = located(model, prompts, places)
    shape = (len(rendered), len(wanted), model.n_layers, model.d_model)
    rows = torch.empty(shape, dtype=model.dtype)
    for index, streams in _streams(model, rendered, wanted, batch_size, on_progress):
        rows[index] = streams.cpu().to(model.dtype)
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

    number maps [batch d_vocab] to [batch ...]; by default the logits themselves. A reply that a prompt has is left
    out: the next token is the first of the model's own.
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
    """Mean over prompts of the next-token distribution at the last position (paper, Fig. 9), replies left out."""
    rendered = as_rendered(model, prompts)
    total, done = torch.zeros(model.d_vocab, dtype=torch.float64), 0
    for _, batch in rendered.batches(batch_size):
        total += as_float64(model.logits(batch)).softmax(-1).sum(0).cpu()
        done += len(batch)
        if on_progress is not None:
            on_progress("logits", done, len(rendered))
    return total / len(rendered)


def as_rendered(
    model: Engine, prompts: Sequence[Prompt] | Rendered, *, replies: bool = False
) -> Rendered:
    """Prompts rendered with the model's template; what is rendered already stays as it is.

    replies: with those that the prompts have; else without, as where the next token is the model's own first.
    Raises InputError, naming a prompt, for one that is longer than the model's positions.
    """
    if isinstance(prompts, Rendered):
        rendered = prompts
    else:
        rendered = model.chat.render(prompts if replies else unanswered(prompts))
    model.require_room(rendered, 0)
    return rendered


def located(
    model: ChatModel, prompts: Sequence[Prompt] | Rendered, places: Sequence[Place | str] | None
) -> tuple[Rendered, tuple[Place, ...]]:
    """The prompts, rendered as far as the places need them, and the places.

    places: by default every post-instruction token. Raises InputError for a place that a prompt does not have.
    """
    if places is None:
        rendered = as_rendered(model, prompts)
        return rendered, Place.posts(len(rendered.positions))
    wanted = tuple(map(Place.parse, places))
    if not wanted:
        raise InputError("places: got none, need at least one")
    in_replies = any(place.region in ("reply", "last") for place in wanted)
    rendered = as_rendered(model, prompts, replies=in_replies)
    for place in wanted:
        rendered.at(place)
    return rendered, wanted


def _streams(
    model: ChatModel,
    rendered: Rendered,
    places: Sequence[Place],
    batch_size: int,
    on_progress: Progress | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Per batch: the rows' indices and their streams [row place layer d_model].

    In the model's dtype where every place is a single token, else in float64 on the CPU.
    """
    done = 0
    where = "cpu" if any(place.index is None for place in places) else model.device
    for index, batch in rendered.batches(batch_size):
        streams: dict[int, Tensor] = {}
        at = [batch.at(place) for place in places]

        def keep(
            layer: int, at: list[Columns] = at, streams: dict[int, Tensor] = streams
        ) -> Callable[[Tensor], None]:
            def take(x: Tensor) -> None:
                streams[layer] = _at_places(x, at).to(where)

            return take

        hooks = [(Site("resid_pre", layer), keep(layer)) for layer in range(model.n_layers)]
        with model.hooked(hooks):
            model.logits(batch)
        done += len(batch)
        yield torch.as_tensor(index), torch.stack([streams[i] for i in range(model.n_layers)], 2)
        if on_progress is not None:
            on_progress("activations", done, len(rendered))


def _at_places(x: Tensor, at: Sequence[Columns]) -> Tensor:
    """What a site [batch pos d_model] holds at each place: [batch place d_model]."""
    columns = all_columns(at).to(x.device)
    return by_place(x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1])), at)
