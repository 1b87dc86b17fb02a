"""Wrong inputs to every public function and every command, and what becomes of each.

A script of its own process: the import hook of the other tests would check types before the package
does. Prints one JSON line per case: part, name, outcome ("line", "fine" or what is wrong) and the line
itself.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

LIMIT = 60.0
"""Seconds after which a case is stopped, since it hangs: no case needs one, on whatever machine."""
LONGEST = 400
"""Letters that one line may have."""


class TooLongError(BaseException):
    """A case took longer than it may; nothing but this script catches it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what takes longer."""

    def stop(*_: Any) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome_of(call: Callable[[], Any]) -> tuple[str, str]:
    """What a call comes to, and what it said."""
    from refusal_lens import InputError

    try:
        with limited(LIMIT):
            call()
    except TooLongError:
        return f"took longer than {LIMIT:g} s", ""
    except InputError as error:
        return problem_of(str(error)) or "line", str(error)
    except OSError as error:
        # What the system says of a file; the command line makes one line of it.
        return problem_of(str(error)) or "line", f"OSError: {error}"
    except Exception as error:
        return f"{type(error).__name__}", " ".join(str(error).split())[:200]
    return "fine", ""


def problem_of(line: str) -> str:
    """Why a message is no clear line; "" if it is one."""
    if not line.strip() or "\n" in line:
        return "not one line"
    return "too long" if len(line) > LONGEST else ""


def main(parts: list[str]) -> None:
    """Run the cases of the parts and print what became of each."""
    quiet = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE")
    os.environ.update(dict.fromkeys((*quiet, "HF_HUB_DISABLE_PROGRESS_BARS"), "1"))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.chdir(place)
        if "calls" in parts:
            import wrong_calls

            for case in wrong_calls.cases(wrong_calls.make_world(place / "calls")):
                outcome, said = outcome_of(case.call)
                tell("calls", case.name, outcome, said, case.fine)
        if "commands" in parts:
            import wrong_commands

            for case in wrong_commands.cases(wrong_commands.make_world(place / "commands")):
                outcome, said = wrong_commands.outcome_of(case, partial(limited, LIMIT), problem_of)
                tell("commands", case.name, outcome, said, case.fine)


def tell(part: str, name: str, outcome: str, said: str, fine: str) -> None:
    """Print one case."""
    row = {"part": part, "name": name, "outcome": outcome, "said": said, "fine": fine}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["calls", "commands"])
