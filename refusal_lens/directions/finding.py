"""From a model and a contrast to the selected direction, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from ..activations import map_last_logits, mean_residuals
from ..direction import Direction
from ..display import shown
from ..door import at_least, checked
from ..errors import InputError
from ..judges import Judge, phrase_judge
from ..metrics import first_token_log_odds
from ..model import ChatModel
from ..progress import Progress, named
from ..prompts import Contrast, PromptPair
from ..shapes import PerPrompt
from .candidates import Candidates, provenance_of
from .refusal_tokens import RefusalTokens, choose_refusal_tokens, parse_refusal_tokens
from .selection import Choice, Thresholds, select
from .sweep import score_candidates
from .sweep.sweeping import Mode

LEAST_KEPT = 2
"""Fewer prompts of a kind than this leave no mean worth the name."""


@shown("counts")
@dataclass(frozen=True, eq=False)
class Behaved:
    """One split after filtering by the model's own behaviour.

    pair holds the prompts kept; positive_metric and negative_metric the refusal metric of all prompts before
    filtering.
    """

    pair: PromptPair
    positive_metric: PerPrompt
    negative_metric: PerPrompt

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many prompts of each kind were kept, of how many."""
        return {
            "positive": {"kept": len(self.pair.positive), "of": len(self.positive_metric)},
            "negative": {"kept": len(self.pair.negative), "of": len(self.negative_metric)},
        }

    def too_few(self, split: str) -> str:
        """Why no direction can be made or scored with these prompts; "" when enough of both kinds remain."""
        wanted = {"positive": "positive (to be refused)", "negative": "negative (to be answered)"}
        for kind, counts in self.counts.items():
            if counts["kept"] < LEAST_KEPT:
                return (
                    f"{split} prompts: only {counts['kept']} of {counts['of']} {wanted[kind]} ones behave so "
                    f"(need {LEAST_KEPT}); does the model refuse them, and are the refusal tokens right?"
                )
        return ""


@shown(
    "choice.position", "choice.layer", "choice.scores", "choice.n_passing", "refusal_tokens.texts", "direction"
)
@dataclass(frozen=True, eq=False)
class Selection:
    """A direction with everything that led to it."""

    direction: Direction
    candidates: Candidates
    choice: Choice
    refusal_tokens: RefusalTokens
    train: Behaved
    val: Behaved

    @property
    def table(self) -> pd.DataFrame:
        """Every candidate with its scores and the reason why it does not pass."""
        return self.choice.table


@checked
def pick_refusal_tokens(
    model: ChatModel,
    pair: PromptPair,
    *,
    given: Sequence[str | int] | None = None,
    judge: Judge | None = phrase_judge,
    batch_size: int = 32,
    at_most: int = 128,
    on_progress: Progress | None = None,
) -> RefusalTokens:
    """R as given, else the family's, else discovered on the first prompts of the pair.

    judge says which replies refuse; None takes the kinds of prompts themselves, for contrasts that are not
    about refusal. Raises NoRefusalTokens when there is none beyond doubt.
    """
    at_least(1, batch_size=batch_size, at_most=at_most)
    if given is not None:
        return parse_refusal_tokens(model, given)
    return choose_refusal_tokens(
        model, pair, judge=judge, batch_size=batch_size, at_most=at_most, on_progress=on_progress
    )


def observe_behaviour(
    model: ChatModel,
    pair: PromptPair,
    *,
    refusal_tokens: Sequence[int],
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Behaved:
    """Refusal metric of every prompt, and the prompts that behave as their kind should, however few."""
    metric = partial(first_token_log_odds, ids=tuple(refusal_tokens))
    refused, answered = (
        map_last_logits(
            model,
            prompts,
            number=metric,
            batch_size=batch_size,
            on_progress=named(on_progress, f"metric, {kind}"),
        )
        for kind, prompts in (("positive", pair.positive), ("negative", pair.negative))
    )
    kept = PromptPair(
        positive=_where(pair.positive, refused > 0), negative=_where(pair.negative, answered < 0)
    )
    return Behaved(kept, refused, answered)


@checked
def filter_by_behaviour(
    model: ChatModel,
    pair: PromptPair,
    *,
    refusal_tokens: Sequence[int],
    split: str,
    batch_size: int = 32,
) -> Behaved:
    """Keep positive prompts with refusal metric > 0 and negative ones with < 0 (paper, appendix B).

    Raises InputError when fewer than two of a kind remain.
    """
    behaved = observe_behaviour(model, pair, refusal_tokens=refusal_tokens, batch_size=batch_size)
    if few := behaved.too_few(split):
        raise InputError(few)
    return behaved


@checked
def extract_candidates(
    model: ChatModel,
    pair: PromptPair,
    *,
    data_sha256: str,
    concept: str = "refusal",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Candidates:
    """Difference-of-means candidates from one pair of prompt sets."""
    means = []
    for kind, prompts in (("positive", pair.positive), ("negative", pair.negative)):
        said = named(on_progress, f"{kind} activations")
        means.append(mean_residuals(model, prompts, batch_size=batch_size, on_progress=said))
    facts = provenance_of(
        model.chat,
        concept=concept,
        model=model.name,
        revision=model.revision,
        data_sha256=data_sha256,
        weights_sha256=model.weights_sha256,
    )
    return Candidates.from_means(*means, **facts)


@checked
def find_direction(
    model: ChatModel,
    contrast: Contrast,
    *,
    refusal_tokens: Sequence[str | int] | None = None,
    thresholds: Thresholds | None = None,
    mode: Mode = "exhaustive",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Selection:
    """The direction that the paper's rule selects, with candidates, scores and counts.

    mode "lazy" scores just what the same choice needs. batch_size: prompts in a pass that reads activations;
    the sweep over candidates finds its own.

    Filters prompts by the model's own behaviour, takes the difference of means on train, scores on val,
    selects. Raises NoCandidateError (its ``table`` has every score and reason) when no candidate passes,
    NoRefusalTokens (its ``evidence`` has the likeliest first tokens) when none tells refusals from answers, and
    InputError when the model behaves so on fewer than two prompts of a kind.
    """
    rule = thresholds or Thresholds()
    tokens = pick_refusal_tokens(
        model,
        contrast.train,
        given=refusal_tokens,
        judge=phrase_judge if contrast.name == "refusal" else None,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    train, val = (
        filter_by_behaviour(
            model, pair, refusal_tokens=tokens.ids, split=split, batch_size=batch_size
        )
        for split, pair in (("train", contrast.train), ("val", contrast.val))
    )
    candidates = extract_candidates(
        model,
        train.pair,
        data_sha256=contrast.sha256,
        concept=contrast.name,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    table = score_candidates(
        model,
        candidates,
        positive=val.pair.positive,
        negative=val.pair.negative,
        refusal_tokens=tokens.ids,
        mode=mode,
        rule=rule,
        on_progress=on_progress,
    )
    choice = select(
        table,
        model.n_layers,
        kl_threshold=rule.kl_threshold,
        induce_threshold=rule.induce_threshold,
        prune_layers=rule.prune_layers,
    )
    direction = candidates.direction(choice.position, choice.layer)
    return Selection(direction, candidates, choice, tokens, train, val)


def _where(prompts: Sequence[str], keep: torch.Tensor) -> tuple[str, ...]:
    return tuple(p for p, k in zip(prompts, keep.tolist(), strict=True) if k)
