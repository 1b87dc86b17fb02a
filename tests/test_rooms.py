"""The architecture as a test: imports go one way, one file knows hook names, shells are light."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kit import HEAVY, ROOT, loaded_by

PACKAGE = ROOT / "refusal_lens"
LIGHT = (
    "refusal_lens",
    "refusal_lens.errors",
    "refusal_lens.runs",
    "refusal_lens.cli",
    "refusal_lens.organism",
)


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the package and the setup.cfg in `root`."""
    pytest.importorskip("importlinter", reason="import-linter is in the dev extra")
    code = "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's source with its contract, to break."""
    shutil.copytree(
        PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_the_contract_holds() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_a_room_that_imports_from_a_later_one_is_caught(copy: Path) -> None:
    errors = copy / "refusal_lens" / "errors.py"
    errors.write_text(errors.read_text() + "\nfrom refusal_lens import runs\n")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert "refusal_lens.errors -> refusal_lens.runs" in done.stdout


def test_a_module_without_a_room_is_caught(copy: Path) -> None:
    (copy / "refusal_lens" / "helpers.py").write_text('"""No room."""\n')
    done = lint_imports(copy)
    assert done.returncode != 0
    assert "helpers" in done.stdout + done.stderr


def test_a_study_that_imports_a_study_is_caught(copy: Path) -> None:
    studies = copy / "refusal_lens" / "studies"
    studies.mkdir(exist_ok=True)
    (studies / "__init__.py").touch()
    (studies / "one.py").write_text("from refusal_lens.studies import two\n")
    (studies / "two.py").write_text("")
    done = lint_imports(copy)
    assert done.returncode != 0
    assert "refusal_lens.studies.one -> refusal_lens.studies.two" in done.stdout


def test_only_model_spells_hook_names() -> None:
    spells = [
        path.relative_to(PACKAGE).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if re.search(r"""["'{]blocks\.|blocks\.\{""", path.read_text(encoding="utf-8"))
    ]
    assert len(spells) <= 1, "two files spell hook names"
    assert all(name.split("/")[0].split(".")[0] == "model" for name in spells)


def test_no_room_is_a_drawer() -> None:
    drawers = {"utils", "helpers", "common", "base", "types", "misc"}
    assert not {path.stem.strip("_") for path in PACKAGE.rglob("*.py")} & drawers


@pytest.mark.parametrize("name", LIGHT)
def test_importing_it_loads_nothing_heavy(name: str) -> None:
    assert loaded_by(f"import {name}").isdisjoint(HEAVY)


def test_the_check_for_heavy_imports_can_fail() -> None:
    assert "numpy" in loaded_by("import numpy")
