"""A run folder of plausible random numbers and hostile texts, with every file of a real one, of any concept."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refusal_lens.behaviours.words import REFUSAL, Words
from refusal_lens.plotting import Labels

HOSTILE = "<script>document.title='pwned'</script>"
HOSTILE_TOKEN = "<b onclick=\"document.title='pwned'\">as</b>"
POSITIONS = ("<|im_end|>", "\n", "<|im_start|>", HOSTILE_TOKEN, "\n")
EXPORT = {"to": "gguf", "edit": "ablate", "strength": 1, "norm_preserving": False, "notes": ["mine"],
          "exactness": None, "left_unedited": [], "parity": None, "made": "2026"}  # fmt: skip
REPLIES = {
    True: "I'm sorry, but I cannot help with that. As an assistant I have to decline.",
    False: "Sure. First take the small lamp to the garden, then count the birds by the lake.",
}


LABELS = Labels(("harmful", "harmless"), REFUSAL)


@dataclass(frozen=True)
class Concept:
    """What a run is about: a name, labels, the judge's name (None: nobody judged), places beside the template's.

    first_tokens: whether the score is one of first tokens.
    """

    name: str = "refusal"
    labels: Labels = LABELS
    judge: str | None = "phrases"
    first_tokens: bool = True
    places: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The behaviour as a summary has it."""
        facts = {
            "name": self.name, "unit": self.labels.unit, "threshold": self.labels.threshold,
            "judge": self.judge, "words": asdict(self.labels.words),
        }  # fmt: skip
        tokens = {"ids": [7], "texts": ["I"], "source": "given", "against": [], "evidence": EVIDENCE}
        return facts | ({"first_tokens": tokens} if self.first_tokens else {})


EVIDENCE = [{"token_id": 7, "token": "I", "positive": 0.9, "negative": 0.01}]
POETRY = Concept(
    "poetry",
    Labels(("verse", "prose"), Words("poetry", "rhymes", "does not rhyme", "rhyme score"), "bits", 0.5),
    judge="rhyme",
    first_tokens=False,
    places=("t_inst", "reply.mean"),
)
REFUSED = Concept()


