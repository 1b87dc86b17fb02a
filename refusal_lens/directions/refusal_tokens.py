"""Which first tokens mean that a reply refuses: a family table, an explicit list, or discovery."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..shapes import Probabilities

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
LEAST_RATIO = 5.0
COVERED = 0.5


@dataclass(frozen=True)
class RefusalTokens:
    """The set R: token ids, their texts, and where they come from."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    source: str


@checked
def parse_refusal_tokens(model: ChatModel, given: Sequence[str | int]) -> RefusalTokens:
    """R from an explicit list of ids or texts; raises InputError for a text that is not one token."""
    ids = [_one_token(model, item) for item in given]
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
        rendered = model.chat.render(["hello"] * len(phrases), replies=list(phrases))
        firsts = rendered.ids.gather(1, rendered.answer[:, :1]).squeeze(1)
        if tuple(firsts.tolist()) == ids:
            return _named(model, ids, f"family {family} (paper, Table 4)")
    return None


@checked
def discover_refusal_tokens(
    model: ChatModel, positive: Probabilities, negative: Probabilities
) -> RefusalTokens:
    """R from the mean next-token probabilities on the two kinds of prompts (paper, Fig. 9).

    Takes the tokens with a mean probability of at least 2% on positive prompts that is at least five times
    that on negative ones. Raises InputError when there is none: the model does not refuse these prompts.
    """
    fits = (positive >= LEAST_PROBABILITY) & (positive >= LEAST_RATIO * negative)
    ids = torch.nonzero(fits).squeeze(1)
    if not len(ids):
        likeliest = int(positive.argmax())
        raise InputError(
            "refusal tokens: none found; no first token is both likely on the positive prompts and rare on "
            f"the negative ones (likeliest: {_text(model, likeliest)!r}, {float(positive.max()):.0%} against "
            f"{float(negative[likeliest]):.0%}); name them with --refusal-tokens if the model refuses"
        )
    ordered = ids[positive[ids].argsort(descending=True)]
    return _named(model, ordered.tolist(), "discovered from next-token probabilities")


@checked
def choose_refusal_tokens(
    model: ChatModel, positive: Probabilities, negative: Probabilities
) -> RefusalTokens:
    """The family's R if it covers at least half of the positive prompts' first tokens, else discovery."""
    family = family_refusal_tokens(model)
    if family is not None:
        covered = float(positive[list(family.ids)].sum())
        if covered >= COVERED:
            log.info("refusal tokens %s: %s, covering %.0f%%", family.texts, family.source, 100 * covered)
            return family
        log.info("refusal tokens of %s cover only %.0f%%: discovering", family.source, 100 * covered)
    try:
        found = discover_refusal_tokens(model, positive, negative)
    except InputError:
        if family is None:
            raise
        return family
    log.info("refusal tokens %s: %s", found.texts, found.source)
    return found


@checked
def top_tokens(model: ChatModel, probabilities: Probabilities, *, k: int = 10) -> pd.DataFrame:
    """The k likeliest next tokens by mean probability: token_id, token, probability (paper, Fig. 9)."""
    best = probabilities.topk(k)
    ids = best.indices.tolist()
    return pd.DataFrame(
        {"token_id": ids, "token": [_text(model, i) for i in ids], "probability": best.values.tolist()}
    )


def _one_token(model: ChatModel, item: str | int) -> int:
    if isinstance(item, int) or (item.isascii() and item.strip().isdigit()):
        # Python reads no number of thousands of digits; no vocabulary needs one of twenty.
        token = int(item) if len(str(item)) < 20 else -1
        if not 0 <= token < model.d_vocab:
            raise InputError(
                f"refusal token {item!s:.40}: no such id, need 0 to {model.d_vocab - 1}"
            )
        return token
    encoded = model.tokenizer.encode(item, add_special_tokens=False)
    if len(encoded) != 1:
        pieces = [_text(model, i) for i in encoded]
        raise InputError(
            f"refusal token {item!r}: is {len(encoded)} tokens ({pieces}), need one; try {pieces[:1]} or an id"
        )
    return int(encoded[0])


def _named(model: ChatModel, ids: Sequence[int], source: str) -> RefusalTokens:
    return RefusalTokens(tuple(ids), tuple(_text(model, i) for i in ids), source)


def _text(model: ChatModel, token: int) -> str:
    return model.tokenizer.decode([token])
