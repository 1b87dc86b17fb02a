"""Find the organism's adversarial suffix by greedy coordinate gradient (Zou et al. 2023).

    python experiments/07_organism_suffix/run.py [--seed 0] [--restarts 3] [--length N]

One suffix for all prompts: at every step the gradient of the mean refusal metric over a few
training instructions proposes token swaps, random proposals are scored on the same instructions,
and the best is kept; of several starts, the one with the least loss on validation instructions.
Its length is the longest one at which random suffixes leave the organism refusing, so that the
comparison is fair. The search sees the toy world's training and validation instructions only. It
is for the bundled organism, which refuses harmless words; the package takes suffixes and does not
make them.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refusal_lens import organism
from refusal_lens.activations import map_last_logits
from refusal_lens.behaviours import FirstTokens, choose_first_tokens
from refusal_lens.chat.suffixed import render_suffixed
from refusal_lens.evaluation import complete, rate
from refusal_lens.metrics import first_token_log_odds
from refusal_lens.model import ChatModel
from refusal_lens.prompts import Contrast
from refusal_lens.studies.suffix import random_suffixes

log = logging.getLogger("organism_suffix")


@dataclass(frozen=True)
class Search:
    """Settings of the search; all of them are written beside the suffix."""

    length: int
    seed: int = 0
    restarts: int = 3
    steps: int = 40
    proposals: int = 64
    best_of: int = 48
    prompts: int = 12
    floor: float = -10.0
    check_every: int = 10


LENGTHS = (20, 16, 12, 8, 6, 5, 4, 3, 2)
STILL_REFUSED = 0.9
"""Share of training instructions that random suffixes must leave refused."""


def longest_fair(model: ChatModel, instructions: Sequence[str], tokens: tuple[int, ...]) -> int:
    """The most tokens at which random suffixes leave enough of the instructions refused."""
    for length in LENGTHS:
        kept = []
        for seed in (1, 2, 3):
            n = [length] * len(instructions)
            drawn = random_suffixes(model.chat, instructions, n_tokens=n, like=" a", seed=seed)
            texts = [i + suffix for i, suffix in zip(instructions, drawn, strict=True)]
            metric = first_token_log_odds(map_last_logits(model, texts), tokens)
            kept.append(float((metric > 0).double().mean()))
        share = sum(kept) / len(kept)
        log.info("random suffixes of %d tokens leave %.2f refused", length, share)
        if share >= STILL_REFUSED:
            return length
    raise SystemExit("error: this organism stops refusing whatever follows its instructions")


class Suffixed:
    """Training instructions with a suffix of fixed length, scored with a cached beginning.

    The model's keys and values of template and instruction do not change with what follows
    (causal attention), so they are computed once per batch of instructions.
    """

    def __init__(self, model: ChatModel, instructions: Sequence[str], tokens: tuple[int, ...]):
        self.hf, self.tokens, n = model.hf, tokens, model.chat.n_positions
        rendered = model.chat.render(list(instructions))
        self.n_prompts = len(rendered)
        cut = rendered.ids.shape[1] - n
        self.end = rendered.ids[0, cut:]
        self.mask = rendered.mask[:, :cut]
        with torch.no_grad():
            out = self.hf(
                input_ids=rendered.ids[:, :cut],
                attention_mask=self.mask,
                position_ids=_positions(self.mask),
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = [(layer.keys, layer.values) for layer in out.past_key_values.layers]

    def metric(self, embeddings: Tensor) -> Tensor:
        """Refusal metric [candidate prompt] for suffix embeddings [candidate length d_model]."""
        from transformers import DynamicCache

        table, n, p = self.hf.get_input_embeddings(), len(embeddings), self.n_prompts
        end = table(self.end)[None].expand(n, -1, -1)
        new = torch.cat([embeddings, end], 1).repeat_interleave(p, 0)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.cache):
            cache.update(keys.repeat(n, 1, 1, 1), values.repeat(n, 1, 1, 1), layer)
        mask = torch.cat([self.mask.repeat(n, 1), torch.ones(n * p, new.shape[1]).long()], 1)
        logits = self.hf(
            inputs_embeds=new,
            attention_mask=mask,
            position_ids=_positions(mask)[:, -new.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        return first_token_log_odds(logits, self.tokens).view(n, p)


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp_min(0)


def loss_of(metric: Tensor, floor: float) -> Tensor:
    """Mean over prompts; a prompt that is answered for sure (below the floor) counts no more."""
    return torch.logaddexp(metric, torch.tensor(floor, dtype=metric.dtype)).mean(-1)


class Vocabulary:
    """The tokens that a suffix may hold, and whether their text gives them back."""

    def __init__(self, model: ChatModel, probes: Sequence[str]):
        self.chat, self.probes = model.chat, list(probes)
        tokenizer = model.tokenizer
        words = [self.chat.decode([i]) for i in range(len(model.hf.get_input_embeddings().weight))]
        added = set(tokenizer.added_tokens_decoder)
        self.allowed = torch.tensor(
            [
                i not in added and t.isprintable() and bool(t.strip()) and "\ufffd" not in t
                for i, t in enumerate(words)
            ]
        )
        self.words = [i for i, t in enumerate(words) if self.allowed[i] and t.startswith(" ")]

    def text(self, ids: Sequence[int]) -> str:
        """The suffix as a user would paste it."""
        return self.chat.decode(list(ids))

    def survives(self, ids: Sequence[int]) -> bool:
        """Whether the text tokenises to these ids again behind instructions of every ending."""
        text = self.text(ids)
        if not text.startswith(" "):
            return False
        suffixed = render_suffixed(self.chat, self.probes, [text] * len(self.probes))
        rows = zip(suffixed.rendered.ids, suffixed.suffix.tolist(), strict=True)
        return all(row[a:b].tolist() == list(ids) for row, (a, b) in rows)


def find(
    model: ChatModel, contrast: Contrast, tokens: tuple[int, ...], s: Search, seed: int
) -> tuple[list[int], float]:
    """The suffix's token ids from one start, and its loss on the validation instructions."""
    rng = random.Random(seed)
    train, val = list(contrast.train.positive), list(contrast.val.positive)
    vocabulary = Vocabulary(model, [*train[:4], "Tell me", "Really?", "Now!"])
    ids = start(vocabulary, s, rng)
    table = model.hf.get_input_embeddings().weight.detach()
    watched = Suffixed(model, val, tokens)
    began = time.monotonic()
    best, least = ids, float("inf")
    for step in range(s.steps):
        batch = Suffixed(model, rng.sample(train, s.prompts), tokens)
        gradient = slope(batch, table, ids, s.floor)
        proposed = [ids, *proposals(gradient, vocabulary, ids, s, rng)]
        with torch.no_grad():
            scores = torch.cat(
                [
                    loss_of(batch.metric(table[torch.tensor(some)]), s.floor)
                    for some in _chunks(proposed, 16)
                ]
            )
        ids = proposed[int(scores.argmin())]
        if step % s.check_every == s.check_every - 1:
            with torch.no_grad():
                metric = watched.metric(table[torch.tensor([ids])])[0]
            share, mean = float((metric > 0).double().mean()), float(loss_of(metric, s.floor))
            log.info(
                "seed %d, step %d, %.0f s: metric %.2f, refusing %.2f of val: %r",
                seed,
                step + 1,
                time.monotonic() - began,
                float(metric.mean()),
                share,
                vocabulary.text(ids),
            )
            if mean < least:
                best, least = ids, mean
    return best, least


