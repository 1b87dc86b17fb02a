"""Wrong inputs end in one line: every public function and every command, hundreds of them."""

from __future__ import annotations

import importlib
import json
import math
import os
import pkgutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from jaxtyping import Float
from kit import ROOT
from torch import Tensor

import refusal_lens
from refusal_lens.door import checked, fits, in_words
from refusal_lens.errors import LONGEST, InputError

LEAST = {"calls": 350, "commands": 250}
"""Wrong inputs of each part, at least."""
GOOD = ("line", "usage")


def test_every_wrong_input_is_one_clear_line() -> None:
    # In a process of its own: the tests' import hook would look at types before the package does.
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "sweep_wrong_inputs.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [row for row in rows if not row["fine"]]
    counts = Counter(row["part"] for row in wrong)
    print(f"{len(wrong)} wrong inputs: {dict(counts)}")
    assert sum(counts.values()) >= 600
    assert all(counts[part] >= least for part, least in LEAST.items())
    bad = [row for row in wrong if row["outcome"] not in GOOD]
    bad += [row for row in rows if row["fine"] and row["outcome"] not in (*GOOD, "fine")]
    bad += [row for row in rows if row["fine"] == "it is right" and row["outcome"] != "fine"]
    listed = [f"{row['name']}: {row['outcome']} {row['said'][:100]}" for row in bad]
    assert not bad, f"{len(bad)} of {len(rows)}:\n" + "\n".join(listed)


def guarded() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every function and constructor of the package that compares its arguments."""
    for found in pkgutil.walk_packages(refusal_lens.__path__, "refusal_lens."):
        if found.name.endswith("__main__"):
            continue
        for name, item in vars(importlib.import_module(found.name)).items():
            if getattr(item, "__module__", None) != found.name:
                continue
            members = vars(item).items() if isinstance(item, type) else ()
            for inner, member in [("", item), *members]:
                function = getattr(member, "__func__", member)
                if hasattr(function, "hints"):
                    yield f"{found.name}.{name}.{inner}", function


def test_every_annotation_at_the_door_can_be_looked_up_and_told() -> None:
    seen = 0
    for name, function in guarded():
        for hint in function.hints().values():  # type: ignore[attr-defined]
            seen += 1
            words = in_words(hint)
            assert "typing." not in words, name
            assert "object at" not in words, name
    assert seen > 300


def test_every_public_name_is_behind_the_door() -> None:
    # A conversation takes messages as mappings too, and looks at them itself.
    values = {"ChatModel", "Conversation", "InputError"}
    # Edits take any callable where sites are given, and look at their vectors and numbers themselves.
    edits = {"ablate", "add", "applied"}
    open_ones = values | edits
    for name in set(refusal_lens.__all__) - open_ones:
        item = getattr(refusal_lens, name)
        function = item.__init__ if isinstance(item, type) else item
        assert hasattr(function, "hints"), name


@checked
def f(
    texts: Sequence[str] = (),
    *,
    n: int = 1,
    x: Float[Tensor, "rows width"] | None = None,
    by_kind: Mapping[str, Sequence[int]] | None = None,
    when: Literal["all", "reply"] = "all",
    path: str | Path = "",
) -> Any:
    """What it was given, by name."""
    return locals()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"texts": "one"}, "texts of f: got 'one', need a list of texts; try [...]"),
        ({"texts": ["a", 3]}, "texts of f: got 3 at 1, need a list of texts"),
        ({"texts": {"a"}}, "texts of f: got a set of 1, need a list of texts; try list(...)"),
        ({"n": True}, "n of f: got True, need a whole number"),
        ({"n": 2.0}, "n of f: got 2.0, need a whole number"),
        ({"n": 10**99}, "n of f: got a number of about 99 digits, need a whole number below 2^63"),
        (
            {"x": torch.zeros(2)},
            "x of f: got a tensor [2] of float32, need a tensor [rows width] of float or None",
        ),
        ({"x": np.zeros((2, 3))}, "x of f: got an array [2, 3] of float64"),
        (
            {"by_kind": {"a": [1, "2"]}},
            "by_kind of f: got '2' at 'a', 1, need a dict of texts to lists",
        ),
        ({"by_kind": {1: [1]}}, "by_kind of f: got 1 as a key"),
        ({"when": "never"}, "when of f: got 'never', need 'all' or 'reply'"),
        ({"when": ["all"]}, "when of f: got a list of 1, need 'all' or 'reply'"),
        ({"path": "a\0b"}, "path of f: got 'a\\x00b', need a text or a path that the system"),
        ({"path": "a\ud800"}, "path of f: got 'a\\ud800', need a text or a path that the system"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as raised:
        f(**given)
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_numbers_of_numpy_come_in_as_python_s() -> None:
    given = f(n=np.int64(3), by_kind={"a": (1, 2)})
    assert type(given["n"]) is int
    assert fits(np.float32(1.5), float)
    assert not fits(np.bool_(True), int)
    assert not fits(math.nan, float)
    assert not fits(10**400, float)


def test_missing_and_unknown_arguments_stay_python_s_own() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        f(z=1)


def test_an_error_is_one_line_of_readable_length() -> None:
    line = str(InputError("a\nb " + "x" * 10_000 + "; try less"))
    assert line.startswith("a b ")
    assert line.endswith("; try less")
    assert len(line) == LONGEST
