"""A run of the reference implementation: the same choice, our files, no trust in its pickles."""

from __future__ import annotations

import html
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kit import PUBLISHED
from synthetic_run import write_run

from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.interop.layout import is_reference_run
from refusal_lens.pipeline import write_reference_report
from refusal_lens.pipeline.page import open_folder

N_POSITIONS, N_LAYERS, D_MODEL = 3, 10, 8
CHOSEN = (-2, 5)


def evaluations() -> list[dict[str, Any]]:
    """Candidates of which (-2, 5) is the best that passes; others are better but fail one rule."""
    rows = []
    for position in range(-N_POSITIONS, 0):
        for layer in range(N_LAYERS):
            rows.append(
                {
                    "position": position,
                    "layer": layer,
                    "refusal_score": 4.0 if layer == 0 else 1.0 + 0.1 * layer,
                    "steering_score": -8.0 if layer == 0 else 2.0,
                    "kl_div_score": 0.0 if layer == 0 else 0.05,
                }
            )
    better = {
        CHOSEN: {"refusal_score": -5.0},
        (-1, 8): {"refusal_score": -9.0},
        (-1, 5): {"refusal_score": -8.0, "kl_div_score": 0.11},
        (-1, 4): {"refusal_score": -7.0, "steering_score": -0.1},
        (-3, 6): {"refusal_score": math.nan},
        (-3, 5): {"refusal_score": -9.0, "kl_div_score": math.nan},
        (-3, 4): {"refusal_score": -4.0, "kl_div_score": 0.1, "steering_score": 0.0},
    }
    return [row | better.get((row["position"], row["layer"]), {}) for row in rows]


def write_reference(
    folder: Path,
    *,
    rows: Sequence[dict[str, Any]] | None = None,
    selected: tuple[int, int] | None = CHOSEN,
    tensors: bool = True,
    losses: bool = True,
) -> Path:
    """A run folder as the reference implementation writes it."""
    (folder / "select_direction").mkdir(parents=True)
    path = folder / "select_direction" / "direction_evaluations.json"
    path.write_text(json.dumps(evaluations() if rows is None else list(rows)))
    if selected is not None:
        metadata = {"pos": selected[0], "layer": selected[1]}
        (folder / "direction_metadata.json").write_text(json.dumps(metadata))
    if tensors:
        (folder / "generate_directions").mkdir()
        generator = torch.Generator().manual_seed(0)
        diffs = torch.randn(
            N_POSITIONS, N_LAYERS, D_MODEL, generator=generator, dtype=torch.float64
        )
        torch.save(diffs, folder / "generate_directions" / "mean_diffs.pt")
        torch.save(diffs[CHOSEN], folder / "direction.pt")
    if losses:
        (folder / "loss_evals").mkdir()
        for index, name in enumerate(("baseline", "ablation", "actadd")):
            ce = 0.2 + 0.1 * index
            loss = {"ce_loss": ce, "perplexity": math.exp(ce), "n_tokens": 100}
            file = folder / "loss_evals" / f"{name}_loss_eval.json"
            file.write_text(json.dumps({"pile": loss, "alpaca_custom_completions": loss}))
    return folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write_reference(tmp_path / "tiny-chat")


