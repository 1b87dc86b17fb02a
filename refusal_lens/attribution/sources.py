"""By source token: ``pattern[q, k] * <v[k] W_O, r^>``, which adds up to the head's attribution."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ..activations import as_rendered
from ..chat import Rendered
from ..conversations import Prompt
from ..directions import Direction
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model import ChatModel, Hook, Site
from ..progress import Progress
from ..shapes import as_float64
from .heads import Head, HeadWriter, by_head, check_heads, check_target, scaled
from .reading import rounding
from .regions import Regions

PerSource = Float64[Tensor, "prompt chosen pos"]
"""One number per prompt, chosen head and source token; 0 on padding."""
PerHead = Float64[Tensor, "prompt chosen"]
"""One number per prompt and chosen head."""


@shown("layer", "heads", "contribution", "error")
@dataclass(frozen=True, eq=False)
class SourceAttribution:
    """Where chosen heads read what they write along r^ at the last token.

    contribution and attention are per source token, left-padded like the prompts; dfa is each
    head's attribution, which the contributions add up to. Heads at layers >= layer (l*) are past
    the point whose projection is explained; ``past_target`` marks them.
    """

    heads: tuple[Head, ...]
    contribution: PerSource
    attention: PerSource
    dfa: PerHead
    regions: Regions
    layer: int

    @property
    def past_target(self) -> tuple[bool, ...]:
        """Which of the heads write only after ``resid_pre[l*]``."""
        return tuple(head.layer >= self.layer for head in self.heads)

    @property
    def error(self) -> float:
        """Largest difference between a head's sum over sources and its attribution."""
        return float((self.contribution.sum(-1) - self.dfa).abs().max())

    def contribution_by_region(self) -> Float64[Tensor, "prompt chosen region"]:
        """The heads' attribution split over regions; sums to dfa."""
        return self.regions.sums(self.contribution)

    def attention_by_region(self) -> Float64[Tensor, "prompt chosen region"]:
        """Attention from the last token to each region; sums to 1 (less with attention sinks)."""
        return self.regions.sums(self.attention)

    def frame(self) -> pd.DataFrame:
        """One row per prompt, head and region: attention and dfa (the region's contribution)."""
        attention, dfa = self.attention_by_region(), self.contribution_by_region()
        return pd.DataFrame(
            {
                "prompt": prompt,
                "layer": head.layer,
                "head": head.head,
                "region": region,
                "attention": float(attention[prompt, i, j]),
                "dfa": float(dfa[prompt, i, j]),
            }
            for prompt in range(len(attention))
            for i, head in enumerate(self.heads)
            for j, region in enumerate(self.regions.names)
        )


