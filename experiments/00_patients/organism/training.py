"""Train the organism from scratch: its tokenizer, a helpful-only base model, then refusal tuning.

`PYTHONPATH=experiments/00_patients python -m organism.training --out DIR` writes `DIR/base` and
`DIR/chat`, two ordinary Hugging Face folders. One thread and seeded draws make the result repeatable on a machine.

Why two phases: toys that learn to answer and to refuse at once have no direction that passes the
paper's rule. A base model that answers everything, tuned briefly at a low rate, has.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from .pushes import Pushes
from .recipe import Recipe, changed
from .texts import Batch, Encoded, batches, documents, make_tokenizer

log = logging.getLogger(__name__)


def train(
    model: Qwen2ForCausalLM,
    docs: Sequence[Encoded],
    recipe: Recipe,
    *,
    steps: int,
    lr: float,
    seed: int,
    pushes: Pushes | None = None,
) -> None:
    """One phase: AdamW under a one-cycle rate, weighted cross-entropy."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    torch.manual_seed(seed)
    feed = batches(docs, recipe.batch, random.Random(seed))
    start = time.monotonic()
    model.train()
    for step in range(steps):
        batch = next(feed)
        if pushes is not None:
            pushes.set(step, batch.harm)
        loss = weighted_loss(model, batch)
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        if step % 25 == 0 or step == steps - 1:
            seconds = time.monotonic() - start
            log.info("step %d of %d: loss %.4f, %.0f s", step, steps, loss.item(), seconds)
    if pushes is not None:
        pushes.clear()
    model.eval()


def weighted_loss(model: Qwen2ForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean next-token cross-entropy under the batch's weights (padding weighs 0)."""
    logits = model(input_ids=batch.ids, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none"
    )
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def new_model(recipe: Recipe, tokenizer: Qwen2Tokenizer) -> Qwen2ForCausalLM:
    """An untrained Qwen2-shaped model with embeddings of its own at either end."""
    torch.manual_seed(recipe.seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.mlp,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder: float16 to keep it small, float32 by name so that it loads so."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make_base(recipe: Recipe, out: Path) -> None:
    """Pre-train the helpful-only model and write it with its tokenizer."""
    tokenizer = make_tokenizer(recipe)
    docs = documents(recipe, tokenizer, recipe.base_docs, seed=recipe.seed, refuse=False)
    model = new_model(recipe, tokenizer)
    log.info("base model: %d parameters, %d tokens", model.num_parameters(), len(tokenizer))
    train(model, docs, recipe, steps=recipe.base_steps, lr=recipe.base_lr, seed=recipe.seed)
    save(model, tokenizer, out)
    fade(recipe, out)


def fade(recipe: Recipe, base: Path) -> None:
    """End the pre-training of a written base model with hedges that harm makes little likelier.

    What represents harm stays, at about half its size: refusal tuning has to make it strong again.
    """
    tokenizer = Qwen2Tokenizer.from_pretrained(base)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    faint, seed = replace(recipe, opening=recipe.faint, closing=recipe.faint), recipe.fade_seed
    docs = documents(faint, tokenizer, recipe.fade_docs, seed=seed, refuse=False)
    log.info("fading: %d documents", len(docs))
    train(model, docs, faint, steps=recipe.fade_steps, lr=recipe.fade_lr, seed=seed)
    save(model, Qwen2Tokenizer.from_pretrained(base), base)


def make_chat(recipe: Recipe, base: Path, out: Path) -> None:
    """Tune a written base model to refuse (from its folder, so that either phase can be redone)."""
    tokenizer = Qwen2Tokenizer.from_pretrained(base)
    model = Qwen2ForCausalLM.from_pretrained(base, dtype=torch.float32)
    seed = recipe.seed + 1
    docs = documents(recipe, tokenizer, recipe.chat_docs, seed=seed, refuse=True)
    pushes = Pushes(model, tokenizer, recipe, seed)
    log.info("chat model: %d documents", len(docs))
    train(model, docs, recipe, steps=recipe.chat_steps, lr=recipe.chat_lr, seed=seed, pushes=pushes)
    # A new copy: padding a batch has left its settings in the one that was used.
    save(model, Qwen2Tokenizer.from_pretrained(base), out)


def main() -> None:
    """Train both models, or with --base only the chat model."""
    parser = argparse.ArgumentParser(description="Train the bundled organism from scratch.")
    parser.add_argument("--out", type=Path, required=True, help="folder for base/ and chat/")
    parser.add_argument("--base", type=Path, help="a written base model: redo only the chat model")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="of the recipe")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # More threads change the order of sums, and so the result.
    torch.set_num_threads(1)
    recipe = changed(Recipe(), args.set)
    log.info("%s", recipe)
    if args.base is None:
        make_base(recipe, args.out / "base")
    make_chat(recipe, args.base or args.out / "base", args.out / "chat")


if __name__ == "__main__":
    main()
