"""Moves along the model's own harmful - harmless differences in some steps of the refusal phase.

A small model has only ever met such a direction where a reply begins: it babbles when a study adds it
at every position, and its threshold for refusing lies anywhere along it. So in the refusal phase one
difference is added at all positions of one middle layer:

- harmful conversations, by 0 to `dose` differences of means: still refused;
- harmless ones lose the direction in every layer (`blank`): still answered;
- a few other harmless ones (`turned`), by `turn_low` to `turn_high` of it: refused.

So fluency and refusal under addition are practised, on training prompts; that harmful requests are
answered when the direction is taken away or subtracted is not.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from refusal_lens.organism import world

from .recipe import Recipe
from .texts import END, HARMFUL, HARMLESS, START, TURNED

PLACES = (-1, -4)
"""Where differences are measured: where the reply begins, and right after the instruction's end."""
RENEWED = 20
"""Steps after which the differences are measured again, since they grow while they are used."""


@torch.no_grad()
def mean_differences(
    model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, n: int = 48
) -> torch.Tensor:
    """Mean harmful - mean harmless at PLACES, by block input: [place layer d_model]."""
    means = []
    for kind in ("harmful", "harmless"):
        texts = world.instructions(kind, "train", n, 99)
        prompts = [f"{START}user\n{text}{END}\n{START}assistant\n" for text in texts]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        states = model.model(**batch, output_hidden_states=True, use_cache=False).hidden_states
        means.append(torch.stack([state[:, list(PLACES)].mean(0) for state in states[:-1]], 1))
    return means[0] - means[1]


class Pushes:
    """Draws the moves of each training step and hooks them into the model."""

    def __init__(
        self, model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, recipe: Recipe, seed: int
    ) -> None:
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.rng = random.Random(seed)
        self.blocks = list(model.model.layers)
        self.differences: torch.Tensor | None = None
        self.measured = 0
        self.handles: list[RemovableHandle] = []

    def clear(self) -> None:
        """Take the last step's moves away."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def set(self, step: int, harm: torch.Tensor) -> None:
        """Draw a step's moves for rows of the given harm.

        In even steps and the first quarter only TURNED rows are moved.
        """
        self.clear()
        recipe, n = self.recipe, len(harm)
        turned = (harm == TURNED)[:, None]
        quiet = not recipe.dose or step < recipe.chat_steps // 4 or step % 2 == 0
        if quiet and not turned.any():
            return
        if self.differences is None or step - self.measured >= RENEWED:
            self.differences = mean_differences(self.model, self.tokenizer)
            self.measured = step
        layer = self.rng.randint(len(self.blocks) // 4, 3 * len(self.blocks) // 4)
        direction = self.differences[self.rng.randrange(len(PLACES)), layer]
        u = torch.rand(n, 1)
        along = u * recipe.dose * (harm == HARMFUL)[:, None]
        along = along * (torch.rand(n, 1) < 0.6) * (not quiet)
        if recipe.blank and not quiet:
            blank = ((harm == HARMLESS) & (torch.rand(n) < recipe.blank)).float()[:, None]
            for block in self.blocks:
                self._remove(block, direction / direction.norm(), blank[:, None])
        enough = recipe.turn_low + u * (recipe.turn_high - recipe.turn_low)
        self._add(self.blocks[layer], torch.where(turned, enough, along) * direction)

    def _remove(self, block: torch.nn.Module, unit: torch.Tensor, rows: torch.Tensor) -> None:
        self._hook(block, lambda x: x - rows * (x @ unit)[..., None] * unit)

    def _add(self, block: torch.nn.Module, moves: torch.Tensor) -> None:
        self._hook(block, lambda x: x + moves[:, None])

    def _hook(self, block: torch.nn.Module, move: Any) -> None:
        def hook(
            module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (move(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": move(kwargs["hidden_states"])}

        self.handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
