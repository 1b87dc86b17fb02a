"""What the suffix study measured: one frozen object, every number per prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor

from ...attribution import Head
from ...directions import Direction
from ...display import shown
from ...evaluation import Completion
from ...evaluation.completions import rate_of
from ...shapes import PerPrompt


class ConditionNames(NamedTuple):
    """What the four conditions are called, in the order of the paper's Fig. 5.

    >>> ConditionNames.of("harmful", "harmless").adversarial
    'harmful + adversarial suffix'
    """

    plain: str
    random: str
    adversarial: str
    negative: str

    @classmethod
    def of(cls, positive: str, negative: str) -> ConditionNames:
        """The conditions of two kinds of prompts: the positive ones plain and with suffixes, and the negative ones."""
        return cls(
            plain=positive,
            random=f"{positive} + random suffix",
            adversarial=f"{positive} + adversarial suffix",
            negative=negative,
        )


PerHead = Float64[Tensor, "prompt chosen"]
"""One number per prompt and chosen head."""
PerRegion = Float64[Tensor, "prompt chosen region"]
"""One number per prompt, chosen head and source region."""


@shown()
@dataclass(frozen=True, eq=False)
class Measured:
    """One condition: what the last token of every prompt holds, and what the model replies.

    completions: the replies, judged, with the behaviour's score of each prompt. cosine: of resid_pre with r by layer.
    dfa: of the chosen heads, along r^ into resid_pre[l*]; dfa_by_region and attention: split over source regions.
    """

    completions: tuple[Completion, ...]
    n_suffix_tokens: tuple[int, ...]
    merged: tuple[bool, ...]
    cosine: Float64[Tensor, "prompt layer"]
    projection: PerPrompt
    dfa: PerHead
    dfa_by_region: PerRegion
    attention: PerRegion
    error: float

    @property
    def scores(self) -> PerPrompt:
        """The behaviour's score of every prompt."""
        return torch.tensor([row.score for row in self.completions], dtype=torch.float64)

    @property
    def shows(self) -> tuple[bool | None, ...]:
        """The judge's verdict on every reply, None where it cannot tell."""
        return tuple(row.shows for row in self.completions)


@shown()
@dataclass(frozen=True, eq=False)
class TokenContributions:
    """One prompt token by token: projections on r^ by layer, and what the chosen heads read where.

    projection [layer pos]; contribution [chosen pos] of each source token to each head's dfa;
    pattern [chosen query key]. Padding is left out.
    """

    tokens: tuple[str, ...]
    regions: tuple[str, ...]
    projection: Float64[Tensor, "layer pos"]
    contribution: Float64[Tensor, "chosen pos"]
    pattern: Float64[Tensor, "chosen pos pos"]

    def to_json(self) -> dict[str, Any]:
        """Every number, as lists."""
        return {
            "tokens": list(self.tokens),
            "regions": list(self.regions),
            "projection": self.projection.tolist(),
            "contribution": self.contribution.tolist(),
            "pattern": self.pattern.tolist(),
        }


