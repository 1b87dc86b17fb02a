"""A run folder: what is trusted and what is redone; kills, damage, locks and full disks."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from refusal_lens import progress
from refusal_lens.errors import InputError
from refusal_lens.runs import (
    Run,
    plain,
    read_csv,
    read_json,
    read_jsonl,
    write_csv,
    write_json,
    write_jsonl,
    write_safetensors,
    write_text,
    writing,
)


def work(folder: Path, *, n: int = 3, threshold: float = 0.1) -> list[str]:
    """A run of three steps, of which the last two build on each other; says which were done."""
    done = []
    with Run.open(folder) as run:
        with run.step("means", inputs={"n": n}) as step:
            if step.needed:
                done.append("means")
                step.write_json("means.json", list(range(n)))
        with run.step("scores", inputs={"rule": {"threshold": threshold}}, after=["means"]) as step:
            if step.needed:
                done.append("scores")
                rows = [{"x": x} for x in read_json(folder / "means.json") if x > threshold]
                step.write_csv("tables/rows.csv", pd.DataFrame(rows))
        with run.step("other", inputs={}) as step:
            if step.needed:
                done.append("other")
                step.write_text("other.txt", "nothing\n")
        run.finish(config={"n": n, "threshold": threshold})
    return done


def outputs(folder: Path) -> dict[str, bytes]:
    """Every result in the folder; manifests carry times and are no results."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "steps" not in path.parts and path.name != "manifest.json"
        if path.name != ".lock"
    }