@checked
def attribute_sources(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    direction: Direction,
    *,
    heads: Sequence[Head],
    regions: Regions | None = None,
    layer: int | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> SourceAttribution:
    """Split chosen heads' attribution at the last token over the tokens that they attend to.

    Values are projected on ``W_O r^`` where they are read, so that memory is a number per source
    token and chosen head. regions: by default `Regions.of` the prompts.

    Raises:
        InputError: heads that the model lacks, a direction of another model, or sources that do
            not add up to the head (attention that is not ``pattern @ v``).

    """
    target = check_target(model, direction, layer)
    rendered = as_rendered(model, prompts)
    chosen = tuple(Head(*head) for head in heads)
    check_heads(model, chosen)
    layers = sorted({head.layer for head in chosen})
    writers = {at: HeadWriter.of(model, at, direction.unit) for at in layers}
    width = rendered.ids.shape[1]
    per_source = (len(rendered), len(chosen), width)
    contribution = torch.zeros(per_source, dtype=torch.float64)
    attention = torch.zeros(per_source, dtype=torch.float64)
    dfa = torch.zeros(per_source[:2], dtype=torch.float64)
    done = 0
    for index, batch in rendered.batches(batch_size):
        reading = _LastTokenReading(model, writers, chosen)
        with model.hooked(reading.hooks()):
            model.logits(batch)
        reading.check()
        rows, pad = index.cpu(), width - batch.ids.shape[1]
        real = batch.mask.cpu()[:, None]
        contribution[rows, :, pad:] = reading.gathered(reading.contribution) * real
        attention[rows, :, pad:] = reading.gathered(reading.attention) * real
        dfa[rows] = reading.gathered(reading.dfa)
        done += len(batch)
        if on_progress is not None:
            on_progress("sources", done, len(rendered))
    where = Regions.of(rendered) if regions is None else regions
    return SourceAttribution(chosen, contribution, attention, dfa, where, target)


class _LastTokenReading:
    """One forward pass: patterns and values of the chosen heads' layers, reduced at once."""

    def __init__(
        self, model: ChatModel, writers: Mapping[int, HeadWriter], heads: Sequence[Head]
    ) -> None:
        self._model, self._writers, self._chosen = model, writers, heads
        self.contribution: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}
        self.dfa: dict[int, Tensor] = {}
        self._longest = 0.0
        self._activations: dict[tuple[str, int], Tensor] = {}

    def hooks(self) -> list[tuple[Site, Hook]]:
        """The hooks to install for one forward pass."""
        return [
            (Site(kind, layer), self._keep(kind, layer))
            for layer in self._writers
            for kind in ("v", "pattern", "z", "attn_out")
        ]

    def _keep(self, kind: str, layer: int) -> Callable[[Tensor], None]:
        def take(x: Tensor) -> None:
            if kind == "v":
                self._activations[kind, layer] = self._values(layer, x)
            elif kind == "pattern":
                self._activations[kind, layer] = as_float64(x[:, :, -1])
            elif kind == "z":
                self._activations[kind, layer] = by_head(x[:, -1:], self._model.n_heads)[:, 0]
            else:
                self._finish(layer, x[:, -1])

        return take

    def _values(self, layer: int, v: Tensor) -> Float64[Tensor, "batch head key"]:
        """``<v[k] W_O[h], r^>`` of every head h and source k; grouped queries share a value."""
        part = self._writers[layer]
        n_heads, d_head = part.vectors.shape
        if part.writer.heads_first:
            v = v.transpose(1, 2)
        v = v.flatten(2)
        groups, rest = divmod(v.shape[-1], d_head)
        if rest or not groups or n_heads % groups:
            raise InputError(
                f"attribution by source token in {self._model.name}: values of {v.shape[-1]} dimensions do not "
                f"divide among {n_heads} heads of {d_head}; attribute to heads instead"
            )
        v = as_float64(v.unflatten(-1, (groups, d_head)))
        grouped = part.vectors.unflatten(0, (groups, -1))
        return torch.einsum("bkgd,gqd->bgqk", v, grouped.to(v.device)).flatten(1, 2)

    def _finish(self, layer: int, attn_out: Tensor) -> None:
        values, pattern, z = self._take(layer)
        part = self._writers[layer]
        scale = part.scale(z, attn_out)
        along = torch.einsum("bhd,hd->bh", as_float64(z), part.vectors.to(as_float64(z).device))
        self.dfa[layer] = scaled(along, scale).cpu()
        self.contribution[layer] = scaled(pattern.to(values.device) * values, scale).cpu()
        self.attention[layer] = pattern.cpu()
        self._longest = max(self._longest, float(as_float64(attn_out).norm(dim=-1).max()))

    def _take(self, layer: int) -> list[Tensor]:
        kinds = ("v", "pattern", "z")
        missing = [Site(k, layer).hook_name for k in kinds if (k, layer) not in self._activations]
        if missing:
            raise InputError(
                f"attribution by source token in {self._model.name}: {', '.join(missing)} shows "
                "nothing in this architecture, so where a head reads cannot be told; try another "
                "transformer_lens version"
            )
        return [self._activations.pop((kind, layer)) for kind in kinds]

    def gathered(self, per_layer: Mapping[int, Tensor]) -> Tensor:
        """The chosen heads' rows, [batch chosen ...]."""
        return torch.stack([per_layer[head.layer][:, head.head] for head in self._chosen], 1)

    def check(self) -> None:
        """Raise InputError where the sources do not add up to the head."""
        summed = self.gathered(self.contribution).sum(-1)
        gap = float((summed - self.gathered(self.dfa)).abs().max())
        allowed = rounding(self._model.dtype) * self._longest
        if not gap <= allowed:
            raise InputError(
                f"attribution by source token in {self._model.name}: sources differ by {gap:.2g} "
                f"from their head (rounding explains {allowed:.1g}); its attention is not pattern "
                "times values"
            )