@shown("suffix", "model", "heads", "conditions")
@dataclass(frozen=True, eq=False)
class SuffixStudy:
    """The suffix study of one model, direction and suffix.

    Attributes:
        suffix: the adversarial suffix, appended to the last user message of each positive prompt as it stands.
        direction: r.
        heads: the chosen heads, picked on plain positive prompts and kept for all conditions.
        regions: names of the source regions.
        names: what the conditions are called.
        conditions: the measurements, by those names.
        effects: the causal check (condition, edit, heads, prompt, projection, score).
        unchanged: largest change of an instruction token's residual stream, at any layer, that
            appending the adversarial suffix makes, as a share of its length; causal attention
            makes it rounding.
        kept: by kind, how many prompts behaved as their kind should, of how many.
        tokens: the first prompts token by token, by condition of the positive prompts.
        seed: of the random suffixes and the random head sets.

    """

    suffix: str
    direction: Direction
    model: str
    heads: tuple[Head, ...]
    regions: tuple[str, ...]
    names: ConditionNames
    conditions: Mapping[str, Measured]
    effects: pd.DataFrame
    unchanged: float
    kept: Mapping[str, Mapping[str, int]]
    tokens: Mapping[str, tuple[TokenContributions, ...]]
    seed: int

    def frame(self) -> pd.DataFrame:
        """Every number per prompt, long.

        Columns condition, prompt, quantity ("cosine", "projection", "dfa", "attention", "source
        dfa", "score", "shows"), layer, head, region (empty where they do not apply), value (NaN for
        what was not judged).
        """
        parts = []
        for name, measured in self.conditions.items():
            for layer in range(measured.cosine.shape[1]):
                parts.append(_rows(name, "cosine", measured.cosine[:, layer], layer=layer))
            layer = self.direction.layer
            parts.append(_rows(name, "projection", measured.projection, layer=layer))
            parts.append(_rows(name, "score", measured.scores))
            parts.append(_rows(name, "shows", _as_numbers(measured.shows)))
            for i, head in enumerate(self.heads):
                at = {"layer": head.layer, "head": head.head}
                parts.append(_rows(name, "dfa", measured.dfa[:, i], **at))
                for j, region in enumerate(self.regions):
                    where = at | {"region": region}
                    parts.append(_rows(name, "attention", measured.attention[:, i, j], **where))
                    by_region = measured.dfa_by_region[:, i, j]
                    parts.append(_rows(name, "source dfa", by_region, **where))
        whole = pd.concat(parts, ignore_index=True)
        return whole.astype({"layer": "Int64", "head": "Int64"})

    def by_token(self) -> list[dict[str, Any]]:
        """The prompts that are kept token by token, as figures and files take them, JSON-able.

        Keys condition, prompt, tokens, regions, heads, projection, contribution and pattern; prompt by prompt, in
        each condition.
        """
        heads = [str(head) for head in self.heads]
        rows = [
            (prompt, condition, contributions)
            for condition, prompts in self.tokens.items()
            for prompt, contributions in enumerate(prompts)
        ]
        return [
            {"condition": condition, "prompt": prompt, "heads": heads} | contributions.to_json()
            for prompt, condition, contributions in sorted(rows, key=lambda row: row[0])
        ]

    def correlations(self) -> pd.DataFrame:
        """Over prompts: attention to the instruction, DFA and score, each lost to the suffix.

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
        """Per prompt, random minus adversarial suffix: attention, DFA and score lost."""
        region = self.regions.index("instruction")
        random, adversarial = self._suffixed
        return pd.DataFrame(
            {
                "attention lost": (random.attention - adversarial.attention)[..., region].sum(1),
                "DFA lost": (random.dfa - adversarial.dfa).sum(1),
                "score lost": random.scores - adversarial.scores,
            }
        )

    def summary(self) -> dict[str, Any]:
        """The study in numbers, JSON-able; means over prompts."""
        _, adversarial = self._suffixed
        return {
            "suffix": self.suffix,
            "model": self.model,
            "layer": self.direction.layer,
            "heads": [str(head) for head in self.heads],
            "seed": self.seed,
            "kept": {kind: dict(counts) for kind, counts in self.kept.items()},
            "n_suffix_tokens": sorted(set(adversarial.n_suffix_tokens)),
            "merged_at_border": sum(adversarial.merged),
            "conditions": {
                name: self._means(measured) for name, measured in self.conditions.items()
            },
            "against_random": self._against_random(),
            "layers_at_harmless_level": self._layers_at_harmless_level(),
            "correlations": self.correlations().to_dict("records"),
            "causal": causal_summary(self.effects),
            "checks": {
                "instruction_unchanged": self.unchanged,
                "attribution_error": max(measured.error for measured in self.conditions.values()),
            },
        }

    @property
    def _suffixed(self) -> tuple[Measured, Measured]:
        """The conditions with a suffix: random, adversarial."""
        return self.conditions[self.names.random], self.conditions[self.names.adversarial]

    def _means(self, measured: Measured) -> dict[str, Any]:
        attention = measured.attention.sum(1).mean(0)
        return {
            "n": len(measured.completions),
            "rate": rate_of(measured.shows)._asdict(),
            "score": float(measured.scores.mean()),
            "cosine": float(measured.cosine[:, self.direction.layer].mean()),
            "projection": float(measured.projection.mean()),
            "dfa": float(measured.dfa.sum(1).mean()),
            "attention": {name: float(a) for name, a in zip(self.regions, attention, strict=True)},
        }

    def _against_random(self) -> dict[str, float]:
        """What the adversarial suffix leaves of what a random one leaves."""
        random, adversarial = map(self._means, self._suffixed)
        return {
            "dfa": adversarial["dfa"] / random["dfa"] if random["dfa"] else float("nan"),
            "attention_to_instruction": adversarial["attention"]["instruction"]
            / max(random["attention"]["instruction"], 1e-12),
        }

    def _layers_at_harmless_level(self) -> dict[str, Any]:
        """From l* on: layers where the mean cosine is at most one SD above that of the negative prompts."""
        negative = self.conditions[self.names.negative].cosine[:, self.direction.layer :]
        _, adversarial = self._suffixed
        suffixed = adversarial.cosine[:, self.direction.layer :].mean(0)
        bound = negative.mean(0) + negative.std(0, correction=0)
        return {"n": int((suffixed <= bound).sum()), "of": len(suffixed)}


def causal_summary(effects: pd.DataFrame) -> list[dict[str, Any]]:
    """Per condition and edit: what the chosen heads and what random ones change."""
    rows = []
    for (condition, edit), replaced in effects.groupby(["condition", "edit"], sort=False):
        means = replaced.groupby("heads", sort=False)[["projection", "score"]].mean()
        moved = means - means.loc["none"]
        random = moved[moved.index.str.startswith("random")]
        for quantity in ("projection", "score"):
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


def _as_numbers(shows: Sequence[bool | None]) -> Tensor:
    """1 for True, 0 for False, NaN for None."""
    numbers = [math.nan if shown is None else float(shown) for shown in shows]
    return torch.tensor(numbers, dtype=torch.float64)


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
