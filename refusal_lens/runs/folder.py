"""Which folders are runs: a mark tells them from what must be left alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from refusal_lens.errors import InputError
from refusal_lens.runs import files
from refusal_lens.runs.lock import LOCK
from refusal_lens.runs.open_step import FORMAT
from refusal_lens.runs.opening import entries, require_plain
from refusal_lens.runs.schema import Mark

MARK = "run.json"
CONFIGS = ("config.json", "adapter_config.json")
WEIGHTS = (".safetensors", ".bin", ".gguf", ".safetensors.index.json", ".bin.index.json")


def refuse_what_is_no_run(folder: Path) -> None:
    """Raise InputError when something other than a run, or a damaged one, stands at `folder`."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"run folder at {folder}: got a file, need a folder; give another --out")
    mark = folder / MARK
    if not os.path.lexists(mark):
        others = sorted(path.name for path in folder.iterdir() if not _of_a_beginning(path.name))
        if others:
            raise InputError(
                f"run folder at {folder}: got a folder with {others[0][:80]!r} and no {MARK}, "
                "need an empty one or a run; give another --out"
            )
        require_plain(folder)
        return
    require_plain(folder)
    contents = files.read_json(mark)
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise InputError(
            f"run folder at {folder}: got a {MARK} that this version does not know, "
            f"need format {FORMAT}; give another --out"
        )
    files.read_json(mark, Mark)


def _of_a_beginning(name: str) -> bool:
    """Whether a run that was killed before it had its mark leaves a file of this name."""
    return name == LOCK or (files.is_temporary(name) and name.startswith(f".{MARK}."))


def refuse_models(folder: Path) -> None:
    """Raise InputError when `folder` is, or lies in, the folder of a model, also through links."""
    place = Path(os.path.realpath(folder))
    for parent in (place, *place.parents):
        if is_model(parent):
            raise InputError(
                f"run folder at {folder}: lies in the model folder {parent}, which is only read; "
                "give another --out"
            )


def is_model(folder: Path) -> bool:
    """Whether a folder holds a configuration and weights."""
    if not any((folder / name).is_file() for name in CONFIGS):
        return False
    try:
        return any(name.endswith(WEIGHTS) for name in os.listdir(folder))
    except PermissionError:
        return False


def sweep_temporaries(folder: Path) -> None:
    """Remove the half-written files, and folders of them, of a process that was killed.

    Only in a run or where one was to begin, only by names of the package's own form, and through no
    link.
    """
    for entry in list(entries(folder)):
        if not files.is_temporary(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)
