"""Lists of prompts read from text files, JSON, CSV, parquet, folders and HF data sets."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..conversations import Conversation, Prompt, texts_of
from ..errors import InputError
from .files import FORMATS, TABLES, regular_file, rows_of
from .rows import COLUMNS, conversation_in, is_conversation, needs_more, prompt_column, prompt_in

__all__ = ["COLUMNS", "Source", "is_folder", "is_unicode", "read_dataset", "read_file"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# What stands in a folder of data beside the data.
_BESIDE = re.compile(r"(readme|license|licence|requirements|dataset_infos?|state|metadata)\.", re.I)


@dataclass(frozen=True)
class Source:
    """Prompts as they were found, with where they come from; texts are stripped and not empty.

    `provenance` can be written as JSON; `skipped` counts rows that need a second text.
    """

    prompts: tuple[Prompt, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skipped: int = 0

    @property
    def where(self) -> str:
        """Where they were found, in a message: " at ", or nothing for a list."""
        known = self.provenance.get("file") or self.provenance.get("dataset")
        return "" if known is None else f" at {known}"


def read_file(path: str | Path, *, column: str | None = None, verbatim: bool = False) -> Source:
    """Prompts of a .txt (one a line), .json, .jsonl, .csv, .tsv, .parquet or .arrow file.

    JSON holds texts, or objects with the column, in a list, in lines, or in a list within an object
    ({"data": [...]}); without a column the first of `COLUMNS` counts, however it is spelt, then of `CONVERSATIONS`.
    Texts stay texts: "null", "NA" and "1984" are instructions. A list of messages (role and content, or ShareGPT's
    from and value) is a conversation, whose last message is the reply where the assistant has the last word; so is a
    ``prompt`` with its ``response``. Blank cells are left out, and so are rows
    that need a second text (Alpaca's `input`, HarmBench's `ContextString`), which are counted.
    CSV may be separated by commas, semicolons, tabs or bars, and text may be UTF-8, or UTF-16 with
    its mark. verbatim=True keeps every entry as it is, blank ones and white space at the ends
    included.
    """
    where = _path(path)
    regular_file(where, "prompts at")
    rows = rows_of(where, column=column)
    provenance = {"file": str(path), "sha256": _sha256(where)}
    tabular = where.suffix.lower() in TABLES
    return _collected(rows, str(where), column, provenance, verbatim=verbatim, tabular=tabular)


def read_dataset(
    name: str,
    *,
    column: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Source:
    """Prompts of a Hugging Face data set, or of a local folder of data files.

    A configuration follows the name after a colon: "owner/name:configuration". A folder holds files
    of one format, each read as `read_file` does; where names or folders say train, validation or
    test, those of the split count. A folder written by `save_to_disk` is read as such.
    """
    path = _path(name)
    if is_folder(path):
        return _read_folder(path, column, split)
    if os.path.exists(path):
        return read_file(path, column=column)
    if path.suffix.lower() in FORMATS or name.startswith(("/", "./", "../", "~")):
        raise InputError(f"prompts at {name}: got no such file or folder, need one that exists")
    hub_name, _, configuration = name.partition(":")
    rows = _load(hub_name, split, name=configuration or None, revision=revision)
    provenance = {"dataset": name, "split": split, "revision": revision}
    return _collected(rows, f"{name} (split {split})", column, provenance, tabular=True)


def is_folder(path: str | Path) -> bool:
    """Whether the path is a folder that is there; False for what is no path."""
    return os.path.isdir(_path(path))


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: no half of a surrogate pair stands alone in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _path(path: Any) -> Path:
    if not isinstance(path, str | Path) or not str(path).strip():
        raise InputError(f"prompts: got {path!r:.60}, need the path of a file or a data set's name")
    if "\0" in str(path):
        raise InputError(f"prompts: got a path with a NUL in it ({str(path)!r:.60}), need a path")
    return Path(path)


def _load(path: str, split: str, **options: Any) -> Iterable[Any]:
    import datasets

    try:
        return datasets.load_dataset(path, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(f"{path} (split {split})", error) from error


def _unreadable(what: str, error: Exception) -> InputError:
    reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"data set {what}: got {reason[:160]!r}, need a data set that can be read here; try its "
        "exact name, split and revision, or a local file or folder"
    )


def _read_folder(folder: Path, column: str | None, split: str) -> Source:
    where = f"{folder} (split {split})"
    provenance: dict[str, Any] = {"dataset": str(folder), "split": split, "revision": None}
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        provenance["files"] = {
            str(p.relative_to(folder)): _sha256(p) for p in sorted(folder.rglob("*.arrow"))
        }
        return _collected(_saved(folder, split), where, column, provenance, tabular=True)
    files = _files_of_split(folder, split)
    sources = [read_file(path, column=column) for path in files]
    provenance["files"] = {
        str(path.relative_to(folder)): source.provenance["sha256"]
        for path, source in zip(files, sources, strict=True)
    }
    prompts = tuple(prompt for source in sources for prompt in source.prompts)
    return Source(prompts, provenance, sum(source.skipped for source in sources))


def _saved(folder: Path, split: str) -> Iterable[Any]:
    """The rows of a folder that `save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise _unreadable(str(folder), error) from error
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if split not in saved:
        raise InputError(
            f"prompts at {folder}: got splits {', '.join(saved)}, need one of them (split {split}); "
            "try split="
        )
    return saved[split]


def _files_of_split(folder: Path, split: str) -> list[Path]:
    """The data files of a split, in order: all of them where no name says train, val or test."""
    inside = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    files = [
        path
        for path in inside
        if path.suffix.lower() in FORMATS
        and not _BESIDE.match(path.name)
        and not any(part.startswith(".") for part in path.parts)
    ]
    formats = sorted({path.suffix.lower() for path in files})
    if len(formats) != 1:
        raise InputError(
            f"prompts at {folder}: got files in {', '.join(formats) or 'no format'}, need one of "
            f"{', '.join(FORMATS)}; try the name of one file"
        )
    splits = {path: _split_of(path) for path in files}
    named = sorted({name for name in splits.values() if name})
    wanted = _SPLIT_NAMES.get(split, split)
    if not named and wanted == "train":
        return [folder / path for path in files]
    if wanted not in named:
        raise InputError(
            f"prompts at {folder}: got {', '.join(named) or 'train'}, need split {split}; try the "
            "name of one file"
        )
    return [folder / path for path in files if splits[path] == wanted]


def _split_of(path: Path) -> str | None:
    words = re.split(r"[^a-z]+", str(path.with_suffix("")).lower())
    return next((_SPLIT_NAMES[word] for word in reversed(words) if word in _SPLIT_NAMES), None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _collected(
    rows: Iterable[Any],
    where: str,
    column: str | None,
    provenance: Mapping[str, Any],
    *,
    verbatim: bool = False,
    tabular: bool = False,
) -> Source:
    """The prompts of rows; tabular: the rows of a table whose values have types."""
    prompts: list[Prompt] = []
    skipped, blank = 0, 0
    for number, row in enumerate(rows, start=1):
        entry = f"{where}, entry {number}"
        prompt = row
        if isinstance(row, Mapping):
            key = prompt_column(row, column, entry)
            if needs_more(row, key):
                skipped += 1
                continue
            # A missing value of a table is a blank cell.
            missing = row[key] is None and tabular
            prompt = "" if missing else row[key]
            if not verbatim and not missing:
                prompt = _at(entry, prompt_in, row, key, alone=column is not None)
            blank += isinstance(prompt, str) and not prompt.strip()
        elif is_conversation(row):
            prompt = _at(entry, conversation_in, row).prompt
        _check_text(prompt, entry)
        if isinstance(prompt, str) and not verbatim:
            prompt = prompt.strip()
        if verbatim or prompt:
            prompts.append(prompt)
    if skipped:
        log.warning("prompts at %s: %d rows need a second text and are left out", where, skipped)
    if blank:
        log.info("prompts at %s: %d blank rows are left out", where, blank)
    if not prompts:
        left = f" ({skipped} rows need a second text)" if skipped else ""
        raise InputError(f"prompts at {where}: got no instruction{left}, need at least one")
    return Source(tuple(prompts), provenance, skipped)


def _at(entry: str, read: Callable[..., T], *given: Any, **options: Any) -> T:
    """What a reader makes of an entry; its InputError names the entry."""
    try:
        return read(*given, **options)
    except InputError as error:
        raise InputError(f"prompts at {entry}: {error}") from error


def _check_text(prompt: Any, entry: str) -> None:
    if not isinstance(prompt, str | Conversation):
        raise InputError(f"prompts at {entry}: got {prompt!r:.60}, need text")
    for text in texts_of(prompt):
        if not is_unicode(text):
            raise InputError(
                f"prompts at {entry}: got a lone surrogate in {text!r:.60}, need Unicode text; try to "
                "write the character itself"
            )