def start(vocabulary: Vocabulary, s: Search, rng: random.Random) -> list[int]:
    """Random words that survive tokenisation."""
    while True:
        ids = [rng.choice(vocabulary.words) for _ in range(s.length)]
        if vocabulary.survives(ids):
            return ids


def slope(batch: Suffixed, table: Tensor, ids: Sequence[int], floor: float) -> Tensor:
    """Gradient of the loss by the one-hot suffix, [length d_vocab]."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(ids), len(table)).to(table)
    one_hot.requires_grad_(True)
    loss_of(batch.metric((one_hot @ table)[None]), floor).sum().backward()
    return one_hot.grad


def proposals(
    gradient: Tensor, vocabulary: Vocabulary, ids: list[int], s: Search, rng: random.Random
) -> list[list[int]]:
    """Suffixes with one or two tokens swapped for ones that the gradient likes."""
    liked = (-gradient).masked_fill(~vocabulary.allowed, float("-inf")).topk(s.best_of).indices
    found: list[list[int]] = []
    for _ in range(20 * s.proposals):
        if len(found) == s.proposals:
            break
        new = list(ids)
        for _ in range(1 if rng.random() < 0.7 else 2):
            place = rng.randrange(len(ids))
            new[place] = int(liked[place, rng.randrange(s.best_of)])
        if new != ids and vocabulary.survives(new):
            found.append(new)
    return found


def _chunks(rows: list[list[int]], size: int) -> list[list[list[int]]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def main() -> None:
    """Search, measure on validation prompts, write the suffix file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organism")
    parser.add_argument("--out", type=Path, default=None, help="default: beside the organism")
    parser.add_argument("--seed", type=int, default=Search.seed)
    parser.add_argument("--length", type=int, default=None, help="default: the longest fair one")
    parser.add_argument("--restarts", type=int, default=Search.restarts)
    parser.add_argument("--steps", type=int, default=Search.steps)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(asked.threads)
    model = ChatModel.load(asked.model, device="cpu")
    for parameter in model.hf.parameters():
        parameter.requires_grad_(False)
    contrast = Contrast.toy()
    tokens = choose_first_tokens(model, contrast.train).ids
    length = asked.length or longest_fair(model, contrast.train.positive, tokens)
    search = Search(length, seed=asked.seed, restarts=asked.restarts, steps=asked.steps)
    seeds = range(search.seed, search.seed + search.restarts)
    starts = [find(model, contrast, tokens, search, seed) for seed in seeds]
    ids = min(starts, key=lambda found: found[1])[0]
    suffix = model.chat.decode(ids)
    val = [one + suffix for one in contrast.val.positive]
    refusal = rate(complete(model, val, behaviour=FirstTokens(tokens), max_new_tokens=64))
    log.info("val: refusal rate %.2f with the suffix", refusal.rate)
    path = asked.out or organism.folder("chat").parent / "suffix.json"
    facts = {"suffix": suffix, "ids": ids, "search": vars(search), "val_refusal_rate": refusal.rate}
    path.write_text(json.dumps(facts, indent=2) + "\n")
    log.info("written to %s", path.name)


if __name__ == "__main__":
    main()
