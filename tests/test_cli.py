"""The command line: quick help, exit codes, one line for what a user can act on, chat."""

from __future__ import annotations

import errno
import importlib
import inspect
import logging
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from io import StringIO
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

import refusal_lens
from refusal_lens.chat import Place
from refusal_lens.cli import chat, run, shell
from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel
from refusal_lens.pipeline import RunConfig
from refusal_lens.runs import Run

COMMANDS = ("run", "report", "chat")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the main job end with an exception."""

    def broken(error: BaseException) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", fail)

    return broken


class TestHelp:
    @pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["--version"]])
    def test_it_loads_nothing_heavy(self, args: list[str]) -> None:
        code = f"import sys; sys.argv[1:] = {args}; from refusal_lens.cli import main\n"
        code += "try: main()\nexcept SystemExit: pass"
        assert kit.loaded_by(code).isdisjoint(kit.HEAVY)

    def test_it_names_the_commands(self, call: Any) -> None:
        done = call("--help")
        assert done.code == 0
        assert all(f"  {name} " in done.out for name in COMMANDS)

    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_option_says_what_it_is_for(self, call: Any, name: str) -> None:
        done = call(name, "--help")
        assert done.code == 0
        module = {"run": run.run, "chat": chat.chat}.get(name, shell.report.report)
        for parameter in inspect.signature(module, eval_str=True).parameters.values():
            (info,) = parameter.annotation.__metadata__
            assert info.help, parameter.name

    def test_version(self, call: Any) -> None:
        assert call("--version") == (0, f"refusal-lens {refusal_lens.__version__}\n", "")

    def test_options_of_run_are_the_settings_of_a_run_with_the_same_defaults(self) -> None:
        options = inspect.signature(run.run).parameters
        ours = set(options) - {"out", "json", "quiet", "debug"}
        assert ours == {field.name for field in fields(RunConfig)}
        for field in fields(RunConfig):
            assert field.default is not MISSING
            assert options[field.name].default == field.default, field.name


class TestUsage:
    @pytest.mark.parametrize(
        "args",
        [
            ["nonsense"],
            ["run"],
            ["run", "--out"],
            ["run", "--out", "x", "--mode", "fast"],
            ["run", "--out", "x", "--n-train", "0"],
            ["run", "--out", "x", "--n-train", "many"],
            ["run", "--out", "x", "--no-such-option"],
            ["report"],
            ["chat"],
            ["chat", "x", "--edit", "delete"],
            ["suffix", "x", "--seed", "-1"],
        ],
    )
    def test_bad_usage_exits_2_with_a_hint(self, call: Any, args: list[str]) -> None:
        done = call(*args)
        assert done.code == 2
        assert "Error: " in done.err
        assert "Traceback" not in done.err

    def test_a_run_of_ours_takes_no_out(self, call: Any, finished: Path, tmp_path: Path) -> None:
        assert call("report", finished, "--out", tmp_path / "x").code == 2
        assert not (tmp_path / "x").exists()


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (InputError("model 'x': no such model; try organism"), "model 'x': no such model"),
            (OSError(errno.ENOSPC, "r.csv: could not be written: no space"), "r.csv: could not"),
            (PermissionError(errno.EACCES, "Permission denied", "/a b"), "/a b: Permission denied"),
            (OSError("several\nlines"), "several lines"),
            (torch.OutOfMemoryError("CUDA out of memory"), "out of memory; try a smaller"),
            (MemoryError(), "out of memory; try a smaller"),
        ],
    )
    def test_what_a_user_can_act_on_is_one_line(
        self, call: Any, broken: Any, error: Exception, line: str
    ) -> None:
        broken(error)
        done = call("run", "--out", "x")
        assert done.code == 1
        assert done.out == ""
        assert done.err.startswith(f"error: {line}")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError("a bug")])
    def test_a_bug_keeps_its_traceback(self, broken: Any, error: Exception) -> None:
        broken(error)
        with pytest.raises(type(error), match="a bug"):
            shell.app(args=["run", "--out", "x"])

    @pytest.mark.parametrize("args", [["--debug", "run", "--out", "x"], ["run", "--out", "x", "--debug"]])
    def test_debug_shows_the_traceback_with_the_cause(
        self, broken: Any, call: Any, args: list[str]
    ) -> None:
        error = InputError("wrong")
        error.__cause__ = KeyError("the cause")
        broken(error)
        done = call(*args)
        assert done.code == 1
        assert "KeyError: 'the cause'" in done.err
        assert "Traceback" in done.err
        assert done.err.endswith("error: wrong\n")

    def test_ctrl_c_is_one_line(self, call: Any, broken: Any) -> None:
        broken(KeyboardInterrupt())
        done = call("run", "--out", "x")
        assert done.code == 130
        assert done.err.startswith("interrupted; finished steps are kept, the same command goes on")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize(
        ("job", "args"),
        [
            ("suffix_job.run_suffix_study", ["suffix", "x"]),
            ("export_job.run_export", ["export", "x", "--to", "gguf", "--out", "y.gguf"]),
        ],
    )
    def test_ctrl_c_promises_nothing_of_commands_that_do_not_go_on(
        self, call: Any, monkeypatch: pytest.MonkeyPatch, job: str, args: list[str]
    ) -> None:
        def stop(*args: Any, **more: Any) -> None:
            raise KeyboardInterrupt

        importlib.import_module(f"refusal_lens.pipeline.{job.split('.')[0]}")
        monkeypatch.setattr(f"refusal_lens.pipeline.{job}", stop)
        assert call(*args) == (130, "", "interrupted\n")

    def test_a_real_interrupt_ends_a_waiting_chat(self, finished: Path) -> None:
        # A shell that puts the suite in the background has it ignore the signal; ours must not.
        code = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "import sys; from refusal_lens.cli import main\n"
            "sys.argv[1:] = ['--quiet', 'chat', sys.argv[1], '--edit', 'none']\n"
            "import refusal_lens.cli.chat as chat\n"
            "chat._load = lambda *a, **k: print('ready', flush=True); main()"
        )
        started = subprocess.Popen(
            [sys.executable, "-c", code, str(finished)],
            cwd=kit.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert started.stdout is not None
        assert started.stdout.readline() == "ready\n"
        time.sleep(0.2)
        started.send_signal(signal.SIGINT)
        _, err = started.communicate(timeout=20)
        assert started.returncode == 130
        assert err.startswith("interrupted")
        assert "Traceback" not in err

    @pytest.mark.parametrize("name", ["report", "chat"])
    def test_a_folder_that_is_no_run_is_one_line(
        self, call: Any, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        for folder in (tmp_path, tmp_path / "none", tmp_path / "notes.txt"):
            done = call(name, folder)
            assert done.code == 1
            assert done.err.startswith("error: ")
            assert done.err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


class TestRun:
    def test_options_reach_the_main_job(
        self, call: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        seen: dict[str, Any] = {}

        def job(config: RunConfig, out: Path, **more: Any) -> None:
            seen.update(config=config, out=out)
            raise InputError("far enough")

        monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", job)
        options = "--out x --harmful a.txt --harmless b.txt --n-null 0 --mode lazy --seed 7"
        call("run", tmp_path, *options.split(), "--refusal-tokens", "I, As,40")
        assert seen["out"] == Path("x")
        config = seen["config"]
        assert (config.model, config.positive, config.negative) == (str(tmp_path), "a.txt", "b.txt")
        assert config.first_tokens == ("I", " As", "40")
        assert (config.n_null, config.mode, config.seed, config.n_train) == (0, "lazy", 7, None)

    @pytest.mark.parametrize(("flags", "shown"), [([], True), (["--quiet"], False)])
    def test_decisions_are_shown_unless_quiet(
        self, call: Any, monkeypatch: pytest.MonkeyPatch, flags: list[str], shown: bool
    ) -> None:
        def job(*args: Any, **more: Any) -> None:
            logging.getLogger("refusal_lens.runs").info("scores: redone")
            logging.getLogger("somebody.else").warning("noise")
            raise InputError("far enough")

        monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", job)
        done = call(*flags, "run", "--out", "x")
        assert ("scores: redone" in done.err) == shown
        assert "noise" not in done.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a tiny random model with a random direction, as far as `chat` reads it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    model = kit.load("qwen2")
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0)).double()
    direction = Direction(
        20 * vector,
        layer=1,
        place=Place.post(-1),
        model=model.name,
        template_sha256=model.chat.template_sha256,
    )
    with Run.open(folder) as opened:
        with opened.step("selection", inputs={}) as step:
            with step.writing("direction.safetensors") as path:
                direction.save(path)
        with opened.step("summary", inputs={}, after=["selection"]) as step:
            step.write_json("summary.json", {"behaviour": kit.about([40])})
        config = RunConfig(str(kit.folder("qwen2")), positive="a", negative="b")
        opened.finish(config=config.as_dict())
    return folder


class TestChat:
    def chat(self, call: Any, *args: object) -> dict[str, str]:
        """Each title's first word with the reply below it."""
        done = call("--quiet", "chat", *args, "--max-new-tokens", 12)
        assert done.code == 0, done.err
        blocks = [block for block in ("\n" + done.out).split("\n[") if block.strip()]
        parts = [block.partition("]\n") for block in blocks]
        return {title.split(":")[0]: reply.strip() for title, _, reply in parts}

    @pytest.mark.parametrize("edit", ["ablate", "add", "subtract"])
    def test_the_plain_and_the_edited_model_answer_side_by_side(
        self, call: Any, finished: Path, edit: str
    ) -> None:
        replies = self.chat(call, finished, "--edit", edit, "--prompt", "Hello")
        assert list(replies) == ["plain", edit]
        assert replies["plain"] != replies[edit]

    def test_without_an_edit_there_is_one_model(self, call: Any, finished: Path) -> None:
        assert list(self.chat(call, finished, "--edit", "none", "--prompt", "Hello")) == ["plain"]

    def test_no_scale_is_no_edit(self, call: Any, finished: Path) -> None:
        replies = self.chat(call, finished, "--edit", "add", "--strength", 0, "--prompt", "Hello")
        assert replies["add x 0"] == replies["plain"]

    def test_a_pipe_is_answered_line_by_line(
        self, call: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = iter(["Hello", "", "  ", "World"])

        def next_line(asked: str = "") -> str:
            assert asked == ""
            for line in lines:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", next_line)
        monkeypatch.setattr("sys.stdin", StringIO())
        done = call("--quiet", "chat", finished, "--edit", "none", "--max-new-tokens", 4)
        assert done.code == 0
        assert done.out.count("[plain: ") == 2

    def test_a_run_that_is_not_finished_is_one_line(self, call: Any, tmp_path: Path) -> None:
        Run.open(tmp_path).close()
        done = call("chat", tmp_path, "--prompt", "Hello")
        assert done.code == 1
        assert "not finished" in done.err
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize("command", ["chat", "suffix"])
    @pytest.mark.parametrize("contents", ["{}", '{"config": {}}', '{"config": 3}', "[]"])
    def test_a_damaged_manifest_is_one_line(
        self, call: Any, finished: Path, tmp_path: Path, command: str, contents: str
    ) -> None:
        damaged = shutil.copytree(finished, tmp_path / "damaged")
        (damaged / "manifest.json").write_text(contents)
        more = ["--prompt", "Hello"] if command == "chat" else ["--suffix", " x"]
        done = call(command, damaged, *more)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: ")
        assert "manifest.json" in done.err
        assert done.err.count("\n") == 1

    def test_a_folder_cannot_make_it_run_foreign_code(
        self, call: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: dict[str, Any] = {}

        def load(name: str, **options: Any) -> None:
            asked.update(options)
            raise InputError("far enough")

        monkeypatch.setattr(
            Run, "whole", lambda self: {"config": RunConfig(trust_remote_code=True).as_dict()}
        )
        monkeypatch.setattr(ChatModel, "load", load)
        call("chat", finished, "--prompt", "Hello")
        assert asked["trust_remote_code"] is False
        call("chat", finished, "--prompt", "Hello", "--trust-remote-code")
        assert asked["trust_remote_code"] is True

    def test_a_model_cannot_command_the_terminal(self) -> None:
        raw, clean = "a\x1b]0;b\x07\r\x9bc\u202ed\ne\té中🤖", "a�]0;b���c�d\ne\té中🤖"
        assert chat.printable_text(raw) == clean


def test_every_public_name_is_there() -> None:
    assert set(refusal_lens.__all__) == set(refusal_lens._ROOM_OF)
    for name in refusal_lens.__all__:
        assert getattr(refusal_lens, name) is not None
        assert name in dir(refusal_lens)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        refusal_lens.nonsense  # noqa: B018