class TestSteps:
    def test_a_second_run_does_nothing(self, tmp_path: Path) -> None:
        assert work(tmp_path / "run") == ["means", "scores", "other"]
        before = outputs(tmp_path / "run")
        assert work(tmp_path / "run") == []
        assert outputs(tmp_path / "run") == before

    def test_a_changed_input_redoes_just_what_depends_on_it(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        work(tmp_path)
        with caplog.at_level(logging.INFO, logger="refusal_lens"):
            assert work(tmp_path, threshold=1.5) == ["scores"]
        assert "scores: redone because rule.threshold changed 0.1 -> 1.5" in caplog.messages
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="refusal_lens"):
            assert work(tmp_path, n=5, threshold=1.5) == ["means", "scores"]
        assert "means: redone because n changed 3 -> 5" in caplog.messages
        assert "scores: redone because means changed" in caplog.messages
        assert list(read_csv(tmp_path / "tables/rows.csv")["x"]) == [2, 3, 4]

    def test_going_back_to_an_earlier_input_never_trusts_what_the_later_one_left(
        self, tmp_path: Path
    ) -> None:
        work(tmp_path, threshold=0.1)
        with pytest.raises(KeyboardInterrupt), Run.open(tmp_path) as run:
            inputs = {"rule": {"threshold": 1.5}}
            with run.step("scores", inputs=inputs, after=["means"]) as step:
                # As many bytes as the table that threshold 0.1 gives: "x\n1\n2\n".
                step.write_csv("tables/rows.csv", pd.DataFrame({"x": [8, 9]}))
                raise KeyboardInterrupt
        assert work(tmp_path, threshold=0.1) == ["scores"]
        assert list(read_csv(tmp_path / "tables/rows.csv")["x"]) == [1, 2]

    def test_inputs_compare_as_json_not_as_python(self, tmp_path: Path) -> None:
        for value in ((1, 2), [1, 2], np.array([1, 2]), torch.tensor([1, 2])):
            with Run.open(tmp_path) as run, run.step("one", inputs={"ids": value}) as step:
                reason = step.reason
        assert reason == ""

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda f: (f / "means.json").unlink(), "means.json is missing"),
            (lambda f: (f / "means.json").write_text("[0, 1"), "another size"),
            (lambda f: (f / "steps/means.json").write_text("{}"), "manifest is damaged"),
            (lambda f: (f / "steps/means.json").write_text("[1"), "manifest is damaged"),
            (lambda f: (f / "steps/means.json").write_bytes(b"\xff\xfe"), "manifest is damaged"),
        ],
    )
    def test_damaged_results_are_made_again(
        self, tmp_path: Path, spoil: Any, reason: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        work(tmp_path)
        before = outputs(tmp_path)
        spoil(tmp_path)
        with caplog.at_level(logging.INFO, logger="refusal_lens"):
            assert work(tmp_path) == ["means"]
        assert reason in caplog.text
        assert outputs(tmp_path) == before

    def test_a_change_that_keeps_the_size_is_seen_and_made_again(self, tmp_path: Path) -> None:
        work(tmp_path)
        path = tmp_path / "means.json"
        text = path.read_text()
        path.write_text(text.replace("2", "7"))
        assert Run.read(tmp_path).damage() == [
            "means.json has other contents than it was written with"
        ]
        with pytest.raises(InputError, match="other contents"):
            Run.read(tmp_path).output("means.json")
        assert work(tmp_path) == ["means"]
        assert path.read_text() == text
        assert not Run.read(tmp_path).damage()

    def test_outputs_that_a_redone_step_no_longer_writes_are_gone(self, tmp_path: Path) -> None:
        for names in (["a.txt", "b.txt"], ["a.txt"]):
            with Run.open(tmp_path) as run, run.step("s", inputs={"names": names}) as step:
                for name in names:
                    step.write_text(name, "x")
        assert not (tmp_path / "b.txt").exists()

    def test_a_step_that_is_done_writes_nothing(self, tmp_path: Path) -> None:
        work(tmp_path)
        with (
            Run.open(tmp_path) as run,
            pytest.raises(RuntimeError, match="is done"),
            run.step("means", inputs={"n": 3}) as step,
        ):
            step.write_json("means.json", [])

    @pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt"])
    def test_outputs_stay_inside_of_the_folder(self, tmp_path: Path, name: str) -> None:
        with (
            Run.open(tmp_path / "run") as run,
            pytest.raises(ValueError, match="inside"),
            run.step("s", inputs={}) as step,
        ):
            step.write_text(name, "x")
        assert not (tmp_path / "out.txt").exists()

    def test_a_step_waits_for_the_ones_it_builds_on(self, tmp_path: Path) -> None:
        with (
            Run.open(tmp_path) as run,
            pytest.raises(InputError, match="'means' is not done"),
            run.step("scores", inputs={}, after=["means"]),
        ):
            pass

    def test_steps_left_behind_by_a_redone_one_are_called_out_of_date(self, tmp_path: Path) -> None:
        work(tmp_path)
        with Run.open(tmp_path) as run:
            with run.step("suffix", inputs={}, after=["scores"]) as step:
                step.write_text("suffix.txt", "x")
            assert run.stale() == {}
        work(tmp_path, threshold=1.5)
        assert Run.read(tmp_path).stale() == {"suffix": "scores changed"}
        assert read_json(tmp_path / "manifest.json")["stale"] == {"suffix": "scores changed"}

    def test_files_written_by_others_count(self, tmp_path: Path) -> None:
        for _ in range(2):
            with Run.open(tmp_path) as run, run.step("s", inputs={}) as step:
                needed = step.needed
                if needed:
                    (tmp_path / "report.html").write_text("page")
                    step.adopt("report.html")
                    with step.writing("sub/own.bin") as temporary:
                        temporary.write_bytes(b"own")
        assert not needed
        assert Run.read(tmp_path).output("sub/own.bin").read_bytes() == b"own"


    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, None])
    def test_numbers_that_json_lacks_are_told_apart(self, tmp_path: Path, value: Any) -> None:
        for threshold in (math.inf, -math.inf, math.nan, None):
            with Run.open(tmp_path) as run:
                with run.step("s", inputs={"threshold": threshold}) as step:
                    step.write_text("s.txt", str(threshold)) if step.needed else None
            with Run.open(tmp_path) as run, run.step("s", inputs={"threshold": value}) as step:
                assert step.needed == (repr(value) != repr(threshold))
                step.write_text("s.txt", str(value)) if step.needed else None


