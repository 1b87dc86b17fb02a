"""How far a long step is: a callback that any room can call, and a bar that draws it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from refusal_lens.door import checked

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: `done` of `total` equal units of work of `what` are finished.

The estimate of the time left is only as even as the units: count tokens times layers where prompts
differ in length, not prompts. A room takes `on_progress: Progress | None = None` and calls it after
each batch; a call costs microseconds.
"""


def named(progress: Progress | None, what: str) -> Progress | None:
    """A callback that says `what` for whatever the room below calls its work; None where nobody listens."""
    if progress is None:
        return None
    return lambda _, done, total: progress(what, done, total)


EVERY = 10.0
"""Seconds between two lines on the same step where there is no terminal."""


def remaining(elapsed: float, done: int, total: int) -> float | None:
    """Seconds left at the average speed so far; None before the first unit is done.

    The average over the whole step is right when units are equal; one over the last seconds is not.

    >>> remaining(2.0, 1, 4)
    6.0
    """
    if done <= 0:
        return None
    return elapsed * max(total - done, 0) / done


def clock(seconds: float | None) -> str:
    """Seconds as people read them.

    >>> clock(4.2), clock(75), clock(3700), clock(None)
    ('4 s', '1:15', '1:01:40', '')
    """
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


@checked
@contextmanager
def bars(*, quiet: bool = False) -> Iterator[Progress | None]:
    """Yield a callback that shows how far each name is, and the time left.

    On a terminal it draws one bar per name, in a notebook it keeps one line of output up to date, and
    elsewhere (a pipe, a log file) it prints a line per name when that is done (unless it took no second), and
    every `EVERY` seconds before. All on the standard error. quiet: nothing is shown, and None is yielded.
    """
    if quiet:
        yield None
        return
    show = _notebook_display()
    if show is not None:
        yield _InNotebook(show)
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    with _rich_bars(console) as drawn:
        yield _Bars(drawn)


def _notebook_display() -> Callable[..., Any] | None:
    """IPython's `display` in the kernel of a notebook; None elsewhere, in IPython's own shell too."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return display


def _rich_bars(console: Any) -> RichProgress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%  {task.fields[left]}"),
        console=console,
        transient=True,
    )


class _Watch:
    """A callback that knows when each name began and, where that is worth a word, says how far it is."""

    every = 0.0
    """Seconds between two words on the same name."""
    least = 0.0
    """Seconds that a name takes at least whose end is worth a word by itself."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._said: dict[str, float] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._begun.setdefault(what, now)
        if done >= total:
            del self._begun[what]
            told = self._said.pop(what, began) != began
            if told or now - began >= self.least:
                self.say(f"{what}: 100% after {clock(now - began)}")
        elif now - self._said.setdefault(what, began) >= self.every:
            self._said[what] = now
            left = remaining(now - began, done, total)
            words = "" if left is None else f", {clock(left)} left"
            self.say(f"{what}: {done / total:.0%}{words}")

    def say(self, line: str) -> None:
        """Show one line."""
        raise NotImplementedError


class _Lines(_Watch):
    """Lines for a pipe or a log file."""

    every = EVERY
    least = 1.0

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _InNotebook(_Watch):
    """One line of a cell's output, kept up to date; text alone, so that no widgets are needed."""

    every = 0.25

    def __init__(self, display: Callable[..., Any]) -> None:
        super().__init__()
        self._display = display
        self._handle: Any = None

    def say(self, line: str) -> None:
        shown = {"text/plain": line}
        if self._handle is None:
            self._handle = self._display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


class _Bars:
    """The callback: a bar starts at the first call with its name and goes when it is full."""

    def __init__(self, drawn: Any) -> None:
        self._drawn = drawn
        self._tasks: dict[str, tuple[Any, float]] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            task = self._drawn.add_task(what, total=total, left="")
            self._tasks[what] = (task, time.monotonic())
        task, started = self._tasks[what]
        if done >= total:
            self._drawn.remove_task(task)
            del self._tasks[what]
            return
        left = remaining(time.monotonic() - started, done, total)
        words = f"{clock(left)} left" if left is not None else ""
        self._drawn.update(task, completed=done, total=total, left=words)
