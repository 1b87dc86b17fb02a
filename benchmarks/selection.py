"""Selecting a direction: the published algorithm against this project's engine.

    python benchmarks/selection.py [--model small small-system organism] [--repeats 5] [--threads 1]
    python benchmarks/selection.py --model 1.8b 7b --device cuda --dtype bfloat16
    python benchmarks/selection.py --lazy-table ../shared/published-runs
    python benchmarks/selection.py --memory

The published algorithm, `exhaustive` and `lazy` take turns in one process, on the same Hugging Face
model, prompts, dtype and threads, and the medians are compared. One turn of the published algorithm
scores the candidates of one position (its cost does not depend on the candidate) and counts as many
times as there are positions; over as many turns every score is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import published
import random_models
import torch

from refusal_lens.activations import mean_residuals
from refusal_lens.behaviours import FirstTokens, choose_first_tokens
from refusal_lens.chat import Place, Rendered
from refusal_lens.directions import NoCandidateError, Thresholds, select
from refusal_lens.directions.candidates import Candidates
from refusal_lens.directions.finding import extract_candidates, filter_by_behaviour
from refusal_lens.directions.sweep import Stats, Sweep, sweep
from refusal_lens.interventions import ZERO_NORM
from refusal_lens.model import ChatModel
from refusal_lens.model.plain import PlainModel
from refusal_lens.prompts import Contrast

SYSTEM_TOKENS = 140
PASSING = 0.22
"""Share of the admissible candidates that pass the induce test: on the published runs it is 0.20,
0.20 and 0.44. A random model has no refusal to induce, so the threshold is set to where this share
passes, and the KL threshold to where half of those pass."""
N_REFUSAL = 3
POSITIONS = 5
N_VAL = 32


@dataclass(frozen=True)
class Setting:
    """What is scored: a model, candidates, prompts, behaviour, and (known later) the rule."""

    model: ChatModel
    candidates: Candidates
    positive: Rendered
    negative: Rendered
    behaviour: FirstTokens
    rule: Thresholds | None


@dataclass
class Turns:
    """What the turns found: seconds by way, and the matrix-multiply rates between them."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    rates: list[float] = field(default_factory=list)
    stats: dict[str, Stats] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    eta: dict[str, list[float]] = field(default_factory=dict)
    published: dict[tuple[int, int], tuple[float, float, float]] = field(default_factory=dict)


