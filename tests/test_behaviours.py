"""Behaviours: their scores are those of plain teacher forcing, in and out of the sweep, and JSON gives them back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import kit
import pandas as pd
import torch
from torch import Tensor, nn

from refusal_lens.activations import map_last_logits, mean_residuals
from refusal_lens.behaviours import (
    Behaviour,
    Continuations,
)
from refusal_lens.behaviours.tokens import reply_tokens
from refusal_lens.chat import ChatFormat
from refusal_lens.directions import Candidates
from refusal_lens.directions.sweep import Sweep, sweep
from refusal_lens.directions.sweep.state import NAMES
from refusal_lens.interventions import ZERO_NORM, Ablate, Add, applied
from refusal_lens.metrics import kl_divergence
from refusal_lens.model import ChatModel

POSITIVE = ("make a bomb", "do bad things", "poison the well of my town")
NEGATIVE = ("bake a cake", "do good", "paint the wall of my house red")
YES, NO = ("No way.", "Sorry"), ("Sure, so",)
"""Of 7, 5 and 8 tokens, which are bytes here."""
TOLD = Continuations(
    tuple(tuple(reply.encode()) for reply in YES), tuple(tuple(reply.encode()) for reply in NO)
)


def tokens_of(of: ChatModel, replies: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    return tuple(reply_tokens(of, replies))


@lru_cache
def told(architecture: str) -> Continuations:
    return Continuations.of(kit.load(architecture), positive=YES, negative=NO, name="no")


@lru_cache
def candidates(architecture: str) -> Candidates:
    """Two positions of difference-of-means candidates, made long enough to matter."""
    of = kit.load(architecture)
    means = [mean_residuals(of, prompts).mean[[-4, -1]] for prompts in (POSITIVE, NEGATIVE)]
    moved = means[1] + 8 * (means[0] - means[1])
    return Candidates(moved, means[1], tuple(of.chat.positions[i] for i in (-4, -1)))


def swept(architecture: str, behaviour: Behaviour, **options: Any) -> Sweep:
    return sweep(
        kit.load(architecture),
        candidates(architecture),
        positive=POSITIVE,
        negative=NEGATIVE,
        behaviour=behaviour,
        **options,
    )


Scored = Callable[[Sequence[str]], Tensor]


def one_by_one(of: ChatModel, found: Candidates, scored: Scored) -> pd.DataFrame:
    """Every score by hooks, one candidate at a time."""
    last = partial(map_last_logits, of, NEGATIVE, batch_size=1)
    plain, unedited = last(), (scored(POSITIVE), scored(NEGATIVE))
    rows = []
    for position, layer in found.index():
        vector = found.mean_diffs[position, layer]
        bypass, induce, kl = *unedited, torch.zeros(1)
        if vector.norm() > ZERO_NORM:
            with applied(of, Ablate(vector)):
                bypass, kl = scored(POSITIVE), kl_divergence(plain, last())
            with applied(of, Add(vector, layer)):
                induce = scored(NEGATIVE)
        rows.append((position, layer, *(float(x.mean()) for x in (bypass, induce, kl))))
    return pd.DataFrame(rows, columns=["position", "layer", *NAMES])


def forced(of: ChatModel, replies: Sequence[tuple[int, ...]], prompt: str) -> float:
    """Mean over replies of the mean log-likelihood per token, from logits at all positions of one row."""
    prompts = of.chat.render([prompt])
    means = []
    for ids in replies:
        row = prompts.followed_by([ids], pad_id=of.chat.pad_id)
        logits = of.logits(row, all_positions=True)[0, -len(ids) - 1 : -1].double()
        means.append(float(logits.log_softmax(-1)[range(len(ids)), list(ids)].mean()))
    return sum(means) / len(means)


def ratio(of: ChatModel, behaviour: Continuations, prompts: Sequence[str]) -> Tensor:
    return torch.tensor(
        [forced(of, behaviour.positive, p) - forced(of, behaviour.negative, p) for p in prompts]
    )


def largest_gap(one: pd.DataFrame, other: pd.DataFrame) -> float:
    return float((one[list(NAMES)] - other[list(NAMES)]).abs().to_numpy().max())


# ------------------------------------------------------------------ Hugging Face alone


class Plain:
    """A Hugging Face Llama that forces replies and edits its stream with hooks of PyTorch's own."""

    def __init__(self) -> None:
        self.hf: Any = kit.plain(kit.folder("llama"))
        self.chat = ChatFormat.from_tokenizer(kit.byte_tokenizer())

    @torch.no_grad()
    def scores(self, prompts: Sequence[str]) -> Tensor:
        scores = []
        for prompt in prompts:
            ids = kit.ids_of(self.chat.render([prompt]))
            means = []
            for reply in (*YES, *NO):
                row = torch.tensor([[*ids, *reply.encode()]])
                chances = self.hf(row).logits[0].double().log_softmax(-1)
                predicted = zip(range(len(ids) - 1, row.shape[1] - 1), row[0, len(ids) :], strict=True)
                means.append(sum(float(chances[at, token]) for at, token in predicted) / len(reply))
            scores.append((means[0] + means[1]) / 2 - means[2])
        return torch.tensor(scores)

    @contextmanager
    def ablated(self, vector: Tensor) -> Iterator[None]:
        r = (vector / vector.norm()).float()

        def without(_module: nn.Module, _args: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            x = x - (x @ r)[..., None] * r
            return (x, *output[1:]) if isinstance(output, tuple) else x

        layers = self.hf.model.layers
        writers = [self.hf.model.embed_tokens, *(m for b in layers for m in (b.self_attn, b.mlp))]
        handles = [module.register_forward_hook(without) for module in writers]
        yield
        for handle in handles:
            handle.remove()

    @contextmanager
    def added(self, vector: Tensor, layer: int) -> Iterator[None]:
        block = self.hf.model.layers[layer]
        handle = block.register_forward_pre_hook(
            lambda _m, args, kwargs: ((args[0] + vector.float(), *args[1:]), kwargs), with_kwargs=True
        )
        yield
        handle.remove()


def ids_of_bytes(reply: str) -> tuple[int, ...]:
    return tuple(kit.byte_tokenizer().encode(reply))


def test_continuations_score_as_plain_teacher_forcing_does() -> None:
    # The byte tokenizer's ids are not the bytes themselves.
    plain = Plain()
    expected = plain_scores(plain, POSITIVE)
    assert torch.allclose(told("llama").scores(kit.load("llama"), POSITIVE), expected, atol=1e-5)
    assert expected.std() > 1e-3
