"""Peak memory of extraction and of the sweep, each in a process of its own."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

EXTRACTION = (128, 1280)
BUDGETS = (256, 1024, 4096)


def main(asked: argparse.Namespace) -> None:
    """Print megabytes at the peak beyond the loaded model, by number of prompts and by budget."""
    print(f"{'step':<36}{'peak beyond the model':>24}")
    for n in EXTRACTION:
        print(f"{f'extraction, 2 x {n} prompts':<36}{_apart(asked, n, None):>21.0f} MB")
    for budget in BUDGETS:
        print(f"{f'sweep, {budget} tokens a pass':<36}{_apart(asked, 8, budget):>21.0f} MB")


def _apart(asked: argparse.Namespace, n: int, budget: int | None) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, asked.threads, n, budget).result()


def _measure(threads: int, n: int, budget: int | None) -> float:
    import random_models
    import torch

    from refusal_lens.activations import mean_residuals
    from refusal_lens.behaviours import FirstTokens
    from refusal_lens.chat import Place
    from refusal_lens.directions.candidates import Candidates
    from refusal_lens.directions.sweep import sweep

    if threads:
        torch.set_num_threads(threads)
    shape = random_models.SHAPES["small"]
    model = random_models.model(shape)
    sides = [random_models.prompts(n, d_vocab=shape.d_vocab, seed=seed) for seed in (1, 2)]
    mean_residuals(model, sides[0][:2])
    if budget is None:
        before = _peak()
        for side in sides:
            mean_residuals(model, side)
        return _peak() - before
    means = [mean_residuals(model, side, batch_size=1) for side in sides]
    # One position is enough: blocks of candidates come one after another.
    candidates = Candidates(means[0].mean[-2:], means[1].mean[-2:], Place.posts(2), model.chat.positions[-2:])
    val = [random_models.prompts(32, d_vocab=shape.d_vocab, seed=seed) for seed in (3, 4)]
    before = _peak()
    asked = {"positive": val[0], "negative": val[1], "behaviour": FirstTokens((7, 8))}
    sweep(model, candidates, budget=budget, **asked)
    return _peak() - before


def _peak() -> float:
    """Megabytes of resident memory at the peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
