"""What a command prints: streams that cannot take it, its codes, its JSON, and lines one can read."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from kit import ROOT, Done

from refusal_lens import cli
from refusal_lens.cli import codes, output, shell
from refusal_lens.errors import InputError, UnmetError

HEADLINE = "r at position ‘−1’ → refuses 0\u202f% 中 ✓"


@pytest.fixture
def finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A main job that is done at once, with a headline that not every terminal can encode."""
    headline("run", monkeypatch, {"selected": {"layer": 1}, "kl": math.nan})
    return tmp_path / "run"


def headline(command: str, monkeypatch: pytest.MonkeyPatch, summary: dict[str, Any]) -> None:
    for module in ("pipeline.page", "report.claim"):
        importlib.import_module(f"refusal_lens.{module}")
    monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", lambda *args, **more: summary)
    monkeypatch.setattr("refusal_lens.pipeline.page.open_folder", lambda path: path)

    class Claim:
        headline = HEADLINE

    monkeypatch.setattr("refusal_lens.report.claim.make_claim", lambda run: Claim)


Command = Callable[..., Done]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command as a process would, over streams of its own; None is a closed one."""

    def command(*args: object, encoding: str = "utf-8", **instead: Any) -> Done:
        files = {name: tmp_path / name for name in ("stdout", "stderr")}
        # Set here: pytest sets streams of its own before every phase.
        with contextlib.ExitStack() as streams, monkeypatch.context() as patched:
            for name, path in files.items():
                path.write_bytes(b"")
                raw = instead[name] if name in instead else path.open("wb", buffering=0)
                stream = None
                if raw is not None:
                    stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding)
                    streams.enter_context(stream)
                patched.setattr(sys, name, stream)
            patched.setattr(sys, "argv", ["refusal-lens", *map(str, args)])
            # A command's own looks for garbage end with its process; those of the tests go on.
            patched.setattr("gc.set_threshold", lambda *thresholds: None)
            with pytest.raises(SystemExit) as left:
                cli.main()
            # What the interpreter does when it ends; there an error makes the exit code 120.
            sys.stdout.flush()
            sys.stderr.flush()
        return Done(
            left.value.code or 0,
            *(path.read_bytes().decode(encoding, "replace") for path in files.values()),
        )

    return command


def no_reader() -> Any:
    reading, writing = os.pipe()
    os.close(reading)
    return io.FileIO(writing, "w")


LOST: dict[str, Callable[[], Any]] = {
    "closed": lambda: None,
    "full": lambda: io.FileIO("/dev/full", "w"),
    "no reader": no_reader,
}


@pytest.mark.parametrize("lost", LOST)
class TestLostOutput:
    def test_a_finished_run_stays_done(self, command: Command, finished: Path, lost: str) -> None:
        done = command("run", "--out", finished, stdout=LOST[lost]())
        assert done.code == codes.DONE
        assert done.err.startswith("warning: standard output: ")
        assert done.err.count("\n") == 1

    def test_json_that_cannot_be_delivered_is_a_failure(
        self, command: Command, finished: Path, lost: str
    ) -> None:
        done = command("run", "--out", finished, "--json", stdout=LOST[lost]())
        assert done.code == codes.FAILED
        assert done.err.startswith("error: standard output: ")
        assert done.err.count("\n") == 1

    @pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["--version"]])
    def test_so_is_help(self, command: Command, lost: str, args: list[str]) -> None:
        done = command(*args, stdout=LOST[lost]())
        assert done.code == codes.FAILED
        assert done.err.startswith("error: standard output: ")

    def test_lost_messages_change_no_exit_code(
        self, command: Command, finished: Path, lost: str
    ) -> None:
        done = command("run", "--out", finished, stderr=LOST[lost]())
        assert (done.code, done.out.splitlines()[0]) == (codes.DONE, HEADLINE)
        assert command("chat", finished / "none", stderr=LOST[lost]()).code == codes.FAILED
        assert command("run", "--no-such-option", stderr=LOST[lost]()).code == codes.USAGE


class TestStreams:
    @pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "gbk", "utf-16"])
    def test_every_terminal_gets_the_result(
        self, command: Command, finished: Path, encoding: str
    ) -> None:
        done = command("run", "--out", finished, encoding=encoding)
        spelt = HEADLINE.encode(encoding, "backslashreplace").decode(encoding)
        assert (done.code, done.out.splitlines()[0]) == (codes.DONE, spelt)

    def test_every_terminal_gets_the_message(self, command: Command) -> None:
        done = command("chat", "‘nö’", encoding="ascii")
        assert done.code == codes.FAILED
        assert done.err.startswith("error: run folder at \\u2018n\\xf6\\u2019")
        assert command("run", "--mode", "‘", encoding="ascii").code == codes.USAGE

    def test_an_interrupt_at_any_moment_is_one_line(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(**options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(shell, "app", stop)
        assert command() == (codes.INTERRUPTED, "", "interrupted\n")

    def test_a_full_pipe_that_does_not_block_is_waited_for(self) -> None:
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        child = subprocess.Popen(
            ["sh", "-c", "sleep 0.2; wc -c"], stdin=reading, stdout=subprocess.PIPE
        )
        os.close(reading)
        own = io.TextIOWrapper(io.BufferedWriter(io.FileIO(writing, "w")), "utf-8")
        stream = output.guarded(own, 1)
        stream.write("x" * 300_000)
        stream.flush()
        own.close()
        assert child.communicate(timeout=20)[0].strip() == b"300000"
        assert stream.buffer.raw.error is None

    def test_a_process_without_any_stream(self, tmp_path: Path) -> None:
        # The numbers of closed streams must not go to the next file that is opened.
        code = (
            "import sys; from refusal_lens import cli; from refusal_lens.cli import output; output.guard()\n"
            f"f = open({str(tmp_path / 'x')!r}, 'w'); assert f.fileno() > 2; print('lost'); f.write('kept')"
        )
        shell_line = f'"{sys.executable}" -c "$1" <&- >&- 2>&-'
        done = subprocess.run(["sh", "-c", shell_line, "sh", code], cwd=ROOT)
        assert done.returncode == 0
        assert (tmp_path / "x").read_text() == "kept"


class TestCodes:
    def call(self, *args: object) -> int | str | None:
        with pytest.raises(SystemExit) as left:
            shell.app(args=[str(arg) for arg in args], prog_name="refusal-lens")
        return left.value.code

    def test_help_and_readme_tell_all_of_them(self, capsys: pytest.CaptureFixture[str]) -> None:
        values = [v for k, v in vars(codes).items() if k.isupper() and isinstance(v, int)]
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        for args in ([], *([name] for name in ("run", "report", "chat", "suffix", "export"))):
            assert self.call(*args, "--help") == codes.DONE
            text = " ".join(capsys.readouterr().out.split())
            assert text.endswith(codes.EPILOG)
        for value in values:
            assert f"{value} " in codes.EPILOG
            assert f"| {value} |" in readme

    def test_a_run_without_a_direction_is_measured_but_not_done(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        headline("run", monkeypatch, {"selected": None, "not_selected": "0 of 180 pass"})
        assert self.call("run", "--out", tmp_path) == codes.UNMET
        said = capsys.readouterr()
        assert said.out.startswith(f"{HEADLINE}\nreport: ")
        assert said.err == "0 of 180 pass\n"

    def test_so_is_what_does_not_meet_a_requirement(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*args: Any, **more: Any) -> None:
            raise UnmetError("files do not equal hooks")

        importlib.import_module("refusal_lens.pipeline.export_job")
        monkeypatch.setattr("refusal_lens.pipeline.export_job.run_export", fail)
        assert self.call("export", "x", "--to", "lora", "--out", "y") == codes.UNMET
        assert capsys.readouterr().err == "error: files do not equal hooks\n"

    def test_the_page_of_an_unfinished_run_is_rendered_and_the_command_fails(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from refusal_lens.runs import Run

        with Run.open(tmp_path) as run, run.step("one", inputs={}):
            pass
        assert self.call("report", tmp_path) == codes.FAILED
        assert "not finished" in capsys.readouterr().err
        assert (tmp_path / "report.html").exists()

    @pytest.mark.parametrize(
        "args",
        [
            "run --out x --dtype f8",
            "run --out x --device nonsense",
            "run --out x --device cpu --device-map auto",
            "run --out x --kl-threshold nan",
            "run --out x --induce-threshold nan",
            "run --out x --prune-layers 1",
            "run --out x --prune-layers nan",
            "run --out x --seed -1",
            "run --out x --refusal-tokens I,,As",
            "run model --out x",
            "run --out x --harmful a.txt",
            "run --out x --harmful a.txt --harmless b.txt --splits c",
            "chat x --strength nan",
            "chat x --strength inf",
            "chat x --dtype f8",
            "chat x --prompt=",
            "suffix x --suffix=",
            "suffix x --device nonsense --suffix y",
            "export x --to gguf --out y.gguf --n-prompts 3",
            "export x --to lora --out y --strength nan",
            "export x --to lora --out y --edit add --norm-preserving",
            "export x --to lora",
            "report --out",
        ],
    )
    def test_what_is_wrong_before_anything_is_read_is_bad_usage(
        self,
        args: str,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert self.call(*args.split(" ")) == codes.USAGE
        said = capsys.readouterr()
        assert said.out == ""
        assert "Error: " in said.err
        assert not list(tmp_path.iterdir())


class TestJson:
    def test_it_is_one_line_without_nan_and_nothing_else(
        self, command: Command, finished: Path
    ) -> None:
        code, out, _ = command("run", "--out", finished, "--json")
        assert code == codes.DONE
        assert out.isascii()
        assert out.count("\n") == 1
        assert json.loads(out) == {
            "headline": HEADLINE,
            "report": str((finished / "report.html").resolve()),
            "summary": {"selected": {"layer": 1}, "kl": None},
        }

    def test_the_summary_of_a_suffix_study(
        self, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in ("pipeline.suffix_job", "report.sections.suffix"):
            importlib.import_module(f"refusal_lens.{module}")
        monkeypatch.setattr(
            "refusal_lens.pipeline.suffix_job.run_suffix_study", lambda *a, **k: {"n": 1}
        )
        monkeypatch.setattr(
            "refusal_lens.report.sections.suffix.headline", lambda summary, labels: HEADLINE
        )
        monkeypatch.setattr(
            "refusal_lens.pipeline.page.open_folder", lambda path: SimpleNamespace(labels=None)
        )
        code, out, _ = command("suffix", "x", "--suffix", " y", "--json")
        assert (code, json.loads(out)["summary"]) == (0, {"n": 1})

    def test_an_export(self, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        from refusal_lens.evaluation.parity import Parity, Row
        from refusal_lens.pipeline.export_job import Exported

        parity = Parity((Row("kl", "harmful", 0.0, 1e-8, 1e-8, 0.005),))
        done = Exported(Path("y"), parity=parity, notes=["a note"])
        monkeypatch.setattr("refusal_lens.pipeline.export_job.run_export", lambda *a, **k: done)
        code, out, _ = command("export", "x", "--to", "lora", "--out", "y", "--json")
        found = json.loads(out)
        assert (code, found["notes"], found["parity"][0]["allowed"]) == (0, ["a note"], 0.005)


class TestLines:
    def test_a_message_stays_readable(self) -> None:
        text = "model\n x: " + 4000 * "a" + " \x1b[2J\x00 the end"
        line = output.one_line(text)
        assert len(line) <= output.LONGEST
        assert line.startswith("model x: aaa")
        assert line.endswith("\\x1b[2J\\x00 the end")
        assert "--debug shows all of it" in line

    def test_debug_shows_all_of_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        logging.getLogger("refusal_lens").setLevel(logging.DEBUG)
        assert output.one_line(4000 * "a") == 4000 * "a"

    @pytest.mark.parametrize("args", [["report", 5000 * "a\n"], ["run", "--mode", 5000 * "a\x1b"]])
    def test_whoever_wrote_the_message(
        self, args: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as left:
            shell.app(args=args, prog_name="refusal-lens")
        assert left.value.code in (codes.FAILED, codes.USAGE)
        err = capsys.readouterr().err
        assert "\x1b" not in err
        assert all(len(line) <= output.LONGEST + 80 for line in err.splitlines())

    def test_so_do_decisions(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def job(*args: Any, **more: Any) -> None:
            logging.getLogger("refusal_lens.x").info("two\nlines \x07 and %s", 4000 * "a")
            logging.getLogger("refusal_lens.x").warning("a warning")
            raise InputError("far enough")

        importlib.import_module("refusal_lens.pipeline")
        monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", job)
        for args, lines in (["run", "--out", "x"], 3), (["run", "--out", "x", "--quiet"], 1):
            with pytest.raises(SystemExit):
                shell.app(args=args)
            err = capsys.readouterr().err.splitlines()
            assert len(err) == lines
            assert err[-1] == "error: far enough"
            assert all(len(line) <= output.LONGEST for line in err)

    @pytest.mark.parametrize(
        ("flags", "slow", "shown"), [([], True, True), ([], False, False), (["-q"], True, False)]
    )
    def test_a_terminal_that_sees_nothing_is_told_that_the_command_is_loading(
        self, monkeypatch: pytest.MonkeyPatch, flags: list[str], slow: bool, shown: bool
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        def job(*args: Any, **more: Any) -> None:
            end = time.monotonic() + (10 if shown else 0.2)
            while slow and time.monotonic() < end and "loading" not in terminal.getvalue():
                time.sleep(0.01)
            raise InputError("far enough")

        importlib.import_module("refusal_lens.pipeline")
        importlib.import_module("refusal_lens.report.claim")
        monkeypatch.setattr("refusal_lens.pipeline.run_pipeline", job)
        monkeypatch.setattr(output, "PATIENCE", 0.1 if slow else 5.0)
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(SystemExit):
            shell.app(args=[*flags, "run", "--out", "x"])
        assert ("loading ..." in terminal.getvalue()) == shown


def commands_told() -> list[str]:
    """The command lines in the README's code blocks and tables, and those that `make demo` prints."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.M | re.S)
    found = [line for block in blocks for line in block.splitlines()]
    found += re.findall(r"`(refusal-lens [^`]*)`", readme)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found += re.findall(r'echo "  \$\(VENV\)/bin/(.*)"', makefile.replace("$(RUN)", "runs/demo"))
    return sorted({line.split("bin/")[-1].strip() for line in found if "refusal-lens " in line})


@pytest.mark.parametrize("line", [line for line in commands_told() if "COMMAND" not in line])
def test_a_command_that_is_told_can_be_given(line: str) -> None:
    words = shlex.split(
        re.sub(r"\[([^]]*)\]", r"\1", line.split("refusal-lens ", 1)[1]), comments=True
    )
    group = typer.main.get_command(shell.app)
    if words[0].startswith("-"):
        words = ["run", "--help"]
    with contextlib.suppress(typer.Exit):
        group.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]


def test_make_demo_tells_what_to_run_next() -> None:
    told = [line.split()[1] for line in commands_told() if "runs/demo" in line]
    assert {"chat", "suffix", "export"} <= set(told)
