"""From a model and a contrast to the selected direction, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from ..activations import mean_residuals
from ..behaviours import Behaviour, FirstTokens, choose_first_tokens
from ..chat import Place
from ..conversations import Prompt
from ..direction import Direction
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..progress import Progress, named
from ..prompts import Contrast, PromptPair
from ..shapes import PerPrompt
from .candidates import Candidates, provenance_of
from .selection import Selection, Thresholds, select
from .sweep import score_candidates
from .sweep.sweeping import Mode

LEAST_KEPT = 2
"""Fewer prompts of a kind than this leave no mean worth the name."""


@shown("behaviour.name", "counts")
@dataclass(frozen=True, eq=False)
class FilteredPrompts:
    """One split after filtering by the model's own behaviour.

    pair holds the prompts kept; positive_scores and negative_scores are those of all prompts before filtering.
    """

    behaviour: Behaviour
    pair: PromptPair
    positive_scores: PerPrompt
    negative_scores: PerPrompt

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many prompts of each kind were kept, of how many."""
        return {
            "positive": {"kept": len(self.pair.positive), "of": len(self.positive_scores)},
            "negative": {"kept": len(self.pair.negative), "of": len(self.negative_scores)},
        }

    def too_few(self, split: str) -> str:
        """Why no direction can be made or scored with these prompts; "" when enough of both kinds remain."""
        words, threshold = self.behaviour.words, self.behaviour.threshold
        for (kind, counts), side in zip(self.counts.items(), ("above", "below"), strict=True):
            if counts["kept"] < LEAST_KEPT:
                return (
                    f"{split} prompts: only {counts['kept']} of {counts['of']} {kind} ones have a {words.score} "
                    f"{side} {threshold:g} (need {LEAST_KEPT}); does the model show {words.noun} on positive prompts "
                    "and not on negative ones, and is the behaviour the right one?"
                )
        return ""

    def require_enough(self, split: str) -> FilteredPrompts:
        """The same, where at least two prompts of each kind remain. Raises InputError where fewer do."""
        if reason := self.too_few(split):
            raise InputError(reason)
        return self


@shown(
    "selection.place", "selection.layer", "selection.scores", "selection.n_passing", "behaviour", "direction"
)
@dataclass(frozen=True, eq=False)
class Finding:
    """A direction with everything that led to it."""

    direction: Direction
    candidates: Candidates
    selection: Selection
    behaviour: Behaviour
    train: FilteredPrompts
    val: FilteredPrompts

    @property
    def table(self) -> pd.DataFrame:
        """Every candidate with its scores and the reason why it does not pass."""
        return self.selection.table


@checked
def choose_behaviour(
    model: ChatModel,
    contrast: Contrast,
    *,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> FirstTokens:
    """The first tokens that show the concept of a contrast, found on its training prompts.

    Replies are judged where the concept is refusal; elsewhere the kinds of prompts themselves tell. Raises
    NoFirstTokens when there is no set beyond doubt.
    """
    return choose_first_tokens(
        model,
        contrast.train,
        name=contrast.name,
        batch_size=batch_size,
        on_progress=on_progress,
    )


@checked
def filter_by_behaviour(
    model: ChatModel,
    pair: PromptPair,
    *,
    behaviour: Behaviour,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> FilteredPrompts:
    """Keep positive prompts that score above the behaviour's threshold and negative ones below (paper, appendix B).

    However few remain; `FilteredPrompts.require_enough` asks for two of each kind.
    """
    positive, negative = (
        behaviour.scores(
            model,
            prompts,
            batch_size=batch_size,
            on_progress=named(on_progress, f"{behaviour.words.score}, {kind}"),
        )
        for kind, prompts in (("positive", pair.positive), ("negative", pair.negative))
    )
    kept = PromptPair(
        positive=_where(pair.positive, positive > behaviour.threshold),
        negative=_where(pair.negative, negative < behaviour.threshold),
    )
    return FilteredPrompts(behaviour, kept, positive, negative)


@checked
def extract_candidates(
    model: ChatModel,
    pair: PromptPair,
    *,
    data_sha256: str,
    concept: str = "refusal",
    places: Sequence[Place | str] | None = None,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Candidates:
    """Difference-of-means candidates from one pair of prompt sets, at places as in `mean_residuals`."""
    means = []
    for kind, prompts in (("positive", pair.positive), ("negative", pair.negative)):
        told = named(on_progress, f"{kind} activations")
        means.append(
            mean_residuals(model, prompts, places=places, batch_size=batch_size, on_progress=told)
        )
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
    behaviour: Behaviour | None = None,
    places: Sequence[Place | str] | None = None,
    thresholds: Thresholds | None = None,
    mode: Mode = "exhaustive",
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> Finding:
    """The direction that the paper's rule selects, with candidates, scores and counts.

    behaviour: what the direction is about; by default first tokens, discovered. places: where candidates are read, by
    default at every post-instruction token. mode "lazy" scores just what the same choice needs. batch_size: prompts in
    a pass that reads activations; the sweep over candidates finds its own.

    Filters prompts by the model's own behaviour, takes the difference of means on train, scores on val,
    selects. Raises NoCandidateError (its ``table`` has every score and reason) when no candidate passes,
    NoFirstTokens (its ``evidence`` has the likeliest first tokens) when none tells the kinds apart, and
    InputError when the model behaves so on fewer than two prompts of a kind.
    """
    rule = thresholds or Thresholds()
    about: Behaviour = behaviour or choose_behaviour(
        model, contrast, batch_size=batch_size, on_progress=on_progress
    )
    train, val = (
        filter_by_behaviour(
            model, pair, behaviour=about, batch_size=batch_size, on_progress=on_progress
        ).require_enough(split)
        for split, pair in (("train", contrast.train), ("val", contrast.val))
    )
    candidates = extract_candidates(
        model,
        train.pair,
        data_sha256=contrast.sha256,
        concept=contrast.name,
        places=places,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    table = score_candidates(
        model,
        candidates,
        positive=val.pair.positive,
        negative=val.pair.negative,
        behaviour=about,
        mode=mode,
        rule=rule,
        on_progress=on_progress,
    )
    selection = select(table, model.n_layers, rule)
    direction = candidates.direction(selection.place, selection.layer)
    return Finding(direction, candidates, selection, about, train, val)


def _where(prompts: Sequence[Prompt], keep: torch.Tensor) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt, kept in zip(prompts, keep.tolist(), strict=True) if kept)