def page_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def summary_of(out: Path) -> dict[str, Any]:
    return json.loads(
        (out / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )


def test_a_reference_run_is_told_from_ours(reference: Path, tmp_path: Path) -> None:
    assert is_reference_run(reference)
    assert not is_reference_run(write_run(tmp_path / "ours"))
    assert not is_reference_run(tmp_path / "missing")


def test_the_rule_takes_what_the_reference_took(reference: Path, tmp_path: Path) -> None:
    page = write_reference_report(reference, tmp_path / "out")
    summary = summary_of(tmp_path / "out")
    assert summary["selected"] == {"position": -2, "layer": 5, "position_name": ""}
    assert summary["scores"] == {"bypass": -5.0, "induce": 2.0, "kl": 0.05}
    assert summary["reference"]["agrees"] is True
    assert summary["reference"]["direction_is_mean_diff"] is True
    assert summary["model"] == "tiny-chat"
    assert summary["n_layers"] == N_LAYERS
    assert summary["d_model"] == D_MODEL
    assert summary["baseline"] == {"harmful": 4.0, "harmless": -8.0}
    assert summary["n_candidates"] == N_POSITIONS * N_LAYERS
    assert summary["losses"]["subtraction"]["ce"] == pytest.approx(0.4)
    assert "as direction_metadata.json does" in page.read_text()


def test_its_candidates_come_in_our_columns_with_reasons(reference: Path, tmp_path: Path) -> None:
    write_reference_report(reference, tmp_path / "out")
    written = open_folder(tmp_path / "out").table("candidates.csv")
    assert list(written.columns) == (
        ["position", "position_name", "layer", "norm", "bypass", "induce", "kl", "passes", "reason"]
    )
    assert len(written) == N_POSITIONS * N_LAYERS
    rejected = written.set_index(["position", "layer"]).loc
    assert "kl" in rejected[(-1, 5)]["reason"]
    assert "induce" in rejected[(-1, 4)]["reason"]
    assert "layer >= 8" in rejected[(-1, 8)]["reason"]
    assert "NaN" in rejected[(-3, 6)]["reason"]
    assert rejected[(-3, 4)]["passes"]
    diffs = torch.load(reference / "generate_directions" / "mean_diffs.pt", weights_only=True)
    assert rejected[(-1, 5)]["norm"] == pytest.approx(float(diffs[-1, 5].norm()), rel=1e-12)


def test_its_tensors_come_in_float64_and_their_own_size(reference: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "out"
    write_reference_report(reference, out)
    diffs = torch.load(reference / "generate_directions" / "mean_diffs.pt", weights_only=True)
    saved = load_file(out / "candidates.safetensors")["mean_diffs"]
    assert saved.dtype == torch.float64
    assert torch.equal(saved, diffs)
    direction = Direction.load(out / "direction.safetensors")
    assert torch.equal(direction.vector, diffs[CHOSEN])
    assert (direction.position, direction.layer, direction.model) == (-2, 5, "tiny-chat")
    assert (out / "direction.safetensors").stat().st_size < 2000


def test_another_choice_of_the_reference_is_said_with_the_reason(tmp_path: Path) -> None:
    for selected, words in (
        ((-1, 5), "rejects"),
        ((-3, 4), "higher bypass score"),
        ((-3, 77), "not among"),
    ):
        folder = write_reference(tmp_path / f"run{selected[1]}", selected=selected)
        page = write_reference_report(folder, tmp_path / f"out{selected[1]}").read_text()
        facts = summary_of(tmp_path / f"out{selected[1]}")["reference"]
        assert facts["agrees"] is False
        assert words in facts["verdict"]
        assert html.escape(facts["verdict"]) in page


def test_missing_files_of_the_reference_are_only_missed(tmp_path: Path) -> None:
    folder = write_reference(tmp_path / "run", selected=None, tensors=False, losses=False)
    (folder / "notes.txt").write_text("an extra file")
    out = tmp_path / "out"
    page = write_reference_report(folder, out).read_text()
    facts = summary_of(out)["reference"]
    assert facts["agrees"] is None
    assert "generate_directions/mean_diffs.pt" in facts["missing"]
    assert "nothing to compare" in page
    assert not (out / "candidates.safetensors").exists()
    assert not (out / "direction.safetensors").exists()
    assert open_folder(out).table("candidates.csv")["norm"].isna().all()


def test_direction_pt_alone_is_enough_where_the_choices_agree(
    reference: Path, tmp_path: Path
) -> None:
    shutil.rmtree(reference / "generate_directions")
    write_reference_report(reference, tmp_path / "out")
    vector = torch.load(reference / "direction.pt", weights_only=True)
    assert torch.equal(Direction.load(tmp_path / "out" / "direction.safetensors").vector, vector)


def test_when_none_passes_everything_is_written_before_the_error(tmp_path: Path) -> None:
    rows = [row | {"refusal_score": math.nan} for row in evaluations()]
    folder = write_reference(tmp_path / "run", rows=rows, selected=None)
    with pytest.raises(InputError, match="0 of 30 candidates pass"):
        write_reference_report(folder, tmp_path / "out")
    assert "No candidate" in page_of(tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "candidates.csv", keep_default_na=False)
    assert (written["reason"] != "").all()
    assert summary_of(tmp_path / "out")["selected"] is None


def test_refusal_rates_of_its_completions_are_read(reference: Path, tmp_path: Path) -> None:
    folder = reference / "completions"
    folder.mkdir()
    rates = {
        "jailbreakbench_baseline": 0.05,
        "jailbreakbench_ablation": 0.96,
        "jailbreakbench_actadd": 0.9,
        "harmless_baseline": 1.0,
        "harmless_actadd": 0.1,
        "aardvark_baseline": 0.5,
    }
    for name, success in rates.items():
        facts = {"substring_matching_success_rate": success, "completions": [{}] * 50}
        (folder / f"{name}_evaluations.json").write_text(json.dumps(facts))
    page = write_reference_report(reference, tmp_path / "out").read_text()
    found = summary_of(tmp_path / "out")["rates"]
    se = math.sqrt(0.95 * 0.05 / 50)
    assert found["harmful"]["baseline"] == pytest.approx({"rate": 0.95, "se": se, "n": 50})
    assert found["harmful"]["subtraction"]["rate"] == pytest.approx(0.1)
    assert found["harmless"]["addition"]["rate"] == pytest.approx(0.9)
    assert "takes tiny-chat" in page


def test_it_can_be_made_again_but_never_over_another_run(reference: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "ours")
    write_reference_report(reference, tmp_path / "out")
    first = page_of(tmp_path / "out")
    (reference / "direction.pt").unlink()
    shutil.rmtree(reference / "generate_directions")
    write_reference_report(reference, tmp_path / "out")
    assert page_of(tmp_path / "out") != first
    assert not (tmp_path / "out" / "direction.safetensors").exists()
    before = (run / "candidates.csv").read_bytes()
    for out in (run, reference):
        with pytest.raises(InputError, match="output folder"):
            write_reference_report(reference, out)
    assert (run / "candidates.csv").read_bytes() == before


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_would_run_code_does_not(reference: Path, tmp_path: Path) -> None:
    torch.save(_Evil(tmp_path / "ran"), reference / "direction.pt")
    with pytest.raises(InputError, match=r"direction\.pt"):
        write_reference_report(reference, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def _row(**changes: Any) -> str:
    good = {"position": -1, "layer": 0, "refusal_score": 1, "steering_score": 1, "kl_div_score": 0}
    return json.dumps([{k: v for k, v in (good | changes).items() if v != "drop"}])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("select_direction/direction_evaluations.json", "[{"),
        ("select_direction/direction_evaluations.json", "{}"),
        ("select_direction/direction_evaluations.json", "[]"),
        ("select_direction/direction_evaluations.json", "[3]"),
        ("select_direction/direction_evaluations.json", _row(position=0)),
        ("select_direction/direction_evaluations.json", _row(layer=-1)),
        ("select_direction/direction_evaluations.json", _row(layer=0.5)),
        ("select_direction/direction_evaluations.json", _row(layer="drop")),
        ("select_direction/direction_evaluations.json", _row(refusal_score="high")),
        ("select_direction/direction_evaluations.json", _row(kl_div_score="drop")),
        ("select_direction/direction_evaluations.json", _row()[:-1] + "," + _row()[1:]),
        ("select_direction/direction_evaluations.json", _row(layer=99)),
        ("direction_metadata.json", "{}"),
        ("direction_metadata.json", "null"),
        ("direction_metadata.json", '{"pos": "a", "layer": 1}'),
        ("loss_evals/ablation_loss_eval.json", '{"pile": 3}'),
        ("loss_evals/ablation_loss_eval.json", '{"pile": {"ce_loss": "x"}}'),
        ("generate_directions/mean_diffs.pt", "version https://git-lfs.github.com/spec/v1"),
        ("generate_directions/mean_diffs.pt", ""),
        ("direction.pt", "\x80\x04."),
    ],
)
def test_a_damaged_reference_run_is_one_line(
    reference: Path, tmp_path: Path, file: str, content: str
) -> None:
    (reference / file).write_text(content)
    with pytest.raises(InputError) as caught:
        write_reference_report(reference, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert Path(file).name in str(caught.value) or "mean_diffs.pt" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_tensors_of_another_shape_are_refused(reference: Path, tmp_path: Path) -> None:
    path = reference / "generate_directions" / "mean_diffs.pt"
    for wrong in (torch.zeros(3), torch.zeros(2, 10, 8), torch.zeros(3, 9, 8), {"a": 1}):
        torch.save(wrong, path)
        with pytest.raises(InputError, match=r"mean_diffs\.pt"):
            write_reference_report(reference, tmp_path / "out")


def test_null_and_bare_nan_are_both_no_score(reference: Path, tmp_path: Path) -> None:
    rows = json.dumps(evaluations()).replace("NaN", "null")
    (reference / "select_direction" / "direction_evaluations.json").write_text(rows)
    write_reference_report(reference, tmp_path / "out")
    assert summary_of(tmp_path / "out")["reference"]["agrees"] is True


@pytest.mark.published
@pytest.mark.parametrize("folder", sorted(PUBLISHED.glob("*/")), ids=lambda folder: folder.name)
def test_published_runs_select_what_the_reference_selected(folder: Path, tmp_path: Path) -> None:
    write_reference_report(folder, tmp_path / "out")
    summary = summary_of(tmp_path / "out")
    metadata = json.loads((folder / "direction_metadata.json").read_text())
    assert summary["selected"]["position"] == metadata["pos"]
    assert summary["selected"]["layer"] == metadata["layer"]
    assert summary["reference"]["agrees"] is True
