"""A finding: computed by find_direction and read by open_run, the same object either way."""

from __future__ import annotations

import shutil
from pathlib import Path

import kit
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel
from refusal_lens.pipeline import LoadOptions, RunConfig, find_direction, open_run, run_pipeline
from refusal_lens.pipeline.finding import Finding
from refusal_lens.prompts import Contrast

SIZES = {"n_train": 24, "n_val": 12, "n_test": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finding") / "run"
    run_pipeline(RunConfig(**SIZES, max_new_tokens=12, n_null=2, n_moves=1, null_prompts=2), out)
    return out


@pytest.fixture(scope="module")
def saved(folder: Path) -> Finding:
    return open_run(folder, LoadOptions(device="cpu"))


@pytest.fixture(scope="module")
def computed(saved: Finding) -> Finding:
    return find_direction(saved.model, saved.contrast)


def test_a_run_and_a_call_find_the_same(saved: Finding, computed: Finding) -> None:
    assert computed.direction.place == saved.direction.place
    assert computed.direction.layer == saved.direction.layer
    assert torch.allclose(computed.direction.vector, saved.direction.vector, rtol=0, atol=1e-9)
    assert computed.behaviour == saved.behaviour
    assert computed.contrast == saved.contrast
    assert computed.contrast.sha256 == saved.contrast.sha256
    assert computed.selection.scores == pytest.approx(saved.selection.scores, abs=1e-9)
    for name in ("scores", "candidates"):
        mine, theirs = computed.frame(name), saved.frame(name)
        assert list(mine.columns) == list(theirs.columns)
        pd.testing.assert_frame_equal(mine[["layer", "bypass"]], theirs[["layer", "bypass"]], atol=1e-9)
    assert torch.allclose(computed.candidates.mean_diffs, saved.candidates.mean_diffs, atol=1e-9)


def test_tables_and_figures_go_by_their_names(saved: Finding, computed: Finding) -> None:
    assert set(saved.frame("completions")["condition"]) >= {"baseline", "ablation", "addition", "base"}
    assert len(saved.frame("prompts")) == 2 * sum(SIZES.values())
    for name in ("sweep", "scores", "cosine", "rates", "pca"):
        assert isinstance(saved.figure(name), go.Figure)
    for name in ("sweep", "candidate_map"):
        assert isinstance(computed.figure(name), go.Figure)


def test_what_was_not_measured_is_one_line_with_what_there_is(saved: Finding, computed: Finding) -> None:
    with pytest.raises(InputError, match=r"table 'nulls'.*find_direction.*candidates"):
        computed.frame("nulls")
    with pytest.raises(InputError, match=r"figure 'cosine'.*find_direction"):
        computed.figure("cosine")
    with pytest.raises(InputError, match=r"table 'nothing'.*candidates"):
        saved.frame("nothing")
    with pytest.raises(InputError, match=r"figure 'nothing'.*sweep"):
        saved.figure("nothing")


def test_nothing_is_loaded_before_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatModel, "load", lambda *args, **more: pytest.fail("loaded"))
    run = open_run(folder)
    assert run.direction.model == "organism"
    assert run.behaviour.name == "refusal"
    assert len(run.frame("candidates")) == len(run.candidates.index())


def test_a_run_without_a_direction_says_why(folder: Path, tmp_path: Path) -> None:
    out = shutil.copytree(folder, tmp_path / "none")
    config = RunConfig(**SIZES, max_new_tokens=12, n_null=0, kl_threshold=1e-9)
    run_pipeline(config, out)
    run = open_run(out)
    with pytest.raises(InputError, match="selected no direction, need one: selection: 0 of"):
        _ = run.direction
    assert not run.frame("candidates")["passes"].any()


@pytest.mark.parametrize("damage", ["direction.safetensors", "scores.csv", "prompts.jsonl"])
def test_a_damaged_file_is_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    out = shutil.copytree(folder, tmp_path / "damaged")
    (out / damage).write_bytes(b"x")
    run = open_run(out)
    part = {"direction.safetensors": "direction", "scores.csv": "selection", "prompts.jsonl": "contrast"}
    with pytest.raises(InputError, match=damage) as caught:
        getattr(run, part[damage])
    assert "\n" not in str(caught.value)


def test_the_organism_s_sentences_are_not_for_another_model() -> None:
    other = kit.load("llama")
    with pytest.raises(InputError, match=r"toy sentences.*Contrast.from_files"):
        find_direction(other, Contrast.toy(n_train=4, n_val=2, n_test=0))
    asked = Contrast.toy(n_train=4, n_val=2, n_test=0, anyway=True)
    with pytest.raises(InputError) as caught:
        find_direction(other, asked)
    assert "toy sentences" not in str(caught.value)
