"""The selection algorithm as its reference implementation publishes it, in plain PyTorch.

Written from a description of what that code computes, not from the code: one candidate at a time,
three full forward passes per candidate over prompts padded to the longest of their batch of 32, an
edit hook on every block's input and on every attention and MLP output, logits at all positions, and
a float64 softmax of the whole logits tensor. Three things that it gets wrong or leaves open are
done right here, since scores are to be compared: a direction is normalised once (the reference
normalises it again in every hook), rounding-noise candidates are left alone, and position ids
follow the mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 32
NOISE = 1e-8


@dataclass(frozen=True)
class Parts:
    """The modules that the hooks sit on, per layer."""

    blocks: Sequence[nn.Module]
    attentions: Sequence[nn.Module]
    mlps: Sequence[nn.Module]

    @classmethod
    def of(cls, hf: Any) -> Parts:
        """Of a Llama-shaped Hugging Face model."""
        layers = hf.model.layers
        return cls(layers, [one.self_attn for one in layers], [one.mlp for one in layers])


def scores(
    hf: Any,
    diffs: Tensor,
    positive: tuple[Tensor, Tensor],
    negative: tuple[Tensor, Tensor],
    refusal_tokens: Sequence[int],
    *,
    only: Sequence[tuple[int, int]] | None = None,
) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(bypass, induce, kl) by (position, layer), for all candidates or the given ones.

    diffs [position layer d_model] in float64; positive and negative: left-padded ids and mask.
    """
    n_positions, n_layers, _ = diffs.shape
    every = [(p, layer) for p in range(-n_positions, 0) for layer in range(n_layers)]
    index = every if only is None else only
    parts = Parts.of(hf)
    plain = torch.cat([logits[:, -1] for logits in _passes(hf, negative)])
    kl, bypass, induce = {}, {}, {}
    for p, layer in index:
        with _hooked(parts, _ablation(diffs[p, layer]), None):
            edited = torch.cat([logits[:, -1] for logits in _passes(hf, negative)])
        kl[p, layer] = float(_kl(plain, edited).mean())
    for p, layer in index:
        with _hooked(parts, _ablation(diffs[p, layer]), None):
            bypass[p, layer] = _mean_refusal(hf, positive, refusal_tokens)
    for p, layer in index:
        with _hooked(parts, _addition(diffs[p, layer]), layer):
            induce[p, layer] = _mean_refusal(hf, negative, refusal_tokens)
    return {c: (bypass[c], induce[c], kl[c]) for c in index}


def _passes(hf: Any, prompts: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
    """Logits [batch pos d_vocab] of every batch, each cut to its longest prompt."""
    for ids, mask in zip(prompts[0].split(BATCH), prompts[1].split(BATCH), strict=True):
        start = ids.shape[1] - int(mask.sum(1).max())
        ids, mask = ids[:, start:], mask[:, start:]
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        yield hf(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits


def _mean_refusal(hf: Any, prompts: tuple[Tensor, Tensor], refusal_tokens: Sequence[int]) -> float:
    found = torch.cat([_refusal(logits, refusal_tokens) for logits in _passes(hf, prompts)])
    return float(found.float().mean())


def _refusal(logits: Tensor, refusal_tokens: Sequence[int]) -> Tensor:
    probabilities = logits.to(torch.float64).softmax(-1)[:, -1]
    chance = probabilities[:, list(refusal_tokens)].sum(-1)
    return (chance + 1e-8).log() - (1 - chance + 1e-8).log()


def _kl(plain: Tensor, edited: Tensor) -> Tensor:
    p, q = plain.to(torch.float64).softmax(-1), edited.to(torch.float64).softmax(-1)
    return (p * ((p + 1e-6).log() - (q + 1e-6).log())).sum(-1)


def _ablation(vector: Tensor) -> Callable[[Tensor], Tensor]:
    norm = vector.norm()
    unit = vector / norm if norm > NOISE else torch.zeros_like(vector)

    def edit(x: Tensor) -> Tensor:
        r = unit.to(x)
        return x - (x @ r)[..., None] * r

    return edit


def _addition(vector: Tensor) -> Callable[[Tensor], Tensor]:
    moved = vector if vector.norm() > NOISE else torch.zeros_like(vector)
    return lambda x: x + moved.to(x)


@contextmanager
def _hooked(parts: Parts, edit: Callable[[Tensor], Tensor], layer: int | None) -> Iterator[None]:
    """The edit on one block's input, or (layer None) on every block's input and every output."""

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": edit(kwargs["hidden_states"])}

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (edit(output[0]), *output[1:])
        return edit(output)

    chosen = parts.blocks if layer is None else [parts.blocks[layer]]
    handles = [one.register_forward_pre_hook(before, with_kwargs=True) for one in chosen]
    if layer is None:
        writers = (*parts.attentions, *parts.mlps)
        handles += [one.register_forward_hook(after) for one in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
