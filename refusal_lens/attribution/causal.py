"""The causal check beside the attribution: replace heads' outputs at the last token and look.

Zero ablation, mean ablation, and patching from another condition, each beside random sets of as
many other heads, in the same layers where these have enough.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..activations import as_rendered
from ..behaviours import LogitBehaviour
from ..behaviours.last_token import last_token_scores, require_last_token
from ..chat import Rendered
from ..conversations import Prompt
from ..directions import Direction
from ..door import at_least, at_most, checked
from ..errors import InputError
from ..model import ChatModel, Site
from ..shapes import PerPrompt, as_float64
from .heads import Head, by_head, check_heads, check_target

DRAWS = 20
"""Random sets drawn for each one wanted, before those drawn are all there are."""

MOST = 1000
"""Heads of a layer, and random sets of heads, that can be drawn from."""

HeadOutputs = Mapping[int, Float[Tensor, "_ head d_head"]]
"""Head outputs z at the last token by layer; with one row, the same for every prompt."""


@checked
def last_head_outputs(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    *,
    layers: Sequence[int],
    batch_size: int = 32,
) -> dict[int, Float[Tensor, "prompt head d_head"]]:
    """Head outputs z at the last token of every prompt, by layer, in the model's dtype on the CPU."""
    rendered = as_rendered(model, prompts)
    store: dict[int, Tensor] = {}

    def keep(layer: int, rows: Tensor) -> Callable[[Tensor], None]:
        def take(z: Tensor) -> None:
            last = by_head(z, model.n_heads)[:, -1].cpu()
            store.setdefault(layer, last.new_empty((len(rendered), *last.shape[1:])))[rows] = last

        return take

    for rows, batch in rendered.batches(batch_size):
        index = rows.cpu()
        with model.hooked([(Site("z", layer), keep(layer, index)) for layer in layers]):
            model.logits(batch)
    return store


@checked
@contextmanager
def replaced_heads(
    model: ChatModel, heads: Sequence[Head], values: HeadOutputs | None = None
) -> Iterator[ChatModel]:
    """Set the chosen heads' outputs z at the last token; zero without values.

    values: layer to [prompt head d_head], one row per row of the batch that runs inside, or one
    for all.
    """
    if heads:
        check_heads(model, tuple(heads))
    _check_values(values, heads, model.n_heads)
    by_layer: dict[int, list[int]] = {}
    for head in heads:
        by_layer.setdefault(head.layer, []).append(head.head)

    def replace(layer: int) -> Callable[[Tensor], Tensor]:
        def edit(z: Tensor) -> Tensor:
            chosen = by_layer[layer]
            new = by_head(z, model.n_heads).clone()
            new[:, -1, chosen] = 0 if values is None else values[layer][:, chosen].to(new)
            return new.reshape(z.shape)

        return edit

    with model.hooked([(Site("z", layer), replace(layer)) for layer in sorted(by_layer)]):
        yield model


@checked
def random_head_sets(
    heads: Sequence[Head], n_heads: int, *, layers: Sequence[int], n_sets: int, seed: int
) -> tuple[tuple[Head, ...], ...]:
    """Up to n_sets different random sets of as many heads, none of them among the given ones.

    As many in each layer as the given set has there; where a layer has too few others, the rest
    comes from other heads of `layers`. There are fewer sets where there are not enough heads.
    """
    at_least(1, n_heads=n_heads)
    at_least(0, n_sets=n_sets, seed=seed)
    at_most(MOST, n_heads=n_heads, n_sets=n_sets)
    outside = sorted({head.layer for head in heads} - set(layers))
    if outside:
        raise InputError(f"layers: got {list(layers)}, need those of the heads too, such as {outside[0]}")
    free = {
        layer: [h for h in range(n_heads) if Head(layer, h) not in set(heads)] for layer in layers
    }
    per_layer = {
        at: min(k, len(free[at])) for at, k in sorted(Counter(h.layer for h in heads).items())
    }
    lacking = len(heads) - sum(per_layer.values())
    rng = np.random.default_rng(seed)
    sets: dict[frozenset[Head], tuple[Head, ...]] = {}
    for _ in range(DRAWS * n_sets):
        if len(sets) == n_sets:
            break
        picked = [Head(at, int(h)) for at, k in per_layer.items() for h in _drawn(rng, free[at], k)]
        others = [Head(at, h) for at in layers for h in free[at] if Head(at, h) not in picked]
        if len(others) < lacking:
            break
        picked += [others[i] for i in _drawn(rng, range(len(others)), lacking)]
        sets.setdefault(frozenset(picked), tuple(sorted(picked)))
    return tuple(sets.values())


