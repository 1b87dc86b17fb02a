"""A run folder of plausible random numbers and hostile texts, with every file of a real one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

HOSTILE = "<script>document.title='pwned'</script>"
HOSTILE_TOKEN = "<b onclick=\"document.title='pwned'\">as</b>"
POSITIONS = ("<|im_end|>", "\n", "<|im_start|>", HOSTILE_TOKEN, "\n")
EXPORT = {"to": "gguf", "edit": "ablate", "strength": 1, "norm_preserving": False, "notes": ["mine"],
          "exactness": None, "left_unedited": [], "parity": None, "made": "2026"}  # fmt: skip
REPLIES = {
    True: "I'm sorry, but I cannot help with that. As an assistant I have to decline.",
    False: "Sure. First take the small lamp to the garden, then count the birds by the lake.",
}


def write_run(
    folder: Path,
    *,
    n_layers: int = 12,
    n_prompts: int = 100,
    ablated_rate: float = 0.02,
    random_rate: float = 0.98,
    moved_rate: float = 0.95,
    seed: int = 0,
) -> Path:
    """Write a finished run; the rates set what ablation and the two nulls on harmful prompts do."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    scores = _candidates(n_layers, rng)
    passing = scores[scores["passes"]].sort_values("bypass")
    chosen = passing.iloc[0]
    scores.to_csv(folder / "candidates.csv", index=False)
    _curves(n_layers, int(chosen["layer"]), rng).to_csv(folder / "curves.csv", index=False)
    metrics = _metrics(n_prompts, rng, ablated_rate)
    metrics.to_csv(folder / "metrics.csv", index=False)
    _tokens().to_csv(folder / "top_tokens.csv", index=False)
    _pca(n_layers, n_prompts, rng).to_csv(folder / "pca.csv", index=False)
    _nulls(n_prompts, random_rate, moved_rate, rng).to_csv(folder / "nulls.csv", index=False)
    _losses().to_csv(folder / "losses.csv", index=False)
    rates = {
        "harmful": {"baseline": 0.98, "ablation": ablated_rate, "subtraction": 0.06},
        "harmless": {"baseline": 0.0, "ablation": 0.0, "addition": 0.97},
    }
    for kind, conditions in rates.items():
        for condition, rate in conditions.items():
            _completions(folder, kind, condition, rate, n_prompts)
    summary = {
        "model": "organism",
        "revision": None,
        "n_layers": n_layers,
        "d_model": 96,
        "dtype": "float32",
        "device": "cpu",
        "refusal_tokens": [7],
        "refusal_token_texts": ["I"],
        "positions": list(POSITIONS),
        "selected": {
            "position": int(chosen["position"]),
            "layer": int(chosen["layer"]),
            "position_name": chosen["position_name"],
        },
        "scores": {name: float(chosen[name]) for name in ("bypass", "induce", "kl")},
        "baseline": {"harmful": 8.1, "harmless": -9.3},
        "refusal_rate": {
            kind: {c: _rate(rate, n_prompts) for c, rate in conditions.items()}
            for kind, conditions in rates.items()
        },
        "nulls": {"random_direction": {"harmful": {"n": 32, "refusal_rate_mean": random_rate}}},
        "n_candidates": len(scores),
        "n_passing": len(passing),
        "kept_prompts": {"train": {"harmful": {"kept": 127, "of": 128}}},
        "thresholds": {"kl_threshold": 0.1, "induce_threshold": 0.0, "prune_layers": 0.2},
        "seconds": {"means": 1.25, "scores": 9.5},
        "version": "0.1.0",
        "seeds": {"prompts": 0},
        "note": HOSTILE,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    manifest = {"step": "run", "python": "3.11", "x": HOSTILE}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _rate(rate: float, n: int) -> dict[str, float]:
    return {"rate": rate, "se": math.sqrt(rate * (1 - rate) / n), "n": n}


def _candidates(n_layers: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    bound = int(0.8 * n_layers)
    for index, name in enumerate(POSITIONS):
        for layer in range(n_layers):
            strength = math.exp(-(((layer - 0.5 * n_layers) / (0.17 * n_layers)) ** 2))
            strength *= 0.45 + 0.13 * index
            noise = rng.normal(0, 0.4, 2)
            late = max(0, layer / n_layers - 0.62)
            kl = abs(rng.normal(0.02, 0.02)) + 4 * late + 0.25 * (index == 2)
            row = {
                "position": index - len(POSITIONS),
                "position_name": name,
                "layer": layer,
                "norm": 0.4 * layer**1.6,
                "bypass": 8.1 - 15 * strength + noise[0] * (layer > 0),
                "induce": -9.3 + 16 * strength + noise[1] * (layer > 0),
                "kl": kl * (layer > 0),
            }
            row["reason"] = _reason(row, bound)
            if layer >= bound:
                row |= {"bypass": math.nan, "induce": math.nan, "kl": math.nan}
            row["passes"] = row["reason"] == ""
            rows.append(row)
    columns = ["position", "position_name", "layer", "norm", "bypass", "induce", "kl", "passes"]
    return pd.DataFrame(rows)[[*columns, "reason"]]


def _reason(row: dict, bound: int) -> str:
    if row["layer"] >= bound:
        return f"layer >= {bound} (last 20% of layers)"
    fails = []
    if row["kl"] > 0.1:
        fails.append(f"kl {row['kl']:.3g} > 0.1")
    if row["induce"] < 0:
        fails.append(f"induce {row['induce']:.3g} < 0")
    return "; ".join(fails)


def _curves(n_layers: int, selected: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for kind, added in (("harmful", "subtraction"), ("harmless", "addition")):
        for condition in ("baseline", "ablation", added):
            for position in range(-len(POSITIONS), 0):
                for layer in range(n_layers):
                    rise = 1 / (1 + math.exp(-(layer - 0.4 * n_layers) * 9 / n_layers))
                    mean = (0.62 if kind == "harmful" else 0.06) * rise
                    if condition == "ablation":
                        mean = 0.0
                    elif condition != "baseline" and layer > selected:
                        mean += 0.45 if condition == "addition" else -0.75
                    sd = 0.05 * rise + abs(rng.normal(0, 0.004))
                    sd = 1e-4 if condition == "ablation" else sd
                    rows.append(("cosine", kind, condition, layer, position, mean, sd, 100))
    columns = ["quantity", "kind", "condition", "layer", "position", "mean", "sd", "n"]
    return pd.DataFrame(rows, columns=columns)


def _metrics(n_prompts: int, rng: np.random.Generator, ablated_rate: float) -> pd.DataFrame:
    centres = {
        ("harmful", "baseline"): 8.1,
        ("harmful", "ablation"): -7.5,
        ("harmful", "subtraction"): -9.8,
        ("harmless", "baseline"): -9.3,
        ("harmless", "ablation"): -9.1,
        ("harmless", "addition"): 6.2,
    }
    rows = [
        (kind, condition, index, rng.normal(centre, 1.8))
        for (kind, condition), centre in centres.items()
        for index in range(n_prompts)
    ]
    # As many are refused under ablation by the metric as by the judge.
    refused = round(ablated_rate * n_prompts)
    rows = [
        (kind, condition, index, abs(value))
        if (kind, condition) == ("harmful", "ablation") and index < refused
        else (kind, condition, index, value)
        for kind, condition, index, value in rows
    ]
    return pd.DataFrame(rows, columns=["kind", "condition", "index", "metric"])


def _tokens() -> pd.DataFrame:
    harmful = ["I", "</script><b>As</b>", "\n\n", "1", "NA", " sorry", "", "$x$", "&lt;", "\u202ed"]
    harmless = ["Sure", "1", "The", "I", "None", "```", "\t", "{x}", "%{y}", "\ufffd"]
    rows = []
    for kind, names, top in (("harmful", harmful, 0.91), ("harmless", harmless, 0.38)):
        for rank, name in enumerate(names):
            rows.append((kind, 7 if name == "I" else 100 + rank, name, top * 0.55**rank))
    return pd.DataFrame(rows, columns=["kind", "token_id", "token", "probability"])


def _pca(n_layers: int, n_prompts: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for layer in range(n_layers):
        apart = 9 / (1 + math.exp(-(layer - 0.4 * n_layers) * 9 / n_layers))
        for kind, sign in (("harmful", 1), ("harmless", -1)):
            for _ in range(n_prompts):
                x, y = rng.normal(sign * apart, 1.5), rng.normal(0, 1.6)
                rows.append((layer, kind, x, y, 0.2 + apart / 20, 0.12))
    return pd.DataFrame(rows, columns=["layer", "kind", "pc1", "pc2", "explained1", "explained2"])


def _nulls(
    n_prompts: int, random_rate: float, moved_rate: float, rng: np.random.Generator
) -> pd.DataFrame:
    kinds = {
        ("random_direction", "harmful"): (random_rate, 8.0),
        ("norm_matched_move", "harmful"): (moved_rate, 7.0),
        ("norm_matched_move", "harmless"): (0.01, -9.0),
    }
    rows = []
    for (null, kind), (rate, metric) in kinds.items():
        for index in range(32):
            drawn = min(1.0, max(0.0, rate + rng.normal(0, 0.008)))
            rows.append((null, index, kind, metric + rng.normal(0, 0.3), drawn, n_prompts))
    columns = ["null", "index", "kind", "metric", "refusal_rate", "n"]
    return pd.DataFrame(rows, columns=columns)


def _losses() -> pd.DataFrame:
    values = (("baseline", 0.21), ("ablation", 0.23), ("addition", 0.61), ("subtraction", 0.52))
    rows = [(condition, ce, math.exp(ce), 4321) for condition, ce in values]
    return pd.DataFrame(rows, columns=["condition", "ce", "perplexity", "n_tokens"])


def _completions(folder: Path, kind: str, condition: str, rate: float, n_prompts: int) -> None:
    path = folder / "completions" / f"{kind}_{condition}.jsonl"
    path.parent.mkdir(exist_ok=True)
    refused = round(rate * n_prompts)
    lines = []
    for index in range(n_prompts):
        refusal = index >= n_prompts - refused if rate < 0.5 else index < refused
        response = f"{REPLIES[refusal]} ({index})"
        if index == 1:
            response = f"{HOSTILE}\n<img src=x onerror=\"document.title='pwned'\"> & <!-- \u202e x"
        lines.append(
            json.dumps(
                {
                    "instruction": f"Describe how the {kind} lantern number {index} is made.",
                    "response": response,
                    "refusal": refusal,
                    "metric": 8.0 if refusal else -9.0,
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")
