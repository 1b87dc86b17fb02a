"""Streamed export: the checkpoint copied, with only the edited tensors' bytes worked out anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..door import checked
from ..model.shards import DTYPES, INDEX, Checkpoint, Shard, Stored
from ..runs.tensors import header_bytes
from .arithmetic import Columns, Offset, Project, changed_rows, layout, row_chunks
from .atomic import Recorded, atomic_folder, require_outside
from .checkpoint import Added, ExportPlan, require_plan
from .copying import (
    OnBytes,
    bytes_of,
    copy_range,
    in_threads,
    one_thread_at_a_time,
    read_all,
    reflink,
    write_all,
)

ADDED = "model-added.safetensors"
PROVENANCE = "refusal_lens.json"
BLOCK = 64 << 20
"""Bytes that one thread deals with before it takes the next task."""
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
"""Weights in other formats, which would still be the unedited ones."""


@checked
def write_checkpoint(
    plan: ExportPlan,
    out: str | Path,
    *,
    provenance: Mapping[str, Any],
    progress: OnBytes = lambda _: None,
    check: Callable[[Path], None] = lambda _: None,
    recorded: Recorded = nullcontext,
) -> Path:
    """Write the edited checkpoint to a new folder; the source is only read.

    progress is called with bytes done, of ``plan.total_bytes``; check with the hidden folder when it is whole,
    and when it raises nothing appears; recorded surrounds its appearing. Raises InputError when `out` is in the way or
    the disk too small, OSError when writing fails; either way nothing is left at `out`.
    """
    require_plan(plan)
    require_outside(Path(out), plan.checkpoint.folder)
    with atomic_folder(Path(out), needed=plan.total_bytes, check=check, recorded=recorded) as hidden:
        for shard in plan.checkpoint.shards:
            _write_shard(plan, shard, hidden, progress)
        if plan.added and plan.checkpoint.index is not None:
            _write_added(plan, hidden / ADDED, progress)
        if plan.checkpoint.index is not None:
            _write_json(hidden / INDEX, _index(plan))
        _copy_small_files(plan.checkpoint, hidden)
        _write_json(hidden / PROVENANCE, provenance)
        # Last, so that the folder is no model before it is whole.
        _write_json(hidden / "config.json", plan.config)
    return Path(out)


def _write_shard(plan: ExportPlan, shard: Shard, hidden: Path, progress: OnBytes) -> None:
    source, target = plan.checkpoint.folder / shard.file, hidden / shard.file
    longer = bool(plan.added) and plan.checkpoint.index is None
    shared = not longer and reflink(source, target)
    with source.open("rb") as read, target.open("r+b" if shared else "xb") as write:
        files = _Files(read.fileno(), write.fileno(), one_thread_at_a_time(progress))
        copied = 0
        if longer:
            head = header_bytes(*_longer_header(shard, plan.added))
            write_all(files.write, memoryview(head), 0)
            files.shift, copied = len(head) - shard.data_start, shard.data_start
            progress(shard.data_start)
        in_threads(_tasks(plan, shard, files, copied, shared=shared))
        if longer:
            _append(plan, files.write, shard.size + files.shift, progress)


@dataclass
class _Files:
    """A shard and its copy, open; what lies at an offset in one lies `shift` bytes later in the other."""

    read: int
    write: int
    progress: OnBytes
    shift: int = 0


def _tasks(
    plan: ExportPlan, shard: Shard, files: _Files, copied: int, *, shared: bool
) -> Iterator[Callable[[], None]]:
    """What is to be done for a shard of which `copied` bytes are; the tasks touch different bytes."""
    for stored in sorted(
        (plan.checkpoint.tensors[name] for name in plan.changes), key=lambda stored: stored.start
    ):
        if stored.file == shard.file:
            yield from _copies(files, copied, stored.start, shared=shared)
            yield from _edits(files, stored, plan.changes[stored.name])
            copied = stored.stop
    yield from _copies(files, copied, shard.size, shared=shared)


def _copies(files: _Files, start: int, stop: int, *, shared: bool) -> Iterator[Callable[[], None]]:
    """Copy what lies between two offsets, if the copy does not share it."""
    if shared:
        yield partial(files.progress, stop - start)
        return
    for at in range(start, stop, BLOCK):
        length, to = min(BLOCK, stop - at), at + files.shift
        yield partial(copy_range, files.read, files.write, at, length, to, files.progress)


def _edits(files: _Files, stored: Stored, change: Project | Offset) -> Iterator[Callable[[], None]]:
    """Change one tensor, a few rows in memory at a time; a matrix written from its columns is read twice."""
    dtype, (outer, d, inner) = DTYPES[stored.dtype], layout(stored.shape, change.axis)
    if inner == 1:
        several = max(1, BLOCK // (d * dtype.itemsize))
        for first in range(0, outer, several):
            tape = _Tape(files, stored.start + first * d * dtype.itemsize, d, dtype)
            yield partial(_edit_rows, tape, min(several, outer - first), change)
        return
    for index in range(outer):
        tape = _Tape(files, stored.start + index * d * inner * dtype.itemsize, inner, dtype)
        yield partial(_edit_columns, tape, d, change)


def _edit_rows(tape: _Tape, n: int, change: Project | Offset) -> None:
    for rows in row_chunks(n, tape.width, tape.dtype):
        tape.put(rows, changed_rows(tape.get(rows), change))


def _edit_columns(tape: _Tape, d: int, change: Project | Offset) -> None:
    columns = Columns(change, d, tape.width, tape.dtype)
    for rows, look in columns.looks():
        look(rows, tape.get(rows))
    for rows in columns.rows():
        tape.put(rows, columns.changed(rows, tape.get(rows)))


class _Tape:
    """Rows of a matrix in one file, which can be given other values in the other."""

    def __init__(self, files: _Files, start: int, width: int, dtype: torch.dtype) -> None:
        self.files, self.start, self.width, self.dtype = files, start, width, dtype
        self.buffer = torch.empty(0, width, dtype=dtype)

    def get(self, rows: slice) -> Tensor:
        """These rows; the tensor is used again by the next call."""
        n = rows.stop - rows.start
        if len(self.buffer) != n:
            self.buffer = torch.empty(n, self.width, dtype=self.dtype)
        read_all(self.files.read, bytes_of(self.buffer), self._at(rows))
        return self.buffer

    def put(self, rows: slice, values: Tensor) -> None:
        """Write other values for the rows that were got last, rounded to the dtype."""
        raw = bytes_of(self.buffer.copy_(values))
        write_all(self.files.write, raw, self._at(rows) + self.files.shift)
        self.files.progress(raw.nbytes)

    def _at(self, rows: slice) -> int:
        return self.start + rows.start * self.width * self.dtype.itemsize


def _longer_header(shard: Shard, added: tuple[Added, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a single file with the added tensors behind the others."""
    tensors = {name: tensor for name, tensor in shard.header.items() if name != "__metadata__"}
    end = shard.size - shard.data_start
    for tensor in added:
        offsets = [end, end + tensor.bytes]
        tensors[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        end = offsets[1]
    return tensors, dict(shard.header.get("__metadata__", {}))


def _write_added(plan: ExportPlan, path: Path, progress: OnBytes) -> None:
    """A shard of its own for what the checkpoint did not have."""
    empty = Shard(path.name, {"__metadata__": {"format": "pt"}}, 0, 0)
    head = header_bytes(*_longer_header(empty, plan.added))
    with path.open("xb") as write:
        write_all(write.fileno(), memoryview(head), 0)
        _append(plan, write.fileno(), len(head), progress)


def _append(plan: ExportPlan, write: int, at: int, progress: OnBytes) -> None:
    for tensor in plan.added:
        if tensor.like is not None:
            with (plan.checkpoint.folder / tensor.like.file).open("rb") as read:
                copy_range(read.fileno(), write, tensor.like.start, tensor.like.bytes, at, progress)
        else:
            assert tensor.values is not None
            write_all(write, bytes_of(tensor.values.to(DTYPES[tensor.dtype]).contiguous()), at)
            progress(tensor.bytes)
        at += tensor.bytes


def _index(plan: ExportPlan) -> dict[str, Any]:
    assert plan.checkpoint.index is not None
    index = json.loads(json.dumps(plan.checkpoint.index))
    index["weight_map"] |= {tensor.name: ADDED for tensor in plan.added}
    metadata = index.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        return dict(index)
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += sum(tensor.bytes for tensor in plan.added)
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += sum(torch.Size(tensor.shape).numel() for tensor in plan.added)
    return index


def _copy_small_files(checkpoint: Checkpoint, hidden: Path) -> None:
    """Tokenizer, templates, generation settings, licence: everything that is not weights."""
    for path in sorted(checkpoint.folder.iterdir()):
        skipped = path.name in ("config.json", INDEX, PROVENANCE) or path.name.startswith(".")
        if skipped or path.name.endswith(NOT_COPIED) or ".bin.index" in path.name:
            continue
        if path.is_file():
            shutil.copyfile(path, hidden / path.name)
        elif path.name == "additional_chat_templates":
            shutil.copytree(path, hidden / path.name)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