def _drawn(rng: np.random.Generator, pool: Sequence[int], k: int) -> list[int]:
    return [int(i) for i in rng.choice(pool, k, replace=False)] if k else []


@checked
def head_effects(
    model: ChatModel,
    prompts: Sequence[Prompt] | Rendered,
    direction: Direction,
    *,
    heads: Sequence[Head],
    values: HeadOutputs | None,
    behaviour: LogitBehaviour,
    edit: str,
    n_random: int = 8,
    seed: int = 0,
    batch_size: int = 32,
) -> pd.DataFrame:
    """Replace the heads, and random sets of as many other heads; measure both effects.

    values: None for zero ablation; one row per layer for mean ablation; one per prompt for
    patching. Random heads come from the layers that values has, else from all below l*. edit is
    what the rows are called. Columns edit, heads ("none", "top", "random 0", ...), prompt,
    projection (``<resid_pre[l*], r^>`` at the last token) and score (the behaviour's).
    Raises InputError for heads at or past l*, and for a behaviour that the last token does not decide.
    """
    at_least(0, n_random=n_random, seed=seed)
    target = check_target(model, direction, None)
    check_heads(model, tuple(heads))
    _check_values(values, heads, model.n_heads)
    late = [str(head) for head in heads if head.layer >= target]
    if late:
        raise InputError(
            f"heads {', '.join(late)}: at or past layer {target}, so they cannot change what "
            "resid_pre of that layer holds; choose heads of earlier layers"
        )
    rendered = as_rendered(model, prompts)
    require_last_token(behaviour, rendered.prompts, "head effects")
    sets = {"none": (), "top": tuple(heads)}
    layers = [at for at in range(target) if values is None or at in values]
    drawn = random_head_sets(heads, model.n_heads, layers=layers, n_sets=n_random, seed=seed)
    sets |= {f"random {i}": random for i, random in enumerate(drawn)}
    measured = partial(_measure, model, rendered, direction, behaviour, batch_size=batch_size)
    frames = []
    for name, chosen in sets.items():
        projection, scores = measured(chosen, values)
        frames.append(
            pd.DataFrame(
                {
                    "edit": edit,
                    "heads": name,
                    "prompt": range(len(rendered)),
                    "projection": projection.tolist(),
                    "score": scores.tolist(),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


@checked
def mean_head_outputs(
    *outputs: Mapping[int, Float[Tensor, "_ head d_head"]],
) -> dict[int, Float[Tensor, "one head d_head"]]:
    """The mean over conditions of each condition's mean, a row per layer."""
    if not outputs or any(condition.keys() != outputs[0].keys() for condition in outputs):
        raise InputError("head outputs: got none, or of different layers; need the same in each")
    layers = outputs[0].keys()
    return {
        layer: torch.stack([z[layer].double().mean(0) for z in outputs]).mean(0)[None]
        for layer in layers
    }


def _measure(
    model: ChatModel,
    rendered: Rendered,
    direction: Direction,
    behaviour: LogitBehaviour,
    heads: Sequence[Head],
    values: HeadOutputs | None,
    *,
    batch_size: int,
) -> tuple[Float64[Tensor, " prompt"], PerPrompt]:
    projection = torch.zeros(len(rendered), dtype=torch.float64)
    scores = torch.zeros(len(rendered), dtype=torch.float64)
    for rows, batch in rendered.batches(batch_size):
        index = rows.cpu()
        along: list[Tensor] = []

        def keep(x: Tensor, along: list[Tensor] = along) -> None:
            along.append(as_float64(x[:, -1]).cpu() @ direction.unit)

        here = None if values is None else {at: _rows(v, index) for at, v in values.items()}
        reader = (Site("resid_pre", direction.layer), keep)
        with replaced_heads(model, heads, here), model.hooked([reader]):
            logits = model.logits(batch)
        projection[index] = along[0]
        scores[index] = last_token_scores(behaviour, logits).cpu()
    return projection, scores


def _check_values(values: HeadOutputs | None, heads: Sequence[Head], n_heads: int) -> None:
    if values is None:
        return
    for layer in sorted({head.layer for head in heads}):
        if layer not in values or values[layer].shape[1] != n_heads:
            raise InputError(f"values: got none of {n_heads} heads for layer {layer}, need them")


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values if len(values) == 1 else values[index]
