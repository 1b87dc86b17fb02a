"""A run folder that came from elsewhere: what it cannot do, and what is said of its files."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_run import EXPORT, write_run

from refusal_lens.chat import Place
from refusal_lens.directions import Candidates, Direction
from refusal_lens.errors import InputError
from refusal_lens.pipeline import write_reference_report, write_report, write_whole_report
from refusal_lens.pipeline.measurements import FORMS
from refusal_lens.pipeline.page import open_folder
from refusal_lens.plotting.tokens import attention_view, contribution_view
from refusal_lens.runs import (
    Run,
    read_csv,
    read_json,
    read_jsonl,
    read_safetensors,
    write_safetensors,
)
from refusal_lens.runs.files import is_temporary, temporary_name
from refusal_lens.runs.journal import Journal, journal_name
from refusal_lens.runs.open_step import difference

ROW = {"instruction": "Bake.", "response": "Sure.", "shows": False, "score": -1.0}


def direction() -> Direction:
    return Direction(torch.arange(1.0, 5.0), layer=1, place=Place.post(-1), model="organism")


def work(folder: Path) -> list[str]:
    """A small run in steps with a file of every kind, and an export added; which were done."""
    done = []
    with Run.open(folder) as run:
        with run.step("selection", inputs={"kl": 0.1}) as step:
            if step.needed:
                done.append("selection")
                rows = {"position": [-1, -1], "layer": [0, 1], "bypass": [0.5, -1.5], "induce": 1.0}
                frame = pd.DataFrame({**rows, "kl": 0.01, "passes": True, "reason": ""})
                step.write_csv("candidates.csv", frame)
                with step.writing("direction.safetensors") as path:
                    direction().save(path)
        with run.step("completions", inputs={}, after=["selection"]) as step:
            if step.needed:
                done.append("completions")
                step.write_jsonl("completions/harmful_baseline.jsonl", [ROW])
        with run.step("summary", inputs={}, after=["completions"]) as step:
            if step.needed:
                done.append("summary")
                step.write_json("summary.json", {"model": "organism", "n_layers": 2})
        run.finish(config={"model": "organism"})
        with run.addition("export-e", inputs={}, after=["selection"]) as step:
            if step.needed:
                done.append("export")
                step.write_json("exports/e.json", EXPORT | {"to": "lora"})
    return done


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    work(folder)
    write_whole_report(folder)
    return folder


@pytest.fixture
def fresh(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "run")


OUTPUTS = (
    "candidates.csv",
    "direction.safetensors",
    "completions/harmful_baseline.jsonl",
    "summary.json",
    "exports/e.json",
)
OTHERS = ("run.json", "manifest.json", "steps/summary.json", ".lock", "report.html")
FOLDERS = ("steps", "completions", "exports", "figures")


def link_to_file(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "victim.html")


def link_to_zero(path: Path, victim: Path) -> None:
    path.symlink_to("/dev/zero")


def fifo(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim / "new.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and fifos")
class TestPlaces:
    """Whatever stands where a run has a file, nothing outside changes and nothing waits."""

    @pytest.fixture
    def victim(self, tmp_path: Path) -> Iterator[Path]:
        folder = tmp_path / "victim"
        folder.mkdir()
        (folder / "victim.html").write_text('precious <script src="plotly.min.js"></script>')
        (folder / ".scores.csv.123456.tmp").write_text("precious")
        before = {path: path.read_bytes() for path in folder.iterdir()}
        yield folder
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def require_refused(self, folder: Path) -> None:
        before = sorted(os.listdir(folder))
        for opened in (Run.open, Run.read, write_report):
            with pytest.raises(InputError, match="need regular files") as raised:
                opened(folder)
            assert "\n" not in str(raised.value)
        assert sorted(os.listdir(folder)) == before

    @pytest.mark.parametrize("name", [*OUTPUTS, *OTHERS])
    @pytest.mark.parametrize("put", [link_to_file, link_to_zero, fifo, dangling])
    def test_a_file(self, fresh: Path, victim: Path, name: str, put: Callable) -> None:
        (fresh / name).unlink()
        put(fresh / name, victim)
        self.require_refused(fresh)

    @pytest.mark.parametrize("name", FOLDERS)
    def test_a_folder(self, fresh: Path, victim: Path, name: str) -> None:
        shutil.rmtree(fresh / name)
        (fresh / name).symlink_to(victim)
        self.require_refused(fresh)

    @pytest.mark.parametrize("name", ["suffix", "more/deep", ".work.0123456789ab.tmp"])
    def test_a_name_that_no_step_has(self, fresh: Path, victim: Path, name: str) -> None:
        (fresh / name).parent.mkdir(exist_ok=True)
        (fresh / name).symlink_to(victim)
        self.require_refused(fresh)

    def test_an_output_under_a_link_is_not_removed(self, fresh: Path, victim: Path) -> None:
        (fresh / "way").symlink_to(victim)
        path = fresh / "steps" / "summary.json"
        fields = json.loads(path.read_text())
        fields["outputs"] = {"way/victim.html": {"sha256": "0" * 64, "bytes": 26}}
        path.write_text(json.dumps(fields | {"key": "0" * 64}))
        self.require_refused(fresh)

    def test_a_link_that_comes_later_is_not_followed(self, fresh: Path, victim: Path) -> None:
        with Run.open(fresh) as run:
            (fresh / "late").symlink_to(victim)
            with pytest.raises(InputError, match="link"), run.step("s", inputs={}) as step:
                step.write_text("late/victim.html", "mine now")

    def test_the_run_itself_may_be_a_link(self, fresh: Path, tmp_path: Path) -> None:
        (tmp_path / "latest").symlink_to(fresh)
        assert work(tmp_path / "latest") == []
        assert write_whole_report(tmp_path / "latest").is_file()

    def test_a_socket_is_no_file(self, fresh: Path) -> None:
        here = os.getcwd()
        os.chdir(fresh)
        try:
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind("metrics.csv")
        finally:
            os.chdir(here)
        self.require_refused(fresh)

    @pytest.mark.parametrize("read", [read_json, read_jsonl, read_csv, read_safetensors])
    @pytest.mark.parametrize("put", [link_to_zero, fifo])
    def test_the_readers_alone(
        self, tmp_path: Path, victim: Path, read: Callable, put: Callable
    ) -> None:
        put(tmp_path / "file", victim)
        with pytest.raises(InputError, match="need a regular file"):
            read(tmp_path / "file")

    def test_a_direction_may_be_a_link_to_a_file(self, tmp_path: Path) -> None:
        path = direction().save(tmp_path / "blob")
        (tmp_path / "d.safetensors").symlink_to(path)
        assert Direction.load(tmp_path / "d.safetensors") == direction()

    @pytest.mark.parametrize("where", ["read", "written"])
    def test_the_folders_of_a_reference_run(self, tmp_path: Path, victim: Path, where: str) -> None:
        source, out = tmp_path / "reference", tmp_path / "out"
        (source / "select_direction").mkdir(parents=True)
        row = {"position": -1, "layer": 0, "refusal_score": -1.0, "steering_score": 1.0,
               "kl_div_score": 0.01}  # fmt: skip
        rows = [row, {**row, "layer": 1, "refusal_score": 0.0}]
        evaluations = source / "select_direction" / "direction_evaluations.json"
        evaluations.write_text(json.dumps(rows))
        write_reference_report(source, out)
        if where == "read":
            (source / "direction.pt").symlink_to("/dev/zero")
        else:
            shutil.rmtree(out / "figures")
            (out / "figures").symlink_to(victim)
        with pytest.raises(InputError, match="need regular files"):
            write_reference_report(source, out)


class TestNames:
    def test_only_temporaries_of_our_own_form_are_removed(self, fresh: Path) -> None:
        ours = [temporary_name("scores.csv"), ".scores.csv.4242.tmp", "figures/.a.html.7.tmp"]
        theirs = [".draft.tmp", "notes.tmp", ".a.bak", "completions/.x.y.tmp"]
        for name in (*ours, *theirs):
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_text("x")
        Run.open(fresh).close()
        assert [name for name in ours if (fresh / name).exists()] == []
        assert [name for name in theirs if not (fresh / name).exists()] == []

    def test_nothing_is_removed_from_what_is_no_run(self, tmp_path: Path) -> None:
        (tmp_path / ".work.tmp").mkdir()
        (tmp_path / ".work.tmp" / "notes.txt").write_text("mine")
        (tmp_path / ".scores.csv.123.tmp").write_text("mine")
        with pytest.raises(InputError, match=r"no run\.json"):
            Run.open(tmp_path)
        assert sorted(os.listdir(tmp_path)) == [".scores.csv.123.tmp", ".work.tmp"]

    def test_a_lock_that_is_none_of_ours_is_not_overwritten(self, fresh: Path) -> None:
        """Also one that shares its contents with a file elsewhere, as a hard link does."""
        precious = fresh.parent / "precious.txt"
        precious.write_text("precious data")
        (fresh / ".lock").unlink()
        os.link(precious, fresh / ".lock")
        with pytest.raises(InputError, match="no lock of a run"):
            Run.open(fresh)
        assert precious.read_text() == "precious data"

    def test_a_journal_that_is_another_file_too_is_not_written(self, tmp_path: Path) -> None:
        precious = tmp_path / "precious.txt"
        precious.write_text("precious data")
        os.link(precious, tmp_path / "a.journal")
        with pytest.raises(InputError, match="of others"):
            Journal(tmp_path / "a.journal").append({"part": 1})
        assert precious.read_text() == "precious data"

    @pytest.mark.parametrize("length", [1, 60, 250])
    def test_a_temporary_name_is_never_too_long(self, tmp_path: Path, length: int) -> None:
        name = temporary_name("\u00e9" * length)
        assert is_temporary(name)
        assert len(name.encode()) < 160

    @pytest.mark.parametrize("deep", ["", "below"])
    @pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin.index.json"])
    def test_a_run_into_a_model_folder_is_refused(
        self, tmp_path: Path, deep: str, weights: str
    ) -> None:
        model = tmp_path / "model"
        (model / "below").mkdir(parents=True)
        for name in ("config.json", weights):
            (model / name).write_text("{}")
        (tmp_path / "way").symlink_to(model)
        for place in (model, tmp_path / "way"):
            with pytest.raises(InputError, match="lies in the model folder"):
                Run.open(place / deep)
        assert sorted(os.listdir(model)) == sorted(["below", "config.json", weights])
        assert os.listdir(model / "below") == []

    def test_changes_are_named_at_a_readable_length(self) -> None:
        old, new = ({"x" * 5000: i, "y" * 5000: i, "z" * 5000: "v" * i} for i in (1, 4000))
        assert len(difference(old, new)) < 300


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_results_may_be_read_by_whom_the_umask_allows(
    tmp_path: Path, mask: int, file: int, folder: int
) -> None:
    before = os.umask(mask)
    try:
        with Run.open(tmp_path / "run") as run, run.step("own", inputs={}) as step:
            with step.writing("own.bin") as path:
                # As libraries do that write a private file and rename it.
                private = path.with_suffix(".private")
                os.close(os.open(private, os.O_CREAT | os.O_WRONLY, 0o600))
                os.replace(private, path)
            step.keep({"part": 1})
        work(tmp_path / "run")
        write_report(tmp_path / "run")
        Direction.load(tmp_path / "run/direction.safetensors").save(tmp_path / "run/d.safetensors")
    finally:
        os.umask(before)
    for path in (tmp_path / "run", *(tmp_path / "run").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (folder if path.is_dir() else file), path


class TestPolicies:
    def test_every_page_names_the_scripts_that_may_run(self, tmp_path: Path) -> None:
        write_report(write_run(tmp_path / "run", n_prompts=5))
        pages = [tmp_path / "run/report.html", *(tmp_path / "run/figures").glob("*.html")]
        assert len(pages) > 5
        for page in pages:
            (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page.read_text())
            assert policy.startswith("default-src 'none'; script-src ")
            assert "sha256-" in policy
            assert "unsafe-eval" not in policy
            assert "'unsafe-inline'" not in policy.split("style-src")[0]

    def test_views_of_tokens_do_and_are_the_same_each_time(self) -> None:
        story = {
            "condition": "harmful",
            "tokens": ["a", "</script><script>alert(1)</script>"],
            "heads": ["1.0"],
            "contribution": [[0.1, 0.2]],
            "pattern": np.ones((1, 2, 2)).tolist(),
        }
        for view in (attention_view, contribution_view):
            page = view(story)
            assert "script-src 'sha256-" in page
            assert page == view(story)


class TestChangedBytes:
    """Sizes stay the same; only the hash tells."""

    def alter(self, path: Path) -> None:
        contents = bytearray(path.read_bytes())
        contents[-9] ^= 1
        path.write_bytes(contents)

    @pytest.mark.parametrize("name", OUTPUTS)
    def test_are_said_and_made_again(self, fresh: Path, name: str) -> None:
        before = (fresh / name).read_bytes()
        self.alter(fresh / name)
        with pytest.raises(InputError, match=rf"{name} that has other contents"):
            Run.read(fresh).output(name)
        page = write_report(fresh).read_text()
        assert f"{name} has other contents than it was written with" in page
        run = open_folder(fresh)
        assert run.file(name) is None
        assert "e" not in run.made("exports", ".json") or name != "exports/e.json"
        with pytest.raises(InputError, match=f"got {name} that has other contents"):
            write_whole_report(fresh)
        assert len(work(fresh)) == 1
        assert (fresh / name).read_bytes() == before
        assert 'class="warning"' not in write_whole_report(fresh).read_text()

    @pytest.mark.parametrize("change", ["key", "outputs"])
    def test_the_manifest_of_the_whole_must_agree_with_those_of_the_steps(
        self, fresh: Path, change: str
    ) -> None:
        whole = read_json(fresh / "manifest.json")
        if change == "key":
            whole["steps"]["summary"]["key"] = "0" * 64
        else:
            whole["outputs"]["summary.json"]["sha256"] = "0" * 64
        (fresh / "manifest.json").write_text(json.dumps(whole))
        with pytest.raises(InputError, match="one story"):
            Run.read(fresh).whole()
        with pytest.raises(InputError, match="one story"):
            write_whole_report(fresh)

    def test_a_line_of_a_journal(self, tmp_path: Path) -> None:
        journal = Journal(tmp_path / "j")
        for part in range(3):
            journal.append({"part": part, "kl": math.nan})
        lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
        lines[1] = lines[1].replace(b"1,", b"7,")
        (tmp_path / "j").write_bytes(b"".join(lines))
        assert [record["part"] for record in Journal(tmp_path / "j").records] == [0]


class TestWhole:
    def test_a_run_that_is_not_finished_has_a_page_and_is_an_error(self, fresh: Path) -> None:
        (fresh / "manifest.json").unlink()
        (fresh / "report.html").unlink()
        with pytest.raises(InputError, match=r"not finished.*the page of what there is"):
            write_whole_report(fresh)
        assert (fresh / "report.html").is_file()

    def test_so_has_one_whose_steps_are_asked_for_otherwise(self, fresh: Path) -> None:
        with Run.open(fresh) as run:
            run.plan({"selection": ({"kl": 0.2}, ())}, without=["summary"])
        with pytest.raises(InputError, match="out of date"):
            write_whole_report(fresh)

    def test_and_one_without_steps_and_summary(self, tmp_path: Path) -> None:
        write_run(tmp_path, n_prompts=5)
        write_whole_report(tmp_path)
        (tmp_path / "summary.json").unlink()
        with pytest.raises(InputError, match="not finished"):
            write_whole_report(tmp_path)


class TestJournals:
    def test_one_that_a_kill_left_goes_when_its_step_is_found_done(self, fresh: Path) -> None:
        key = Run.read(fresh).manifest("summary").key
        left = [fresh / "steps" / journal_name("summary", each) for each in (key, "0" * 64)]
        other = fresh / "steps" / journal_name("summary.more", key)
        for path in (*left, other):
            path.write_text("x")
        assert work(fresh) == []
        assert [path for path in (*left, other) if path.exists()] == [other]

    def test_one_of_a_step_no_longer_asked_for_goes_too(self, tmp_path: Path) -> None:
        asked: dict[str, Any] = {"a": ({}, ()), "b": ({}, ("a",))}
        with pytest.raises(KeyboardInterrupt), Run.open(tmp_path) as run:
            run.plan(asked)
            with run.step("a", inputs={}):
                pass
            with run.step("b", inputs={}, after=["a"]) as step:
                step.keep({"part": 0})
                raise KeyboardInterrupt
        with Run.open(tmp_path) as run:
            run.plan(asked)
        assert len(list((tmp_path / "steps").glob("*.journal"))) == 1
        with Run.open(tmp_path) as run:
            run.plan({"a": ({}, ())})
        assert not list((tmp_path / "steps").glob("*.journal"))


# ---------------------------------------------------------------- forms


def spoilt(value: Any) -> Iterator[tuple[str, Any]]:
    """Every field of a JSON value missing, and with values of other types, one at a time."""
    odd = (None, True, -1, 10**30, "x", [], {}, [[1]], {"a": 1})
    for path in _places(value):
        yield f"{path} missing", _put(value, path, None, drop=True)
        for other in odd:
            yield f"{path} {other!r}", _put(value, path, other)


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in pairs:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from _places(item, (*path, key))


def _put(value: Any, path: tuple, new: Any, *, drop: bool = False) -> Any:
    whole = json.loads(json.dumps(value))
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return whole


STEP = {"step": "s", "key": "0" * 64, "inputs": {}, "after": {"a": "0"}, "seconds": 1.0,
        "outputs": {"x.csv": {"sha256": "0" * 64, "bytes": 3}}, "finished": "2026",
        "versions": {"python": "3"}, "format": 1}  # fmt: skip
WHOLE = {"format": 1, "config": {"model": "organism", "dtype": None, "prefill": ""},
         "steps": {"s": {"key": "0", "seconds": 1}}, "stale": {"x": "y"}}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run.json", {"format": 1, "plan": {"a": None}}),
        ("manifest.json", WHOLE),
        ("steps/s.json", STEP),
        ("exports/e.json", EXPORT | {"notes": ["x"]}),
    ],
)
def test_any_other_type_in_a_file_is_one_line_or_read(
    tmp_path: Path, name: str, value: Any
) -> None:
    """What reads a file further takes its types for granted: so it is read whole or refused."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    assert FORMS.read(tmp_path, name) == value
    lines = []
    for what, other in spoilt(value):
        path.write_text(json.dumps(other))
        if line := said_by(lambda: FORMS.read(tmp_path, name)):
            lines.append(line)
            assert path.name in line, what
            assert len(line.replace(str(tmp_path), "")) < 300
            assert "\n" not in line
        else:
            assert type(FORMS.read(tmp_path, name)) is type(value), what
    assert len(lines) > 10


