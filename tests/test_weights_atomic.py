"""A result and its record: both or neither, whatever fails, and what a killed export leaves."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from architectures import folder
from kit import finished_run

from refusal_lens.errors import InputError
from refusal_lens.pipeline.export_job import ExportConfig, run_export
from refusal_lens.runs import Run, read_json
from refusal_lens.weights import atomic

if sys.platform != "win32":
    import fcntl


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("appearing") / "run", folder("llama"))


FORMATS = ("gguf", "steered", "reference")
NAMES = {"gguf": "x.gguf", "steered": "x.pt", "reference": "x"}


def export(run: Path, out: Path, to: str) -> None:
    edit = {} if to == "reference" else {"edit": "add"}
    run_export(run, ExportConfig(to=to, out=out, **edit))  # type: ignore[arg-type]


def state(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def leftover(out: Path, *, token: str = "0123456789abcdef") -> Path:
    hidden = out.with_name(f".{out.name}.{token}.partial")
    hidden.mkdir()
    (hidden / "half").write_text("")
    return hidden


@pytest.mark.parametrize("to", FORMATS)
def test_a_result_that_cannot_be_recorded_does_not_appear(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    before, write = state(run), Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.is_relative_to(run):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not be recorded.*No space left.*nothing was left"):
        export(run, tmp_path / NAMES[to], to)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    assert state(run) == before


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("failure", [OSError(errno.EACCES, "Permission denied"), KeyboardInterrupt()])
def test_a_result_that_cannot_appear_is_not_recorded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, failure: BaseException
) -> None:
    before, rename = state(run), os.rename
    recorded: list[bool] = []

    def refuse(source: Any, target: Any) -> None:
        if str(target) != str(tmp_path / NAMES[to]):
            rename(source, target)
            return
        recorded.append((run / "exports" / f"{NAMES[to]}.json").is_file())
        raise failure

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(type(failure)):
        export(run, tmp_path / NAMES[to], to)
    monkeypatch.undo()
    assert recorded == [True], "the record comes first"
    assert list(tmp_path.iterdir()) == []
    after = state(run)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {"manifest.json"}
    assert not Run.read(run).damage()


def test_what_fails_after_the_renaming_takes_the_result_back(tmp_path: Path) -> None:
    @contextmanager
    def recorded() -> Iterator[None]:
        yield
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(OSError, match="could not be recorded"),
        atomic.atomic_folder(tmp_path / "out", needed=0, recorded=recorded) as hidden,
    ):
        (hidden / "a").write_text("")
    assert list(tmp_path.iterdir()) == []
    with (
        pytest.raises(OSError, match="could not be recorded"),
        atomic.atomic_files([tmp_path / "a", tmp_path / "b"], recorded=recorded) as hidden,
    ):
        (hidden / "a").write_text("")
        (hidden / "b").write_text("")
    assert list(tmp_path.iterdir()) == []


def test_a_record_whose_result_was_killed_before_it_appeared_goes_with_the_next_export(
    run: Path, tmp_path: Path
) -> None:
    export(run, tmp_path / "killed.gguf", "gguf")
    hidden = leftover(tmp_path / "killed.gguf")
    (tmp_path / "killed.gguf").rename(hidden / "killed.gguf")
    export(run, tmp_path / "moved.gguf", "gguf")
    assert not (run / "exports" / "killed.gguf.json").exists()
    assert "export-killed.gguf" not in Run.read(run).manifests()
    (tmp_path / "moved.gguf").rename(tmp_path / "elsewhere.gguf")
    export(run, tmp_path / "killed.gguf", "gguf")
    assert not hidden.exists()
    names = {path.name for path in (run / "exports").glob("*.gguf.json")}
    assert names == {"killed.gguf.json", "moved.gguf.json"}, "what a user moved stays recorded"
    assert read_json(run / "exports" / "killed.gguf.json")["out"] == str(tmp_path / "killed.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_leftovers_are_known_by_their_lock_where_every_process_has_number_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    out = tmp_path / "out"
    dead, alive = leftover(out), leftover(out, token="f" * 16)
    other = leftover(tmp_path / "out.more")
    link = out.with_name(f".out.{'a' * 16}.partial")
    link.symlink_to(other, target_is_directory=True)
    held = os.open(alive, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with (
        atomic.atomic_folder(out, needed=0) as first,
        atomic.atomic_folder(out, needed=0) as second,
    ):
        assert first != second
        assert not dead.exists()
        assert (alive / "half").exists()
        assert (other / "half").exists()
    assert out.is_dir()
    os.close(held)


def test_a_killed_process_lets_go_of_its_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from refusal_lens.weights.atomic import atomic_folder\n"
        f"with atomic_folder(Path({str(tmp_path / 'out')!r}), needed=0): os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert [p.name.endswith(".partial") for p in tmp_path.iterdir()] == [True]
    with atomic.atomic_folder(tmp_path / "out", needed=0):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_one_line_that_names_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    before, write = state(run), Path.write_bytes

    def full(self: Path, data: Any) -> int:
        if self.suffix == ".pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    if to == "gguf":
        import gguf

        def no_space(self: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", no_space)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not be written.*No space left on device") as raised:
        export(run, tmp_path / NAMES[to], to)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    assert state(run) == before


def test_long_names_fit_and_too_long_ones_are_refused_before_work(run: Path, tmp_path: Path) -> None:
    longest = tmp_path / ("ä" * 125 + ".gguf")
    export(run, longest, "gguf")
    assert longest.is_file()
    (record,) = (run / "exports").glob("ä*.json")
    assert read_json(record)["out"] == str(longest)
    with pytest.raises(InputError, match=r"File name too long|names of at most 255 bytes"):
        export(run, tmp_path / ("x" * 300 + ".gguf"), "gguf")
    with pytest.raises(InputError, match=r"File name too long|names of at most 255 bytes"):
        export(run, tmp_path / ("x" * 300), "reference")
    with pytest.raises(InputError, match=r"is no path|need a path"):
        atomic.require_room(Path("a\0b"), 0)
