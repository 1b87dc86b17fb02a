"""What a reviewer would object to is said with its numbers, and nothing is where there is nothing."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from refusal_lens.directions.selection import NOT_NEEDED
from refusal_lens.evaluation.overlap import word_overlap, word_pairs
from refusal_lens.pipeline.flags import find_flags
from refusal_lens.pipeline.summary import SCHEMA_VERSION, rate_of, summarise

KINDS = ("harmful", "harmless")
THRESHOLDS = {"kl_threshold": 0.1, "induce_threshold": 0.0, "prune_layers": 0.2}


def row(metric: float | None, refusal: bool, **more: Any) -> dict[str, Any]:
    return {"instruction": "x", "response": "y", "metric": metric, "refusal": refusal} | more


def completions(**changes: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Ten prompts of each kind on which metric and judge agree, but for those given by kind."""
    found = {"harmful": [row(6.0, True)] * 10, "harmless": [row(-6.0, False)] * 10} | changes
    return {(kind, "baseline"): rows for kind, rows in found.items()}


def summary(**changes: Any) -> dict[str, Any]:
    sound: dict[str, Any] = {
        "n_layers": 10,
        "refusal_tokens": [40],
        "refusal_token_texts": ["I"],
        "refusal_token_source": "discovered",
        "refusal_rate": {"harmful": {"baseline": {"rate": 1.0, "paper_count": 1.0}}},
        "kept_prompts": {"val": {"harmful": {"kept": 16, "of": 32}}},
        "selected": {"layer": 5},
        "thresholds": THRESHOLDS,
        "n_unscored": 0,
        "n_passing": 3,
        "n_candidates": 50,
        "losses": {"baseline": {"ce": 0.2}, "ablation": {"ce": 0.3}},
    }
    return sound | changes


def test_a_sound_run_is_not_objected_to() -> None:
    assert find_flags(summary(), completions(), KINDS) == []


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "kept_few_prompts",
            {"kept_prompts": {"val": {"harmful": {"kept": 9, "of": 32}}}},
            "9 of 32 harmful prompts of val",
        ),
        ("layer_at_the_edge", {"selected": {"layer": 7}}, "layer 7 is the last that the rule admits"),
        ("layer_at_the_edge", {"selected": {"layer": 0}}, "layer 0 is the first"),
        ("scored_lazily", {"n_unscored": 12}, "at least 3 of 50 candidates pass; 12 have no verdict"),
        (
            "judge_and_paper_count",
            {"refusal_rate": {"harmful": {"baseline": {"rate": 1.0, "paper_count": 0.25}}}},
            "harmful, no intervention: 25.0% instead of 100.0%",
        ),
        (
            "ablation_damages",
            {"losses": {"baseline": {"ce": 0.2}, "ablation": {"ce": 4.0}}},
            "rises from 0.20 to 4.00 nats per token",
        ),
    ],
)
def test_each_objection_has_its_numbers(name: str, changes: dict[str, Any], words: str) -> None:
    (flag,) = find_flags(summary(**changes), completions(), KINDS)
    assert flag["name"] == name
    assert words in flag["text"]
    assert "\n" not in flag["text"]


def test_what_hooks_miss_comes_first() -> None:
    (flag,) = find_flags(summary(), completions(), KINDS, missed_writes="Ablation misses x.")
    assert flag == {"name": "hooks_miss_a_write", "text": "Ablation misses x."}


@pytest.mark.parametrize(("left", "flagged"), [(0.01, False), (-0.31, True)])
def test_r_in_an_ablated_stream_is_a_write_that_was_missed(left: float, flagged: bool) -> None:
    rows = {"kind": "harmful", "condition": ["baseline", "ablation"], "layer": 4, "mean": [0.6, left]}
    found = find_flags(summary(), completions(), KINDS, curves=pd.DataFrame(rows))
    assert [flag["name"] for flag in found] == ["hooks_miss_a_write"] * flagged
    assert not flagged or "-0.31 with r at layer 4 on harmful prompts" in found[0]["text"]


def test_empty_replies_are_not_taken_for_compliance_without_a_word() -> None:
    silent = [row(-6.0, False, response=" ")] * 2 + [row(-6.0, False)] * 8
    (flag,) = find_flags(summary(), completions(harmless=silent), KINDS)
    assert (flag["name"], "2 of 10 (harmless" in flag["text"]) == ("empty_replies", True)


@pytest.mark.parametrize(("n", "flagged"), [(1, False), (2, True), (10, True)])
def test_metric_and_judge_may_disagree_on_a_tenth(n: int, flagged: bool) -> None:
    # Replies that the judge does not know for refusals, of a model that does refuse.
    harmful = [row(6.0, False)] * n + [row(6.0, True)] * (10 - n)
    found = {f["name"]: f["text"] for f in find_flags(summary(), completions(harmful=harmful), KINDS)}
    assert ("metric_and_judge" in found) == flagged
    if flagged:
        assert f"{n} of 10 (harmful, no intervention" in found["metric_and_judge"]
        assert f"metric alone sees refusal in {n}, judge alone in 0" in found["metric_and_judge"]