def said_by(read: Callable[[], Any]) -> str:
    """The line in which reading ends, "" when it does not."""
    try:
        read()
    except InputError as error:
        return str(error)
    return ""


CELLS = ("", "nan", "inf", "-1", "1e400", "9" * 30, "1e30", "0.5", "True", "x")


@pytest.mark.parametrize("name", ["candidates.csv", "curves.csv", "pca.csv", "top_tokens.csv"])
def test_odd_cells_never_reach_a_table(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path / "run", n_prompts=3)
    whole = pd.read_csv(folder / name, dtype=str, keep_default_na=False)
    for column in whole:
        for cell in CELLS:
            odd = whole.copy()
            odd.loc[0, column] = cell
            odd.to_csv(folder / name, index=False)
            run = open_folder(folder)
            if line := said_by(lambda run=run: run.table(name)):  # type: ignore[misc]
                assert name in line
                continue
            table = run.table(name)
            assert table is not None
            for whole_number in {"layer", "position", "token_id"} & set(table):
                assert pd.api.types.is_integer_dtype(table[whole_number])
                assert table[whole_number].abs().max() <= 10**12


@pytest.mark.parametrize(
    "change",
    [
        {"layer": None},
        {"layer": "x"},
        {"layer": 10**30},
        {"position": 0},
        {"revision": 3},
        {"more": []},
        None,
        [],
        "{",
    ],
)
def test_a_direction_with_other_provenance_is_one_line(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "d.safetensors"
    facts = {**direction().provenance, **change} if isinstance(change, dict) else change
    text = change if isinstance(change, str) else json.dumps(facts)
    header = {"format": "refusal_lens direction 1", "provenance": text}
    write_safetensors(path, {"direction": direction().vector}, header)
    with pytest.raises(InputError, match=r"d\.safetensors") as caught:
        Direction.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "vector",
    [torch.ones(2, 2), torch.ones(3).int(), torch.tensor([1.0, math.nan]), torch.zeros(3),
     torch.ones(0), torch.tensor(1.0)],
)  # fmt: skip
def test_a_direction_with_another_vector_is_one_line(tmp_path: Path, vector: torch.Tensor) -> None:
    header = {
        "format": "refusal_lens direction 1",
        "provenance": json.dumps(direction().provenance),
    }
    write_safetensors(tmp_path / "d.safetensors", {"direction": vector}, header)
    with pytest.raises(InputError, match=r"d\.safetensors"):
        Direction.load(tmp_path / "d.safetensors")


