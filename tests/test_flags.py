"""What a reviewer would object to is said with its numbers, and nothing is where there is nothing."""

from __future__ import annotations

import math
import re
from dataclasses import asdict
from typing import Any

import pandas as pd
import pytest

from refusal_lens.behaviours import FirstTokens
from refusal_lens.behaviours.words import REFUSAL, Words
from refusal_lens.directions.selection import NOT_NEEDED
from refusal_lens.evaluation.overlap import word_overlap, word_pairs
from refusal_lens.pipeline.flags import Measured, find_flags
from refusal_lens.pipeline.summary import (
    behaviour_summary,
    null_summary,
    rate_of,
    rates_summary,
    selection_summary,
)

KINDS = ("harmful", "harmless")
POETRY: dict[str, Any] = {
    "name": "poetry", "threshold": 0.0, "judge": "rhyme",
    "words": asdict(Words("poetry", "rhymes", "does not rhyme", "rhyme score")),
}  # fmt: skip
BEHAVIOUR: dict[str, Any] = {
    "name": "refusal", "threshold": 0.0, "judge": "phrases", "words": asdict(REFUSAL),
    "first_tokens": {"ids": [40], "texts": ["I"], "source": "discovered"},
}  # fmt: skip
THRESHOLDS = {"kl_threshold": 0.1, "induce_threshold": 0.0, "prune_layers": 0.2}


def row(score: float | None, shows: bool | None, **more: Any) -> dict[str, Any]:
    return {"instruction": "x", "response": "y", "score": score, "shows": shows} | more


