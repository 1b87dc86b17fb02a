"""What identifies a model's weights: by its files, without loading them, and once they are loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .boundary import loading
from .source import Source, find_source

EVERY_BYTE = 16 << 30
"""Bytes of a model's files up to which all of them are read."""
BLOCK = 1 << 20
BLOCKS = 256
"""Blocks that stand for a weight file of a larger model."""
SAMPLES = 4096
"""Values that stand for a parameter of a loaded model."""
WHOLE = "every byte"
SAMPLED = "of files above 1 MiB: size, time of change, header and 256 blocks of 1 MiB; every byte of others"


def fingerprint(
    name: str,
    revision: str | None = None,
    *,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
) -> dict[str, Any]:
    """What identifies the weights without loading them.

    For what is local, the SHA-256 of the names and contents of the model's files, and in "covers" what of
    them: every byte up to 16 GiB in all, so that a copy elsewhere counts as the same model; of the large files
    of a larger model their size, time of change, header (first MiB), last MiB and 256 blocks spread over them, which
    a changed byte passes only if the time of change was set back. An adapter's "base" is identified likewise.
    For a hub name: the commit that the name resolves to.
    Raises InputError for what is neither, and for files that cannot be read.
    """
    source = find_source(name, revision, adapter=adapter)
    weights = _weights(source, trust_remote_code)
    if source.adapter is None:
        return weights
    base = {**weights, "name": Path(source.at).name if "sha256" in weights else source.at}
    return {
        "name": Path(name).name,
        **_files(source.adapter, _model_files(source.adapter)),
        "base": base,
    }


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of a loaded model's parameters: names, shapes and up to 4096 values of each, as bfloat16.

    The same for a folder, a copy of it under another name and the plain model that a bridge wraps, in float32 and in
    bfloat16; a fine-tune, a merge and an edit have others. A parameter of zeros counts for nothing, since a bridge
    may add one. Empty where weights are not in memory.
    """
    digest = hashlib.sha256()
    for name, parameter in _plain_parameters(model, "", set()):
        if parameter.is_meta:
            return ""
        values = parameter.detach().reshape(-1)
        n = min(SAMPLES, len(values))
        values = values[(torch.arange(n) * (len(values) - 1) // max(1, n - 1)).to(values.device)].cpu()
        if bool(values.any()):
            values = values.to(torch.bfloat16) if values.is_floating_point() else values
            digest.update(f"{name}\0{tuple(parameter.shape)}\0".encode())
            digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _plain_parameters(
    module: nn.Module, prefix: str, seen: set[int]
) -> Iterator[tuple[str, Tensor]]:
    """Names and parameters as they are without a bridge, which keeps what it wraps and adds split copies."""
    module = module._modules.get("_original_component") or module
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in seen:
            seen.add(id(parameter))
            yield f"{prefix}{name}", parameter
    for name, child in module._modules.items():
        if child is not None:
            yield from _plain_parameters(child, f"{prefix}{name}.", seen)


def _weights(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    if source.gguf is not None:
        return {"name": source.gguf.name, **_files(source.gguf.parent, [source.gguf])}
    if source.folder is None:
        from transformers import AutoConfig

        with loading(source.at):
            config = AutoConfig.from_pretrained(
                source.at, revision=source.revision, trust_remote_code=trust_remote_code
            )
        return {
            "name": source.at,
            "commit": getattr(config, "_commit_hash", None) or source.revision,
        }
    name = source.name if source.name == "organism" else source.folder.name
    return {"name": name, **_files(source.folder, _model_files(source.folder))}


def _model_files(folder: Path) -> list[Path]:
    """What loading may read: the files of the folder itself, and further chat templates."""
    inner = folder / "additional_chat_templates"
    listed = [*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ())]
    return sorted(path for path in listed if not path.name.startswith(".") and path.is_file())


def _files(folder: Path, files: list[Path]) -> dict[str, str]:
    sampled = sum(path.stat().st_size for path in files) > EVERY_BYTE
    digest = hashlib.sha256()
    for path in files:
        try:
            told = path.stat()
            known = (told.st_ino, told.st_mtime_ns, told.st_ctime_ns, told.st_size)
            content = _content(path.resolve(), known, sampled)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); is it whole?") from error
        digest.update(f"{path.relative_to(folder)}\0{told.st_size}\0{content}\n".encode())
    return {"sha256": digest.hexdigest(), "covers": SAMPLED if sampled else WHOLE}


@lru_cache(maxsize=4096)
def _content(path: Path, known: tuple[int, int, int, int], sampled: bool) -> str:
    """Hash of a file; `known` makes the cache forget what was written since."""
    _inode, changed, _, size = known
    with path.open("rb") as opened:
        if not sampled or size <= BLOCK:
            whole = hashlib.sha256()
            while read := opened.read(BLOCK):
                whole.update(read)
            return whole.hexdigest()
        digest = hashlib.sha256(f"{changed}".encode())
        last = size - BLOCK
        for number in range(BLOCKS):
            opened.seek(last * number // (BLOCKS - 1))
            digest.update(opened.read(BLOCK))
        return digest.hexdigest()
