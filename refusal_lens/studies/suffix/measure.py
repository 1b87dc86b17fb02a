"""The suffix study: four conditions, the same heads, and what would have happened without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from ...activations import cache_residuals, map_last_logits
from ...attribution import (
    Head,
    Regions,
    attribute,
    attribute_sources,
    head_effects,
    last_head_outputs,
    mean_head_outputs,
)
from ...chat import Rendered
from ...chat.tails import Tailed
from ...directions import Direction
from ...display import shown
from ...door import checked
from ...errors import InputError
from ...evaluation import complete
from ...metrics import cosine_similarity, first_token_log_odds
from ...model import ChatModel, Site
from ...progress import Progress
from ...shapes import Spans, as_float64
from .result import ADVERSARIAL, CONDITIONS, HARMFUL, HARMLESS, RANDOM, Measured, SuffixStudy
from .stories import tell
from .suffixes import checked_suffix, random_suffixes, with_suffix

log = logging.getLogger(__name__)

TOP_HEADS = 8
"""As many as the paper's Fig. 6 shows."""
LARGEST_SHARE = 2
"""In small models at most one in so many of the heads below l*, so that random sets differ."""
LONGEST_REPLY = 64
"""Tokens of a judged reply, where nobody says another number."""


@shown()
@dataclass(frozen=True, eq=False)
class Condition:
    """Rendered prompts, and where their suffix is."""

    rendered: Rendered
    suffix: Spans | None = None
    merged: Tensor | None = None

    @classmethod
    def of(cls, tailed: Tailed) -> Condition:
        """From instructions with suffixes."""
        return cls(tailed.rendered, tailed.tail, tailed.merged)

    @property
    def regions(self) -> Regions:
        """BOS, template, instruction, suffix."""
        return Regions.of(self.rendered, suffix=self.suffix)

    @property
    def n_suffix_tokens(self) -> tuple[int, ...]:
        """Suffix tokens of each prompt."""
        if self.suffix is None:
            return (0,) * len(self.rendered)
        return tuple((self.suffix[:, 1] - self.suffix[:, 0]).tolist())


@checked
def study_suffix(
    model: ChatModel,
    direction: Direction,
    *,
    harmful: Sequence[str],
    harmless: Sequence[str],
    suffix: str,
    refusal_tokens: Sequence[int],
    n_heads: int | None = None,
    n_random_sets: int = 8,
    seed: int = 0,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    n_stories: int = 2,
    on_progress: Progress | None = None,
) -> SuffixStudy:
    """Measure how a suffix keeps the last token from refusing (paper, section 5, Figs. 5 and 6).

    Args:
        model: the chat model.
        direction: r; projections are at resid_pre of its layer l*.
        harmful: instructions that the model should refuse; those it does not are left out.
        harmless: instructions that it should follow; those it refuses are left out.
        suffix: appended to each harmful instruction as it stands, leading space included.
        refusal_tokens: R of the refusal metric.
        n_heads: how many top heads to follow; by default 8 as in the paper, but at most half
            of the heads below l*.
        n_random_sets: random sets of as many other heads, for the causal check.
        seed: of the random suffixes and head sets.
        max_new_tokens: length of the replies that are judged; by default 64, or what the positions leave.
        batch_size: prompts per forward pass.
        n_stories: prompts that are kept token by token.
        on_progress: called with (what, done, total).

    Raises:
        InputError: an empty suffix, one that does not fit the context, a direction of another
            model or of layer 0, or no prompts left that behave as their kind should.

    """
    checked_suffix(suffix)
    direction.check_belongs_to(model)
    if direction.layer == 0:
        raise InputError(
            "suffix study: got a direction of layer 0, which no head has written to; need one of "
            "layer 1 or later"
        )
    tokens = tuple(refusal_tokens)
    said = on_progress or _silent
    metric = partial(first_token_log_odds, ids=tokens)
    kept, counts = _behaved(model, harmful, harmless, metric, batch_size)
    conditions = _conditions(model, kept, suffix, seed, max_new_tokens or 1)
    length = max_new_tokens or min(
        model.reply_room(each.rendered, LONGEST_REPLY) for each in conditions.values()
    )
    plain = attribute(model, conditions[HARMFUL].rendered, direction, batch_size=batch_size)
    heads = plain.top_heads(_how_many(n_heads, plain.heads[0, 0].numel()))
    measured = {}
    for done, (name, condition) in enumerate(conditions.items()):
        said("suffix conditions", done, len(conditions) + 1)
        measured[name] = _measure(model, condition, direction, heads, tokens, length, batch_size)
    said("suffix conditions", len(conditions), len(conditions) + 1)
    effects = _effects(model, conditions, direction, heads, tokens, n_random_sets, seed, batch_size)
    said("suffix conditions", len(conditions) + 1, len(conditions) + 1)
    if any(measured[ADVERSARIAL].merged):
        log.info(
            "%d of %d prompts: a token straddles the border of instruction and suffix and counts "
            "as suffix",
            sum(measured[ADVERSARIAL].merged),
            len(kept[0]),
        )
    return SuffixStudy(
        suffix=suffix,
        direction=direction,
        model=model.name,
        heads=heads,
        regions=conditions[HARMFUL].regions.names,
        conditions=measured,
        effects=effects,
        unchanged=_unchanged(model, conditions[HARMFUL], conditions[ADVERSARIAL], batch_size),
        kept=counts,
        stories=tuple(
            tell(model, name, condition.rendered, condition.regions, direction, heads, row)
            for row in range(min(n_stories, len(kept[0])))
            for name, condition in conditions.items()
            if name != HARMLESS
        ),
        seed=seed,
    )


