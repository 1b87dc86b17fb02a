"""What a reviewer of a run would object to: conditions that its numbers meet, each in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ..behaviours import Words
from ..directions import Thresholds
from ..display import shown
from ..evaluation.conditions import condition_text
from ..judges import disagreement
from ..plotting.labels import capital
from .summary import Completions, Row

Flag = dict[str, str]
"""{"name": ..., "text": ...}: a short name that stays, and a sentence with the numbers."""

DISAGREEMENT = 0.1
"""Share of prompts on which score and judge may disagree."""
KEPT = 0.5
"""Share of a split's prompts that should behave as their kind does."""
STILL = 0.05
"""Mean cosine with r that rounding may leave under ablation."""
EMPTY = 0.1
"""Share of replies that may be empty: no judge sees the behaviour in those."""
UNJUDGED = 0.1
"""Share of replies on which the judge may give no verdict."""
DAMAGE = 1.0
"""Cross-entropy, in nats per token, that ablation may cost on the model's own replies."""
RATIO = 5.0
"""How many times likelier the behaviour's first tokens should be on the positive prompts."""
COVERED = 0.5
"""Share of the first-token probability that those tokens should hold where the reply shows the behaviour."""


@shown("kinds", "missed_writes")
@dataclass(frozen=True)
class Measured:
    """What flags are found in: a run's summary, its completions, its curves.

    curves: curves.csv, None where there are none. missed_writes: what ablation by hooks is known to miss in
    this model, "" for nothing.
    """

    summary: Mapping[str, Any]
    completions: Completions
    curves: pd.DataFrame | None = None
    missed_writes: str = ""

    @property
    def kinds(self) -> tuple[str, str]:
        """The positive and the negative kind of prompts."""
        positive, negative = self.summary["kinds"]
        return positive, negative

    @property
    def behaviour(self) -> Mapping[str, Any]:
        """What the summary says of the behaviour."""
        behaviour: Mapping[str, Any] = self.summary["behaviour"]
        return behaviour

    @property
    def words(self) -> Words:
        """The behaviour's words."""
        return Words(**self.behaviour["words"])

    @property
    def threshold(self) -> float:
        """The score above which a prompt shows the behaviour."""
        return float(self.behaviour["threshold"])


def find_flags(measured: Measured) -> list[Flag]:
    """Every objection to a run that its numbers support, the gravest first."""
    texts = {
        "hooks_miss_a_write": measured.missed_writes or _left_by_ablation(measured.curves),
        "replies_unjudged": _unjudged(measured),
        "score_and_judge": _score_and_judge(measured),
        "judge_and_paper_count": _paper_count(measured),
        "empty_replies": _empty_replies(measured),
        "ablation_damages": _damage(measured),
        "weak_first_tokens": _weak_first_tokens(measured),
        "kept_few_prompts": _kept_few(measured),
        "layer_at_the_edge": _layer_at_the_edge(measured),
        "scored_lazily": _scored_lazily(measured),
    }
    return [{"name": name, "text": text} for name, text in texts.items() if text]


def _unjudged(measured: Measured) -> str:
    """Replies without a verdict, where there is a judge."""
    if measured.behaviour.get("judge") is None:
        return ""
    parts = []
    for (kind, condition), rows in measured.completions.items():
        n = sum(row["shows"] is None for row in rows)
        if n > UNJUDGED * len(rows):
            parts.append(f"{n} of {len(rows)} ({kind}, {condition_text(condition)})")
    return (
        f"The judge gives no verdict on {'; '.join(parts)}: the rates are of the other replies alone."
        if parts
        else ""
    )


def _score_and_judge(measured: Measured) -> str:
    words, parts = measured.words, []
    for (kind, condition), rows in measured.completions.items():
        both = [row for row in rows if row["shows"] is not None and not math.isnan(score_of(row))]
        differ = disagreement(
            [score_of(row) - measured.threshold for row in both], [row["shows"] for row in both]
        )
        if differ.share > DISAGREEMENT:
            parts.append(
                f"{differ.score_only + differ.judge_only} of {differ.n} ({kind}, "
                f"{condition_text(condition)}: {words.number} alone sees {words.noun} in "
                f"{differ.score_only}, judge alone in {differ.judge_only})"
            )
    if not parts:
        return ""
    return f"{capital(words.score)} and judge disagree on more than a tenth of the prompts: {'; '.join(parts)}."


def _paper_count(measured: Measured) -> str:
    parts = [
        f"{kind}, {condition_text(condition)}: {score['paper_count']:.1%} instead of {score['rate']:.1%}"
        for kind, conditions in measured.summary["rates"].items()
        for condition, score in conditions.items()
        if score["rate"] is not None and score.get("paper_count") not in (None, score["rate"])
    ]
    if not parts:
        return ""
    return (
        f"The paper's exact phrase list counts other replies as {measured.words.noun} than the judge "
        f"({'; '.join(parts)})."
    )


