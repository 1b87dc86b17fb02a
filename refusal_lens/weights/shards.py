"""A checkpoint folder as it lies on disk: safetensors headers, byte ranges, the index."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The dtypes that an edit can be rounded to; others are the sign of a quantised checkpoint."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
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


@dataclass(frozen=True)
class Shard:
    """One safetensors file: its header as it stands, and where the data starts."""

    file: str
    header: Mapping[str, Any]
    data_start: int
    size: int


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
        return _json(self.folder / "config.json")

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


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a folder's safetensors files; no weights are read.

    Raises InputError for a folder without them, a missing or damaged shard, or a tensor that the index
    places elsewhere.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder}: no config.json, need a Hugging Face model folder")
    index = _json(folder / INDEX) if (folder / INDEX).is_file() else None
    shards = tuple(_shard(folder, file) for file in _files(folder, index))
    tensors = {stored.name: stored for shard in shards for stored in _stored(shard)}
    for name, file in (index or {}).get("weight_map", {}).items():
        if name not in tensors or tensors[name].file != file:
            raise InputError(
                f"model folder {folder}: {INDEX} places {name} in {file}, which does not hold it; "
                "download the folder again"
            )
    return Checkpoint(folder, shards, tensors, index)


def _files(folder: Path, index: Mapping[str, Any] | None) -> list[str]:
    if index is None:
        if (folder / SINGLE).is_file():
            return [SINGLE]
        other = sorted(p.name for p in folder.glob("*.bin")) or sorted(
            p.name for p in folder.iterdir()
        )
        raise InputError(
            f"model folder {folder}: no {SINGLE} and no {INDEX} (got {', '.join(other[:3])}); "
            "need safetensors, try save_pretrained with transformers"
        )
    files = sorted(set(index.get("weight_map", {}).values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not files:
        raise InputError(
            f"model folder {folder}: {len(missing)} of {len(files)} shards are missing, the first is "
            f"{missing[0] if missing else INDEX}; download the folder again"
        )
    return files


def _shard(folder: Path, file: str) -> Shard:
    path = folder / file
    size = path.stat().st_size
    with path.open("rb") as opened:
        start = opened.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else LARGEST_HEADER
        text = opened.read(length) if length < LARGEST_HEADER else b""
    try:
        header = json.loads(text)
        end = max(
            (each["data_offsets"][1] for n, each in header.items() if n != "__metadata__"),
            default=0,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a safetensors file; download it again") from error
    if 8 + length + end != size:
        raise InputError(
            f"{path}: got {size} bytes, need {8 + length + end}; it is cut short, download it again"
        )
    return Shard(file, header, 8 + length, size)


def _stored(shard: Shard) -> list[Stored]:
    return [
        Stored(
            name,
            shard.file,
            each["dtype"],
            tuple(each["shape"]),
            shard.data_start + each["data_offsets"][0],
            shard.data_start + each["data_offsets"][1],
        )
        for name, each in shard.header.items()
        if name != "__metadata__"
    ]


def header_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header, padded so that the data starts at a multiple of eight."""
    whole = ({"__metadata__": dict(metadata)} if metadata else {}) | dict(tensors)
    text = json.dumps(whole, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON; download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: got a JSON {type(value).__name__}, need an object")
    return value
