"""Which folders are runs: a mark tells them from what must be left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from refusal_lens.errors import InputError
from refusal_lens.runs import files
from refusal_lens.runs.lock import LOCK
from refusal_lens.runs.step import FORMAT

MARK = "run.json"


def refuse_what_is_no_run(folder: Path) -> None:
    """Raise InputError when something other than a run, or a damaged one, stands at `folder`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"run folder at {folder}: got a file, need a folder; give another --out")
    mark = folder / MARK
    if not mark.exists():
        others = [p.name for p in folder.iterdir() if p.name != LOCK and not _temporary(p)]
        if others:
            raise InputError(
                f"run folder at {folder}: got a folder with {sorted(others)[0]} and no {MARK}, "
                "need an empty one or a run; give another --out"
            )
        return
    contents = files.read_json(mark)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise InputError(
            f"run folder at {folder}: got a {MARK} that this version does not know, "
            f"need format {FORMAT}; give another --out"
        )


def _temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(files.TEMPORARY)


def sweep_temporaries(folder: Path) -> None:
    """Remove the half-written files, and folders of them, of a process that was killed."""
    for path in list(folder.rglob(f".*{files.TEMPORARY}")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink()