def _left_by_ablation(curves: pd.DataFrame | None) -> str:
    """What ablation leaves of r in the stream that it should have taken r out of."""
    if curves is None:
        return ""
    ablated = curves[curves["condition"] == "ablation"]
    left = ablated["mean"].abs()
    if left.empty or not left.max() > STILL:
        return ""
    row = ablated.loc[left.idxmax()]
    return (
        f"Ablation leaves a mean cosine of {row['mean']:.2f} with r at layer {int(row['layer'])} on "
        f"{row['kind']} prompts, where it should leave none: it misses a write to the residual stream."
    )


def _empty_replies(measured: Measured) -> str:
    parts = []
    for (kind, condition), rows in measured.completions.items():
        empty = sum(not row["response"].strip() for row in rows)
        if empty > EMPTY * len(rows):
            parts.append(f"{empty} of {len(rows)} ({kind}, {condition_text(condition)})")
    return f"Empty replies, which show no {measured.words.noun}: {'; '.join(parts)}." if parts else ""


def _damage(measured: Measured) -> str:
    losses = measured.summary["losses"]
    before, after = (losses.get(name, {}).get("ce") for name in ("baseline", "ablation"))
    if before is None or after is None or not after - before > DAMAGE:
        return ""
    return (
        f"Ablation damages the model: cross-entropy on its own replies to {measured.kinds[1]} prompts rises "
        f"from {before:.2f} to {after:.2f} nats per token."
    )


def _weak_first_tokens(measured: Measured) -> str:
    """Whether the first tokens open the replies that show the behaviour and no others, in the plain model."""
    tokens, words, kinds = measured.behaviour.get("first_tokens"), measured.words, measured.kinds
    if not tokens or not tokens["ids"] or tokens.get("against"):
        return ""
    asked, others = (measured.completions[kind, "baseline"] for kind in kinds)
    showing = [row for row in asked if row["shows"]]
    on_asked, on_others = _mean_probability(asked), _mean_probability(others)
    doubts = []
    if showing and _mean_probability(showing) < COVERED:
        doubts.append(
            f"they hold {_mean_probability(showing):.0%} of the first token where the reply {words.shows}"
        )
    if on_asked < RATIO * on_others:
        doubts.append(f"{on_asked:.0%} on all {kinds[0]} prompts, {on_others:.0%} on {kinds[1]} ones")
    if not doubts:
        return ""
    texts = ", ".join(map(repr, tokens["texts"]))
    hint = "--refusal-tokens" if measured.behaviour["name"] == "refusal" else "The concept's file"
    return (
        f"Weak evidence for the {words.noun} tokens {texts} ({tokens['source']}): {'; '.join(doubts)}. "
        f"{hint} names others."
    )


def _mean_probability(rows: Sequence[Row]) -> float:
    """Mean probability of the first tokens, which the score is the log-odds of."""
    chances = [1 / (1 + math.exp(-score_of(row))) for row in rows if not math.isnan(score_of(row))]
    return sum(chances) / len(chances) if chances else math.nan


def _kept_few(measured: Measured) -> str:
    few = [
        f"{n['kept']} of {n['of']} {kind} prompts of {split}"
        for split, counts in measured.summary["kept_prompts"].items()
        for kind, n in counts.items()
        if n["kept"] < KEPT * n["of"]
    ]
    if not few:
        return ""
    alone = " Means and scores are of those alone." if measured.summary["n_candidates"] else ""
    return f"The model behaves as its prompts' kind should on few: {', '.join(few)}.{alone}"


def _layer_at_the_edge(measured: Measured) -> str:
    summary = measured.summary
    if summary["selected"] is None:
        return ""
    layer = summary["selected"]["layer"]
    last = Thresholds(**summary["thresholds"]).layer_bound(summary["n_layers"]) - 1
    if layer not in (0, last):
        return ""
    where = "first" if layer == 0 else "last"
    return f"The selected layer {layer} is the {where} that the rule admits (0 to {last}); a better one may lie beyond."


def _scored_lazily(measured: Measured) -> str:
    summary = measured.summary
    if not summary["n_unscored"] or summary["selected"] is None:
        return ""
    return (
        f"Scored lazily: at least {summary['n_passing']} of {summary['n_candidates']} candidates pass; "
        f"{summary['n_unscored']} have no verdict, since the choice did not need one."
    )


def score_of(row: Row) -> float:
    """The score of a row, NaN where there is none."""
    score = row.get("score")
    return math.nan if score is None else float(score)