class TestPlan:
    """What a run is asked for decides which of the results on the disk count."""

    def ask(self, folder: Path, *, n: int = 3, nulls: bool = True, until: str = "") -> list[str]:
        """Two steps and an optional third; says which were done."""
        asked: dict[str, Any] = {"means": ({"n": n}, ()), "scores": ({}, ("means",))}
        if nulls:
            asked["nulls"] = ({}, ("scores",))
        done = []
        with Run.open(folder) as run:
            run.plan(asked, without=() if nulls else ("nulls",))
            for name, (inputs, after) in asked.items():
                with run.step(name, inputs=inputs, after=after) as step:
                    if step.needed:
                        done.append(name)
                        step.write_text(f"{name}.txt", f"{name} {n}")
                if name == until:
                    return done
            run.finish(config={})
        return done

    def test_what_is_asked_for_and_done_counts(self, tmp_path: Path) -> None:
        assert self.ask(tmp_path) == ["means", "scores", "nulls"]
        assert list(Run.read(tmp_path).current()) == ["means", "scores", "nulls"]
        assert self.ask(tmp_path) == []

    def test_results_of_other_inputs_do_not_count_before_they_are_redone(
        self, tmp_path: Path
    ) -> None:
        self.ask(tmp_path)
        self.ask(tmp_path, n=4, until="means")
        run = Run.read(tmp_path)
        assert list(run.current()) == ["means"]
        assert set(run.stale()) == {"scores", "nulls"}
        assert (tmp_path / "nulls.txt").is_file()
        with pytest.raises(InputError, match="none of its finished steps"):
            run.output("nulls.txt")

    def test_asked_for_again_they_count_again(self, tmp_path: Path) -> None:
        self.ask(tmp_path)
        self.ask(tmp_path, n=4, until="means")
        assert self.ask(tmp_path) == ["means"]
        assert list(Run.read(tmp_path).current()) == ["means", "scores", "nulls"]

    def test_a_step_no_longer_asked_for_does_not_count(self, tmp_path: Path) -> None:
        self.ask(tmp_path)
        assert self.ask(tmp_path, nulls=False) == []
        whole = Run.read(tmp_path).whole()
        assert set(whole["outputs"]) == {"means.txt", "scores.txt"}
        assert whole["stale"] == {"nulls": "it is not asked for"}
        assert self.ask(tmp_path) == []
        assert "nulls.txt" in Run.read(tmp_path).whole()["outputs"]

    def test_an_addition_counts_while_what_it_builds_on_does(self, tmp_path: Path) -> None:
        self.ask(tmp_path)
        with Run.open(tmp_path) as run, run.addition("study", inputs={}, after=["scores"]) as step:
            step.write_text("study.txt", "x")
        assert Run.read(tmp_path).stale() == {}
        self.ask(tmp_path, n=4, until="means")
        assert Run.read(tmp_path).stale()["study"] == "scores changed"
        self.ask(tmp_path)
        assert Run.read(tmp_path).stale() == {}

    def test_withdrawn_results_are_gone_unless_they_are_those_asked_for(
        self, tmp_path: Path
    ) -> None:
        self.ask(tmp_path)
        with Run.open(tmp_path) as run:
            assert not run.invalidate("nulls", {}, ["scores"])
            assert run.invalidate("nulls", {"seed": 1}, ["scores"])
        assert not (tmp_path / "nulls.txt").exists()
        assert not (tmp_path / "manifest.json").exists()

    def test_without_asking_what_builds_on_something_stale_is_stale(self, tmp_path: Path) -> None:
        work(tmp_path)
        with Run.open(tmp_path) as run, run.step("last", inputs={}, after=["scores"]) as step:
            step.write_text("last.txt", "x")
        with Run.open(tmp_path) as run, run.step("means", inputs={"n": 4}) as step:
            step.write_json("means.json", [0])
        assert Run.read(tmp_path).stale() == {
            "scores": "means changed",
            "last": "scores is out of date",
        }