def _silent(what: str, done: int, total: int) -> None:
    pass


def _behaved(
    model: ChatModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    metric: partial[Tensor],
    batch_size: int,
) -> tuple[tuple[list[str], list[str]], dict[str, dict[str, int]]]:
    """The harmful prompts with metric > 0 and the harmless ones with metric < 0."""
    values = [
        map_last_logits(model, prompts, number=metric, batch_size=batch_size)
        for prompts in (harmful, harmless)
    ]
    kept = (
        [p for p, m in zip(harmful, values[0].tolist(), strict=True) if m > 0],
        [p for p, m in zip(harmless, values[1].tolist(), strict=True) if m < 0],
    )
    for kind, some, every in zip(("harmful", "harmless"), kept, (harmful, harmless), strict=True):
        if not some:
            raise InputError(
                f"{kind} prompts of the suffix study: none of {len(every)} is "
                f"{'refused' if kind == 'harmful' else 'answered'} without a suffix; are the "
                "refusal tokens right?"
            )
    counts = {
        kind: {"kept": len(some), "of": len(every)}
        for kind, some, every in zip(
            ("harmful", "harmless"), kept, (harmful, harmless), strict=True
        )
    }
    return kept, counts


def _conditions(
    model: ChatModel,
    kept: tuple[Sequence[str], Sequence[str]],
    suffix: str,
    seed: int,
    room: int,
) -> dict[str, Condition]:
    harmful, harmless = kept
    adversarial = with_suffix(model, harmful, [suffix] * len(harmful), room=room)
    drawn = random_suffixes(
        model.chat, harmful, n_tokens=adversarial.n_tokens, like=suffix, seed=seed
    )
    found = {
        HARMFUL: Condition(model.chat.render(harmful)),
        RANDOM: Condition.of(with_suffix(model, harmful, drawn, room=room)),
        ADVERSARIAL: Condition.of(adversarial),
        HARMLESS: Condition(model.chat.render(harmless)),
    }
    return {name: found[name] for name in CONDITIONS}


