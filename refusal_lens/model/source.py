"""What a model's name stands for: a folder, a name on the hub, a GGUF file, or a PEFT adapter on one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import organism
from ..errors import InputError
from .boundary import loading

ADAPTER = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SINGLES = ("model.safetensors", "pytorch_model.bin")
"""Where weights lie when they lie in one file, the first that is there."""
POINTER = b"version https://git-lfs"
LARGEST_JSON = 64 << 20


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    at: what transformers opens, a folder or a name on the hub; gguf: the file that holds everything instead;
    adapter: the folder of a PEFT adapter that goes on top; revision: of what lies on the hub.
    """

    name: str
    at: str
    revision: str | None = None
    gguf: Path | None = None
    adapter: Path | None = None

    @property
    def folder(self) -> Path | None:
        """The local folder of the weights, if they are local."""
        return Path(self.at) if self.gguf is None and os.path.isdir(self.at) else None

    @property
    def edits_refused(self) -> str:
        """Why the weights cannot be edited on disk; "" when they can."""
        if self.gguf is not None:
            return "a GGUF file, whose weights are quantised or in llama.cpp's layout"
        return "a PEFT adapter on another model's weights" if self.adapter is not None else ""


def find_source(
    name: str, revision: str | None = None, *, adapter: str | Path | None = None
) -> Source:
    """Find out what a name stands for; weights are neither read nor downloaded.

    adapter: the folder of a PEFT adapter to put on the model. A folder that holds an adapter stands for that
    adapter on its base: the weights beside it, else the model that its configuration names.
    Raises InputError for folders that cannot be a model and adapters whose base is not to be found.
    """
    if not isinstance(name, (str, os.PathLike)) or not str(name).strip() or "\0" in str(name):
        raise InputError(
            f"model: got {name!r}, need a Hugging Face name, a folder, a .gguf file or organism"
        )
    name = os.fspath(name)
    if adapter is not None:
        return _adapted(name, Path(adapter), name, revision)
    if name == "organism":
        return Source(name, str(organism.folder("chat")), revision)
    path = Path(name)
    if path.suffix.lower() == ".gguf" and (os.path.lexists(path) or path.is_absolute()):
        require_file(path)
        return Source(name, str(path.parent), gguf=path)
    if not path.is_dir():
        if os.path.lexists(path) or path.is_absolute():
            raise InputError(
                f"model {name!r}: neither a folder nor a .gguf file; is the path right?"
            )
        return _on_hub(name, revision)
    if (path / ADAPTER).is_file():
        beside = name if (path / "config.json").is_file() else None
        return _adapted(name, path, beside, revision)
    check_files(path)
    return Source(name, name, revision)


def check_files(folder: Path) -> None:
    """Raise InputError for what no model folder holds: pipes, dangling links, LFS pointers, odd JSON."""
    if not os.path.lexists(folder / "config.json"):
        files = sorted(folder.glob("*.gguf"))
        more = f"; try {files[0]}" if files else ", need a Hugging Face model folder"
        raise InputError(f"model folder {folder}: no config.json{more}")
    read_object(folder / "config.json")
    entries = {path.name: path for path in sorted(folder.iterdir())}
    whole = "tokenizer.json" in entries
    for name, path in entries.items():
        if name.endswith((".json", ".jinja")) or (name.endswith(".model") and not whole):
            require_file(path)
    for path in weight_files(folder):
        require_file(path)


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that transformers reads a folder's weights from; () when there are none.

    Raises InputError for an index that is none or names a file outside the folder.
    """
    for single in SINGLES:
        index = folder / f"{single}.index.json"
        if os.path.lexists(folder / single):
            return (folder / single,)
        if os.path.lexists(index):
            places = read_object(index).get("weight_map") or {}
            names = set(places.values()) if _is_map(places) else set()
            if not names or any("/" in n or "\\" in n or "\0" in n or n == ".." for n in names):
                raise InputError(
                    f"{index}: no map of tensors to files of its folder; download it again"
                )
            return tuple(folder / name for name in sorted(names))
    return ()


def _is_map(places: Any) -> bool:
    return isinstance(places, dict) and all(isinstance(file, str) for file in places.values())


def read_object(path: Path) -> Mapping[str, Any]:
    """A JSON file that must hold an object. Raises InputError for any other."""
    require_file(path)
    if path.stat().st_size > LARGEST_JSON:
        raise InputError(f"{path}: got {path.stat().st_size:,} bytes, need a small JSON file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON; download it again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: got a JSON {type(value).__name__}, need an object")
    return value


def require_file(path: Path) -> None:
    """Raise InputError for what is no regular file with content, or a git-lfs pointer in its place."""
    if not path.is_file():
        got = (
            "a folder" if path.is_dir() else "a link to nothing" if path.is_symlink() else "no file"
        )
        if not os.path.lexists(path):
            got = "nothing there"
        raise InputError(f"{path}: got {got}, need a regular file; download it again")
    size = path.stat().st_size
    if not size:
        raise InputError(f"{path}: got an empty file; download it again")
    if size < 1024:
        with path.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                raise InputError(
                    f"{path}: got a git-lfs pointer, need the file itself; try git lfs pull"
                )


def _adapted(name: str, adapter: Path, base: str | None, revision: str | None) -> Source:
    """An adapter's folder on its base, which may itself be no adapter."""
    settings = read_object(adapter / ADAPTER)
    if not any(os.path.lexists(adapter / file) for file in ADAPTER_FILES):
        raise InputError(f"adapter {adapter}: no {ADAPTER_FILES[0]}; download it again")
    for file in ADAPTER_FILES:
        if os.path.lexists(adapter / file):
            require_file(adapter / file)
    if base is None:
        base = settings.get("base_model_name_or_path")
        if not isinstance(base, str) or not base.strip():
            raise InputError(
                f"adapter {adapter}: names no base model; try ChatModel.load(base, adapter=...)"
            )
        beside = adapter / base
        if not os.path.isdir(base) and beside.is_dir() and beside.resolve() != adapter.resolve():
            base = str(beside)
        revision = revision or settings.get("revision")
    if os.path.isdir(base) and (os.path.isfile(os.path.join(base, "config.json"))):
        check_files(Path(base))
        return Source(name, base, revision, adapter=adapter)
    try:
        source = find_source(base, revision)
    except InputError as error:
        raise InputError(
            f"adapter {adapter}: its base model cannot be used ({error})"[:290]
        ) from error
    if source.adapter is not None:
        raise InputError(
            f"adapter {adapter}: its base {base} is an adapter too; merge that one first"
        )
    return Source(name, source.at, source.revision, source.gguf, adapter)


def _on_hub(name: str, revision: str | None) -> Source:
    """A name on the hub, whose repository may hold an adapter, alone or beside the weights."""
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    with loading(name):
        if not find_adapter_config_file(name, revision=revision):
            return Source(name, name, revision)
        wanted = ["adapter_*", "config.json", "tokenizer*", "*.jinja", "special_tokens_map.json"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    if (folder / "config.json").is_file():
        return Source(name, name, revision, adapter=folder)
    return _adapted(name, folder, None, None)
