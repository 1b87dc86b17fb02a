"""One prompt token by token: where the direction grows, and what the chosen heads read."""

from __future__ import annotations

import torch

from ...attribution import Head, Regions, attribute_sources
from ...chat import Rendered
from ...directions import Direction
from ...model import ChatModel, Site
from .result import TokenStory


def tell(
    model: ChatModel,
    condition: str,
    rendered: Rendered,
    regions: Regions,
    direction: Direction,
    heads: tuple[Head, ...],
    row: int,
) -> TokenStory:
    """The story of one prompt of a condition."""
    one = rendered[[row]]
    n = one.ids.shape[1]
    where = regions.index[[row], -n:]
    layers = sorted({head.layer for head in heads})
    streams = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    held = model.read(one, [*streams, *(Site("pattern", layer) for layer in layers)])
    along = [held[site][0].cpu().double() @ direction.unit for site in streams]
    sources = attribute_sources(
        model, one, direction, heads=heads, regions=Regions(where, regions.names)
    )
    patterns = [held[Site("pattern", head.layer)][0, head.head].cpu().double() for head in heads]
    return TokenStory(
        condition=condition,
        prompt=row,
        tokens=tuple(model.chat.decode_token(token) for token in one.ids[0].tolist()),
        regions=tuple(regions.names[i] for i in where[0].tolist()),
        projection=torch.stack(along),
        contribution=sources.contribution[0],
        pattern=torch.stack(patterns),
    )
