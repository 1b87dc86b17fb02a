"""Direct feature attribution: ``<resid_pre[l*], r^>`` as a sum over heads, MLPs and embeddings.

The sum is exact (paper, section 5.2, with r^ of unit length): every call adds it up again, layer
by layer, and refuses to answer where it does not hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ..activations import located
from ..chat import Place, Rendered
from ..chat.places import all_columns, by_place
from ..conversations import Prompt
from ..directions import Direction
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..progress import Progress
from .heads import Head, HeadWriter, check_target
from .reading import StreamReading

PerLayer = Float64[Tensor, "prompt place layer"]
"""One number per prompt, place and layer below l*."""
PerPlace = Float64[Tensor, "prompt place"]
"""One number per prompt and place."""


@shown("layer", "places", "heads", "mlps", "error")
@dataclass(frozen=True, eq=False)
class Attribution:
    """What each component writes along r^ into ``resid_pre[l*]``, per prompt and place.

    Heads, attention biases and MLPs of the layers below l* only: what later layers write is not
    in ``resid_pre[l*]``. In the units of the activations.
    """

    heads: Float64[Tensor, "prompt place layer head"]
    attention_bias: PerLayer
    mlps: PerLayer
    token_embedding: PerPlace
    position_embedding: PerPlace
    projection: PerPlace
    places: tuple[Place, ...]
    layer: int

    @property
    def total(self) -> PerPlace:
        """The sum of all contributions, which equals the projection."""
        layers = self.heads.sum((2, 3)) + self.attention_bias.sum(2) + self.mlps.sum(2)
        return layers + self.token_embedding + self.position_embedding

    @property
    def error(self) -> float:
        """Largest difference between the sum of contributions and the projection."""
        return float((self.total - self.projection).abs().max())

    @property
    def relative_error(self) -> float:
        """The error as a share of the largest projection."""
        return self.error / max(float(self.projection.abs().max()), 1e-300)

    @checked
    def top_heads(self, k: int, *, place: Place | str | None = None) -> tuple[Head, ...]:
        """The k heads with the highest mean contribution at a place (by default the first), highest first.

        Raises InputError for more heads than there are, and for a place that was not asked for.
        """
        n_layers, n_heads = self.heads.shape[2:]
        if not 1 <= k <= n_layers * n_heads:
            raise InputError(
                f"number of top heads: got {k}, need 1 to {n_layers * n_heads} "
                f"(the heads in layers below {self.layer})"
            )
        mean = self.heads[:, self._at(place)].mean(0).flatten()
        best = mean.argsort(descending=True, stable=True)[:k].tolist()
        return tuple(Head(i // n_heads, i % n_heads) for i in best)

    @checked
    def of(
        self, heads: Sequence[Head], *, place: Place | str | None = None
    ) -> Float64[Tensor, "prompt chosen"]:
        """The contributions of some heads at a place (by default the first).

        Raises InputError for a head of a layer that is not explained, and for a place that was not asked for.
        """
        at = self.heads[:, self._at(place)]
        n_layers, n_heads = at.shape[1:]
        for head in heads:
            if not (0 <= head.layer < n_layers and 0 <= head.head < n_heads):
                raise InputError(f"head {head}: need one of {n_heads} in a layer below {n_layers}")
        return torch.stack([at[:, head.layer, head.head] for head in heads], 1)

    def _at(self, place: Place | str | None) -> int:
        wanted = self.places[0] if place is None else Place.parse(place)
        if wanted not in self.places:
            raise InputError(f"place {wanted}: need one of {', '.join(map(str, self.places))}")
        return self.places.index(wanted)

    def frame(self) -> pd.DataFrame:
        """Mean and population SD over prompts of every component.

        Columns place, component ("head", "attention bias", "mlp", "token embedding", "position
        embedding", "total", "projection"), layer, head (missing where they do not apply), mean,
        sd, n.
        """
        rows = [
            {
                "place": str(place),
                "component": component,
                "layer": layer,
                "head": head,
                "mean": float(values.mean()),
                "sd": float(values.std(correction=0)),
                "n": len(values),
            }
            for i, place in enumerate(self.places)
            for component, layer, head, values in self._components(i)
        ]
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})

    def _components(self, i: int) -> Iterator[tuple[str, int | None, int | None, Tensor]]:
        n_layers, n_heads = self.heads.shape[2:]
        for layer in range(n_layers):
            for head in range(n_heads):
                yield "head", layer, head, self.heads[:, i, layer, head]
            yield "attention bias", layer, None, self.attention_bias[:, i, layer]
            yield "mlp", layer, None, self.mlps[:, i, layer]
        yield "token embedding", None, None, self.token_embedding[:, i]
        yield "position embedding", None, None, self.position_embedding[:, i]
        yield "total", None, None, self.total[:, i]
        yield "projection", None, None, self.projection[:, i]


@checked
def attribute(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    direction: Direction,
    *,
    layer: int | None = None,
    places: Sequence[Place | str] = ("last",),
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Attribution:
    """Split ``<resid_pre[l*], r^>`` over heads, MLPs and embeddings, exactly.

    Args:
        model: any model that shows z and attn_out; norms after the attention, biases, position
            embeddings, parallel blocks and constant residual multipliers are accounted for.
        prompts: with their replies where a place lies in them or behind them, or what is rendered already.
        direction: r; its unit vector is what activations are projected on.
        layer: l*, by default the direction's own.
        places: where r^ is read, by default the last token of all. A mean is one of contributions too.
        batch_size: prompts per forward pass; memory beyond the model's own is one number per
            head, since W_O is projected on r^ before it meets z.
        on_progress: called with ("components", prompts done, prompts in all).

    Raises:
        InputError: the direction is another model's; the layer is out of range; a prompt has no such place; or
            the contributions do not add up, since something else writes to the residual stream.

    """
    target = check_target(model, direction, layer)
    rendered, wanted = located(model, prompts, places)
    writers = [HeadWriter.of(model, below, direction.unit) for below in range(target)]
    fields: dict[str, Tensor] = {}
    done = 0
    for rows, batch in rendered.batches(batch_size):
        at = [batch.at(place) for place in wanted]
        reading = StreamReading(model, writers, direction.unit, all_columns(at))
        with model.hooked(reading.hooks()):
            model.logits(batch)
        reading.check()
        for name, at_columns in reading.fields().items():
            values = by_place(at_columns, at)
            whole = fields.setdefault(name, values.new_empty((len(rendered), *values.shape[1:])))
            whole[rows.cpu()] = values
        done += len(batch)
        if on_progress is not None:
            on_progress("components", done, len(rendered))
    return Attribution(**fields, places=wanted, layer=target)
