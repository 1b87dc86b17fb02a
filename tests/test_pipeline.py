"""The main job end to end on the organism: what it writes, what it measures, and how it resumes."""

from __future__ import annotations

import html
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kit import step_times, without_scripts

from refusal_lens import runs
from refusal_lens.behaviours import FirstTokens
from refusal_lens.directions import Candidates, Direction
from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel
from refusal_lens.pipeline import (
    LoadOptions,
    RunConfig,
    find_direction,
    job,
    run_pipeline,
    write_report,
)
from refusal_lens.pipeline.config import chat_options
from refusal_lens.pipeline.job import Job
from refusal_lens.pipeline.measurements import FORMS, behaviour, completions
from refusal_lens.pipeline.suffix_job import SuffixConfig, run_suffix_study
from refusal_lens.pipeline.summary import SCHEMA_VERSION
from refusal_lens.prompts import Contrast
from refusal_lens.runs import OpenStep, Run, read_csv, read_json, read_jsonl

SMALL = RunConfig(n_train=48, n_val=24, n_test=20, max_new_tokens=40, n_null=2, n_moves=1, null_prompts=8)
FILES = (
    "behaviour.json",
    "candidates.csv",
    "candidates.safetensors",
    "curves.csv",
    "direction.safetensors",
    "losses.csv",
    "metrics.csv",
    "nulls.csv",
    "pca.csv",
    "prompts.jsonl",
    "scores.csv",
    "top_tokens.csv",
    "completions/harmful_ablation.jsonl",
    "completions/harmful_baseline.jsonl",
    "completions/harmful_subtraction.jsonl",
    "completions/harmless_ablation.jsonl",
    "completions/harmless_addition.jsonl",
    "completions/harmless_baseline.jsonl",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "organism"
    run_pipeline(SMALL, out)
    return out


def test_everything_promised_is_there(finished: Path) -> None:
    missing = [name for name in FILES if not (finished / name).is_file()]
    assert not missing
    for name in ("summary.json", "manifest.json", "report.html"):
        assert (finished / name).stat().st_size > 500
    assert runs.Run.read(finished).damage() == []


def test_the_effect_of_the_direction_is_large_and_that_of_chance_is_not(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    harmful, harmless = summary["rates"]["harmful"], summary["rates"]["harmless"]
    assert harmful["baseline"]["rate"] >= 0.9
    assert harmless["baseline"]["rate"] <= 0.1
    assert harmful["ablation"]["rate"] <= 0.2
    assert harmful["subtraction"]["rate"] <= 0.2
    assert harmless["ablation"]["rate"] <= 0.1
    moves = summary["nulls"]["norm_matched_move"]["harmless"]
    assert harmless["addition"]["rate"] >= 0.8 > 0.2 >= moves["rate_max"]
    assert summary["nulls"]["random_direction"]["harmful"]["rate_min"] >= 0.9
    assert summary["scores"]["bypass"] < 0 < summary["scores"]["induce"]
    assert summary["baseline"]["harmful"] > 0 > summary["baseline"]["harmless"]


def test_addition_makes_the_organism_refuse_nearly_everything(finished: Path) -> None:
    """The target of the organism: at least 95% complete, well-formed refusals under addition."""
    summary = read_json(finished / "summary.json")
    assert summary["well_formed"]["harmless"]["addition"]["refusal"] >= 0.95


def test_summary_agrees_with_the_files_it_summarises(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    table = read_csv(finished / "candidates.csv", text=("reason", "position_name"))
    found = Candidates.load(finished / "candidates.safetensors")
    direction = Direction.load(finished / "direction.safetensors")
    assert summary["n_candidates"] == len(table) == len(found.index())
    assert summary["n_passing"] == int(table["passes"].sum()) >= 1
    best = table[table["passes"]].sort_values(["bypass", "position", "layer"]).iloc[0]
    assert summary["selected"]["layer"] == best["layer"] == direction.layer
    assert summary["selected"]["position"] == best["position"] == direction.position
    assert torch.equal(direction.vector, found.mean_diffs[direction.position, direction.layer])
    rows = read_jsonl(finished / "completions/harmful_ablation.jsonl")
    refused = sum(row["shows"] for row in rows) / len(rows)
    assert summary["rates"]["harmful"]["ablation"]["rate"] == refused
    kept = [r for r in read_jsonl(finished / "prompts.jsonl") if r["split"] == "train"]
    counts = summary["kept_prompts"]["train"]
    assert sum(c["of"] for c in counts.values()) == len(kept) == 2 * SMALL.n_train
    assert sum(c["kept"] for c in counts.values()) == sum(r["kept"] for r in kept)
    assert json.loads((finished / "summary.json").read_text()) == summary, "strict JSON"


def test_the_summary_has_a_version_and_objects_to_nothing(finished: Path) -> None:
    summary = read_json(finished / "summary.json")
    assert summary["schema_version"] == SCHEMA_VERSION == 2
    assert (summary["flags"], summary["not_selected"], summary["n_unscored"]) == ([], None, 0)
    shared = summary["overlap"]["ablated_with_plain"]
    assert shared["same_prompt"] >= 0.9 > 0.6 > shared["other_prompts"]
    assert summary["base"]["overlap"]["same_prompt"] >= 0.9


def test_the_one_call_finds_what_the_run_found(finished: Path) -> None:
    contrast = Contrast.toy(n_train=48, n_val=24, n_test=20)
    found = find_direction(ChatModel.load("organism", device="cpu"), contrast)
    saved = Direction.load(finished / "direction.safetensors")
    assert (found.direction.position, found.direction.layer) == (saved.position, saved.layer)
    assert torch.allclose(found.direction.vector, saved.vector, rtol=0, atol=1e-5)
    table = read_csv(finished / "candidates.csv", text=("reason", "position_name"))
    for score in ("bypass", "induce", "kl"):
        assert (found.frame("candidates")[score] - table[score]).abs().max() < 1e-4


def test_a_finished_run_is_not_done_again(finished: Path) -> None:
    before = step_times(finished)
    run_pipeline(SMALL, finished)
    assert step_times(finished) == before


def test_speed_settings_change_no_step(finished: Path) -> None:
    before = step_times(finished)
    run_pipeline(replace(SMALL, batch_size=7), finished)
    assert step_times(finished) == before


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def in_a_child(work: Callable[..., object], *args: object) -> int:
    """Run work in a process of its own; returns how it ended, a negative signal number when killed.

    The processes come from a server that has imported everything and started no threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformer_lens", "refusal_lens.pipeline"])
    child = context.Process(target=work, args=args)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def run_until(name: str, out: Path) -> None:
    """Run the main job and die after a step's work, before its manifest is written."""
    finish = OpenStep.finish

    def kill_before_the_manifest(self: OpenStep) -> None:
        if self.name == name and self.needed:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(self)

    OpenStep.finish = kill_before_the_manifest  # type: ignore[method-assign]
    run_pipeline(SMALL, out)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_at_every_step_it_ends_the_same(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    names = list(runs.Run.read(finished).manifests())
    assert len(names) >= 12
    for name in names:
        assert in_a_child(run_until, name, out) == -signal.SIGKILL
        assert not (out / "steps" / f"{name}.json").exists()
    run_pipeline(SMALL, out)
    assert results(out) == results(finished)
    assert not [path for path in out.rglob("*") if path.suffix in {".tmp", ".journal"}]


def results(out: Path) -> dict[str, Any]:
    """Every file of results, bit for bit; of the summary all but the seconds that it took."""
    summary = {k: v for k, v in read_json(out / "summary.json").items() if k != "seconds"}
    left_out = ("summary.json", "manifest.json", "report.html", ".lock")
    found = [p for p in out.rglob("*") if p.is_file() and p.name not in left_out]
    return {"summary": summary} | {
        str(p.relative_to(out)): p.read_bytes()
        for p in found
        if p.relative_to(out).parts[0] not in ("steps", "figures")
    }


def test_a_changed_option_redoes_just_what_depends_on_it(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "changed"
    shutil.copytree(finished, out)
    before = step_times(out)
    run_pipeline(replace(SMALL, n_null=3), out)
    redone = {name for name, when in step_times(out).items() if before[name] != when}
    assert redone == {"nulls", "summary"}
    assert len(pd.read_csv(out / "nulls.csv")) == 3 + 2


def test_a_rerun_in_which_none_passes_shows_nothing_of_the_direction_before(
    finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "none")
    before = step_times(out)
    summary = run_pipeline(replace(SMALL, kl_threshold=1e-7), out)
    assert (summary["selected"], summary["scores"], summary["losses"]) == (None, None, {})
    assert set(summary["rates"]["harmful"]) == {"baseline"}
    whole = runs.Run.read(out).whole()
    assert set(whole["stale"].values()) == {"it is not asked for"}
    assert not {"direction.safetensors", "curves.csv", "nulls.csv"} & set(whole["outputs"])
    page = without_scripts(write_report(out).read_text())
    assert "No candidate direction passes" in page
    sections = set(re.findall(r'<section id="(\w+)">', page))
    assert sections == {
        "rates", "sweeps", "scores", "tokens", "pca", "candidates", "completions", "left_out",
        "provenance",
    }  # fmt: skip
    assert "directional ablation" not in page
    assert {p.stem for p in (out / "figures").glob("*.html")} == {
        "candidate_map", "sweep", "top_tokens", "rates", "scores",
        "pca",
    }  # fmt: skip
    # Back to where it was, only what the page needs is done again.
    run_pipeline(SMALL, out)
    assert {n for n, when in step_times(out).items() if before[n] != when} == {
        "selection", "summary"
    }  # fmt: skip
    assert contents(out)["metrics.csv"] == contents(finished)["metrics.csv"]
    assert runs.Run.read(out).stale() == {}


def test_without_nulls_the_page_has_none_and_with_them_again_nothing_is_lost(
    finished: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "bare")
    before = step_times(out)
    assert run_pipeline(replace(SMALL, n_null=0), out)["nulls"] == {}
    page = (out / "report.html").read_text()
    assert '<section id="nulls">' not in page
    assert "random moves" not in without_scripts(page)
    assert "nulls.csv" not in runs.Run.read(out).whole()["outputs"]
    run_pipeline(SMALL, out)
    assert {n for n, when in step_times(out).items() if before[n] != when} == {"summary"}
    assert '<section id="nulls">' in (out / "report.html").read_text()


def test_a_stopped_rerun_mixes_no_old_and_new_replies(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "stopped")

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("refusal_lens.pipeline.job.ablate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(replace(SMALL, max_new_tokens=8), out)
    page = without_scripts(write_report(out).read_text())
    assert "no intervention" in page
    assert "directional ablation" not in page
    assert '<section id="losses">' not in page


def test_the_default_dtype_is_named_in_what_determines_the_results(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert runs.Run.read(finished).manifest("behaviour").inputs["dtype"] == "float32"
    before = step_times(finished)
    run_pipeline(replace(SMALL, dtype="float32"), finished)
    assert step_times(finished) == before
    monkeypatch.setattr(job, "resolve_device", lambda device: torch.device("cuda"))
    assert job.settled_dtype(None) == "auto"
    assert job.settled_dtype(None, device_map="auto") == "auto"
    assert job.settled_dtype("bf16") == "bfloat16"


def test_empty_replies_cost_the_loss_and_not_the_run(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = shutil.copytree(finished, tmp_path / "silent")
    real = completions.complete

    def silent(*args: Any, **more: Any) -> list[Any]:
        return [replace(one, response="", reply_ids=()) for one in real(*args, **more)]

    monkeypatch.setattr(completions, "complete", silent)
    summary = run_pipeline(replace(SMALL, max_new_tokens=2), out)
    assert summary["losses"]["baseline"] == {"ce": None, "perplexity": None, "n_tokens": 0}
    assert "every reply of the unedited model" in caplog.text
    assert '<section id="losses">' in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"suffix": "   "}, "need text"),
        ({"suffix": " x", "dtype": "int3"}, "dtype"),
        ({"suffix": " x", "n_heads": 1000}, "number of top heads"),
        ({"suffix": " x" * 5000}, "context"),
        ({"suffix": " x", "seed": 7}, ""),
    ],
)
def test_a_suffix_that_is_refused_leaves_the_study_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, line: str
) -> None:
    out = shutil.copytree(finished, tmp_path / "studied")
    with runs.Run.open(out) as run, run.addition("suffix", inputs={}, after=["selection"]) as step:
        step.write_json("suffix/summary.json", {"suffix": "earlier"})
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}

    def stop(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    if not line:
        monkeypatch.setattr("refusal_lens.pipeline.measurements.suffix.study_suffix", stop)
    change = dict(change)
    options = LoadOptions(dtype=change.pop("dtype", None))
    with pytest.raises(InputError if line else KeyboardInterrupt, match=line or None):
        run_suffix_study(out, SuffixConfig(**change), options=options)
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before


@pytest.mark.parametrize("given", ["\u00b2", "\u0663x", "9" * 5000])
def test_what_only_looks_like_a_token_id_is_one_line(given: str) -> None:
    with pytest.raises(InputError, match="first token") as caught:
        FirstTokens.of(ChatModel.load("organism", device="cpu"), [given])
    assert "\n" not in str(caught.value)


def test_no_candidate_passing_keeps_what_was_computed(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "none")
    summary = run_pipeline(replace(SMALL, induce_threshold=99.0), out)
    assert (summary["selected"], summary["n_passing"], summary["n_candidates"]) == (None, 0, 50)
    assert "nearest miss" in summary["not_selected"]
    assert "\n" not in summary["not_selected"]
    table = pd.read_csv(out / "candidates.csv")
    assert not table["passes"].any()
    assert table["reason"].notna().all()
    assert (out / "candidates.safetensors").is_file()
    page = without_scripts(write_report(out).read_text())
    assert page.count(html.escape(summary["not_selected"])) >= 2
    assert page.count("<tr") > len(table)
    # Asked again, it says so again and does nothing.
    before = step_times(out)
    assert run_pipeline(replace(SMALL, induce_threshold=99.0), out) == summary
    assert step_times(out) == before
    # The advice of the message can be followed without starting again.
    found = run_pipeline(replace(SMALL, induce_threshold=0.0), out)
    assert found["selected"]["layer"] > 0
    assert found["not_selected"] is None
    redone = {name for name, when in step_times(out).items() if before.get(name) not in (None, when)}
    assert redone == {"selection", "summary"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_val": 0}, "n_val: got 0"),
        ({"positive": "a.txt"}, "need both or neither"),
        ({"model": "some/model"}, "prompts for some/model: none given"),
        ({"n_null": -1}, "n_null"),
        ({"seed": 2**64}, "seed of RunConfig: got 18446744073709551616"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_room_is_asked_for_every_prompt_and_for_replies_to_those_of_the_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def require_room(self: ChatModel, rendered: Any, max_new_tokens: int) -> None:
        asked.append((len(rendered), max_new_tokens))

    monkeypatch.setattr(ChatModel, "require_room", require_room, raising=False)
    own = replace(SMALL, n_train=3, n_val=2, n_test=2, n_null=1, null_prompts=1, null_tokens=5)
    with Run.open(tmp_path / "run") as run:
        behaviour.require_room(Job(own, run, FORMS))
        assert asked == [(6, 0), (4, 0), (4, SMALL.max_new_tokens), (2, 5)]
        asked.clear()
        behaviour.require_room(Job(replace(own, n_null=0), run, FORMS))
    assert asked == [(6, 0), (4, 0), (4, SMALL.max_new_tokens)]


def test_how_conversations_are_written_reaches_the_model_and_the_key(tmp_path: Path) -> None:
    with Run.open(tmp_path / "run") as run:
        job = Job(RunConfig(prefill="Well, ", system="Be brief."), run, FORMS)
        rendered = job.model.chat.render(["Bake the bread."])
        text = job.model.tokenizer.decode(rendered.ids[0])
        assert "Be brief." in text
        assert text.endswith("Well, ")
        inputs = behaviour.inputs(job)
    assert (inputs["prefill"], inputs["system"]) == ("Well, ", "Be brief.")
    assert chat_options({"system": None}) == {"system": None}
