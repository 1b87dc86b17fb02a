"""The suffix study: four conditions, the same heads, and what would have happened without them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from ...activations import cache_residuals
from ...attribution import (
    Head,
    Regions,
    attribute,
    attribute_sources,
    head_effects,
    last_head_outputs,
    mean_head_outputs,
)
from ...behaviours import LogitBehaviour
from ...behaviours.last_token import require_last_token
from ...chat import Rendered
from ...chat.suffixed import Suffixed
from ...conversations import Prompt, unanswered
from ...directions import Direction
from ...display import shown
from ...door import checked
from ...errors import InputError
from ...evaluation import complete
from ...metrics import cosine_similarity
from ...model import ChatModel, Site
from ...progress import Progress
from ...shapes import Spans, as_float64
from .by_token import token_contributions
from .result import ConditionNames, Measured, SuffixStudy
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
    def of(cls, suffixed: Suffixed) -> Condition:
        """From prompts with suffixes."""
        return cls(suffixed.rendered, suffixed.suffix, suffixed.merged)

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

    @property
    def straddling(self) -> tuple[bool, ...]:
        """The prompts in which a token straddles the border of instruction and suffix."""
        return (False,) * len(self.rendered) if self.merged is None else tuple(self.merged.tolist())


@dataclass(frozen=True, eq=False)
class Subject:
    """What is studied: a direction of a model, by a behaviour's scores; batch_size prompts in a forward pass."""

    model: ChatModel
    direction: Direction
    behaviour: LogitBehaviour
    batch_size: int


@checked
def study_suffix(
    model: ChatModel,
    direction: Direction,
    *,
    prompts: Mapping[str, Sequence[Prompt]],
    suffix: str,
    behaviour: LogitBehaviour,
    n_heads: int | None = None,
    n_random_sets: int = 8,
    seed: int = 0,
    max_new_tokens: int | None = None,
    batch_size: int = 32,
    n_by_token: int = 2,
    on_progress: Progress | None = None,
) -> SuffixStudy:
    """Measure how a suffix keeps the last token from the behaviour (paper, section 5, Figs. 5 and 6).

    Args:
        model: the chat model.
        direction: r; projections are at resid_pre of its layer l*.
        prompts: kind -> prompts, the positive kind first: those that should show the behaviour, and those that
            should not. Those of which the model's own score says otherwise are left out, and replies that they bring.
        suffix: appended to the last user message of each positive prompt as it stands, leading space included.
        behaviour: what r is about; one that a prompt's last token decides. Its judge judges the replies.
        n_heads: how many top heads to follow; by default 8 as in the paper, but at most half
            of the heads below l*.
        n_random_sets: random sets of as many other heads, for the causal check.
        seed: of the random suffixes and head sets.
        max_new_tokens: length of the replies that are judged; by default 64, or what the positions leave.
        batch_size: prompts per forward pass.
        n_by_token: prompts that are kept token by token.
        on_progress: called with (what, done, total).

    Raises:
        InputError: an empty suffix, one that does not fit the context, a direction of another
            model or of layer 0, another behaviour, or no prompts left that behave as their kind should.

    """
    checked_suffix(suffix)
    direction.check_belongs_to(model)
    if direction.layer == 0:
        raise InputError(
            "suffix study: got a direction of layer 0, which no head has written to; need one of "
            "layer 1 or later"
        )
    if len(prompts) != 2:
        raise InputError(
            f"prompts of the suffix study: got {len(prompts)} kinds, need the positive and the negative one"
        )
    tell = on_progress or _silent
    subject = Subject(model, direction, behaviour, batch_size)
    kept = _kept(subject, prompts)
    names = ConditionNames.of(*prompts)
    conditions = _conditions(model, names, kept, suffix, seed=seed, room=max_new_tokens or 1)
    length = max_new_tokens or min(
        model.reply_room(condition.rendered, LONGEST_REPLY) for condition in conditions.values()
    )
    plain = attribute(model, conditions[names.plain].rendered, direction, batch_size=batch_size)
    heads = plain.top_heads(_how_many(n_heads, plain.heads[0, 0].numel()))
    measured = {}
    for done, (name, condition) in enumerate(conditions.items()):
        tell("suffix conditions", done, len(conditions) + 1)
        measured[name] = _measure(subject, condition, heads, length)
    tell("suffix conditions", len(conditions), len(conditions) + 1)
    effects = _effects(subject, names, conditions, heads, n_random=n_random_sets, seed=seed)
    tell("suffix conditions", len(conditions) + 1, len(conditions) + 1)
    straddling = sum(measured[names.adversarial].merged)
    if straddling:
        log.info(
            "%d of %d prompts: a token straddles the border of instruction and suffix and counts "
            "as suffix",
            straddling,
            len(kept[names.plain]),
        )
    return SuffixStudy(
        suffix=suffix,
        direction=direction,
        model=model.name,
        heads=heads,
        regions=conditions[names.plain].regions.names,
        names=names,
        conditions=measured,
        effects=effects,
        unchanged=_unchanged(
            model, conditions[names.plain], conditions[names.adversarial], batch_size
        ),
        kept={
            kind: {"kept": len(kept[kind]), "of": len(asked)} for kind, asked in prompts.items()
        },
        tokens={
            name: tuple(
                token_contributions(
                    model,
                    conditions[name].rendered,
                    conditions[name].regions,
                    direction=direction,
                    heads=heads,
                    row=row,
                )
                for row in range(min(n_by_token, len(kept[names.plain])))
            )
            for name in (names.plain, names.random, names.adversarial)
        },
        seed=seed,
    )


