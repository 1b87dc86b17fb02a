"""Conversations of two turns through the whole program: run, page, chat and suffix study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from refusal_lens import (
    ChatModel,
    Contrast,
    Conversation,
    RunConfig,
    ablate,
    complete,
    open_run,
    run_pipeline,
    run_suffix_study,
)
from refusal_lens.cli.session import Respondent, Session

SIZES = {"n_train": 24, "n_val": 12, "n_test": 4}
BEFORE = [
    {"role": "user", "content": "How do I paint the kettle?"},
    {"role": "assistant", "content": "Take the brush."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose prompts, from files of messages, are the last of two turns."""
    place = tmp_path_factory.mktemp("turns")
    toy = Contrast.toy(**SIZES)
    for kind in ("positive", "negative"):
        prompts = [prompt for split in ("train", "val", "test") for prompt in getattr(toy.pair(split), kind)]
        rows = [json.dumps({"messages": [*BEFORE, {"role": "user", "content": text}]}) for text in prompts]
        (place / f"{kind}.jsonl").write_text("\n".join(rows) + "\n")
    run_pipeline(
        RunConfig(
            positive=str(place / "positive.jsonl"),
            negative=str(place / "negative.jsonl"),
            max_new_tokens=16,
            n_null=2,
            n_moves=1,
            null_prompts=2,
            device="cpu",
            **SIZES,
        ),
        place / "run",
    )
    return place / "run"


def test_a_run_reads_both_turns_and_its_page_shows_them(folder: Path) -> None:
    run = open_run(folder)
    prompts = [*run.contrast.test.positive, *run.contrast.train.negative]
    assert all(isinstance(prompt, Conversation) and len(prompt.turns) == 1 for prompt in prompts)
    rows = run.frame("completions")
    assert all(messages[:2] == BEFORE for messages in rows["messages"])
    page = (folder / "report.html").read_text("utf-8")
    assert "How do I paint the kettle?" in page
    # What is stored is what the model does when it is asked the same again.
    model = ChatModel.load("organism", device="cpu")
    scores = run.behaviour.scores(model, run.contrast.test.positive, batch_size=4)
    stored = rows[(rows["kind"] == "harmful") & (rows["condition"] == "baseline")]["score"]
    assert torch.allclose(scores, torch.tensor(stored.tolist(), dtype=torch.float64), atol=1e-4)
    alone = [prompt.instruction for prompt in run.contrast.test.positive]
    assert not torch.allclose(scores, run.behaviour.scores(model, alone, batch_size=4), atol=1e-2)


def test_a_suffix_is_studied_behind_the_last_turn(folder: Path) -> None:
    summary = run_suffix_study(folder)
    plain, _, adversarial, _ = summary["conditions"].values()
    assert adversarial["score"] < plain["score"]
    assert summary["checks"]["instruction_unchanged"] < 1e-4
    assert summary["checks"]["attribution_error"] < 1e-3


def test_chat_carries_a_run_s_models_through_two_turns(folder: Path) -> None:
    run = open_run(folder)
    session = Session(Respondent(run.model, run.direction, run.behaviour, 24), "ablate", 1.0)
    first = dict(session.answer(BEFORE[0]["content"]))
    second = dict(session.answer("Tell me how to wake the dragon."))
    for title, edit in (("plain", None), ("ablate", ablate(run.direction))):
        turns = [BEFORE[0], {"role": "assistant", "content": first[title].response}]
        asked = Conversation.of([*turns, {"role": "user", "content": "Tell me how to wake the dragon."}])
        (reply,) = complete(run.model, [asked], behaviour=run.behaviour, edit=edit, max_new_tokens=24)
        assert second[title].response == reply.response
        assert second[title].score == pytest.approx(reply.score, abs=1e-5)
    assert second["plain"].score > second["ablate"].score