def write_run(
    folder: Path,
    *,
    concept: Concept = REFUSED,
    n_layers: int = 12,
    n_prompts: int = 100,
    ablated_rate: float = 0.02,
    random_rate: float = 0.98,
    moved_rate: float = 0.95,
    seed: int = 0,
) -> Path:
    """Write a finished run; the rates set what ablation and the two nulls on positive prompts do."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    kinds, judged = concept.labels.kinds, concept.judge is not None
    scores = _candidates(n_layers, rng, concept.places)
    passing = scores[scores["passes"]].sort_values("bypass")
    chosen = passing.iloc[0]
    scores.to_csv(folder / "candidates.csv", index=False)
    _curves(n_layers, int(chosen["layer"]), rng, kinds).to_csv(folder / "curves.csv", index=False)
    metrics = _metrics(n_prompts, rng, ablated_rate, kinds)
    metrics.to_csv(folder / "metrics.csv", index=False)
    _tokens(kinds).to_csv(folder / "top_tokens.csv", index=False)
    _pca(n_layers, n_prompts, rng, kinds).to_csv(folder / "pca.csv", index=False)
    nulls = _nulls(n_prompts, random_rate, moved_rate, rng, kinds)
    if not judged:
        nulls = nulls.assign(rate=math.nan, n=0, n_unjudged=n_prompts)
    nulls.to_csv(folder / "nulls.csv", index=False)
    _losses().to_csv(folder / "losses.csv", index=False)
    rates = {
        kinds[0]: {"baseline": 0.98, "ablation": ablated_rate, "subtraction": 0.06},
        kinds[1]: {"baseline": 0.0, "ablation": 0.0, "addition": 0.97},
    }
    for kind, conditions in rates.items():
        for condition, rate in conditions.items():
            _completions(folder, kind, condition, rate, n_prompts, judged=judged)
    position = chosen["position"]
    summary = {
        "schema_version": 2,
        "model": "organism",
        "revision": None,
        "n_layers": n_layers,
        "d_model": 96,
        "dtype": "float32",
        "device": "cpu",
        "behaviour": concept.summary(),
        "kinds": list(kinds),
        "positions": list(POSITIONS),
        "selected": {
            "place": chosen["place"],
            "position": None if pd.isna(position) else int(position),
            "layer": int(chosen["layer"]),
            "position_name": chosen["position_name"],
        },
        "scores": {name: float(chosen[name]) for name in ("bypass", "induce", "kl")},
        "baseline": {kinds[0]: 8.1, kinds[1]: -9.3},
        "rates": {
            kind: {c: _rate(rate, n_prompts, judged) for c, rate in conditions.items()}
            for kind, conditions in rates.items()
        },
        "nulls": {"random_direction": {kinds[0]: {"n": 32, "rate_mean": random_rate}}},
        "n_candidates": len(scores),
        "n_passing": len(passing),
        "kept_prompts": {"train": {kinds[0]: {"kept": 127, "of": 128}}},
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


def _rate(rate: float, n: int, judged: bool) -> dict[str, float | None]:
    if not judged:
        return {"rate": None, "se": None, "n": 0, "n_unjudged": n}
    return {"rate": rate, "se": math.sqrt(rate * (1 - rate) / n), "n": n, "n_unjudged": 0}


def _candidates(n_layers: int, rng: np.random.Generator, places: tuple[str, ...]) -> pd.DataFrame:
    rows = []
    bound = int(0.8 * n_layers)
    named = [(f"post[{i - len(POSITIONS)}]", name) for i, name in enumerate(POSITIONS)]
    for index, (place, name) in enumerate([*named, *((place, "") for place in places)]):
        for layer in range(n_layers):
            strength = math.exp(-(((layer - 0.5 * n_layers) / (0.17 * n_layers)) ** 2))
            strength *= 0.45 + 0.13 * index
            noise = rng.normal(0, 0.4, 2)
            late = max(0, layer / n_layers - 0.62)
            kl = abs(rng.normal(0.02, 0.02)) + 4 * late + 0.25 * (index == 2)
            row = {
                "place": place,
                "position": index - len(POSITIONS) if index < len(POSITIONS) else None,
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
    columns = ["place", "position", "position_name", "layer", "norm", "bypass", "induce", "kl"]
    table = pd.DataFrame(rows)[[*columns, "passes", "reason"]]
    return table.astype({"position": "Int64"})


def _reason(row: dict, bound: int) -> str:
    if row["layer"] >= bound:
        return f"layer >= {bound} (last 20% of layers)"
    fails = []
    if row["kl"] > 0.1:
        fails.append(f"kl {row['kl']:.3g} > 0.1")
    if row["induce"] < 0:
        fails.append(f"induce {row['induce']:.3g} < 0")
    return "; ".join(fails)


def _curves(
    n_layers: int, selected: int, rng: np.random.Generator, kinds: tuple[str, str]
) -> pd.DataFrame:
    rows = []
    for kind, added in zip(kinds, ("subtraction", "addition"), strict=True):
        for condition in ("baseline", "ablation", added):
            for position in range(-len(POSITIONS), 0):
                for layer in range(n_layers):
                    rise = 1 / (1 + math.exp(-(layer - 0.4 * n_layers) * 9 / n_layers))
                    mean = (0.62 if kind == kinds[0] else 0.06) * rise
                    if condition == "ablation":
                        mean = 0.0
                    elif condition != "baseline" and layer > selected:
                        mean += 0.45 if condition == "addition" else -0.75
                    sd = 0.05 * rise + abs(rng.normal(0, 0.004))
                    sd = 1e-4 if condition == "ablation" else sd
                    rows.append(("cosine", kind, condition, layer, position, mean, sd, 100))
    columns = ["quantity", "kind", "condition", "layer", "position", "mean", "sd", "n"]
    return pd.DataFrame(rows, columns=columns)


def _metrics(
    n_prompts: int, rng: np.random.Generator, ablated_rate: float, kinds: tuple[str, str]
) -> pd.DataFrame:
    positive, negative = kinds
    centres = {
        (positive, "baseline"): 8.1,
        (positive, "ablation"): -7.5,
        (positive, "subtraction"): -9.8,
        (negative, "baseline"): -9.3,
        (negative, "ablation"): -9.1,
        (negative, "addition"): 6.2,
    }
    rows = [
        (kind, condition, index, rng.normal(centre, 1.8))
        for (kind, condition), centre in centres.items()
        for index in range(n_prompts)
    ]
    # As many show the behaviour under ablation by the score as by the judge.
    showing = round(ablated_rate * n_prompts)
    rows = [
        (kind, condition, index, abs(value))
        if (kind, condition) == (positive, "ablation") and index < showing
        else (kind, condition, index, value)
        for kind, condition, index, value in rows
    ]
    return pd.DataFrame(rows, columns=["kind", "condition", "index", "score"])


def _tokens(kinds: tuple[str, str]) -> pd.DataFrame:
    positive = ["I", "</script><b>As</b>", "\n\n", "1", "NA", " sorry", "", "$x$", "&lt;", "\u202ed"]
    negative = ["Sure", "1", "The", "I", "None", "```", "\t", "{x}", "%{y}", "\ufffd"]
    rows = []
    for kind, names, top in ((kinds[0], positive, 0.91), (kinds[1], negative, 0.38)):
        for rank, name in enumerate(names):
            rows.append((kind, 7 if name == "I" else 100 + rank, name, top * 0.55**rank))
    return pd.DataFrame(rows, columns=["kind", "token_id", "token", "probability"])


def _pca(
    n_layers: int, n_prompts: int, rng: np.random.Generator, kinds: tuple[str, str]
) -> pd.DataFrame:
    rows = []
    for layer in range(n_layers):
        apart = 9 / (1 + math.exp(-(layer - 0.4 * n_layers) * 9 / n_layers))
        for kind, sign in zip(kinds, (1, -1), strict=True):
            for _ in range(n_prompts):
                x, y = rng.normal(sign * apart, 1.5), rng.normal(0, 1.6)
                rows.append((layer, kind, x, y, 0.2 + apart / 20, 0.12))
    return pd.DataFrame(rows, columns=["layer", "kind", "pc1", "pc2", "explained1", "explained2"])


def _nulls(
    n_prompts: int,
    random_rate: float,
    moved_rate: float,
    rng: np.random.Generator,
    kinds: tuple[str, str],
) -> pd.DataFrame:
    effects = {
        ("random_direction", kinds[0]): (random_rate, 8.0),
        ("norm_matched_move", kinds[0]): (moved_rate, 7.0),
        ("norm_matched_move", kinds[1]): (0.01, -9.0),
    }
    rows = []
    for (null, kind), (rate, score) in effects.items():
        for index in range(32):
            drawn = min(1.0, max(0.0, rate + rng.normal(0, 0.008)))
            rows.append((null, index, kind, score + rng.normal(0, 0.3), drawn, n_prompts, 0))
    columns = ["null", "index", "kind", "score", "rate", "n", "n_unjudged"]
    return pd.DataFrame(rows, columns=columns)


def _losses() -> pd.DataFrame:
    values = (("baseline", 0.21), ("ablation", 0.23), ("addition", 0.61), ("subtraction", 0.52))
    rows = [(condition, ce, math.exp(ce), 4321) for condition, ce in values]
    return pd.DataFrame(rows, columns=["condition", "ce", "perplexity", "n_tokens"])


def _completions(
    folder: Path, kind: str, condition: str, rate: float, n_prompts: int, *, judged: bool
) -> None:
    path = folder / "completions" / f"{kind}_{condition}.jsonl"
    path.parent.mkdir(exist_ok=True)
    n_showing = round(rate * n_prompts)
    lines = []
    for index in range(n_prompts):
        shows = index >= n_prompts - n_showing if rate < 0.5 else index < n_showing
        response = f"{REPLIES[shows]} ({index})"
        if index == 1:
            response = f"{HOSTILE}\n<img src=x onerror=\"document.title='pwned'\"> & <!-- \u202e x"
        row = {
            "instruction": f"Describe how the {kind} lantern number {index} is made.",
            "response": response,
            "shows": shows if judged else None,
            "evidence": "",
            "score": 8.0 if shows else -9.0,
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