def _silent(what: str, done: int, total: int) -> None:
    pass


def _kept(subject: Subject, prompts: Mapping[str, Sequence[Prompt]]) -> dict[str, list[Prompt]]:
    """By kind, the positive prompts that score above the threshold and the negative ones below."""
    behaviour, words = subject.behaviour, subject.behaviour.words
    kept: dict[str, list[Prompt]] = {}
    for sign, verb, (kind, given) in zip((1, -1), (words.shows, words.lacks), prompts.items(), strict=True):
        asked = unanswered(given)
        require_last_token(behaviour, asked, "the suffix study")
        scores = behaviour.scores(subject.model, asked, batch_size=subject.batch_size)
        apart = (sign * (scores - behaviour.threshold)).tolist()
        kept[kind] = [prompt for prompt, d in zip(asked, apart, strict=True) if d > 0]
        if not kept[kind]:
            raise InputError(
                f"{kind} prompts of the suffix study: got none of {len(asked)} on which the model {verb} without a "
                f"suffix, need at least one; does the {words.score} fit the model?"
            )
    return kept


def _conditions(
    model: ChatModel,
    names: ConditionNames,
    kept: Mapping[str, Sequence[Prompt]],
    suffix: str,
    *,
    seed: int,
    room: int,
) -> dict[str, Condition]:
    """The four conditions by name, in the order of the names."""
    positive, negative = kept[names.plain], kept[names.negative]
    adversarial = with_suffix(model, positive, [suffix] * len(positive), room=room)
    drawn = random_suffixes(
        model.chat, positive, n_tokens=adversarial.n_tokens, like=suffix, seed=seed
    )
    conditions = (
        Condition(model.chat.render(positive)),
        Condition.of(with_suffix(model, positive, drawn, room=room)),
        Condition.of(adversarial),
        Condition(model.chat.render(negative)),
    )
    return dict(zip(names, conditions, strict=True))


def _how_many(wanted: int | None, below: int) -> int:
    if wanted is not None:
        return wanted
    chosen = min(TOP_HEADS, max(1, below // LARGEST_SHARE))
    log.info("%d top heads of the %d below the direction's layer", chosen, below)
    return chosen


def _measure(
    subject: Subject, condition: Condition, heads: tuple[Head, ...], max_new_tokens: int
) -> Measured:
    model, direction, batch_size = subject.model, subject.direction, subject.batch_size
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
    last = cache_residuals(model, rendered, places=["post[-1]"], batch_size=batch_size)[:, 0]
    completions = complete(
        model,
        rendered.prompts,
        behaviour=subject.behaviour,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    return Measured(
        completions=tuple(completions),
        n_suffix_tokens=condition.n_suffix_tokens,
        merged=condition.straddling,
        cosine=cosine_similarity(last, direction.vector),
        projection=whole.projection[:, 0],
        dfa=sources.dfa,
        dfa_by_region=sources.contribution_by_region(),
        attention=sources.attention_by_region(),
        error=max(whole.error, sources.error),
    )


def _effects(
    subject: Subject,
    names: ConditionNames,
    conditions: Mapping[str, Condition],
    heads: tuple[Head, ...],
    *,
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """Zero and mean ablation of the heads, and patching between the two suffixes, both ways."""
    outputs = {
        name: last_head_outputs(
            subject.model,
            condition.rendered,
            layers=range(subject.direction.layer),
            batch_size=subject.batch_size,
        )
        for name, condition in conditions.items()
    }
    mean = mean_head_outputs(outputs[names.plain], outputs[names.negative])
    edits = (
        (names.plain, "zero", None),
        (names.plain, "mean", mean),
        (names.random, "patch from adversarial suffix", outputs[names.adversarial]),
        (names.adversarial, "patch from random suffix", outputs[names.random]),
    )
    frames = [
        head_effects(
            subject.model,
            conditions[name].rendered,
            subject.direction,
            heads=heads,
            values=values,
            behaviour=subject.behaviour,
            edit=edit,
            n_random=n_random,
            seed=seed,
            batch_size=subject.batch_size,
        ).assign(condition=name)
        for name, edit, values in edits
    ]
    columns = ["condition", "edit", "heads", "prompt", "projection", "score"]
    return pd.concat(frames, ignore_index=True)[columns]


def _unchanged(model: ChatModel, plain: Condition, suffixed: Condition, batch_size: int) -> float:
    """Largest relative change of the stream at the tokens before the suffix, over all layers."""
    worst = 0.0
    sites = [Site("resid_pre", layer) for layer in range(model.n_layers)]
    for start in range(0, len(plain.rendered), batch_size):
        rows = list(range(start, min(start + batch_size, len(plain.rendered))))
        pair = [condition.rendered[rows] for condition in (plain, suffixed)]
        streams = [model.read(rendered, sites) for rendered in pair]
        for row in range(len(rows)):
            ids = [rendered.ids[row, -int(rendered.lengths[row]) :] for rendered in pair]
            n = _common(*ids)
            for site in sites:
                before, after = (
                    as_float64(stream[site][row, -len(tokens) :][:n])
                    for stream, tokens in zip(streams, ids, strict=True)
                )
                gap = (before - after).norm(dim=-1) / before.norm(dim=-1).clamp_min(1e-12)
                worst = max(worst, float(gap.max()))
    return worst


def _common(first: Tensor, second: Tensor) -> int:
    """Length of the common beginning."""
    n = min(len(first), len(second))
    differ = (first[:n] != second[:n]).nonzero()
    return n if len(differ) == 0 else int(differ[0])
