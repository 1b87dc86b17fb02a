"""Streamed export: the checkpoint copied, with only the edited tensors' bytes worked out anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .checkpoint import SLAB, Added, Job
from .edits import Offset, Project, change_in_place
from .moving import Progress, appearing, bytes_of, copy_range, read_all, reflink, write_all
from .shards import DTYPES, INDEX, Checkpoint, Shard, Stored, header_bytes

ADDED = "model-added.safetensors"
PROVENANCE = "refusal_lens.json"
NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".ot")
"""Weights in other formats, which would still be the unedited ones."""


def write_checkpoint(
    job: Job,
    out: Path,
    *,
    provenance: Mapping[str, Any],
    progress: Progress = lambda _: None,
    check: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Write the edited checkpoint to a new folder; the source is only read.

    progress is called with bytes done, of ``job.total_bytes``; check with the hidden folder when it is whole,
    and when it raises nothing appears. Raises InputError when `out` is in the way or
    the disk too small, OSError when writing fails; either way nothing is left at `out`.
    """
    source = job.checkpoint.folder.resolve()
    if source == Path(out).resolve() or source in Path(out).resolve().parents:
        raise InputError(f"output folder {out}: lies in the model folder, which is only read")
    with appearing(Path(out), needed=job.total_bytes) as hidden:
        for shard in job.checkpoint.shards:
            _write_shard(job, shard, hidden, progress)
        if job.added and job.checkpoint.index is not None:
            _write_added(job, hidden / ADDED, progress)
        if job.checkpoint.index is not None:
            _write_json(hidden / INDEX, _index(job))
        _copy_small_files(job.checkpoint, hidden)
        _write_json(hidden / PROVENANCE, provenance)
        # Last, so that the folder is no model before it is whole.
        _write_json(hidden / "config.json", job.config)
        check(hidden)
    return Path(out)


def _write_shard(job: Job, shard: Shard, hidden: Path, progress: Progress) -> None:
    source, target = job.checkpoint.folder / shard.file, hidden / shard.file
    edits = sorted(
        (
            t
            for name, t in job.checkpoint.tensors.items()
            if t.file == shard.file and name in job.changes
        ),
        key=lambda stored: stored.start,
    )
    single = bool(job.added) and job.checkpoint.index is None
    shared = not single and reflink(source, target)
    with source.open("rb") as read, target.open("r+b" if shared else "wb") as write:
        files = read.fileno(), write.fileno()
        shift, done = 0, 0
        if single:
            head = header_bytes(*_longer_header(shard, job.added))
            write_all(write.fileno(), memoryview(head), 0)
            shift, done = len(head) - shard.data_start, shard.data_start
            progress(shard.data_start)
        for stored in edits:
            if not shared:
                copy_range(*files, done, stored.start - done, done + shift, progress)
            _write_edited(*files, stored, job.changes[stored.name], shift, progress)
            done = stored.stop
        if not shared:
            copy_range(*files, done, shard.size - done, done + shift, progress)
        else:
            progress(shard.size - sum(stored.bytes for stored in edits))
        if single:
            _append(job, write.fileno(), shard.size + shift, progress)


def _write_edited(
    read: int, write: int, stored: Stored, change: Project | Offset, shift: int, progress: Progress
) -> None:
    """One tensor, a matrix or a piece of a table at a time."""
    dtype, axis = DTYPES[stored.dtype], change.axis
    d = stored.shape[axis]
    if axis == len(stored.shape) - 1:
        rows, step = stored.bytes // (d * dtype.itemsize), max(1, SLAB // (d * dtype.itemsize))
        pieces = [(start, (min(step, rows - start), d)) for start in range(0, rows, step)]
        unit, along = d * dtype.itemsize, 1
    else:
        inner = torch.Size(stored.shape[axis + 1 :]).numel()
        outer = torch.Size(stored.shape[:axis]).numel()
        pieces = [(index, (d, inner)) for index in range(outer)]
        unit, along = d * inner * dtype.itemsize, 0
    for start, shape in pieces:
        tensor = torch.empty(shape, dtype=dtype)
        raw = bytes_of(tensor)
        at = stored.start + start * unit
        read_all(read, raw, at)
        change_in_place(tensor, _along(change, along))
        write_all(write, raw, at + shift)
        progress(raw.nbytes)


def _along(change: Project | Offset, axis: int) -> Project | Offset:
    from dataclasses import replace

    return replace(change, axis=axis)


def _longer_header(shard: Shard, added: tuple[Added, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """The header of a single file with the added tensors behind the others."""
    tensors = {name: each for name, each in shard.header.items() if name != "__metadata__"}
    end = shard.size - shard.data_start
    for each in added:
        offsets = [end, end + each.bytes]
        tensors[each.name] = {
            "dtype": each.dtype,
            "shape": list(each.shape),
            "data_offsets": offsets,
        }
        end = offsets[1]
    return tensors, dict(shard.header.get("__metadata__", {}))


def _write_added(job: Job, path: Path, progress: Progress) -> None:
    """A shard of its own for what the checkpoint did not have."""
    empty = Shard(path.name, {"__metadata__": {"format": "pt"}}, 0, 0)
    head = header_bytes(*_longer_header(empty, job.added))
    with path.open("wb") as write:
        write_all(write.fileno(), memoryview(head), 0)
        _append(job, write.fileno(), len(head), progress)


def _append(job: Job, write: int, at: int, progress: Progress) -> None:
    for each in job.added:
        if each.like is not None:
            with (job.checkpoint.folder / each.like.file).open("rb") as read:
                copy_range(read.fileno(), write, each.like.start, each.like.bytes, at, progress)
        else:
            assert each.values is not None
            write_all(write, bytes_of(each.values.to(DTYPES[each.dtype]).contiguous()), at)
            progress(each.bytes)
        at += each.bytes


def _index(job: Job) -> dict[str, Any]:
    assert job.checkpoint.index is not None
    index = json.loads(json.dumps(job.checkpoint.index))
    index["weight_map"] |= {each.name: ADDED for each in job.added}
    metadata = index.setdefault("metadata", {})
    if isinstance(metadata.get("total_size"), int):
        metadata["total_size"] += sum(each.bytes for each in job.added)
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += sum(torch.Size(each.shape).numel() for each in job.added)
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
