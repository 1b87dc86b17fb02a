"""One prompt token by token: where the direction grows, and what the chosen heads read."""

from __future__ import annotations

import torch

from ...attribution import Head, Regions, attribute_sources
from ...chat import Rendered
from ...directions import Direction
from ...model import ChatModel, Site
from .result import TokenContributions


def token_contributions(
    model: ChatModel,
    rendered: Rendered,
    regions: Regions,
    *,
    direction: Direction,
    heads: tuple[Head, ...],
    row: int,
) -> TokenContributions:
    """What each token of one rendered prompt holds along r^, and gives to each chosen head."""
    prompt = rendered[[row]]
    n = prompt.ids.shape[1]
    index = regions.index[[row], -n:]
    layers = sorted({head.layer for head in heads})
    streams = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    activations = model.read(prompt, [*streams, *(Site("pattern", layer) for layer in layers)])
    along = [activations[site][0].cpu().double() @ direction.unit for site in streams]
    sources = attribute_sources(
        model, prompt, direction, heads=heads, regions=Regions(index, regions.names)
    )
    patterns = [activations[Site("pattern", head.layer)][0, head.head] for head in heads]
    return TokenContributions(
        tokens=tuple(model.chat.decode_token(token) for token in prompt.ids[0].tolist()),
        regions=tuple(regions.names[i] for i in index[0].tolist()),
        projection=torch.stack(along),
        contribution=sources.contribution[0],
        pattern=torch.stack([pattern.cpu().double() for pattern in patterns]),
    )
