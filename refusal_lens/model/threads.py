"""Who uses a model now: hooks of one thread must not reach the passes of another.

Hooks sit on the model, not on a thread. Whoever runs a model while another thread's hooks are on it would
get edited numbers without a word, so that is an error here. Plain passes side by side stay allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import InputError

_known: WeakKeyDictionary[nn.Module, Users] = WeakKeyDictionary()
# Reentrant, since the garbage collector may close a forgotten context while its thread holds the lock. It
# is held for a few lines of bookkeeping, never during a pass.
_lock = threading.RLock()


class Users:
    """The threads that hook or run one model, and what each knows of its pass."""

    def __init__(self) -> None:
        self._hooking: dict[threading.Thread, int] = {}
        self._running: dict[threading.Thread, int] = {}
        self._pass = threading.local()
        # The model's own generation config, once for everybody who generates now.
        self._aside: list[Any] = []

    @classmethod
    def of(cls, module: nn.Module) -> Users:
        """The users of a model, shared by all that wraps it."""
        with _lock:
            users = _known.get(module)
            if users is None:
                users = _known[module] = cls()
            return users

    @contextmanager
    def hooking(self, name: str) -> Iterator[None]:
        """Change the model for the length of the context.

        Raises InputError while another thread has changed it or runs it.
        """
        with self._counted(
            self._hooking, (self._hooking, self._running), "hooks cannot be put on", name
        ):
            yield

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Run the model. Raises InputError while another thread has hooks on it."""
        with self._counted(self._running, (self._hooking,), "a pass of", name):
            yield

    @contextmanager
    def _counted(
        self,
        mine: dict[threading.Thread, int],
        barred: tuple[dict[threading.Thread, int], ...],
        what: str,
        name: str,
    ) -> Iterator[None]:
        me = threading.current_thread()
        with _lock:
            for users in barred:
                other = next((thread for thread in users if thread is not me), None)
                if other is not None:
                    raise InputError(
                        f"{what} {name} in thread {me.name!r}: thread {other.name!r} "
                        f"{'has hooks on' if users is self._hooking else 'runs'} the same model, which "
                        "would mix the two; try one thread at a time, or a model loaded for each"
                    )
            mine[me] = mine.get(me, 0) + 1
        try:
            yield
        finally:
            # By the thread that began: a generator may be closed in another one.
            with _lock:
                mine[me] -= 1
                if not mine[me]:
                    del mine[me]

    # ---------------------------------------------------------------- what a pass knows

    @property
    def reply_mask(self) -> Tensor | None:
        """Which positions of this thread's pass belong to the reply."""
        return getattr(self._pass, "reply_mask", None)

    @reply_mask.setter
    def reply_mask(self, mask: Tensor | None) -> None:
        self._pass.reply_mask = mask

    def settings(self, hf: Any) -> Any:
        """The model's own generation config, also while it is taken away."""
        with _lock:
            return self._aside[0] if self._aside else getattr(hf, "generation_config", None)

    @contextmanager
    def settings_aside(self, hf: Any, blank: Any) -> Iterator[None]:
        """Take the model's generation config away while anybody generates.

        What a call leaves out would be filled from it: a repetition penalty or suppressed tokens change
        greedy replies too.
        """
        with _lock:
            settings = self.settings(hf)
            hf.generation_config = blank
            self._aside.append(settings)
        try:
            yield
        finally:
            with _lock:
                self._aside.pop()
                if not self._aside:
                    hf.generation_config = settings
