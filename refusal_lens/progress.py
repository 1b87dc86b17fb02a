"""How far a long step is: a callback that any room can call, and a bar that draws it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: `done` of `total` equal units of work of `what` are finished.

The estimate of the time left is only as even as the units: count tokens times layers where prompts
differ in length, not prompts. A room takes `on_progress: Progress | None = None` and calls it after
each batch; a call costs microseconds.
"""


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


@contextmanager
def bars() -> Iterator[Progress | None]:
    """Yield a callback that draws one bar per name on the terminal; None where there is none."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with _rich_bars(console) as drawn:
        yield _Bars(drawn)


def _rich_bars(console: Any) -> RichProgress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        TextColumn("{task.percentage:>4.0f}%  {task.fields[left]}"),
        console=console,
        transient=True,
    )


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
