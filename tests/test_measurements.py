"""A measurement is one module: steps, what follows from them, and a new one that nothing else knows of."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import write_run

from refusal_lens.pipeline.measurements import ALL, FORMS, OUTCOME, SECTIONS, STEPS
from refusal_lens.pipeline.page import open_folder
from refusal_lens.report.markup import Plot
from refusal_lens.runs import Table

PACKAGE = Path(importlib.import_module("refusal_lens").__file__ or "").parent

NEW = '''
"""Lengths: how long replies are."""

import pandas as pd

from ...report.entry import Entry
from ...report.markup import Section, paragraph
from ...runs import Table
from ..step import Step


def work(job, step):
    rows = job.completions(0, "baseline")
    step.write_csv("lengths.csv", pd.DataFrame({"letters": [len(row["response"]) for row in rows]}))


def summary(job):
    return {"mean_length": float(job.read("lengths.csv")["letters"].mean())}


def render(run):
    table = run.table("lengths.csv")
    return None if table is None else Section("lengths", "Lengths", (paragraph(f"{len(table)} replies"),))


STEPS = (
    Step(
        "lengths", work, ("completions_{positive}_baseline",),
        files={"lengths.csv": Table({}, ("letters",))},
        summary=summary, summary_forms={"mean_length": float},
        sections=(Entry(125, "lengths", "lengths.csv", render),),
    ),
)
'''


def test_steps_come_behind_those_that_they_build_on() -> None:
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names) >= 14
    for number, step in enumerate(STEPS):
        assert set(step.after) <= set(names[:number]), step.name
    assert names[:4] == ["behaviour", "candidates", "scores", "selection"]
    assert names[-1] == OUTCOME


def test_a_step_names_its_kinds() -> None:
    (losses,) = (step.of(("wishes", "questions")) for step in STEPS if step.name == "losses")
    assert losses.after == ("selection", "completions_questions_baseline")
    assert losses.needs_direction


def test_every_table_of_a_run_has_its_columns_and_every_section_its_place() -> None:
    assert {"candidates.csv", "curves.csv", "losses.csv", "nulls.csv"} <= set(FORMS.tables())
    assert isinstance(FORMS.of("exports/a.writers.csv"), Table)
    assert FORMS.of("completions/wishes_baseline.jsonl") is not None
    assert FORMS.of("strange.csv") is None
    ranks = [entry.rank for entry in SECTIONS]
    assert ranks == sorted(set(ranks))
    entries = {entry.rank: entry for step in ALL for entry in step.sections}
    assert tuple(entries[rank] for rank in ranks) == SECTIONS


def test_sections_draw_the_figures_that_they_name(tmp_path: Path) -> None:
    run = open_folder(write_run(tmp_path / "run", n_prompts=5))
    for entry in SECTIONS:
        section = entry.render(run)
        drawn = {part.name for part in section.parts if isinstance(part, Plot)} if section else set()
        assert drawn <= set(entry.figures), entry.title


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The package's source with one more module among its measurements."""
    copy = tmp_path / "refusal_lens"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "pipeline" / "measurements" / "lengths.py").write_text(NEW)
    return tmp_path


def test_a_new_measurement_is_one_new_file(package: Path, tmp_path: Path) -> None:
    """Its step, table, part of the summary and section are in a run of the organism."""
    code = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from refusal_lens.pipeline import RunConfig, run_pipeline
config = RunConfig(n_train=8, n_val=8, n_test=4, max_new_tokens=4, n_null=0, first_tokens=("I", "As", "Sorry"))
summary = run_pipeline(config, sys.argv[1])
assert summary["mean_length"] > 0
assert '<section id="lengths">' in Path(sys.argv[1], "report.html").read_text()
assert (Path(sys.argv[1]) / "steps" / "lengths.json").is_file()
"""
    done: Any = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], cwd=package, env=_environment(package),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _environment(package: Path) -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(package)}