def test_damaged_files_of_candidates_are_one_line(tmp_path: Path) -> None:
    means = torch.ones(2, 3, 4, dtype=torch.float64)
    path = Candidates(2 * means, means, Place.posts(2), ("a", "b"), {"model": "m"}).save(tmp_path / "c")
    whole = path.read_bytes()
    for cut in (0, 7, 8, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cannot be read"):
            Candidates.load(path)
    path.write_bytes(b"\xff" * 8 + whole[8:])
    with pytest.raises(InputError, match="cannot be read"):
        Candidates.load(path)
    for header, tensors in (
        ({"positions": '["a"]'}, {"mean_positive": means, "mean_negative": means}),
        ({"positions": "3"}, {"mean_positive": means, "mean_negative": means}),
        ({"provenance": "[]"}, {"mean_positive": means, "mean_negative": means}),
        ({}, {"mean_positive": means}),
        ({}, {"mean_positive": means, "mean_negative": means.float()}),
        ({}, {"mean_positive": means, "mean_negative": means[:1]}),
        ({}, {"mean_positive": means / 0, "mean_negative": means}),
    ):
        known = {"format": "refusal_lens candidates 1", "positions": '["a", "b"]'}
        write_safetensors(path, tensors, {**known, "provenance": "{}", **header})
        with pytest.raises(InputError) as caught:
            Candidates.load(path)
        assert "\n" not in str(caught.value)


def test_tensor_files_are_the_same_bytes_each_time_and_read_by_the_library(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {
        "half": torch.randn(3).half(),
        "empty": torch.ones(0, 2),
        "wide": torch.randn(2, 3, dtype=torch.float64).T,
        "one": torch.tensor(3),
        "brain": torch.randn(5).bfloat16(),
        "flags": torch.tensor([True, False]),
    }
    header = {f"k{i}": str(i) for i in range(20)}
    one, two = tmp_path / "one", tmp_path / "two"
    write_safetensors(one, tensors, header)
    write_safetensors(two, dict(reversed(tensors.items())), dict(reversed(header.items())))
    assert one.read_bytes() == two.read_bytes()
    back = load_file(one)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert read_safetensors(one).header == header


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    for read in (read_json, read_jsonl, read_csv, read_safetensors):
        with pytest.raises(InputError, match="need at most"):
            read(tmp_path / "a.json")


def test_nested_without_reason_is_one_line(tmp_path: Path) -> None:
    for levels in (65, 900, 100_000):
        (tmp_path / "a.json").write_text("[" * levels + "]" * levels)
        with pytest.raises(InputError, match="nest"):
            read_json(tmp_path / "a.json")


def test_report_ends_with_1_for_a_run_that_is_not_whole(fresh: Path) -> None:
    (fresh / "manifest.json").unlink()
    command = [sys.executable, "-m", "refusal_lens", "report", str(fresh)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not finished" in done.stderr
    assert done.stderr.count("\n") == 1
