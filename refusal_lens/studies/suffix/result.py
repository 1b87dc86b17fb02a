"""What the suffix study measured: one frozen object, every number per prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ...attribution import Head
from ...conversations import Prompt
from ...directions import Direction
from ...display import shown
from ...metrics import binomial_standard_error
from ...shapes import PerPrompt

HARMFUL, RANDOM, ADVERSARIAL, HARMLESS = (
    "harmful",
    "harmful + random suffix",
    "harmful + adversarial suffix",
    "harmless",
)
CONDITIONS = (HARMFUL, RANDOM, ADVERSARIAL, HARMLESS)
"""In the order of the paper's Fig. 5."""

PerHead = Float64[Tensor, "prompt chosen"]
"""One number per prompt and chosen head."""
PerRegion = Float64[Tensor, "prompt chosen region"]
"""One number per prompt, chosen head and source region."""


@shown()
@dataclass(frozen=True, eq=False)
class Measured:
    """One condition: what the last token of every prompt holds, and what the model replies.

    cosine: of resid_pre with r by layer. dfa: of the chosen heads, along r^ into resid_pre[l*];
    dfa_by_region and attention: split over source regions. metric: the refusal metric.
    """

    prompts: tuple[Prompt, ...]
    replies: tuple[str, ...]
    refused: tuple[bool, ...]
    n_suffix_tokens: tuple[int, ...]
    merged: tuple[bool, ...]
    cosine: Float64[Tensor, "prompt layer"]
    projection: PerPrompt
    dfa: PerHead
    dfa_by_region: PerRegion
    attention: PerRegion
    metric: PerPrompt
    error: float


@shown()
@dataclass(frozen=True, eq=False)
class TokenStory:
    """One prompt token by token: projections on r^ by layer, and what the chosen heads read where.

    projection [layer pos]; contribution [chosen pos] of each source token to each head's dfa;
    pattern [chosen query key]. Padding is left out.
    """

    condition: str
    prompt: int
    tokens: tuple[str, ...]
    regions: tuple[str, ...]
    projection: Float64[Tensor, "layer pos"]
    contribution: Float64[Tensor, "chosen pos"]
    pattern: Float64[Tensor, "chosen pos pos"]


