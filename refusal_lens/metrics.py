"""Tensors to numbers: the refusal metric, KL divergence and cross-entropy.

The formulas and their epsilons are those of the paper's reference implementation, computed in
float64 on the logits that are asked about and on no others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from .door import at_least, checked
from .errors import InputError
from .shapes import LastLogits, Logits, PerPrompt, TokenIds, TokenMask, Vector, Vectors, as_float64

METRIC_EPSILON = 1e-8
KL_EPSILON = 1e-6


@checked
def first_token_log_odds(
    logits: LastLogits, ids: Sequence[int], against: Sequence[int] = ()
) -> PerPrompt:
    """``ln(P + eps) - ln(1 - P + eps)``, P the probability that the next token is one of ids.

    The paper's refusal metric (section 2.4 and appendix B) where ids are the refusal tokens: in nats, float64, with
    eps = 1e-8, so that it saturates at +-18.42. With against ``ln(P + eps) - ln(Q + eps)``, Q the probability of those.
    An id counts once however often it is given.
    """
    check_token_ids(ids, logits.shape[-1])
    probabilities = as_float64(logits).softmax(-1)
    chance = probabilities[:, list(dict.fromkeys(ids))].sum(-1)
    if not against:
        return (chance + METRIC_EPSILON).log() - (1 - chance + METRIC_EPSILON).log()
    check_token_ids(against, logits.shape[-1])
    other = probabilities[:, list(dict.fromkeys(against))].sum(-1)
    return (chance + METRIC_EPSILON).log() - (other + METRIC_EPSILON).log()


def check_token_ids(ids: Sequence[int], d_vocab: int) -> None:
    """Raise InputError unless there are token ids and a vocabulary of d_vocab has them."""
    if not ids:
        raise InputError("token ids: got none, need at least one")
    strange = [i for i in ids if not 0 <= i < d_vocab]
    if strange:
        raise InputError(f"token id {strange[0]}: no such id, need 0 to {d_vocab - 1}")


@checked
def kl_divergence(baseline: LastLogits, edited: LastLogits) -> PerPrompt:
    """``sum_v p (ln(p + eps) - ln(q + eps))`` with p the baseline and q the edited model.

    In nats, float64, eps = 1e-6 (paper, appendix C.1); the epsilon makes it slightly smaller than the true
    divergence, and it may fall a little below zero.
    """
    p = as_float64(baseline).softmax(-1)
    q = as_float64(edited).softmax(-1)
    return (p * ((p + KL_EPSILON).log() - (q + KL_EPSILON).log())).sum(-1)


@checked
def cross_entropy(logits: Logits, ids: TokenIds, scored: TokenMask) -> tuple[float, int]:
    """Sum of ``-ln p(token)`` over the scored tokens, in nats, and how many they are.

    ``scored[b, i]`` asks for the prediction of token ``ids[b, i]``, which the logits at ``i - 1`` make;
    the first position of a row can therefore not be scored.
    """
    if bool(scored[:, 0].any()):
        raise InputError("cross_entropy: the first token of a row has no prediction to score")
    asked_for = ids[scored.to(ids.device)]
    if len(asked_for):
        check_token_ids([int(asked_for.min()), int(asked_for.max())], logits.shape[-1])
    total, n = 0.0, 0
    for row, tokens, asked in zip(logits[:, :-1], ids[:, 1:], scored[:, 1:], strict=True):
        log_probabilities = as_float64(row[asked]).log_softmax(-1)
        total -= float(log_probabilities.gather(-1, tokens[asked][:, None].to(log_probabilities.device)).sum())
        n += int(asked.sum())
    return total, n


@checked
def cosine_similarity(x: Vectors, r: Vector) -> Float64[Tensor, "*axes"]:
    """``x . r / (||x|| ||r||)`` along the last axis, float64; 0 where x or r is zero."""
    x, r = as_float64(x), as_float64(r)
    return (x @ r) / (x.norm(dim=-1) * r.norm()).clamp_min(1e-30)


@checked
def binomial_standard_error(rate: float, n: int) -> float:
    """``sqrt(p (1 - p) / n)``, the error bar of the paper's refusal rates (appendix D.4)."""
    at_least(1, n=n)
    if not 0 <= rate <= 1:
        raise InputError(f"rate: got {rate:g}, need a share from 0 to 1")
    return float(torch.tensor(rate * (1 - rate) / n, dtype=torch.float64).sqrt())