class TestForeignManifests:
    """A manifest may come from anyone: it must not make a run touch files outside of its folder."""

    @pytest.mark.parametrize("name", ["../victim.txt", "{}/victim.txt", "a/../../victim.txt", "."])
    @pytest.mark.parametrize("do", ["step", "addition", "read"])
    def test_outputs_outside_of_the_run_are_refused(
        self, tmp_path: Path, name: str, do: str
    ) -> None:
        folder, victim = tmp_path / "run", tmp_path / "victim.txt"
        work(folder)
        victim.write_text("mine")
        path = folder / "steps" / "scores.json"
        fields = json.loads(path.read_text())
        fields["outputs"][name.format(tmp_path)] = {"sha256": "0", "bytes": 4}
        path.write_text(json.dumps(fields))
        with pytest.raises(InputError, match="damaged or foreign") as raised:
            if do == "read":
                Run.read(folder).manifests()
            elif do == "step":
                work(folder, threshold=1.5)
            else:
                with Run.open(folder) as run, run.addition("scores", inputs={}) as step:
                    step.write_text("x", "x")
        assert "\n" not in str(raised.value)
        assert victim.read_text() == "mine"

    def test_they_are_refused_before_any_work(self, tmp_path: Path) -> None:
        work(tmp_path)
        path = tmp_path / "steps" / "scores.json"
        whole = path.read_text()
        asked: dict[str, Any] = {"means": ({"n": 3}, ()), "scores": ({}, ("means",))}
        for damage, wanted in (("{}", asked), (whole.replace("tables/", "../"), asked)):
            path.write_text(damage)
            with Run.open(tmp_path) as run:
                if "means" in damage:
                    with pytest.raises(InputError, match="damaged or foreign"):
                        run.plan(wanted)
                else:
                    run.plan(wanted)  # it will be done again
                    with pytest.raises(InputError, match="not a step's manifest"):
                        run.plan({"means": ({"n": 3}, ())}, without=["scores"])

    @pytest.mark.parametrize("change", [{"after": ["means"]}, {"inputs": 3}, {"outputs": [1]}])
    def test_damage_is_one_line(self, tmp_path: Path, change: dict[str, Any]) -> None:
        work(tmp_path)
        path = tmp_path / "steps" / "scores.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(InputError, match="not a step's manifest"):
            Run.read(tmp_path).stale()


class TestManifestOfTheWhole:
    @pytest.mark.parametrize("contents", ["{}", '{"config": {}}', '{"config": []}', "[]", "[" * 99_999])
    def test_what_it_lacks_is_one_line(self, tmp_path: Path, contents: str) -> None:
        work(tmp_path)
        (tmp_path / "manifest.json").write_text(contents)
        with pytest.raises(InputError, match=r"manifest\.json") as raised:
            Run.read(tmp_path).whole()["config"]["model"]
        assert "\n" not in str(raised.value)

    def test_it_names_outputs_versions_and_steps(self, tmp_path: Path) -> None:
        work(tmp_path)
        whole = read_json(tmp_path / "manifest.json")
        assert set(whole["outputs"]) == {"means.json", "tables/rows.csv", "other.txt"}
        assert list(whole["steps"]) == ["means", "scores", "other"]
        assert {"python", "torch", "transformers", "transformer_lens"} <= set(whole["versions"])
        assert whole["config"] == {"n": 3, "threshold": 0.1}
        assert whole["independently_reproducible"] is True

    def test_it_says_why_others_could_not_reproduce_it(self, tmp_path: Path) -> None:
        with Run.open(tmp_path) as run:
            run.finish(irreproducible="the model is a local folder")
        whole = read_json(tmp_path / "manifest.json")
        assert whole["independently_reproducible"] is False
        assert whole["reproducibility"] == "the model is a local folder"

    def test_it_is_gone_as_soon_as_a_step_is_done_again(self, tmp_path: Path) -> None:
        work(tmp_path)
        with Run.open(tmp_path) as run, run.step("means", inputs={"n": 4}):
            assert not (tmp_path / "manifest.json").exists()


