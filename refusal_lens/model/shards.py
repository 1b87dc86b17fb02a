"""A checkpoint folder as it lies on disk: safetensors headers, byte ranges, the index."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..display import shown
from ..errors import InputError
from .source import read_object

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that an edit can be rounded to; others are the sign of a quantised checkpoint."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
SIZES = {
    **{name: dtype.itemsize for name, dtype in DTYPES.items()},
    **{"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
}
"""Bytes of one number of a dtype, where they are whole."""
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LARGEST_HEADER = 100 << 20


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: start and stop are offsets in bytes from the start of the file."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return self.stop - self.start


@shown()
@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as it stands, and where the data starts."""

    file: str
    header: Mapping[str, Any]
    data_start: int
    size: int


@shown()
@dataclass(frozen=True)
class Checkpoint:
    """A model folder in safetensors: its shards, and every tensor by name."""

    folder: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, Stored]
    index: Mapping[str, Any] | None

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return read_object(self.folder / "config.json")

    def read(self, name: str) -> Tensor:
        """One whole tensor. Raises InputError when the file is cut short."""
        stored = self.tensors[name]
        buffer = bytearray(stored.bytes)
        with (self.folder / stored.file).open("rb") as file:
            file.seek(stored.start)
            if file.readinto(buffer) != stored.bytes:
                raise InputError(
                    f"{self.folder / stored.file}: cut short in {name}; download it again"
                )
        return torch.frombuffer(buffer, dtype=DTYPES[stored.dtype]).view(stored.shape)


def folder_at(path: Any) -> Path:
    """A folder's path. Raises InputError for what is none."""
    if not isinstance(path, str | Path):
        raise InputError(f"model folder: got {type(path).__name__}, need a path")
    return Path(path)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a folder's safetensors files; no weights are read.

    Raises InputError for a folder without them, a missing or damaged shard, or a tensor that the index
    places elsewhere.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder}: no config.json, need a Hugging Face model folder")
    index = read_object(folder / INDEX) if (folder / INDEX).is_file() else None
    places = {} if index is None else _places(folder / INDEX, index)
    shards = tuple(read_header(folder / file) for file in _files(folder, places))
    tensors = tensors_of(folder, shards)
    for name, file in places.items():
        if name not in tensors or tensors[name].file != file:
            raise InputError(
                f"model folder {folder}: {INDEX} places {name} in {file}, which does not hold it; "
                "download the folder again"
            )
    return Checkpoint(folder, shards, tensors, index)


def _places(path: Path, index: Mapping[str, Any]) -> Mapping[str, str]:
    """The index' map of tensors to files, which must all lie in the folder itself."""
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(
            f"{path}: got a weight_map of {type(places).__name__}, need tensors and their files; download it again"
        )
    for file in places.values():
        if not isinstance(file, str) or not _is_plain(file):
            raise InputError(
                f"{path}: weight_map has {file!r} for a shard, need the plain file name of a .safetensors in the "
                "same folder; is it to be trusted?"
            )
    return places


def _is_plain(file: str) -> bool:
    bare = not any(character in file for character in "/\\\0") and Path(file).name == file
    return bare and file.endswith(".safetensors")


def _files(folder: Path, places: Mapping[str, str]) -> list[str]:
    if not places:
        if (folder / SINGLE).is_file():
            return [SINGLE]
        other = sorted(p.name for p in folder.glob("*.bin")) or sorted(
            p.name for p in folder.iterdir()
        )
        raise InputError(
            f"model folder {folder}: no {SINGLE} and no {INDEX} (got {', '.join(other[:3])}); "
            "need safetensors, try save_pretrained with transformers"
        )
    files = sorted(set(places.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"model folder {folder}: {len(missing)} of {len(files)} shards are missing, the first is "
            f"{missing[0]}; download the folder again"
        )
    return files


def read_header(path: Path) -> Shard:
    """A safetensors file's header. Raises InputError when it is damaged or the file cut short."""
    size = path.stat().st_size
    with path.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER
        text = opened.read(length) if length < LARGEST_HEADER else b""
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        sound = _is_sound(header.get("__metadata__", {}), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: not a safetensors file; download it again") from error
    if not sound:
        raise InputError(f"{path}: not a safetensors file; download it again")
    if 8 + length + end != size:
        raise InputError(
            f"{path}: got {size} bytes, need {8 + length + end}; it is cut short, download it again"
        )
    _check_sizes(path, tensors)
    return Shard(path.name, header, 8 + length, size)


def _is_sound(metadata: Any, tensors: Mapping[str, Any]) -> bool:
    """Whether a header has what a safetensors header must have, of the types that it must have."""
    return isinstance(metadata, dict) and all(
        isinstance(entry["dtype"], str)
        and _are_counts(entry["shape"])
        and _are_counts(entry["data_offsets"])
        and len(entry["data_offsets"]) == 2
        and entry["data_offsets"][0] <= entry["data_offsets"][1]
        for entry in tensors.values()
    )


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_sizes(path: Path, tensors: Mapping[str, Any]) -> None:
    """Raise InputError unless every tensor has the bytes of its shape, and none lies over another."""
    before = 0
    for name, entry in sorted(tensors.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        needed = torch.Size(entry["shape"]).numel() * SIZES.get(entry["dtype"], 0)
        if entry["dtype"] in SIZES and stop - start != needed:
            raise InputError(
                f"{path}: {name} has shape {tuple(entry['shape'])} of {entry['dtype']}, {needed} bytes, but "
                f"{stop - start} in the file; download it again"
            )
        if start != before:
            raise InputError(
                f"{path}: {name} starts at byte {start} of the data, need {before}; download it again"
            )
        before = stop


def tensors_of(folder: Path, shards: Sequence[Shard]) -> dict[str, Stored]:
    """Every tensor of some shards by name. Raises InputError when two of them hold the same one."""
    stored: dict[str, Stored] = {}
    for shard in shards:
        for name, entry in shard.header.items():
            if name == "__metadata__":
                continue
            if name in stored:
                raise InputError(
                    f"{folder / shard.file}: holds {name}, as another shard does; download the folder again"
                )
            start, stop = (shard.data_start + offset for offset in entry["data_offsets"])
            shape = tuple(entry["shape"])
            stored[name] = Stored(name, shard.file, entry["dtype"], shape, start, stop)
    return stored
