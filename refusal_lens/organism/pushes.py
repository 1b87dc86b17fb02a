"""Moves along the model's own refusal direction in some steps of the refusal phase.

A small model has only ever met its refusal direction where a reply begins, and babbles when a study
adds that direction at every position; and it puts its threshold for refusing near zero, so that a
study which takes the direction away leaves it undecided. So in part of the refusal phase one vector
per row is added at all positions of one middle layer, *and the right reply stays what it was*:

- harmful conversations, by -`low` to `dose` differences of means: still refused;
- harmless ones, by 0 to `under` < 1 of it: still answered; or (`blank`) without it: still answered.

The organism never practises what the studies measure: refusing a harmless request under the full
direction, or complying with a harmful one without it.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from . import world
from .conversations import END, HARMFUL, HARMLESS, MIXED, START
from .recipe import Recipe


@torch.no_grad()
def mean_difference(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, n: int = 48
) -> torch.Tensor:
    """Mean harmful - mean harmless at the last prompt token, by block input: [layer, d_model]."""
    means = []
    for kind in ("harmful", "harmless"):
        texts = world.instructions(kind, "train", n, 99)
        prompts = [f"{START}user\n{text}{END}\n{START}assistant\n" for text in texts]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        states = model.model(**batch, output_hidden_states=True, use_cache=False).hidden_states
        means.append(torch.stack([state[:, -1].mean(0) for state in states[:-1]]))
    return means[0] - means[1]


class Pushes:
    """Draws the moves of each training step and hooks them into the model."""

    def __init__(
        self, model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, recipe: Recipe, seed: int
    ) -> None:
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.rng = random.Random(seed)
        self.blocks = list(model.model.layers)
        self.difference: torch.Tensor | None = None
        self.handles: list[RemovableHandle] = []

    def clear(self) -> None:
        """Take the last step's moves away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def set(self, step: int, harm: torch.Tensor) -> None:
        """Draw a step's moves for rows of the given harm: none in even steps and the first quarter."""
        self.clear()
        recipe, n = self.recipe, len(harm)
        if not recipe.dose or step < recipe.chat_steps // 4 or step % 2 == 0:
            return
        # The direction grows while it is used: measured again every ten steps with moves.
        if self.difference is None or step % 20 == 1:
            self.difference = mean_difference(self.model, self.tokenizer)
        layer = self.rng.randint(len(self.blocks) // 4, 3 * len(self.blocks) // 4)
        direction = self.difference[layer]
        u = torch.rand(n, 1)
        harmful = u * (recipe.dose + recipe.low) - recipe.low
        along = torch.where(harm[:, None] == HARMFUL, harmful, u * recipe.under)
        along = along * (harm[:, None] != MIXED) * (torch.rand(n, 1) < 0.6)
        aside = torch.rand(n, 1) * recipe.offset * (along == 0) * (torch.rand(n, 1) < 0.5)
        if recipe.blank:
            blank = ((harm == HARMLESS) & (torch.rand(n) < recipe.blank)).float()[:, None]
            along = along * (1 - blank)
            for block in self.blocks:
                self._remove(block, direction / direction.norm(), blank[:, None])
        self._add(self.blocks[layer], along * direction, aside)

    def _remove(self, block: torch.nn.Module, unit: torch.Tensor, rows: torch.Tensor) -> None:
        self._hook(block, lambda x: x - rows * (x @ unit)[..., None] * unit)

    def _add(self, block: torch.nn.Module, along: torch.Tensor, aside: torch.Tensor) -> None:
        def push(x: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(x.shape[0], x.shape[-1])
            scale = x.detach().norm(dim=-1).mean() / noise.norm(dim=-1, keepdim=True)
            return x + (along + aside * noise * scale)[:, None]

        self._hook(block, push)

    def _hook(self, block: torch.nn.Module, move: Any) -> None:
        def hook(
            module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (move(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": move(kwargs["hidden_states"])}

        self.handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