class TestAdditions:
    def add(self, folder: Path, *, seed: int, fail: bool = False) -> str:
        """Add a study to a finished run; returns why it was done."""
        with Run.open(folder) as run:
            with run.addition("study", inputs={"seed": seed}, after=["scores"]) as step:
                if step.needed:
                    step.write_json("study.json", {"seed": seed})
                    if fail:
                        raise KeyboardInterrupt
        return step.reason

    def test_the_run_stays_finished_and_knows_the_study(self, tmp_path: Path) -> None:
        work(tmp_path)
        before = Run.read(tmp_path).whole()
        assert self.add(tmp_path, seed=0) == "it was not done before"
        after = Run.read(tmp_path).whole()
        assert set(after["outputs"]) - set(before["outputs"]) == {"study.json"}
        assert {k: after[k] for k in ("config", "finished")} == {
            k: before[k] for k in ("config", "finished")
        }
        assert self.add(tmp_path, seed=0) == ""
        assert work(tmp_path) == []
        assert "study.json" in Run.read(tmp_path).whole()["outputs"]

    def test_stopped_half_way_the_run_stays_finished_without_it(self, tmp_path: Path) -> None:
        work(tmp_path)
        before = outputs(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            self.add(tmp_path, seed=1, fail=True)
        whole = Run.read(tmp_path).whole()
        assert set(whole["steps"]) == {"means", "scores", "other"}
        assert outputs(tmp_path) == before
        assert self.add(tmp_path, seed=1) == "it was not done before"
        assert read_json(tmp_path / "study.json") == {"seed": 1}

    def test_an_earlier_one_stays_until_the_next_is_whole(self, tmp_path: Path) -> None:
        work(tmp_path)
        self.add(tmp_path, seed=0)
        before = outputs(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            self.add(tmp_path, seed=1, fail=True)
        assert outputs(tmp_path) == before
        assert "study.json" in Run.read(tmp_path).whole()["outputs"]
        assert Run.read(tmp_path).damage() == []
        assert self.add(tmp_path, seed=1) == "seed changed 0 -> 1"
        assert read_json(tmp_path / "study.json") == {"seed": 1}
        assert Run.read(tmp_path).damage() == []

    def test_a_full_disk_leaves_the_earlier_one(self, tmp_path: Path) -> None:
        work(tmp_path)
        self.add(tmp_path, seed=0)
        before = outputs(tmp_path)
        with (
            pytest.raises(OSError, match="could not be written"),
            Run.open(tmp_path) as run,
            run.addition("study", inputs={"seed": 1}, after=["scores"]) as step,
        ):
            step.write_json("study.json", {"seed": 1})
            with full_disk(4096):
                step.write_text("more.txt", "x" * 100_000)
        assert outputs(tmp_path) == before

    def test_killed_half_way_it_leaves_nothing_behind(self, tmp_path: Path) -> None:
        work(tmp_path)
        self.add(tmp_path, seed=0)
        before = outputs(tmp_path)
        code = (
            "import os, signal, sys; from refusal_lens.runs import Run\n"
            "with Run.open(sys.argv[1]) as run:\n"
            "    with run.addition('study', inputs={'seed': 1}, after=['scores']) as step:\n"
            "        step.write_json('study.json', {'seed': 1})\n"
            "        os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
        assert done.returncode == -signal.SIGKILL
        Run.open(tmp_path).close()
        assert outputs(tmp_path) == before
        assert not list(tmp_path.glob(".*.tmp"))
        assert Run.read(tmp_path).damage() == []

    def test_outputs_that_the_next_one_no_longer_writes_are_gone(self, tmp_path: Path) -> None:
        work(tmp_path)
        for names in (["deep/a.txt", "b.txt"], ["deep/a.txt"]):
            with Run.open(tmp_path) as run:
                with run.addition("study", inputs={"names": names}) as step:
                    for name in names:
                        step.write_text(name, "x")
        assert (tmp_path / "deep/a.txt").is_file()
        assert not (tmp_path / "b.txt").exists()

    def test_it_needs_a_finished_run(self, tmp_path: Path) -> None:
        work(tmp_path)
        (tmp_path / "manifest.json").unlink()
        with pytest.raises(InputError, match="not finished"):
            self.add(tmp_path, seed=0)


STEPS_BEFORE_THE_KILL = """
import os, signal, sys
from pathlib import Path
from refusal_lens.runs import Run, files

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

folder, where, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with Run.open(folder) as run:
    for index, this in enumerate(["a", "b", "c"]):
        with run.step(this, inputs={}, after=["a", "b", "c"][:index]) as step:
            if step.needed:
                for part in range(len(step.records), 4):
                    if (where, name, part) == ("part", this, 2):
                        die()
                    step.keep({"part": part, "value": 0.1 * part + index})
                if (where, name) == ("start", this):
                    die()
                step.write_json(f"{this}.json", step.records)
                if (where, name) == ("between", this):
                    die()
                if (where, name) == ("half", this):
                    with step.writing(f"{this}.txt") as temporary:
                        temporary.write_text("hal")
                        die()
                step.write_text(f"{this}.txt", "whole")
                if (where, name) == ("manifest", this):
                    files.write_json = die
    if where == "finish":
        die()
    run.finish()
"""


def kill_and_go_on(folder: Path, *kill: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-c", textwrap.dedent(STEPS_BEFORE_THE_KILL), str(folder)]
    return subprocess.run([*script, *(kill or ("", ""))], capture_output=True, text=True)


@pytest.mark.parametrize("name", ["a", "c"])
@pytest.mark.parametrize("where", ["part", "start", "between", "half", "manifest", "finish"])
def test_killed_anywhere_it_goes_on_and_ends_the_same(
    tmp_path: Path, where: str, name: str
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert kill_and_go_on(straight).returncode == 0
    assert kill_and_go_on(killed, where, name).returncode == -signal.SIGKILL
    assert not (killed / "manifest.json").exists()
    again = kill_and_go_on(killed)
    assert again.returncode == 0, again.stderr
    assert outputs(killed) == outputs(straight)
    assert not [path for path in killed.rglob("*") if path.suffix in {".tmp", ".journal"}]


def whole_work(folder: Path, *, threshold: float = 0.1) -> None:
    """A run with parts, tables, tensors and a text, finished, and a study added to it."""
    with Run.open(folder) as run:
        asked: dict[str, Any] = {"a": ({}, ()), "b": ({"threshold": threshold}, ("a",))}
        run.plan(asked)
        with run.step("a", inputs={}) as step:
            if step.needed:
                for part in range(len(step.records), 3):
                    step.keep({"part": part, "x": 0.1 * part})
                step.write_jsonl("parts.jsonl", step.records)
        with run.step("b", inputs={"threshold": threshold}, after=["a"]) as step:
            if step.needed:
                rows = [r for r in read_jsonl(folder / "parts.jsonl") if r["x"] > threshold]
                step.write_csv("tables/rows.csv", pd.DataFrame(rows))
                step.write_safetensors("r.safetensors", {"r": torch.full((3,), threshold)})
        run.finish(config={})
        with run.addition("study", inputs={}, after=["b"]) as step:
            if step.needed:
                step.write_text("study/page.txt", f"{threshold}")
                step.write_json("study/numbers.json", [threshold])


OPERATIONS = ("replace", "fsync", "unlink", "mkdir", "rename", "rmdir", "chmod")


def operations_until(work: Any, last: int) -> int:
    """Do the work in a child that dies before one operation on files; operations done.

    The child is a fork, so that nothing is cleaned up: as with SIGKILL, no `finally` runs in it.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        done = 0

        def counted(operation: Any) -> Any:
            def do(*args: Any, **more: Any) -> Any:
                nonlocal done
                done += 1
                if done == last:
                    os._exit(9)
                return operation(*args, **more)

            return do

        try:
            for name in OPERATIONS:
                setattr(os, name, counted(getattr(os, name)))
            work()
            os.write(write, str(done).encode())
        finally:
            os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as file:
        said = file.read()
    assert (os.waitstatus_to_exitcode(status) == 9) == (said == "")
    return int(said or last)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("redo", [False, True])
def test_killed_at_any_operation_on_files_it_ends_the_same(
    tmp_path: Path, redo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A kill loses nothing that the system has; waiting for the disk would be all of the test's time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    straight, started = tmp_path / "straight", tmp_path / "started"
    if redo:
        whole_work(started)
        whole_work(straight)
    whole_work(straight, threshold=0.15)
    wanted = outputs(straight)
    shutil.copytree(started, tmp_path / "count") if redo else None
    work = partial(whole_work, tmp_path / "count", threshold=0.15)
    n = operations_until(work, 10**9)
    assert n >= 40
    for last in range(1, n + 1):
        folder = tmp_path / f"{last}"
        shutil.copytree(started, folder) if redo else None
        operations_until(partial(whole_work, folder, threshold=0.15), last)
        whole_work(folder, threshold=0.15)
        assert outputs(folder) == wanted, last
        assert Run.read(folder).damage() == []
        assert not [p for p in folder.rglob("*") if p.suffix in {".tmp", ".journal"}], last


def test_a_killed_step_goes_on_after_its_last_finished_part(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path) as run:
        with run.step("sweep", inputs={"seed": 0}) as step:
            step.keep({"block": 0, "kl": [0.1, math.nan]})
            raise KeyboardInterrupt
    journal = next((tmp_path / "steps").glob("*.journal"))
    journal.write_bytes(journal.read_bytes() + b'{"block": 1, "kl": [0.')
    with pytest.raises(KeyboardInterrupt), Run.open(tmp_path) as run:
        with run.step("sweep", inputs={"seed": 0}) as step:
            assert step.records[0]["kl"][0] == 0.1
            assert math.isnan(step.records[0]["kl"][1])
            assert len(step.records) == 1
            step.keep({"block": 1})
            raise KeyboardInterrupt
    with Run.open(tmp_path) as run, run.step("sweep", inputs={"seed": 0}) as step:
        assert [record["block"] for record in step.records] == [0, 1]
    with Run.open(tmp_path) as run, run.step("sweep", inputs={"seed": 1}) as step:
        assert step.records == []


class TestFolders:
    @pytest.mark.parametrize("opened", [Run.open, Run.read])
    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path, opened: Any) -> None:
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(InputError, match=r"thesis\.tex"):
            opened(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("opened", [Run.open, Run.read])
    @pytest.mark.parametrize("mark", ["", "[]", '{"format": 99}', "\x00\x01"])
    def test_a_damaged_mark_is_one_clear_line(
        self, tmp_path: Path, opened: Any, mark: str
    ) -> None:
        work(tmp_path)
        (tmp_path / "run.json").write_text(mark)
        with pytest.raises(InputError) as raised:
            opened(tmp_path)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("opened", [Run.open, Run.read])
    def test_a_file_is_no_folder(self, tmp_path: Path, opened: Any) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InputError, match="need a folder"):
            opened(tmp_path / "file")

    def test_what_is_not_there_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="refusal-lens run"):
            Run.read(tmp_path / "none")
        (tmp_path / "empty").mkdir()
        with pytest.raises(InputError, match="refusal-lens run"):
            Run.read(tmp_path / "empty")

    def test_an_output_is_vouched_for_or_refused(self, tmp_path: Path) -> None:
        work(tmp_path)
        assert Run.read(tmp_path).output("means.json") == tmp_path / "means.json"
        (tmp_path / "stray.json").write_text("{}")
        with pytest.raises(InputError, match=r"stray\.json"):
            Run.read(tmp_path).output("stray.json")
        (tmp_path / "means.json").unlink()
        with pytest.raises(InputError, match="is missing"):
            Run.read(tmp_path).output("means.json")

    def test_leftovers_of_a_killed_write_are_swept_and_no_obstacle(self, tmp_path: Path) -> None:
        (tmp_path / ".run.json.123.tmp").write_text('{"form')
        work(tmp_path)
        assert not list(tmp_path.glob(".*.tmp"))


class TestLock:
    def test_two_processes_cannot_write_to_one_folder(self, tmp_path: Path) -> None:
        with Run.open(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} writes"):
            Run.open(tmp_path)
        Run.open(tmp_path).close()

    def test_a_killed_holder_does_not_block(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, sys; from refusal_lens.runs import Run; "
            "run = Run.open(sys.argv[1]); os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
        assert done.returncode == -signal.SIGKILL
        assert (tmp_path / ".lock").read_text().strip().isdigit()
        Run.open(tmp_path).close()

    def test_a_failed_open_lets_go(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("refusal_lens.runs.files.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Run.open(tmp_path)
        monkeypatch.undo()
        Run.open(tmp_path).close()

    def test_readers_need_no_lock_and_write_nothing(self, tmp_path: Path) -> None:
        work(tmp_path)
        with Run.open(tmp_path):
            run = Run.read(tmp_path)
            assert run.seconds.keys() == {"means", "scores", "other"}
            with pytest.raises(RuntimeError, match="to read"), run.step("s", inputs={}):
                pass


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Let no file of this process grow beyond `room` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFiles:
    @pytest.mark.parametrize(
        "write",
        [
            lambda path: write_text(path, "x" * 100_000),
            lambda path: write_json(path, ["x" * 100_000]),
            lambda path: write_csv(path, pd.DataFrame({"a": range(50_000)})),
            lambda path: write_safetensors(path, {"a": torch.zeros(100_000)}),
        ],
    )
    def test_a_full_disk_is_one_line_and_the_old_file_stays(
        self, tmp_path: Path, write: Any
    ) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(OSError, match="could not be written") as raised, full_disk(4096):
            write(path)
        assert "\n" not in raised.value.strerror
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_a_full_disk_is_one_line_where_safetensors_writes_itself(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        path = tmp_path / "r.safetensors"
        with (
            pytest.raises(OSError, match=r"r\.safetensors: could not be written") as raised,
            writing(path) as temporary,
            full_disk(4096),
        ):
            save_file({"r": torch.zeros(100_000)}, temporary)
        assert raised.value.errno == errno.EFBIG
        assert "\n" not in raised.value.strerror
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_in_a_step_keeps_the_steps_before(self, tmp_path: Path) -> None:
        work(tmp_path)
        with (
            pytest.raises(OSError, match="what is done is kept"),
            Run.open(tmp_path) as run,
            run.step("big", inputs={}, after=["scores"]) as step,
            full_disk(4096),
        ):
            step.write_text("big.txt", "x" * 100_000)
        assert work(tmp_path) == []
        assert "big" not in Run.read(tmp_path).manifests()

    def test_an_exception_while_writing_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        with pytest.raises(KeyError), writing(path) as temporary:
            temporary.write_text("new")
            raise KeyError
        assert path.read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_nan_is_written_as_null_and_read_bare(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        write_json(path, {"kl": float("nan"), "x": [float("inf"), np.float32("nan"), 1.5]})
        assert path.read_text().count("null") == 3
        json.loads(path.read_text(), parse_constant=pytest.fail)
        path.write_text('{"kl": NaN}')
        assert math.isnan(read_json(path)["kl"])

    @pytest.mark.parametrize(
        "text",
        ["emoji 🤖 中文", "two\nlines\r\n", "\u2028\u2029\x85", "NA", "", "lone \ud800", "\x00"],
    )
    def test_text_survives_json_lines(self, tmp_path: Path, text: str) -> None:
        write_jsonl(tmp_path / "a.jsonl", [{"response": text}, {"response": text}])
        assert read_jsonl(tmp_path / "a.jsonl") == [{"response": text}] * 2

    def test_a_damaged_line_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"a": 1}\n[2]\n')
        with pytest.raises(InputError, match="line 2"):
            read_jsonl(tmp_path / "a.jsonl")

    @pytest.mark.parametrize("read", [read_json, read_jsonl, read_csv])
    def test_what_cannot_be_read_is_one_clear_line(self, tmp_path: Path, read: Any) -> None:
        (tmp_path / "bytes").write_bytes(b'\xff\xfe"')
        for name in ("missing", "bytes"):
            with pytest.raises(InputError, match=name) as raised:
                read(tmp_path / name)
            assert "\n" not in str(raised.value)

    def test_tables_come_back_bit_for_bit(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        frame = pd.DataFrame(
            {
                "kl": [math.nan, *(random.standard_normal(999) * 10.0 ** random.integers(-9, 9))],
                "reason": ["", "NA", "None", "nan", 'say "no", then\nstop', *["kl"] * 995],
                "passes": [True, False] * 500,
                "empty": [""] * 1000,
            }
        )
        write_csv(tmp_path / "a.csv", frame)
        back = read_csv(tmp_path / "a.csv", text=["empty"])
        assert list(back.columns) == list(frame.columns)
        np.testing.assert_array_equal(back["kl"], frame["kl"])
        assert back["passes"].dtype == bool
        for name in ("reason", "empty"):
            assert list(back[name]) == list(frame[name])

    def test_tensors_and_header_come_back(self, tmp_path: Path) -> None:
        from safetensors import safe_open

        r = torch.randn(4, 6, dtype=torch.float64).T
        write_safetensors(tmp_path / "r.safetensors", {"r": r}, {"model": "organism"})
        with safe_open(tmp_path / "r.safetensors", framework="pt") as file:
            assert file.metadata() == {"model": "organism"}
            assert torch.equal(file.get_tensor("r"), r)

    def test_what_has_no_json_is_refused(self) -> None:
        with pytest.raises(TypeError, match="object"):
            plain({"a": object()})


class TestProgress:
    def test_the_estimate_is_right_when_units_are_equal(self) -> None:
        assert progress.remaining(3.0, 10, 100) == pytest.approx(27.0)
        assert progress.remaining(3.0, 0, 100) is None

    def test_a_terminal_shows_name_share_and_time_left(
        self, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("TTY_INTERACTIVE", "1")
        with progress.bars() as on_progress:
            assert on_progress is not None
            for done in range(0, 1001):
                on_progress("scores", done, 1000)
            on_progress("nulls", 1, 4)
        shown = capsys.readouterr().err
        assert "nulls" in shown
        assert "25%" in shown
        assert "left" in shown