@pytest.mark.parametrize(
    ("harmful", "harmless", "doubt"),
    [
        # R holds a third of the first token of refusals.
        ([row(math.log(0.33 / 0.67), True)] * 10, [row(-6.0, False)] * 10, "33% of the first token"),
        # R opens answers too.
        ([row(1.0, True)] * 10, [row(-1.0, False)] * 10, "73% on all harmful prompts, 27% on"),
    ],
)
def test_weak_refusal_tokens_are_doubted(harmful: list, harmless: list, doubt: str) -> None:
    replies = completions(harmful=harmful, harmless=harmless)
    found = {f["name"]: f["text"] for f in find_flags(summary(), replies, KINDS)}
    assert doubt in found["weak_refusal_tokens"]


def test_without_a_metric_nothing_is_said_of_it() -> None:
    replies = completions(harmful=[row(None, True)] * 10, harmless=[row(math.nan, False)] * 10)
    assert find_flags(summary(refusal_tokens=[]), replies, KINDS) == []


# ---------------------------------------------------------------- the summary


def summed_up(**changes: Any) -> dict[str, Any]:
    tokens = {"ids": [40], "texts": ["I"], "source": "given", "evidence": [[40, "I", 0.9, 0.1]]}
    behaviour = {
        "refusal_tokens": tokens,
        "kept_prompts": {},
        "baseline": {},
        "duplicates_removed": 0,
        "model": {"model": "m", "revision": None, "n_layers": 10, "d_model": 4, "dtype": "float32",
                  "device": "cpu", "positions": ["a"]},
    }  # fmt: skip
    settings = {**THRESHOLDS, "seed": 3}
    given: dict[str, Any] = {
        "behaviour": behaviour,
        "judged": None,
        "chosen": None,
        "not_selected": "none passes",
        "completions": completions(),
        "losses": None,
        "nulls": None,
        "settings": settings,
        "kinds": KINDS,
    }
    return summarise(**(given | changes))


def test_a_summary_without_a_direction_says_why() -> None:
    found = summed_up()
    assert found["schema_version"] == SCHEMA_VERSION
    assert (found["selected"], found["scores"], found["not_selected"]) == (None, None, "none passes")
    assert (found["n_candidates"], found["n_passing"], found["n_unscored"]) == (0, 0, 0)
    assert (found["losses"], found["nulls"]) == ({}, {})
    assert found["refusal_token_evidence"] == [
        {"token_id": 40, "token": "I", "harmful": 0.9, "harmless": 0.1}
    ]


def test_a_summary_counts_what_has_no_verdict() -> None:
    judged = pd.DataFrame(
        {
            "position": -1, "position_name": "a", "layer": [0, 1, 2], "norm": 1.0, "bypass": 1.0,
            "induce": 1.0, "kl": 0.0, "passes": [False, True, False],
            "reason": ["kl 1 > 0.1", "", f"{NOT_NEEDED}: bypass is worse"],
        }
    )  # fmt: skip
    found = summed_up(judged=judged, chosen={"position": -1, "layer": 1}, not_selected="")
    assert (found["n_candidates"], found["n_passing"], found["n_unscored"]) == (3, 1, 1)
    assert (found["selected"]["layer"], found["not_selected"]) == (1, None)


def test_the_papers_count_is_kept_where_it_was_made() -> None:
    rows = [row(1.0, True, refusal_exact=exact) for exact in (True, False, False, False)]
    assert rate_of(rows) == {"rate": 1.0, "se": 0.0, "n": 4, "paper_count": 0.25}
    assert "paper_count" not in rate_of([row(1.0, True)])


# ---------------------------------------------------------------- overlap of replies


def test_overlap_is_that_of_the_same_prompt_beside_that_of_others() -> None:
    mine = ["the red lamp is here", "a b c", "x y"]
    theirs = ["the red lamp is gone", "a b d", "p q"]
    found = word_overlap(mine, theirs)
    assert found is not None
    assert found.same_prompt == pytest.approx((3 / 5 + 1 / 3 + 0) / 3)
    assert (found.other_prompts, found.n) == (0.0, 3)


@pytest.mark.parametrize(
    ("mine", "theirs", "same", "others"),
    [
        (["a b"], ["a b"], 1.0, None),
        (["", "a"], ["", "a"], 1.0, 0.0),
        (["same"] * 40, ["same"] * 40, 1.0, 1.0),
        (["Hello, World!"], ["hello world"], 1.0, None),
        (["\u4eca\u5929\u597d"], ["\u4eca\u5929\u574f"], 1 / 3, None),
    ],
)
def test_overlap_at_its_edges(
    mine: list[str], theirs: list[str], same: float, others: float | None
) -> None:
    found = word_overlap(mine, theirs)
    assert found is not None
    assert found.same_prompt == pytest.approx(same)
    assert found.other_prompts == others


def test_overlap_of_nothing_is_none_and_of_unequal_sets_an_error() -> None:
    assert word_overlap([], []) is None
    assert word_pairs("") == frozenset()
    with pytest.raises(ValueError, match="need as many"):
        word_overlap(["a"], [])