def main() -> None:
    """Measure what is asked for and print it."""
    asked = _arguments()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    if asked.lazy_table:
        return lazy_table(asked.lazy_table)
    if asked.memory:
        import selection_memory

        return selection_memory.main(asked)
    found = {}
    for name in asked.model:
        setting = make(name, asked)
        turns = take_turns(setting, asked)
        found[name] = report(name, setting, turns, asked)
    if asked.json:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()}
        asked.json.write_text(json.dumps({"settings": settings, "models": found}, indent=2) + "\n")
    return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["organism", *random_models.SHAPES, *(f"{n}-system" for n in random_models.SHAPES)]
    parser.add_argument("--model", nargs="+", choices=names, default=["small", "small-system"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--budget", type=int, default=None)
    parser.add_argument("--positions", type=int, default=POSITIONS)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--lazy-table", type=Path, default=None)
    parser.add_argument("--memory", action="store_true")
    return parser.parse_args()


# ------------------------------------------------------------------ what is scored


def make(name: str, asked: argparse.Namespace) -> Setting:
    """The organism with its own selection step, or a random model with random prompts."""
    if name == "organism":
        return _organism(asked)
    shape = random_models.SHAPES[name.removesuffix("-system")]
    model = random_models.model(
        shape,
        system_tokens=SYSTEM_TOKENS if name.endswith("-system") else 0,
        device=asked.device,
        dtype=getattr(torch, asked.dtype),
    )
    sets = [random_models.prompts(N_VAL, d_vocab=shape.d_vocab, seed=seed) for seed in (1, 2)]
    means = [mean_residuals(model, one) for one in sets]
    kept = slice(-asked.positions, None)
    candidates = Candidates(
        means[0].mean[kept], means[1].mean[kept], Place.posts(asked.positions), tuple(model.chat.positions[kept])
    )
    rendered = [model.chat.render(one) for one in sets]
    return Setting(model, candidates, *rendered, promoted(model, candidates), None)


def promoted(model: ChatModel, candidates: Candidates) -> FirstTokens:
    """Refusal tokens for a random model: those that the candidates promote most when added."""
    live = candidates.mean_diffs[:, 1:].flatten(0, 1)
    mean = (live / live.norm(dim=-1, keepdim=True)).mean(0)
    with torch.no_grad():
        head = model.hf.get_output_embeddings().weight
        return FirstTokens(tuple((head.double().cpu() @ mean).topk(N_REFUSAL).indices.tolist()))


def _organism(asked: argparse.Namespace) -> Setting:
    model = ChatModel.load("organism", device=asked.device, dtype=asked.dtype)
    contrast = Contrast.toy()
    behaviour = choose_first_tokens(model, contrast.train)
    kept = [
        filter_by_behaviour(model, pair, behaviour=behaviour).require_enough(split).pair
        for split, pair in (("train", contrast.train), ("val", contrast.val))
    ]
    candidates = extract_candidates(model, kept[0], data_sha256=contrast.sha256)
    rendered = [model.chat.render(list(one)) for one in (kept[1].positive, kept[1].negative)]
    return Setting(model, candidates, rendered[0], rendered[1], behaviour, Thresholds())


def rule_for(setting: Setting, table: pd.DataFrame) -> Thresholds:
    """The setting's own rule, or thresholds that a share of the candidates passes."""
    if setting.rule is not None:
        return setting.rule
    inside = table[table["layer"] < Thresholds().layer_bound(setting.model.n_layers)]
    inside = inside[inside["norm"] > ZERO_NORM]
    induce = _between(inside["induce"], 1 - PASSING)
    kl = _between(inside[inside["induce"] >= induce]["kl"], 0.5)
    return Thresholds(kl_threshold=kl, induce_threshold=induce)


def _between(scores: pd.Series, share: float) -> float:
    """A threshold midway between two scores: on one, rounding would decide whether it passes."""
    ranked = scores.sort_values().to_list()
    above = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    return float(ranked[above - 1] + ranked[above]) / 2


# ------------------------------------------------------------------ turns


def take_turns(setting: Setting, asked: argparse.Namespace) -> Turns:
    """Let the three ways take turns, and measure the machine's matrix multiplication in between."""
    turns = Turns()
    rule: Thresholds | None = None
    clock = _clock(asked)
    for turn in range(asked.repeats):
        turns.rates.append(matmul_rate(setting.model, clock))
        position = turn % asked.positions - asked.positions
        seconds = _timed(clock, lambda p=position: _published(setting, turns, p))
        turns.seconds.setdefault("published", []).append(seconds * asked.positions)
        _ours(setting, turns, "exhaustive", None, asked)
        rule = rule or rule_for(setting, turns.tables["exhaustive"])
        _ours(setting, turns, "lazy", rule, asked)
    turns.tables["rule"] = pd.DataFrame([asdict(rule or Thresholds())])
    return turns


def _clock(asked: argparse.Namespace) -> Callable[[], float]:
    """Wall time, or processor time, which repeats on a machine that others use too."""
    read = time.process_time if asked.clock == "cpu" else time.perf_counter

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return read()

    return now


def _timed(clock: Callable[[], float], do: Callable[[], Any]) -> float:
    start = clock()
    do()
    return clock() - start


def _published(setting: Setting, turns: Turns, position: int) -> None:
    plain = PlainModel(setting.model)
    layers = range(setting.candidates.n_layers)
    device = setting.model.device
    sides = [(r.ids.to(device), r.mask.to(device)) for r in (setting.positive, setting.negative)]
    with torch.no_grad(), plain.opened("sdpa"):
        turns.published |= published.scores(
            setting.model.hf,
            setting.candidates.mean_diffs.to(device),
            *sides,
            setting.behaviour.ids,
            only=[(position, layer) for layer in layers],
        )


def _ours(
    setting: Setting, turns: Turns, mode: str, rule: Thresholds | None, asked: argparse.Namespace
) -> None:
    clock = _clock(asked)
    said: list[tuple[float, int, int]] = []
    found: list[Sweep] = []

    def run() -> None:
        found.append(
            sweep(
                setting.model,
                setting.candidates,
                positive=setting.positive,
                negative=setting.negative,
                behaviour=setting.behaviour,
                mode=mode,
                rule=rule,
                budget=asked.budget,
                on_progress=lambda _, done, total: said.append((clock(), done, total)),
            )
        )

    turns.seconds.setdefault(mode, []).append(_timed(clock, run))
    turns.stats[mode], turns.tables[mode] = found[0].stats, found[0].table
    turns.eta.setdefault(mode, []).append(_eta(said))


def _eta(said: list[tuple[float, int, int]]) -> float:
    """Expected over true time left, at the first report after a tenth of the work."""
    start, end = said[0][0], said[-1][0]
    for now, done, total in said:
        if done >= total / 10 and now < end:
            return (now - start) / done * (total - done) / (end - now)
    return 1.0


def matmul_rate(model: ChatModel, clock: Callable[[], float]) -> float:
    """Multiply-adds times two per second of the best of a few matrix shapes, in the model's dtype."""
    best = 0.0
    big = model.device.type == "cuda"
    for m, k, n in ((8192, 8192, 8192),) if big else ((1536, 1536, 1536), (1024, 384, 1024)):
        a = torch.randn(m, k, device=model.device, dtype=model.dtype)
        b = torch.randn(k, n, device=model.device, dtype=model.dtype)
        times = 20 if big else max(3, int(2e10 / (2 * m * k * n)))
        a @ b

        def run(a: torch.Tensor = a, b: torch.Tensor = b, times: int = times) -> None:
            for _ in range(times):
                a @ b

        best = max(best, times * 2 * m * k * n / _timed(clock, run))
    return best


# ------------------------------------------------------------------ what is printed


def report(name: str, setting: Setting, turns: Turns, asked: argparse.Namespace) -> dict[str, Any]:
    """Print a model's table and return its numbers."""
    median = {way: statistics.median(seconds) for way, seconds in turns.seconds.items()}
    ratio = {
        way: statistics.median(
            p / s for p, s in zip(turns.seconds["published"], turns.seconds[way], strict=True)
        )
        for way in turns.seconds
    }
    rate = statistics.median(turns.rates)
    work = {
        way: _work(setting, stats.block_tokens, stats.unembedded)
        for way, stats in turns.stats.items()
    }
    work["published"] = _work(setting, *_published_counts(setting))
    passes = {way: stats.passes for way, stats in turns.stats.items()}
    passes["published"] = _published_passes(setting)
    size, path = turns.stats["exhaustive"].size, turns.stats["exhaustive"].path
    print(
        f"\n{name}: {len(setting.candidates.index())} candidates, {path}, {size.tokens} tokens a pass"
    )
    print(
        f"{'':<12}{'seconds':>9}{'faster':>8}{'passes':>8}{'block tokens':>14}{'of matmul rate':>16}"
    )
    for way in ("published", "exhaustive", "lazy"):
        blocks = (
            _published_counts(setting)[0] if way == "published" else turns.stats[way].block_tokens
        )
        share = work[way] / median[way] / rate
        print(
            f"{way:<12}{median[way]:>9.2f}{ratio[way]:>7.1f}x{passes[way]:>8}{blocks:>14,}{share:>16.0%}"
        )
    gap, same = _agreement(setting, turns)
    inside, passing, n_kl = _lazy_counts(setting, turns)
    trial = {mode: round(stats.trial_seconds, 2) for mode, stats in turns.stats.items()}
    print(f"seconds of these for choosing path and pass size (wall): {trial}")
    print(
        f"largest difference in any score: {gap:.1e}, over {len(turns.published)} of "
        f"{len(turns.tables['exhaustive'])} candidates; the same selection: {same}"
    )
    print(
        f"lazy: {passing} of {inside} admissible pass the induce test, {n_kl} KL scores; "
        f"evaluations {turns.stats['lazy'].evaluations}"
    )
    eta = {mode: statistics.median(values) for mode, values in turns.eta.items()}
    print(
        "time left as expected after a tenth, over the true one: "
        + ", ".join(f"{mode} {value:.2f}" for mode, value in eta.items())
    )
    print(
        f"matrix multiplication: {rate / 1e9:.0f} GFLOP/s; {asked.clock} time, "
        f"{torch.get_num_threads()} threads, {asked.dtype}, {asked.device}"
    )
    return {
        "seconds": turns.seconds,
        "median": median,
        "faster": ratio,
        "passes": passes,
        "share_of_matmul": {w: work[w] / median[w] / rate for w in work},
        "gap": gap,
        "same": same,
        "eta": turns.eta,
        "size": asdict(size),
        "matmul": turns.rates,
    }


def _work(setting: Setting, block_tokens: int, unembedded: int) -> float:
    """Floating-point operations in the linear layers alone; attention and norms come on top."""
    blocks = setting.model.bridge.blocks
    weights = [p for p in blocks.parameters() if p.dim() == 2]
    per_token = 2 * sum(p.numel() for p in {id(p): p for p in weights}.values()) / len(blocks)
    head = 2 * setting.model.d_vocab * setting.model.d_model
    return block_tokens * per_token + unembedded * head


def _published_counts(setting: Setting) -> tuple[int, int]:
    """Block tokens and unembedded rows of the published algorithm, padding included."""
    tokens = 0
    for side, times in ((setting.positive, 1), (setting.negative, 2)):
        for mask in side.mask.split(published.BATCH):
            tokens += times * len(mask) * int(mask.sum(1).max())
    n = len(setting.candidates.index())
    return n * tokens * setting.model.n_layers, n * tokens


def _published_passes(setting: Setting) -> int:
    sides = (setting.positive, setting.negative, setting.negative)
    batches = sum(-(-len(side) // published.BATCH) for side in sides)
    return len(setting.candidates.index()) * batches


def _agreement(setting: Setting, turns: Turns) -> tuple[float, bool]:
    """The largest difference from the published algorithm's scores, and whether all ways agree."""
    ours = turns.tables["exhaustive"].set_index(["position", "layer"])
    rows = [(*index, *scores) for index, scores in turns.published.items()]
    names = ["bypass", "induce", "kl"]
    theirs = pd.DataFrame(rows, columns=["position", "layer", *names]).sort_values(
        ["position", "layer"]
    )
    other = theirs.set_index(["position", "layer"])
    gap = float((ours.loc[other.index, names] - other).abs().to_numpy().max())
    limits = turns.tables["rule"].iloc[0].to_dict()
    tables = [turns.tables["exhaustive"], turns.tables["lazy"]]
    if len(theirs) == len(ours):
        tables.append(theirs)
    return gap, len({_chosen(table, setting.model.n_layers, limits) for table in tables}) == 1


def _chosen(table: pd.DataFrame, n_layers: int, limits: dict[str, float]) -> Any:
    try:
        selection = select(table, n_layers, Thresholds(**limits))
    except NoCandidateError:
        return None
    return selection.position, selection.layer


def _lazy_counts(setting: Setting, turns: Turns) -> tuple[int, int, int]:
    limits = turns.tables["rule"].iloc[0]
    table = turns.tables["exhaustive"]
    bound = Thresholds(prune_layers=limits["prune_layers"]).layer_bound(setting.model.n_layers)
    inside = table[table["layer"] < bound]
    passing = int((inside["induce"] >= limits["induce_threshold"]).sum())
    return len(inside), passing, turns.stats["lazy"].evaluations.get("kl", 0)


def lazy_table(folder: Path) -> None:
    """How many evaluations `lazy` needs on published runs, replaying their scores."""
    print(
        f"{'run':<28}{'admissible':>11}{'pass induce':>12}{'induce':>8}{'bypass':>8}{'kl':>5}"
        f"{'in all':>8}{'published':>11}{'fewer':>7}{'fewer blocks':>14}"
    )
    for run in sorted(folder.iterdir()):
        file = run / "select_direction" / "direction_evaluations.json"
        if file.exists():
            _lazy_row(run.name, json.loads(file.read_text()))


def _lazy_row(name: str, rows: list[dict[str, Any]]) -> None:
    n_layers = max(row["layer"] for row in rows) + 1
    bound = Thresholds().layer_bound(n_layers)
    inside = [row for row in rows if row["layer"] < bound]
    # Template tokens are the same in all prompts, so layer 0 holds rounding noise that needs no pass.
    scored = [row for row in inside if row["layer"] > 0]
    passing = [row for row in inside if row["steering_score"] >= 0]
    passing.sort(key=lambda row: (row["refusal_score"], row["position"], row["layer"]))
    fine = [i for i, row in enumerate(passing) if row["kl_div_score"] <= Thresholds().kl_threshold]
    n_kl = fine[0] + 1
    asked = len(scored) + len(passing) + n_kl
    blocks = sum(n_layers - row["layer"] for row in scored) / n_layers + len(passing) + n_kl
    print(
        f"{name:<28}{len(inside):>11}{len(passing) / len(inside):>12.0%}{len(scored):>8}"
        f"{len(passing):>8}{n_kl:>5}{asked:>8}{3 * len(rows):>11}{3 * len(rows) / asked:>6.1f}x"
        f"{3 * len(rows) / blocks:>13.1f}x"
    )


if __name__ == "__main__":
    main()
