"""What leads from a model and a contrast to candidates: the behaviour, prompts that show it or not, means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..activations import mean_residuals
from ..behaviours import Behaviour, FirstTokens, choose_first_tokens
from ..chat import Place
from ..conversations import Prompt
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..progress import Progress, named
from ..prompts import Contrast, PromptPair
from ..shapes import PerPrompt
from .candidates import Candidates, provenance_of

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


def _where(prompts: Sequence[Prompt], keep: torch.Tensor) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt, kept in zip(prompts, keep.tolist(), strict=True) if kept)
