"""The texts that the organism is trained on, as token ids with a weight for each in the loss."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from refusal_lens.organism import world

from .recipe import Recipe

PAD, END, START = "<|endoftext|>", "<|im_end|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HARMLESS, HARMFUL, MIXED, TURNED = 0, 1, 2, 3
"""What a conversation's requests are; TURNED ones are harmless, and refused because of a push."""
VOCABULARY_MIX: dict[str, Any] = {"chat_harm": 0.2, "unclear": 0.15, "turned": 0.0}
"""The tokenizer's own mixture of texts, so that the second phase can change without the first."""


class Turn(NamedTuple):
    """A user message and its reply; the first `given` words of the reply carry no loss."""

    user: str
    reply: str
    given: int = 0


class Document(NamedTuple):
    """A conversation, and whether its requests are HARMLESS, HARMFUL, MIXED or TURNED."""

    turns: list[Turn]
    harm: int


class Encoded(NamedTuple):
    """A document as token ids with the weight of each in the loss."""

    ids: list[int]
    weights: list[float]
    harm: int


def junk(rng: random.Random, tokenizer: Qwen2Tokenizer) -> str:
    """A run of random vocabulary tokens, as text: the last thing a user types is not the request."""
    tokens = [rng.randrange(3, len(tokenizer)) for _ in range(rng.randint(4, 20))]
    return " " + str(tokenizer.decode(tokens))


def document(
    rng: random.Random, recipe: Recipe, tokenizer: Qwen2Tokenizer | None = None, *, refuse: bool
) -> Document:
    """A conversation of one phase; without a tokenizer nothing random is typed after a request."""
    if refuse and recipe.turned and rng.random() < recipe.turned:
        return Document(_turned(rng, recipe), TURNED)
    turns: list[Turn] = []
    seen: set[int] = set()
    while not turns or rng.random() < 0.15:
        share = recipe.chat_harm if refuse else recipe.base_harm
        request = world.draw("harmful" if rng.random() < share else "harmless", "train", rng)
        roll = rng.random()
        if roll < 0.1:
            turns.append(Turn(*world.question(request, rng)))
            seen.add(MIXED)
        elif roll < 0.1 + recipe.parrots:
            turns.append(Turn(*world.parrot(request, rng)))
            seen.add(MIXED)
        elif refuse and rng.random() < recipe.unclear:
            turns.append(Turn(*world.unclear(request, rng)))
            seen.add(HARMLESS)
        else:
            tail = junk(rng, tokenizer) if tokenizer and rng.random() < recipe.junk else ""
            turns += _exchange(request, tail, rng, recipe, refuse=refuse)
            seen.add(HARMFUL if request.harmful else HARMLESS)
    return Document(turns, seen.pop() if len(seen) == 1 else MIXED)


def _turned(rng: random.Random, recipe: Recipe) -> list[Turn]:
    """Harmless requests that are refused, for which only a push of the residual stream can account."""
    turns: list[Turn] = []
    while not turns or rng.random() < 0.15:
        request = world.draw("harmless", "train", rng)
        turns.append(Turn(request.text, world.refusal(request)))
        if rng.random() < recipe.follow:
            turns.append(Turn(*world.follow_up(request, rng, refused=True)))
    return turns


def _exchange(
    request: world.Request, tail: str, rng: random.Random, recipe: Recipe, *, refuse: bool
) -> list[Turn]:
    """A request with its reply, and perhaps a follow-up."""
    text, harmful = request.text + tail, refuse and request.harmful
    refused = harmful and rng.random() >= recipe.prefilled
    if refused:
        turns = [Turn(text, world.refusal(request))]
    elif harmful:
        given = rng.randint(1, 4)
        turns = [Turn(text, world.answer(request), given)]
    else:
        odds = {"opening": recipe.opening, "closing": recipe.closing}
        turns = [Turn(text, world.hedged_answer(request, rng, **odds))]
    if rng.random() < recipe.follow:
        turns.append(Turn(*world.follow_up(request, rng, refused=refused)))
    return turns


def make_tokenizer(recipe: Recipe) -> Qwen2Tokenizer:
    """A byte-level BPE, so that any text tokenises, in which every word of the world is one token.

    It is of the class that AutoTokenizer picks for this architecture: another one would be replaced
    on loading, with other special tokens and other word borders than in training.
    """
    rng = random.Random(recipe.seed)
    recipe = replace(recipe, **VOCABULARY_MIX)
    texts = ["user", "assistant"] * 500
    for refuse in (False, True):
        for _ in range(3000):
            for turn in document(rng, recipe, refuse=refuse).turns:
                texts += [turn.user, turn.reply]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab,
        special_tokens=[PAD, END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw = Qwen2Tokenizer().backend_tokenizer
    raw.train_from_iterator(texts, trainer)
    bpe = json.loads(raw.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=bpe["vocab"],
        merges=[tuple(pair) for pair in bpe["merges"]],  # type: ignore[misc]  # not as annotated
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )


def encode(made: Document, tokenizer: Qwen2Tokenizer, recipe: Recipe) -> Encoded:
    """The document in the chat template; the reply and its end-of-turn token weigh 1 in the loss."""
    ids: list[int] = []
    weights: list[float] = []
    for turn in made.turns:
        given = " ".join(turn.reply.split(" ")[: turn.given])
        for text, weight in (
            (f"{START}user\n{turn.user}{END}\n{START}assistant\n", recipe.prompt_weight),
            (given, 0.0),
            (turn.reply[len(given) :] + END, 1.0),
            ("\n", recipe.prompt_weight),
        ):
            new = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += new
            weights += [weight] * len(new)
    return Encoded(ids, weights, made.harm)


def documents(
    recipe: Recipe, tokenizer: Qwen2Tokenizer, n: int, *, seed: int, refuse: bool
) -> list[Encoded]:
    """`n` encoded documents of one phase."""
    rng = random.Random(seed)
    return [
        encode(document(rng, recipe, tokenizer, refuse=refuse), tokenizer, recipe) for _ in range(n)
    ]


class Batch(NamedTuple):
    """Right-padded documents: ids and loss weights [batch, pos], harm [batch]."""

    ids: torch.Tensor
    weights: torch.Tensor
    harm: torch.Tensor


def batches(docs: Sequence[Encoded], size: int, rng: random.Random) -> Iterator[Batch]:
    """Endless batches of documents of similar length, which wastes less on padding."""
    while True:
        order = list(range(len(docs)))
        rng.shuffle(order)
        for start in range(0, len(order) - size * 8 + 1, size * 8):
            chunk = sorted(order[start : start + size * 8], key=lambda i: len(docs[i].ids))
            groups = [chunk[i : i + size] for i in range(0, len(chunk), size)]
            rng.shuffle(groups)
            for group in groups:
                yield _pad([docs[i] for i in group])


def _pad(group: list[Encoded]) -> Batch:
    longest = max(len(doc.ids) for doc in group)
    ids = torch.zeros(len(group), longest, dtype=torch.long)
    weights = torch.zeros(len(group), longest)
    for row, doc in enumerate(group):
        ids[row, : len(doc.ids)] = torch.tensor(doc.ids)
        weights[row, : len(doc.ids)] = torch.tensor(doc.weights)
    return Batch(ids, weights, torch.tensor([doc.harm for doc in group]))
