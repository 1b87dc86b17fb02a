"""Which first tokens mean that a reply refuses: a family table, an explicit list, or discovery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..activations import map_last_logits, mean_next_token_probabilities
from ..conversations import Conversation, Exchange
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..judges import Judge, judged, phrase_judge
from ..model import ChatModel
from ..progress import Progress, named
from ..prompts import PromptPair
from ..shapes import Probabilities, as_float64

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
LEAST_REFUSED = 0.1
SAMPLE = 32
REPLY_TOKENS = 24
SHOWN = 8
_PROBE = "hello"

Evidence = tuple[int, str, float, float]
"""A first token: id, text, mean probability on the positive prompts and on the negative ones."""


@shown()
@dataclass(frozen=True)
class RefusalTokens:
    """The set R: token ids, their texts, where they come from, and what spoke for and against.

    evidence: the likeliest first tokens on positive prompts, in or out of R; empty for given ones.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    source: str
    evidence: tuple[Evidence, ...] = ()


class NoRefusalTokens(InputError):  # noqa: N818  a finding about the model, not a mishap
    """No set of first tokens tells refusals apart; evidence holds the likeliest first tokens."""

    def __init__(self, reason: str, evidence: Sequence[Evidence]) -> None:
        self.reason = reason
        self.evidence = tuple(evidence)
        shown = ", ".join(f"{text!r:.20} {p:.0%} ({q:.0%})" for _, text, p, q in self.evidence[:4])
        super().__init__(
            f"refusal tokens: none found; {reason}; likeliest first tokens (on negative prompts): "
            f"{shown}; name them with --refusal-tokens if the model refuses"
        )


@checked
def parse_refusal_tokens(model: ChatModel, given: Sequence[str | int]) -> RefusalTokens:
    """R from an explicit list of ids or texts, each text as the model's reply would begin with it.

    Raises InputError for a text that is not one token there.
    """
    if isinstance(given, str):
        raise InputError(f"refusal tokens: got {given!r:.40}, need a list of texts or ids")
    ids = list(dict.fromkeys(_one_token(model, item) for item in given))
    if not ids:
        raise InputError("refusal tokens: got none, need at least one token id or text")
    return _named(model, ids, "given")


def family_refusal_tokens(model: ChatModel) -> RefusalTokens | None:
    """R from the family table: the first reply token of each phrase, in the template's context.

    None unless these are the ids that the paper lists for the family.
    """
    kind = getattr(getattr(model.hf, "config", None), "model_type", "")
    for family, phrases, ids in FAMILIES:
        if not kind.startswith(family):
            continue
        try:
            begun = reply_tokens(model, phrases)
        except InputError as error:
            log.info("refusal tokens of family %s: not looked up; %s", family, error)
            return None
        if tuple(tokens[0] for tokens in begun) == ids:
            return _named(model, ids, f"family {family} (paper, Table 4)")
    return None