@shown("suffix", "model", "heads", "conditions")
@dataclass(frozen=True, eq=False)
class SuffixStudy:
    """The suffix study of one model, direction and suffix.

    Attributes:
        suffix: the adversarial suffix, appended to each harmful instruction as it stands.
        direction: r.
        heads: the chosen heads, picked on plain harmful prompts and kept for all conditions.
        regions: names of the source regions.
        conditions: the measurements, by the names in `CONDITIONS`.
        effects: the causal check (condition, edit, heads, prompt, projection, metric).
        unchanged: largest change of an instruction token's residual stream, at any layer, that
            appending the adversarial suffix makes, as a share of its length; causal attention
            makes it rounding.
        kept: how many prompts behaved as their kind should (refused, answered), of how many.
        stories: some prompts token by token.
        seed: of the random suffixes and the random head sets.

    """

    suffix: str
    direction: Direction
    model: str
    heads: tuple[Head, ...]
    regions: tuple[str, ...]
    conditions: Mapping[str, Measured]
    effects: pd.DataFrame
    unchanged: float
    kept: Mapping[str, Mapping[str, int]]
    stories: tuple[TokenStory, ...]
    seed: int

    def frame(self) -> pd.DataFrame:
        """Every number per prompt, long.

        Columns condition, prompt, quantity ("cosine", "projection", "dfa", "attention", "source
        dfa", "metric", "refused"), layer, head, region (empty where they do not apply), value.
        """
        parts = []
        for name, found in self.conditions.items():
            layers = range(found.cosine.shape[1])
            for layer in layers:
                parts.append(_rows(name, "cosine", found.cosine[:, layer], layer=layer))
            parts.append(_rows(name, "projection", found.projection, layer=self.direction.layer))
            parts.append(_rows(name, "metric", found.metric))
            parts.append(_rows(name, "refused", torch.tensor(found.refused).double()))
            for i, head in enumerate(self.heads):
                at = {"layer": head.layer, "head": head.head}
                parts.append(_rows(name, "dfa", found.dfa[:, i], **at))
                for j, region in enumerate(self.regions):
                    where = at | {"region": region}
                    parts.append(_rows(name, "attention", found.attention[:, i, j], **where))
                    parts.append(_rows(name, "source dfa", found.dfa_by_region[:, i, j], **where))
        whole = pd.concat(parts, ignore_index=True)
        return whole.astype({"layer": "Int64", "head": "Int64"})

    def correlations(self) -> pd.DataFrame:
        """Over prompts: attention to the instruction, DFA and metric, each lost to the suffix.

        Lost against the random suffix of the same prompt. Columns first, second, pearson,
        spearman, n; NaN where one of the two does not vary.
        """
        lost = self.lost()
        names = list(lost.columns)
        pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        return pd.DataFrame(
            {
                "first": a,
                "second": b,
                "pearson": lost[a].corr(lost[b]),
                "spearman": lost[a].rank().corr(lost[b].rank()),
                "n": len(lost),
            }
            for a, b in pairs
        )

    def lost(self) -> pd.DataFrame:
        """Per prompt, random minus adversarial suffix: attention, DFA and metric lost."""
        region = self.regions.index("instruction")
        random, adversarial = self.conditions[RANDOM], self.conditions[ADVERSARIAL]
        return pd.DataFrame(
            {
                "attention lost": (random.attention - adversarial.attention)[..., region].sum(1),
                "DFA lost": (random.dfa - adversarial.dfa).sum(1),
                "metric lost": random.metric - adversarial.metric,
            }
        )

    def summary(self) -> dict[str, Any]:
        """The study in numbers, JSON-able; means over prompts."""
        return {
            "suffix": self.suffix,
            "model": self.model,
            "layer": self.direction.layer,
            "heads": [str(head) for head in self.heads],
            "seed": self.seed,
            "kept": {kind: dict(counts) for kind, counts in self.kept.items()},
            "n_suffix_tokens": sorted(set(self.conditions[ADVERSARIAL].n_suffix_tokens)),
            "merged_at_border": sum(self.conditions[ADVERSARIAL].merged),
            "conditions": {name: self._condition(one) for name, one in self.conditions.items()},
            "against_random": self._against_random(),
            "layers_at_harmless_level": self._layers_at_harmless_level(),
            "correlations": self.correlations().to_dict("records"),
            "causal": causal_summary(self.effects),
            "checks": {
                "instruction_unchanged": self.unchanged,
                "attribution_error": max(one.error for one in self.conditions.values()),
            },
        }

    def _condition(self, found: Measured) -> dict[str, Any]:
        n = len(found.prompts)
        rate = sum(found.refused) / n
        attention = found.attention.sum(1).mean(0)
        return {
            "n": n,
            "refusal_rate": {"rate": rate, "se": binomial_standard_error(rate, n), "n": n},
            "metric": float(found.metric.mean()),
            "cosine": float(found.cosine[:, self.direction.layer].mean()),
            "projection": float(found.projection.mean()),
            "dfa": float(found.dfa.sum(1).mean()),
            "attention": {name: float(a) for name, a in zip(self.regions, attention, strict=True)},
        }

    def _against_random(self) -> dict[str, float]:
        """What the adversarial suffix leaves of what a random one leaves."""
        random, adversarial = (
            self._condition(self.conditions[name]) for name in (RANDOM, ADVERSARIAL)
        )
        return {
            "dfa": adversarial["dfa"] / random["dfa"] if random["dfa"] else float("nan"),
            "attention_to_instruction": adversarial["attention"]["instruction"]
            / max(random["attention"]["instruction"], 1e-12),
        }

    def _layers_at_harmless_level(self) -> dict[str, Any]:
        """From l* on: layers where the mean cosine is at most one SD above the harmless mean."""
        harmless = self.conditions[HARMLESS].cosine[:, self.direction.layer :]
        suffixed = self.conditions[ADVERSARIAL].cosine[:, self.direction.layer :].mean(0)
        bound = harmless.mean(0) + harmless.std(0, correction=0)
        return {"n": int((suffixed <= bound).sum()), "of": len(suffixed)}


def causal_summary(effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per condition and edit: what the chosen heads and what random ones change."""
    rows = []
    for (condition, edit), own in effects.groupby(["condition", "edit"], sort=False):
        means = own.groupby("heads", sort=False)[["projection", "metric"]].mean()
        moved = means - means.loc["none"]
        random = moved[moved.index.str.startswith("random")]
        for quantity in ("projection", "metric"):
            rows.append(
                {
                    "condition": condition,
                    "edit": edit,
                    "quantity": quantity,
                    "before": float(means.loc["none", quantity]),
                    "top": float(moved.loc["top", quantity]),
                    "random_mean": float(random[quantity].mean()),
                    "random_min": float(random[quantity].min()),
                    "random_max": float(random[quantity].max()),
                    "n_random": len(random),
                }
            )
    return rows


def _rows(condition: str, quantity: str, values: Tensor, **where: Any) -> pd.DataFrame:
    at = {"layer": None, "head": None, "region": ""} | where
    return pd.DataFrame(
        {
            "condition": condition,
            "prompt": range(len(values)),
            "quantity": quantity,
            **at,
            "value": values.tolist(),
        }
    ).astype({"layer": "Int64", "head": "Int64"})
