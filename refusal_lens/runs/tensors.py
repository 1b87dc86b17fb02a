"""Named tensors in safetensors files whose every byte follows from what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusal_lens.errors import InputError
from refusal_lens.runs.files import writing
from refusal_lens.runs.opening import read_bytes

ALIGNED = 8
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


@dataclass(frozen=True, eq=False)
class Tensors:
    """What a safetensors file holds: torch tensors by name, and a header of strings."""

    tensors: Mapping[str, Any]
    header: Mapping[str, str]


def write_safetensors(
    path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named torch tensors with a header of strings, whole or not at all.

    The same contents give the same bytes, which the library's own writer does not promise: it
    orders the header by chance. Format: eight bytes of length, a JSON header padded with spaces,
    the tensors' bytes without gaps, the widest first.

    Raises:
        TypeError: a tensor of a dtype that results do not have.

    """
    import torch

    header: dict[str, Any] = {}
    sorted_metadata = dict(sorted((metadata or {}).items()))
    contents: list[bytes] = []
    end = 0
    for name in sorted(tensors, key=lambda n: (-tensors[n].element_size(), n)):
        tensor = tensors[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _NAMES:
            raise TypeError(f"tensor {name!r}: got dtype {dtype}, need one of {', '.join(_NAMES)}")
        contents.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        start, end = end, end + len(contents[-1])
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    with writing(path) as temporary:
        temporary.write_bytes(b"".join([header_bytes(header, sorted_metadata), *contents]))


def header_bytes(tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header: eight bytes of length, then JSON, padded so that the data is aligned."""
    whole = ({"__metadata__": dict(metadata)} if metadata else {}) | dict(tensors)
    text = json.dumps(whole, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % ALIGNED)
    return len(text).to_bytes(8, "little") + text


def read_safetensors(path: Path) -> Tensors:
    """Read all of a safetensors file; it may be a link, as in a download's cache.

    Raises:
        InputError: it is missing, no regular file, or damaged.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = read_bytes(path, follow=True)
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, RuntimeError, KeyError, RecursionError) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: cannot be read as safetensors ({why}); make it again") from error
    return Tensors(tensors, header.get("__metadata__") or {})