def reply_tokens(model: ChatModel, replies: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each reply as it follows the generation prompt (and prefill) in the template.

    Raises InputError where the template cannot hold replies.
    """
    prompt = int(model.chat.render([_PROBE]).lengths[0])
    rendered = model.chat.render([_PROBE] * len(replies), replies=list(replies))
    starts = rendered.ids.shape[1] - rendered.lengths + prompt
    return [
        tuple(row[start:stop])
        for row, start, stop in zip(
            rendered.ids.tolist(), starts.tolist(), rendered.answer[:, 1].tolist(), strict=True
        )
    ]


@checked
def choose_refusal_tokens(
    model: ChatModel,
    pair: PromptPair,
    *,
    judge: Judge | None = phrase_judge,
    batch_size: int = 32,
    at_most: int = 128,
    on_progress: Progress | None = None,
) -> RefusalTokens:
    """The family's R if it covers at least half of the positive prompts' first tokens, else discovery.

    Looks at the first prompts of the pair, at_most of each kind. The family's R also stands where
    discovery finds none; without a family NoRefusalTokens is raised. judge: as in
    `discover_refusal_tokens`.
    """
    positive, negative = (
        mean_next_token_probabilities(
            model,
            prompts[:at_most],
            batch_size=batch_size,
            on_progress=named(on_progress, f"first tokens, {kind}"),
        )
        for kind, prompts in (("positive", pair.positive), ("negative", pair.negative))
    )
    family = family_refusal_tokens(model)
    if family is not None:
        evidence = _evidence(model, positive, negative)
        family = RefusalTokens(family.ids, family.texts, family.source, evidence)
        covered = float(positive[list(family.ids)].sum())
        if covered >= COVERED:
            log.info(
                "refusal tokens %s: %s, covering %.0f%%", family.texts, family.source, 100 * covered
            )
            return family
        log.info(
            "refusal tokens of %s cover only %.0f%%: discovering", family.source, 100 * covered
        )
    try:
        found = discover_refusal_tokens(
            model,
            pair,
            positive=positive,
            negative=negative,
            judge=judge,
            batch_size=batch_size,
            on_progress=on_progress,
        )
    except NoRefusalTokens as error:
        if family is None:
            raise
        log.warning("refusal tokens %s: %s, though %s", family.texts, family.source, error.reason)
        return family
    log.info("refusal tokens %s: %s", found.texts, found.source)
    return found


@checked
def discover_refusal_tokens(
    model: ChatModel,
    pair: PromptPair,
    *,
    positive: Probabilities | None = None,
    negative: Probabilities | None = None,
    judge: Judge | None = phrase_judge,
    batch_size: int = 32,
    on_progress: Progress | None = None,
) -> RefusalTokens:
    """R as the first tokens that tell the prompts that the model refuses from those it answers.

    Reads short greedy replies (24 tokens) to the first 32 prompts of each kind, and lets the judge
    say which refuse; `separating_tokens` then weighs each prompt's next-token probabilities.
    positive and negative: mean next-token probabilities of the two kinds (paper, Fig. 9), for the
    evidence and the order; by default those of the same prompts. judge=None takes the kinds
    themselves for refused and answered, for contrasts that are not about refusal.

    Raises NoRefusalTokens, with the evidence, when too few replies refuse or are answers, or when
    no set of first tokens tells the two apart.
    """
    sample = [*pair.positive[:SAMPLE], *pair.negative[:SAMPLE]]
    n = len(pair.positive[:SAMPLE])

    def probabilities(logits: Tensor) -> Tensor:
        return as_float64(logits).softmax(-1).float()

    first = map_last_logits(model, sample, number=probabilities, batch_size=batch_size)
    positive = first[:n].double().mean(0) if positive is None else positive
    negative = first[n:].double().mean(0) if negative is None else negative
    evidence = _evidence(model, positive, negative)
    refused = torch.arange(len(sample)) < n
    if judge is not None:
        rendered = model.chat.render(sample)
        replies = model.generate(
            rendered,
            max_new_tokens=model.reply_room(rendered, REPLY_TOKENS),
            batch_size=batch_size,
            on_progress=named(on_progress, "short replies"),
        )
        exchanges = [
            Exchange(Conversation.of(prompt), reply)
            for prompt, reply in zip(sample, replies, strict=True)
        ]
        refused = torch.tensor([bool(score.shows) for score in judged(judge, exchanges)])
        yes, no = int(refused[:n].sum()), int((~refused[n:]).sum())
        log.info(
            "replies judged: %d of %d positive prompts refused, %d of %d negative ones answered",
            yes,
            n,
            no,
            len(sample) - n,
        )
        if yes < max(LEAST_GROUP, LEAST_REFUSED * n):
            raise NoRefusalTokens(
                f"it refuses {yes} of {n} positive prompts by its replies", evidence
            )
        if no < max(LEAST_GROUP, LEAST_REFUSED * (len(sample) - n)):
            reason = f"it answers {no} of {len(sample) - n} negative prompts by its replies"
            raise NoRefusalTokens(reason, evidence)
    ids = separating_tokens(first, refused)
    if not ids:
        raise NoRefusalTokens("no first token is likely in refusals and rare in answers", evidence)
    chance = first[:, ids].sum(-1) > COVERED
    told = (int(chance[refused].sum()), int((~chance[~refused]).sum()))
    groups = (int(refused.sum()), int((~refused).sum()))
    if any(right < COVERED * of for right, of in zip(told, groups, strict=True)):
        texts = ", ".join(repr(_text(model, i)) for i in ids[:4])
        raise NoRefusalTokens(
            f"the best set ({texts}) tells only {told[0]} of {groups[0]} refusals and {told[1]} of "
            f"{groups[1]} answers",
            evidence,
        )
    ordered = sorted(ids, key=lambda i: -float(positive[i]))
    source = "discovered from next-token probabilities"
    return RefusalTokens(tuple(ordered), tuple(_text(model, i) for i in ordered), source, evidence)


def separating_tokens(
    probabilities: Float[Tensor, "prompt d_vocab"], refused: Bool[Tensor, " prompt"]
) -> list[int]:
    """The set R of first tokens that tells refused prompts from answered ones; may be empty.

    Only tokens with a mean probability of at least 2% on refused prompts count, by the ratio to
    their mean on answered ones: a likelihood ratio. Those of at least five are in R. Weaker ones
    (above 1.5) join in the order of their ratio where "P(R) > 0.5" then tells the two groups apart
    better: by at least 5 points of balanced accuracy. So a token such as "I", common in answers
    too, joins where refusals need it and stays out where they do not.
    """
    here, there = (probabilities[rows].double().mean(0) for rows in (refused, ~refused))
    ratio = here / there.clamp_min(1e-12)
    likely = torch.nonzero((here >= LEAST_PROBABILITY) & (ratio >= WEAK_RATIO)).squeeze(1).tolist()
    ranked = sorted(likely, key=lambda i: -float(ratio[i]))
    found = [i for i in ranked if float(ratio[i]) >= STRONG_RATIO]
    best = _balanced_accuracy(probabilities, refused, found)
    # Two weak tokens may be needed together: the best longer beginning of the ranking joins at once.
    for stop in range(len(found) + 1, len(ranked) + 1):
        told = _balanced_accuracy(probabilities, refused, ranked[:stop])
        if told >= best + LEAST_GAIN:
            found, best = ranked[:stop], told
    return found


@checked
def top_tokens(model: ChatModel, probabilities: Probabilities, *, k: int = 10) -> pd.DataFrame:
    """The k likeliest next tokens by mean probability: token_id, token, probability (paper, Fig. 9)."""
    best = probabilities.topk(k)
    ids = best.indices.tolist()
    return pd.DataFrame(
        {
            "token_id": ids,
            "token": [_text(model, i) for i in ids],
            "probability": best.values.tolist(),
        }
    )


def _balanced_accuracy(probabilities: Tensor, refused: Tensor, tokens: Sequence[int]) -> float:
    """Mean share of the two groups that the sign of the refusal metric of these tokens gets right."""
    says = probabilities[:, list(tokens)].sum(-1) > COVERED
    return float((says[refused].double().mean() + (~says[~refused]).double().mean()) / 2)


def _evidence(model: ChatModel, positive: Tensor, negative: Tensor) -> tuple[Evidence, ...]:
    likeliest = positive.topk(min(SHOWN, len(positive))).indices.tolist()
    return tuple((i, _text(model, i), float(positive[i]), float(negative[i])) for i in likeliest)


def _one_token(model: ChatModel, item: str | int) -> int:
    if isinstance(item, bool) or not isinstance(item, str | int):
        raise InputError(
            f"refusal token {item!r:.40}: got {type(item).__name__}, need a text or an id"
        )
    if isinstance(item, int) or (item.isascii() and item.strip().isdigit()):
        # Python reads no number of thousands of digits; no vocabulary needs one of twenty.
        token = int(item) if len(str(item)) < 20 else -1
        if not 0 <= token < model.d_vocab:
            raise InputError(
                f"refusal token {item!s:.40}: no such id, need 0 to {model.d_vocab - 1}"
            )
        return token
    if not item.strip():
        raise InputError(f"refusal token {item!r:.40}: got no text, need a word or an id")
    special = model.tokenizer.get_added_vocab().get(item)
    return int(special) if special is not None else _in_context(model, item)


def _in_context(model: ChatModel, word: str) -> int:
    """The one token that a reply which is this word begins with; a difference is logged."""
    try:
        [begun] = reply_tokens(model, [word])
    except InputError as error:
        raise InputError(
            f"refusal token {word!r:.40}: cannot be put where a reply begins; try its id ({error})"
        ) from error
    bare = model.tokenizer.encode(word, add_special_tokens=False)
    if len(begun) != 1 or begun[0] >= model.d_vocab:
        pieces = [_text(model, i) for i in begun][:6]
        raise InputError(
            f"refusal token {word!r:.40}: is {len(begun)} tokens ({pieces}) where a reply begins, "
            f"need one; try {pieces[:1]} or an id"
        )
    if list(begun) == bare:
        return begun[0]
    if word != word.strip() and begun == reply_tokens(model, [word.strip()])[0]:
        raise InputError(
            f"refusal token {word!r:.40}: the chat template drops white space round a reply, which "
            f"then begins with {_text(model, begun[0])!r}; try {word.strip()!r}, or the id {bare[:1]}"
        )
    log.warning(
        "refusal token %r: a reply begins with token %d here, the word alone is %s",
        word,
        begun[0],
        bare,
    )
    return begun[0]


def _named(model: ChatModel, ids: Sequence[int], source: str) -> RefusalTokens:
    return RefusalTokens(tuple(ids), tuple(_text(model, i) for i in ids), source)


def _text(model: ChatModel, token: int) -> str:
    return model.tokenizer.decode([token])
