"""How far a long step is: bars on a terminal, lines in a pipe, one line in a notebook, nothing if quiet."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refusal_lens import progress
from refusal_lens.progress import bars
from refusal_lens.runs import Run


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that goes when it is told to."""
    clock = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.seconds)
    return clock


def work(
    now: Any, callback: Any, *, seconds: float, total: int = 100, what: str = "scores"
) -> None:
    for done in range(total + 1):
        callback(what, done, total)
        now.seconds += seconds / total


class TestPipe:
    def test_a_long_step_gets_a_line_now_and_then_with_the_time_left(
        self, now: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with bars() as callback:
            work(now, callback, seconds=40)
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.splitlines() == [
            "scores: 25%, 30 s left",
            "scores: 50%, 20 s left",
            "scores: 75%, 10 s left",
            "scores: 100% after 40 s",
        ]

    def test_a_step_of_some_seconds_gets_one_line_and_a_short_one_none(
        self, now: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with bars() as callback:
            work(now, callback, seconds=4)
            work(now, callback, seconds=0.2, what="losses")
        assert capsys.readouterr().err == "scores: 100% after 4 s\n"

    def test_nothing_of_no_work_fails(self, now: Any, capsys: pytest.CaptureFixture[str]) -> None:
        with bars() as callback:
            assert callback is not None
            callback("nothing", 0, 0)

    def test_quiet_shows_nothing(self) -> None:
        with bars(quiet=True) as callback:
            assert callback is None


class TestNotebook:
    def test_one_line_of_output_is_kept_up_to_date(
        self, now: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shown: list[str] = []

        def display(data: dict[str, str], **options: Any) -> Any:
            assert options == {"raw": True, "display_id": True}
            shown.append(data["text/plain"])
            return SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))

        kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=True))
        monkeypatch.setitem(sys.modules, "IPython", kernel)
        monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
        with bars() as callback:
            work(now, callback, seconds=2, total=4)
        assert shown == [
            "scores: 25%, 2 s left",
            "scores: 50%, 1 s left",
            "scores: 75%, 0 s left",
            "scores: 100% after 2 s",
        ]
        assert capsys.readouterr() == ("", "")

    def test_the_shell_of_ipython_is_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
        assert progress._notebook_display() is None


class TestTerminal:
    def test_a_bar_goes_when_it_is_full_and_a_name_is_no_markup(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("FORCE_COLOR", "1")
        with bars() as callback:
            assert isinstance(callback, progress._Bars)
            callback("[red]scores", 0, 4)
            callback("[red]scores", 1, 4)
            callback._drawn.refresh()
            callback("[red]scores", 4, 4)
            assert not callback._tasks
        assert "[red]scores" in terminal.getvalue()


def test_a_run_says_which_of_its_steps_it_is_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = {"one": ({}, ()), "two": ({}, ("one",)), "three": ({}, ("two",))}
    with caplog.at_level("INFO", logger="refusal_lens"), Run.open(tmp_path) as run:
        run.plan(asked, without=["base"])
        for name, (inputs, after) in asked.items():
            with run.step(name, inputs=inputs, after=after):
                pass
        with run.step("another", inputs={}):
            pass
    steps = [record.getMessage() for record in caplog.records if "step " in record.getMessage()]
    assert steps == ["step 1 of 3: one", "step 2 of 3: two", "step 3 of 3: three"]