def _how_many(wanted: int | None, below: int) -> int:
    if wanted is not None:
        return wanted
    chosen = min(TOP_HEADS, max(1, below // LARGEST_SHARE))
    log.info("%d top heads of the %d below the direction's layer", chosen, below)
    return chosen


def _measure(
    model: ChatModel,
    condition: Condition,
    direction: Direction,
    heads: tuple[Head, ...],
    tokens: tuple[int, ...],
    max_new_tokens: int,
    batch_size: int,
) -> Measured:
    rendered = condition.rendered
    whole = attribute(model, rendered, direction, batch_size=batch_size)
    sources = attribute_sources(
        model,
        rendered,
        direction,
        heads=heads,
        regions=condition.regions,
        batch_size=batch_size,
    )
    last = cache_residuals(model, rendered, positions=[-1], batch_size=batch_size)[:, 0]
    done = complete(
        model,
        rendered.instructions,
        refusal_tokens=tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    merged = condition.merged
    return Measured(
        prompts=rendered.instructions,
        replies=tuple(one.response for one in done),
        refused=tuple(one.refusal for one in done),
        n_suffix_tokens=condition.n_suffix_tokens,
        merged=(False,) * len(rendered) if merged is None else tuple(merged.tolist()),
        cosine=cosine_similarity(last, direction.vector),
        projection=whole.projection[:, 0],
        dfa=sources.dfa,
        dfa_by_region=sources.contribution_by_region(),
        attention=sources.attention_by_region(),
        metric=torch.tensor([one.metric for one in done], dtype=torch.float64),
        error=max(whole.error, sources.error),
    )


def _effects(
    model: ChatModel,
    conditions: Mapping[str, Condition],
    direction: Direction,
    heads: tuple[Head, ...],
    tokens: tuple[int, ...],
    n_random: int,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """Zero and mean ablation of the heads, and patching between the two suffixes, both ways."""
    layers = range(direction.layer)
    outputs = {
        name: last_head_outputs(model, condition.rendered, layers=layers, batch_size=batch_size)
        for name, condition in conditions.items()
    }
    mean = mean_head_outputs(outputs[HARMFUL], outputs[HARMLESS])
    edits = (
        (HARMFUL, "zero", None),
        (HARMFUL, "mean", mean),
        (RANDOM, "patch from adversarial suffix", outputs[ADVERSARIAL]),
        (ADVERSARIAL, "patch from random suffix", outputs[RANDOM]),
    )
    frames = [
        head_effects(
            model,
            conditions[name].rendered,
            direction,
            heads=heads,
            values=values,
            refusal_tokens=tokens,
            edit=edit,
            n_random=n_random,
            seed=seed,
            batch_size=batch_size,
        ).assign(condition=name)
        for name, edit, values in edits
    ]
    columns = ["condition", "edit", "heads", "prompt", "projection", "metric"]
    return pd.concat(frames, ignore_index=True)[columns]


def _unchanged(model: ChatModel, plain: Condition, suffixed: Condition, batch_size: int) -> float:
    """Largest relative change of the stream at the tokens before the suffix, over all layers."""
    worst = 0.0
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    for start in range(0, len(plain.rendered), batch_size):
        rows = list(range(start, min(start + batch_size, len(plain.rendered))))
        both = [one.rendered[rows] for one in (plain, suffixed)]
        held = [model.read(each, sites) for each in both]
        for row in range(len(rows)):
            heads = [each.ids[row, -int(each.lengths[row]) :] for each in both]
            n = _common(*heads)
            for site in sites:
                before, after = (
                    as_float64(h[site][row, -int(e.lengths[row]) :][:n])
                    for h, e in zip(held, both, strict=True)
                )
                gap = (before - after).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
                worst = max(worst, float(gap.max()))
    return worst


def _common(first: Tensor, second: Tensor) -> int:
    """Length of the common beginning."""
    n = min(len(first), len(second))
    differ = (first[:n] != second[:n]).nonzero()
    return n if len(differ) == 0 else int(differ[0])