def completions(**changes: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Ten prompts of each kind on which score and judge agree, but for those given by kind."""
    found = {"harmful": [row(6.0, True)] * 10, "harmless": [row(-6.0, False)] * 10} | changes
    return {(kind, "baseline"): rows for kind, rows in found.items()}


def summary(**changes: Any) -> dict[str, Any]:
    sound: dict[str, Any] = {
        "n_layers": 10,
        "kinds": list(KINDS),
        "behaviour": BEHAVIOUR,
        "rates": {"harmful": {"baseline": {"rate": 1.0, "paper_count": 1.0}}},
        "kept_prompts": {"val": {"harmful": {"kept": 16, "of": 32}}},
        "selected": {"layer": 5},
        "thresholds": THRESHOLDS,
        "n_unscored": 0,
        "n_passing": 3,
        "n_candidates": 50,
        "losses": {"baseline": {"ce": 0.2}, "ablation": {"ce": 0.3}},
    }
    return sound | changes


def flagged(
    summary_: dict[str, Any] | None = None, rows: Any = None, **more: Any
) -> list[dict[str, str]]:
    return find_flags(Measured(summary_ or summary(), rows or completions(), **more))


def test_a_sound_run_is_not_objected_to() -> None:
    assert flagged() == []


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
            {"rates": {"harmful": {"baseline": {"rate": 1.0, "paper_count": 0.25}}}},
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
    (flag,) = flagged(summary(**changes))
    assert flag["name"] == name
    assert words in flag["text"]
    assert "\n" not in flag["text"]


def test_what_hooks_miss_comes_first() -> None:
    (flag,) = flagged(missed_writes="Ablation misses x.")
    assert flag == {"name": "hooks_miss_a_write", "text": "Ablation misses x."}


@pytest.mark.parametrize(("left", "missed"), [(0.01, False), (-0.31, True)])
def test_r_in_an_ablated_stream_is_a_write_that_was_missed(left: float, missed: bool) -> None:
    rows = {"kind": "harmful", "condition": ["baseline", "ablation"], "layer": 4, "mean": [0.6, left]}
    found = flagged(curves=pd.DataFrame(rows))
    assert [flag["name"] for flag in found] == ["hooks_miss_a_write"] * missed
    assert not missed or "-0.31 with r at layer 4 on harmful prompts" in found[0]["text"]


def test_empty_replies_are_not_taken_for_compliance_without_a_word() -> None:
    silent = [row(-6.0, False, response=" ")] * 2 + [row(-6.0, False)] * 8
    (flag,) = flagged(rows=completions(harmless=silent))
    assert (flag["name"], "2 of 10 (harmless" in flag["text"]) == ("empty_replies", True)


@pytest.mark.parametrize(("n", "much"), [(1, False), (2, True), (10, True)])
def test_score_and_judge_may_disagree_on_a_tenth(n: int, much: bool) -> None:
    # Replies that the judge does not know for refusals, of a model that does refuse.
    harmful = [row(6.0, False)] * n + [row(6.0, True)] * (10 - n)
    found = {f["name"]: f["text"] for f in flagged(rows=completions(harmful=harmful))}
    assert ("score_and_judge" in found) == much
    if much:
        assert f"{n} of 10 (harmful, no intervention" in found["score_and_judge"]
        assert f"metric alone sees refusal in {n}, judge alone in 0" in found["score_and_judge"]


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
    found = {f["name"]: f["text"] for f in flagged(rows=replies)}
    assert doubt in found["weak_first_tokens"]


def test_without_a_metric_nothing_is_said_of_it() -> None:
    replies = completions(harmful=[row(None, True)] * 10, harmless=[row(math.nan, False)] * 10)
    assert flagged(rows=replies) == []


@pytest.mark.parametrize(
    ("verdicts", "judge", "text"),
    [
        ([None] * 3 + [True] * 7, "rhyme", "no verdict on 3 of 10 (verse, no intervention)"),
        ([None] + [True] * 9, "rhyme", None),
        ([None] * 10, None, None),
    ],
)
def test_replies_without_a_verdict_are_objected_to_where_there_is_a_judge(
    verdicts: list[bool | None], judge: str | None, text: str | None
) -> None:
    changes = {"behaviour": POETRY | {"judge": judge}, "kinds": ["verse", "prose"], "rates": {}}
    rows = {("verse", "baseline"): [row(6.0, shows) for shows in verdicts]}
    found = {flag["name"]: flag["text"] for flag in flagged(summary(**changes), rows)}
    assert list(found) == ["replies_unjudged"] * (text is not None)
    assert text is None or text in found["replies_unjudged"]


def test_flags_speak_of_what_the_run_is_about() -> None:
    rates = {"verse": {"baseline": {"rate": 0.0, "paper_count": 0.5}}}
    losses = {"baseline": {"ce": 0.2}, "ablation": {"ce": 4.0}}
    rows = {
        ("verse", "baseline"): [row(6.0, False, response="")] * 10,
        ("prose", "baseline"): [row(1.0, True)] * 10,
    }
    tokens = {"ids": [40], "texts": ["O"], "source": "given"}
    changes = {
        "behaviour": POETRY | {"first_tokens": tokens}, "kinds": ["verse", "prose"], "rates": rates,
        "losses": losses,
    }  # fmt: skip
    found = {flag["name"]: flag["text"] for flag in flagged(summary(**changes), rows)}
    assert len(found) == 5
    assert not re.search("refus|harm", str(found))
    assert "Rhyme score and judge disagree" in found["score_and_judge"]
    assert "score alone sees poetry in 10" in found["score_and_judge"]
    assert "poetry tokens 'O'" in found["weak_first_tokens"]
    assert "own replies to prose prompts" in found["ablation_damages"]


# ---------------------------------------------------------------- the summary


def test_a_summary_without_a_direction_says_why() -> None:
    found = selection_summary(None, None, "none passes")
    assert (found["selected"], found["scores"], found["not_selected"]) == (None, None, "none passes")
    assert (found["n_candidates"], found["n_passing"], found["n_unscored"]) == (0, 0, 0)


def test_a_summary_counts_what_has_no_verdict() -> None:
    table = pd.DataFrame(
        {
            "place": "post[-1]", "position": -1, "position_name": "a", "layer": [0, 1, 2], "norm": 1.0, "bypass": 1.0,
            "induce": 1.0, "kl": 0.0, "passes": [False, True, False],
            "reason": ["kl 1 > 0.1", "", f"{NOT_NEEDED}: bypass is worse"],
        }
    )  # fmt: skip
    found = selection_summary(table, {"place": "post[-1]", "position": -1, "layer": 1})
    assert (found["n_candidates"], found["n_passing"], found["n_unscored"]) == (3, 1, 1)
    assert (found["selected"]["layer"], found["not_selected"]) == (1, None)
    assert (found["selected"]["place"], found["selected"]["position"]) == ("post[-1]", -1)


def test_a_candidate_elsewhere_has_a_place_and_no_position() -> None:
    table = pd.DataFrame(
        {
            "place": ["post[-1]", "t_inst"], "position": [-1.0, math.nan], "position_name": ["a", "t_inst"],
            "layer": 1, "norm": 1.0, "bypass": [1.0, 0.5], "induce": 1.0, "kl": 0.0, "passes": True, "reason": "",
        }
    )  # fmt: skip
    selected = selection_summary(table, {"place": "t_inst", "position": None, "layer": 1})["selected"]
    assert (selected["place"], selected["position"], selected["layer"]) == ("t_inst", None, 1)


def test_the_papers_count_is_kept_where_it_was_made() -> None:
    rows = [row(1.0, True, paper_count=exact) for exact in (True, False, False, False)]
    assert rate_of(rows) == {"rate": 1.0, "se": 0.0, "n": 4, "n_unjudged": 0, "paper_count": 0.25}
    assert "paper_count" not in rate_of([row(1.0, True)])


def test_a_reply_without_a_verdict_is_in_no_rate() -> None:
    rows = [row(1.0, shows) for shows in (True, False, None, None, None)]
    assert rate_of(rows) == {"rate": 0.5, "se": pytest.approx(0.5**1.5), "n": 2, "n_unjudged": 3}
    unjudged = rates_summary({("verse", "baseline"): [row(1.0, None)] * 2})["rates"]["verse"]["baseline"]
    assert unjudged == {"rate": None, "se": None, "n": 0, "n_unjudged": 2}


def test_nulls_that_nobody_judged_have_scores_alone() -> None:
    draws = {"null": "random_direction", "kind": "verse", "score": [1.0, 3.0], "rate": math.nan, "n": 0}
    numbers = null_summary(pd.DataFrame(draws))["nulls"]["random_direction"]["verse"]
    assert (numbers["rate_mean"], numbers["score_mean"], numbers["score_sd"]) == (None, 2.0, 1.0)


def test_a_behaviour_of_first_tokens_brings_its_evidence() -> None:
    tokens = FirstTokens((40,), texts=("I",), source="given", evidence=((40, "I", 0.9, 0.1),))
    facts = behaviour_summary(tokens)
    assert facts["first_tokens"]["evidence"] == [
        {"token_id": 40, "token": "I", "positive": 0.9, "negative": 0.1}
    ]
    assert facts["words"] == asdict(REFUSAL)
    assert (facts["name"], facts["unit"], facts["threshold"]) == ("refusal", "nats", 0.0)


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
