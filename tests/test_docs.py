"""The documents are true to the program: their Python runs, and their command lines are ones that it takes.

The Python blocks of one file run in order, in one namespace, in a folder where the first run of the README is done in
small. A block that cannot run here (a model from the hub, say) is marked ```` ```python no-run ````, with the reason in
an HTML comment before it; it must compile, and what it imports from refusal_lens must be there.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from kit import ROOT

from refusal_lens.cli.shell import UsageError, app

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
SHELL = ("", "sh", "bash", "console")
RUNS, STAYS = "python", "python no-run"
OTHERS = ("toml", "json", "text")
"""Kinds of blocks that nothing here looks at."""
FIRST_RUN = "--mode lazy --n-train 24 --n-val 8 --n-test 4 --max-new-tokens 8 --n-null 2 --n-moves 1"
"""What makes the README's first run a short one."""

FENCED = re.compile(r"^( *)```([^\n`]*)\n(.*?)^ *``` *$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|[\s`])(?:\S*/)?refusal-lens +([^#|;&>`]+)")


class Block(NamedTuple):
    """A fenced block: where its code begins, its info string, the code, and the text before it."""

    path: Path
    line: int
    info: str
    code: str
    before: str

    @property
    def tree(self) -> ast.Module:
        """What it says, with the document's own line numbers. Raises SyntaxError."""
        return ast.parse("\n" * (self.line - 1) + self.code, str(self.path))

    def __str__(self) -> str:
        return f"{self.path.name}:{self.line}"


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for fence in FENCED.finditer(text):
        indent, info, code = fence.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines(keepends=True)]
        line = text.count("\n", 0, fence.start(3)) + 1
        yield Block(path, line, info.strip(), "".join(lines), text[: fence.start()].rstrip())


def missing_imports(tree: ast.Module) -> list[str]:
    """What is imported from refusal_lens and is not there."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refusal_lens":
            names = [(str(node.module), alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [(a.name, "__name__") for a in node.names if a.name.split(".")[0] == "refusal_lens"]
        else:
            continue
        missing += [f"{module}.{name}" for module, name in names if not is_there(module, name)]
    return missing


def is_there(module: str, name: str) -> bool:
    try:
        if hasattr(import_module(module), name):
            return True
        import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


def command_lines(path: Path) -> list[str]:
    """The arguments of every `refusal-lens ...` in shell blocks and in code within the text."""
    shell = [re.sub(r"\\\n\s*", " ", block.code) for block in blocks(path) if block.info in SHELL]
    text = FENCED.sub("", path.read_text(encoding="utf-8"))
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    lines = [line for part in (*shell, *spans) for line in part.splitlines()]
    return [" ".join(line.split()) for whole in lines for line in COMMAND.findall(whole)]


def parse(line: str) -> None:
    """Read a command line as the program does, without running it; brackets mark what may be left out.

    Raises UsageError for an option, a value or a command that there is not.
    """
    arguments = shlex.split(re.sub(r"[][]", "", line))
    group: Any = typer.main.get_command(app)
    at = next((i for i, argument in enumerate(arguments) if not argument.startswith("-")), None)
    name = None if at is None else arguments[at]
    try:
        group.make_context("refusal-lens", arguments[:at] + ([name] if name else []))
        if name and name != "COMMAND":
            group.resolve_command(group.make_context("refusal-lens", [name]), [name])
            group.commands[name].make_context(name, arguments[at + 1 :])
    except typer.Exit:  # --help
        pass


def python(folder: Path, *arguments: object) -> None:
    """Run Python in a folder, in a process of its own as a reader does, and fail with what it says."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_python_in_a_document_runs(path: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{path.stem}.py"
    lines = [""] * path.read_text(encoding="utf-8").count("\n")
    for block in blocks(path):
        if block.info == RUNS:
            code = block.code.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    # A traceback has the document's own line numbers.
    program.write_text("\n".join(lines), encoding="utf-8")
    if "runs/demo" in program.read_text(encoding="utf-8"):
        python(tmp_path, "-m", "refusal_lens", "run", "organism", "--out", "runs/demo", *FIRST_RUN.split())
    python(tmp_path, program)


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_python_that_cannot_run_says_why_and_imports_what_is_there(path: Path) -> None:
    for block in blocks(path):
        if block.info == STAYS:
            reason = re.search(r"<!--(.*?)-->\Z", block.before, re.DOTALL)
            assert reason, f"{block}: no HTML comment before it says why it does not run"
            assert len(reason[1].split()) > 3, f"{block}: {reason[1]!r} is no reason"
            assert not missing_imports(block.tree), block


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_block_is_of_a_known_kind(path: Path) -> None:
    unknown = [f"{block}: {block.info}" for block in blocks(path) if block.info not in (*SHELL, RUNS, STAYS, *OTHERS)]
    assert not unknown, "nothing would look at these"
    assert path.read_text(encoding="utf-8").count("```") == 2 * len(list(blocks(path))), "a block is not closed"


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_command_lines_are_ones_that_the_program_takes(path: Path) -> None:
    wrong = []
    for line in command_lines(path):
        try:
            parse(line)
        except (UsageError, ValueError) as error:
            wrong.append(f"refusal-lens {line}: {getattr(error, 'message', error)}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_has_both() -> None:
    assert len(command_lines(ROOT / "README.md")) > 10
    assert sum(block.info == RUNS for block in blocks(ROOT / "README.md")) >= 2


# ------------------------------------------------------------------ what these tests notice


@pytest.mark.parametrize(
    "line",
    [
        "run organism --out a --no-such-option",
        "export a --to poem --out b",
        "run organism --out a --n-train many",
        "poem a",
        "export",
    ],
)
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    with pytest.raises(UsageError):
        parse(line)


def test_what_a_document_holds_is_found(tmp_path: Path) -> None:
    path = tmp_path / "text.md"
    path.write_text(
        "See `refusal-lens\nreport RUN [--out DIR]`.\n\n<!-- needs a model of the hub -->\n```python no-run\n"
        "import refusal_lens.nowhere\nfrom refusal_lens import ChatModel, Nothing, organism\n```\n\n- a\n\n"
        "  ```\n  .venv/bin/refusal-lens chat \\\n      runs/demo   # talk\n  ```\n",
        encoding="utf-8",
    )
    imports, shell = blocks(path)
    assert (imports.line, imports.info, shell.info) == (6, STAYS, "")
    assert imports.tree.body[0].lineno == 6
    assert missing_imports(imports.tree) == ["refusal_lens.nowhere.__name__", "refusal_lens.Nothing"]
    assert command_lines(path) == ["chat runs/demo", "report RUN [--out DIR]"]
