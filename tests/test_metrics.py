"""The refusal metric, KL and CE against their formulas written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from refusal_lens.metrics import (
    binomial_standard_error,
    cosine_similarity,
    cross_entropy,
    first_token_log_odds,
    kl_divergence,
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(5, 40, generator=torch.Generator().manual_seed(1))


def test_refusal_metric_is_the_log_odds_of_the_refusal_tokens(logits: torch.Tensor) -> None:
    chance = softmax(logits.double().numpy())[:, [3, 7]].sum(-1)
    expected = np.log(chance + 1e-8) - np.log(1 - chance + 1e-8)
    assert np.allclose(first_token_log_odds(logits, [3, 7]), expected, rtol=0, atol=1e-12)


def test_refusal_metric_saturates_where_the_paper_code_does() -> None:
    sure = torch.tensor([[1e4, 0.0, 0.0], [0.0, 1e4, 0.0]])
    assert first_token_log_odds(sure, [0]).tolist() == pytest.approx([math.log(1e8)] * 1 + [-math.log(1e8)])


def test_refusal_metric_is_float64_from_half_precision(logits: torch.Tensor) -> None:
    assert first_token_log_odds(logits.half(), [0]).dtype == torch.float64


def test_kl_has_its_epsilon_inside_both_logarithms(logits: torch.Tensor) -> None:
    p, q = softmax(logits.double().numpy()), softmax(logits.double().flip(0).numpy())
    expected = (p * (np.log(p + 1e-6) - np.log(q + 1e-6))).sum(-1)
    assert np.allclose(kl_divergence(logits, logits.flip(0)), expected, rtol=0, atol=1e-12)
    assert kl_divergence(logits, logits).abs().max() == 0


def test_kl_is_not_symmetric(logits: torch.Tensor) -> None:
    there, back = kl_divergence(logits, logits.flip(0)), kl_divergence(logits.flip(0), logits)
    assert not torch.allclose(there, back)


def test_kl_survives_minus_infinity() -> None:
    masked = torch.tensor([[0.0, 1.0, -math.inf]])
    assert torch.isfinite(kl_divergence(masked, torch.zeros(1, 3))).all()


def test_cross_entropy_equals_torch_and_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 9, generator=generator)
    ids = torch.randint(0, 9, (2, 6), generator=generator)
    scored = torch.zeros(2, 6, dtype=torch.bool)
    scored[0, 3:], scored[1, 5] = True, True
    total, n = cross_entropy(logits, ids, scored)
    rows = torch.cat([logits[0, 2:5], logits[1, 4:5]])
    expected = torch.nn.functional.cross_entropy(
        rows.double(), torch.cat([ids[0, 3:], ids[1, 5:]]), reduction="sum"
    )
    assert n == 4
    assert total == pytest.approx(float(expected), abs=1e-12)


def test_cross_entropy_cannot_score_the_first_token() -> None:
    with pytest.raises(ValueError, match="first token"):
        cross_entropy(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2).bool())


def test_cosine_similarity_matches_torch_and_takes_zero() -> None:
    x, r = torch.randn(4, 3, 8), torch.randn(8)
    expected = torch.nn.functional.cosine_similarity(x.double(), r.double(), dim=-1)
    assert torch.allclose(cosine_similarity(x, r), expected)
    assert float(cosine_similarity(torch.zeros(1, 8), r)) == 0


def test_standard_error_is_binomial() -> None:
    assert binomial_standard_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_standard_error(1.0, 100) == 0
