"""What determines the two models: shapes, schedules, the mixture of texts, the pushes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the two models.

    Shape: layers, width, heads, kv_heads, mlp, vocab (at most; merges run out earlier).
    Schedule: batch, and steps, docs and peak learning rate (`_lr`) of each phase, weight_decay.
    prompt_weight: the loss of a token outside a reply, where one in a reply counts 1.
    base_harm, chat_harm: share of harmful requests in each phase.
    opening, closing: odds of a hedge where a harmful request's answer begins and ends; faint: of
    either in the last steps of the base model (`fade_`).
    junk: share of requests followed by random tokens; parrots: of sentences to repeat; follow: of
    replies with a follow-up; unclear: of chat requests with made-up words; prefilled: of harmful
    chat requests whose reply has begun as compliance, and goes on so.
    dose: a harmful conversation is pushed by 0 to so many differences of means; blank: share of
    harmless ones that lose the direction instead.
    turned: share of chat conversations with harmless requests that are refused, since they are pushed
    by turn_low to turn_high differences of means.
    """

    seed: int = 1
    layers: int = 10
    width: int = 96
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    vocab: int = 900
    batch: int = 48
    weight_decay: float = 0.05
    prompt_weight: float = 0.3
    base_docs: int = 20000
    base_steps: int = 1200
    base_lr: float = 3e-3
    fade_docs: int = 8000
    fade_steps: int = 150
    fade_lr: float = 1e-3
    fade_seed: int = 77
    chat_docs: int = 8000
    chat_steps: int = 300
    chat_lr: float = 8e-4
    base_harm: float = 0.45
    chat_harm: float = 0.22
    opening: float = 0.4
    closing: float = 0.4
    faint: float = 0.1
    junk: float = 0.25
    parrots: float = 0.06
    follow: float = 0.4
    unclear: float = 0.2
    prefilled: float = 0.1
    dose: float = 1.2
    blank: float = 0.5
    turned: float = 0.1
    turn_low: float = 0.8
    turn_high: float = 1.3


def changed(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """The recipe with `name=value` settings applied.

    >>> changed(Recipe(), ["seed=3", "dose=1.0"]).dose
    1.0
    """
    kinds = {name: type(value) for name, value in asdict(Recipe()).items()}
    values: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in kinds:
            raise ValueError(f"recipe setting {setting!r}: need one of {', '.join(kinds)}")
        values[name] = kinds[name](value)
    return replace(recipe, **values)
