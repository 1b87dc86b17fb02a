"""Which first tokens show a behaviour: a family's table, or discovery that shows its evidence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import map_last_logits, mean_next_token_probabilities
from ..conversations import Conversation, Exchange, Prompt
from ..door import at_least, checked
from ..errors import InputError
from ..judges import Judge, judged, phrase_judge
from ..model import ChatModel
from ..progress import Progress, named
from ..prompts import PromptPair
from ..shapes import Probabilities, as_float64
from .first_tokens import Evidence, FirstTokens
from .tokens import reply_tokens, token_text
from .words import Words

log = logging.getLogger(__name__)

FAMILIES: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    ("qwen", ("I'm sorry", "As an AI"), (40, 2121)),
    ("gemma", ("I cannot",), (235285,)),
    ("llama", ("I'm sorry",), (59597,)),  # Yi, a Llama by architecture
    ("llama", ("I cannot",), (306,)),  # Llama-2
    ("llama", ("I cannot",), (40,)),  # Llama-3
)
"""How refusals begin and with which ids, by the start of the config's model_type (paper, Table 4).

The ids are what tells a family: another vocabulary under the same architecture is another model.
"""

LEAST_PROBABILITY = 0.02
STRONG_RATIO = 5.0
WEAK_RATIO = 1.5
LEAST_GAIN = 0.05
COVERED = 0.5
LEAST_GROUP = 2
LEAST_SHARE = 0.1
SAMPLE = 32
REPLY_TOKENS = 24
SHOWN = 8


class NoFirstTokens(InputError):  # noqa: N818  a finding about the model, not a mishap
    """No set of first tokens tells prompts that show a behaviour from others; evidence holds the likeliest ones."""

    def __init__(self, name: str, reason: str, evidence: Sequence[Evidence]) -> None:
        self.reason = reason
        self.evidence = tuple(evidence)
        likeliest = ", ".join(f"{text!r:.20} {p:.0%} ({q:.0%})" for _, text, p, q in self.evidence[:4])
        super().__init__(
            f"first tokens of {name}: none found; {reason}; likeliest first tokens (on negative prompts): "
            f"{likeliest}; try naming them if there are some"
            f"{' (--refusal-tokens)' if name == 'refusal' else ''}"
        )


class _Concept(NamedTuple):
    """What the tokens are looked for: its name, its words, and who says which replies show it."""

    name: str
    words: Words
    judge: Judge | None

    @classmethod
    def of(cls, name: str, words: Words | None, judge: Judge | None) -> _Concept:
        """With what is usual for the name where words or judge are None."""
        usual = phrase_judge if name == "refusal" else None
        return cls(name, words or Words.of(name), judge or usual)

    @property
    def facts(self) -> dict[str, Any]:
        """As fields of `FirstTokens`."""
        return self._asdict()


def family_first_tokens(model: ChatModel, **facts: Any) -> FirstTokens | None:
    """Refusal by the family table: the first reply token of each phrase, in the template's context.

    None unless these are the ids that the paper lists for the family. facts: further fields of the behaviour.
    """
    model_type = getattr(getattr(model.hf, "config", None), "model_type", "")
    for family, phrases, ids in FAMILIES:
        if not model_type.startswith(family):
            continue
        try:
            begun = reply_tokens(model, phrases)
        except InputError as error:
            log.info("first tokens of family %s: not looked up; %s", family, error)
            return None
        if tuple(tokens[0] for tokens in begun) == ids:
            return FirstTokens.of(model, ids, source=f"family {family} (paper, Table 4)", **facts)
    return None


@checked
def choose_first_tokens(
    model: ChatModel,
    pair: PromptPair,
    *,
    name: str = "refusal",
    words: Words | None = None,
    judge: Judge | None = None,
    batch_size: int = 32,
    at_most: int = 128,
    on_progress: Progress | None = None,
) -> FirstTokens:
    """The first tokens that show a behaviour of this name, found on the first prompts of a pair.

    For refusal, the family's R of the paper if it covers at least half of the positive prompts' first tokens. Else they
    are discovered: the judge says which short greedy replies (24 tokens, to the first 32 prompts of each kind) show the
    behaviour, and `separating_tokens` weighs each prompt's next-token probabilities. A family's R also stands where
    discovery finds none.

    judge: by default phrases for refusal; for anything else the kinds of prompts themselves tell. at_most: how many
    prompts of each kind the mean probabilities are of. Raises NoFirstTokens, with the evidence, when too few replies
    show the behaviour or lack it, or when no set of first tokens tells the two apart.
    """
    at_least(1, batch_size=batch_size, at_most=at_most)
    concept = _Concept.of(name, words, judge)
    positive, negative = (
        mean_next_token_probabilities(
            model,
            prompts[:at_most],
            batch_size=batch_size,
            on_progress=named(on_progress, f"first tokens, {kind}"),
        )
        for kind, prompts in (("positive", pair.positive), ("negative", pair.negative))
    )
    evidence = _evidence(model, positive, negative)
    family = family_first_tokens(model, evidence=evidence, **concept.facts) if name == "refusal" else None
    if family is not None:
        covered = float(positive[list(family.ids)].sum())
        if covered >= COVERED:
            log.info("%s tokens %s: %s, covering %.0f%%", name, family.texts, family.source, 100 * covered)
            return family
        log.info("%s tokens of %s cover only %.0f%%: discovering", name, family.source, 100 * covered)
    try:
        tokens = _discovered(
            model,
            pair,
            concept,
            positive=positive,
            evidence=evidence,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    except NoFirstTokens as error:
        if family is None:
            raise
        log.warning("%s tokens %s: %s, though %s", name, family.texts, family.source, error.reason)
        return family
    log.info("%s tokens %s: %s", name, tokens.texts, tokens.source)
    return tokens


def _discovered(
    model: ChatModel,
    pair: PromptPair,
    concept: _Concept,
    *,
    positive: Probabilities,
    evidence: tuple[Evidence, ...],
    batch_size: int,
    on_progress: Progress | None,
) -> FirstTokens:
    """positive: mean next-token probabilities on the positive prompts (paper, Fig. 9), which order the tokens."""
    sample = [*pair.positive[:SAMPLE], *pair.negative[:SAMPLE]]
    n = len(pair.positive[:SAMPLE])

    def probabilities(logits: Tensor) -> Tensor:
        return as_float64(logits).softmax(-1).float()

    first = map_last_logits(model, sample, number=probabilities, batch_size=batch_size)
    of_positive = torch.arange(len(sample)) < n
    shows = of_positive
    if concept.judge is not None:
        verdicts = _verdicts(model, sample, concept.judge, batch_size, on_progress)
        known = [row for row, verdict in enumerate(verdicts) if verdict is not None]
        shows = torch.tensor([bool(verdicts[row]) for row in known], dtype=torch.bool)
        first, of_positive = first[known], of_positive[known]
        if reason := _too_few(shows, of_positive, concept.words):
            raise NoFirstTokens(concept.name, reason, evidence)
    ids = separating_tokens(first, shows)
    if reason := _undecided(model, first, shows, ids):
        raise NoFirstTokens(concept.name, reason, evidence)
    ordered = sorted(ids, key=lambda i: -float(positive[i]))
    source = "discovered from next-token probabilities"
    return FirstTokens.of(model, ordered, source=source, evidence=evidence, **concept.facts)


def _verdicts(
    model: ChatModel,
    prompts: Sequence[Prompt],
    judge: Judge,
    batch_size: int,
    on_progress: Progress | None,
) -> list[bool | None]:
    """Whether each prompt's short reply shows the behaviour; None where the judge cannot tell."""
    rendered = model.chat.render(prompts)
    replies = model.generate(
        rendered,
        max_new_tokens=model.reply_room(rendered, REPLY_TOKENS),
        batch_size=batch_size,
        on_progress=named(on_progress, "short replies"),
    )
    exchanges = [
        Exchange(Conversation.of(prompt), reply) for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return [score.shows for score in judged(judge, exchanges)]


def _too_few(
    shows: Bool[Tensor, " prompt"], of_positive: Bool[Tensor, " prompt"], words: Words
) -> str:
    """Why the judged replies tell nothing; "" when enough of them show and lack the behaviour."""
    for kind, verb, hits in (
        ("positive", words.shows, shows[of_positive]),
        ("negative", words.lacks, ~shows[~of_positive]),
    ):
        count = int(hits.sum())
        log.info("replies judged: %s on %d of %d %s prompts", verb, count, len(hits), kind)
        if count < max(LEAST_GROUP, LEAST_SHARE * len(hits)):
            return f"its reply {verb} on {count} of {len(hits)} {kind} prompts"
    return ""


def _undecided(
    model: ChatModel, first: Tensor, shows: Bool[Tensor, " prompt"], ids: Sequence[int]
) -> str:
    """Why a set of ids is none that tells prompts apart; "" when it does."""
    if not ids:
        return "no first token is likely where a reply shows it and rare elsewhere"
    chance = first[:, list(ids)].sum(-1) > COVERED
    right = (int(chance[shows].sum()), int((~chance[~shows]).sum()))
    groups = (int(shows.sum()), int((~shows).sum()))
    if all(told >= COVERED * of for told, of in zip(right, groups, strict=True)):
        return ""
    texts = ", ".join(repr(token_text(model, i)) for i in ids[:4])
    return (
        f"the best set ({texts}) tells only {right[0]} of {groups[0]} prompts that show it and {right[1]} of "
        f"{groups[1]} others"
    )


def separating_tokens(
    probabilities: Float[Tensor, "prompt d_vocab"], shows: Bool[Tensor, " prompt"]
) -> list[int]:
    """The first tokens that tell prompts that show a behaviour from the others; may be empty.

    Only tokens with a mean probability of at least 2% on prompts that show it count, by the ratio to their mean on
    the others: a likelihood ratio. Those of at least five are taken. Weaker ones (above 1.5) join in the order of
    their ratio where "P(set) > 0.5" then tells the two groups apart better: by at least 5 points of balanced
    accuracy. So a token such as "I", common in answers too, joins where refusals need it and stays out where they
    do not.
    """
    here, there = (probabilities[rows].double().mean(0) for rows in (shows, ~shows))
    ratio = here / there.clamp_min(1e-12)
    likely = torch.nonzero((here >= LEAST_PROBABILITY) & (ratio >= WEAK_RATIO)).squeeze(1).tolist()
    ranked = sorted(likely, key=lambda i: -float(ratio[i]))
    taken = [i for i in ranked if float(ratio[i]) >= STRONG_RATIO]
    best = _balanced_accuracy(probabilities, shows, taken)
    # Two weak tokens may be needed together: the best longer beginning of the ranking joins at once.
    for stop in range(len(taken) + 1, len(ranked) + 1):
        accuracy = _balanced_accuracy(probabilities, shows, ranked[:stop])
        if accuracy >= best + LEAST_GAIN:
            taken, best = ranked[:stop], accuracy
    return taken


def _balanced_accuracy(probabilities: Tensor, shows: Tensor, tokens: Sequence[int]) -> float:
    """Mean share of the two groups that the sign of these tokens' log-odds gets right."""
    above = probabilities[:, list(tokens)].sum(-1) > COVERED
    return float((above[shows].double().mean() + (~above[~shows]).double().mean()) / 2)


def _evidence(model: ChatModel, positive: Tensor, negative: Tensor) -> tuple[Evidence, ...]:
    likeliest = positive.topk(min(SHOWN, len(positive))).indices.tolist()
    return tuple((i, token_text(model, i), float(positive[i]), float(negative[i])) for i in likeliest)
