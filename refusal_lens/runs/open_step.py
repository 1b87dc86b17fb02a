"""One step of a run: what determines its results, and whether those on the disk can be trusted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from refusal_lens.display import shown
from refusal_lens.errors import InputError
from refusal_lens.runs import files, schema
from refusal_lens.runs import tensors as tensors_file
from refusal_lens.runs.environment import versions
from refusal_lens.runs.journal import OF_A_KEY, Journal, journal_name, journals
from refusal_lens.runs.opening import LARGEST, is_inside, place_in

log = logging.getLogger(__name__)

FORMAT = 1
STEPS = "steps"
_NAME = re.compile(r"[^/\\\0.][^/\\\0]*", re.DOTALL)
_LONGEST_NAME, _LONGEST_VALUE = 60, 30
_DAMAGED = "got something that is not a step's manifest"


class ForeignManifestError(InputError):
    """A step's manifest names files outside of its run: nothing in that folder is to be touched."""


@dataclass(frozen=True)
class Output:
    """What a finished file looked like: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path) -> Output:
        """Describe the file at `path`."""
        return cls(files.sha256_of(path), path.stat().st_size)

    def damage(self, folder: Path, name: str) -> str:
        """Say what is wrong with the file of this name ("" for nothing); reads all of it."""
        try:
            path = place_in(folder, name)
            size = path.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return "is missing"
        except InputError as error:
            return f"is not what it was written as ({error})"
        if size != self.bytes or size > LARGEST:
            return "has another size than it was written with"
        if files.sha256_of(path) != self.sha256:
            return "has other contents than it was written with"
        return ""


@shown()
@dataclass(frozen=True)
class Manifest:
    """What `steps/<name>.json` holds; the step is done when it exists and the outputs agree."""

    step: str
    key: str
    inputs: dict[str, Any]
    after: dict[str, str]
    outputs: dict[str, Output]
    seconds: float
    finished: str
    versions: dict[str, str]
    format: int = FORMAT

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read one.

        Raises:
            InputError: it is missing or damaged, or a newer version of the package wrote it.
            ForeignManifestError: it names an output outside of the run.

        """
        fields = files.read_json(path)
        if isinstance(fields, dict) and isinstance(fields.get("outputs"), dict):
            for name in fields["outputs"]:
                _require_inside(name, path)
        try:
            schema.checked(fields, schema.StepFile, f"{path}")
        except InputError as error:
            raise InputError(f"{path}: {_DAMAGED} ({_reason(error, path)})") from error
        if fields["format"] != FORMAT:
            raise InputError(f"{path}: got format {str(fields['format'])[:20]}, need {FORMAT}")
        if fields["step"] != path.stem:
            raise InputError(f"{path}: {_DAMAGED}, but that of another one")
        outputs = {
            name: Output(facts["sha256"], facts["bytes"]) for name, facts in fields["outputs"].items()
        }
        known = {field.name for field in dataclasses.fields(cls)} - {"outputs"}
        return cls(outputs=outputs, **{name: fields[name] for name in known})

    def damage(self, folder: Path) -> str:
        """Say which output is not as it was left ("" when none)."""
        return next((f"{name} {what}" for name, what in self.damages(folder).items()), "")

    def damages(self, folder: Path) -> dict[str, str]:
        """What is wrong with each output that is not as it was left; every file is read."""
        damages = {name: output.damage(folder, name) for name, output in self.outputs.items()}
        return {name: what for name, what in damages.items() if what}


def _require_inside(name: str, path: Path) -> None:
    if not is_inside(name):
        raise ForeignManifestError(
            f"{path}: got output {name[:80]!r}, need one inside of the run; the folder is damaged "
            "or foreign, try another one"
        )


def _reason(error: InputError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ").removesuffix("; make it again")


class OpenStep:
    """A step to be done or found done, as `run.step(...)` yields it.

    Attributes:
        name: the step's name.
        key: SHA-256 of what determines its results.
        needed: whether it is to be done.
        reason: why it is; "" when it is not.

    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        inputs: Mapping[str, Any],
        after: Mapping[str, str],
        staged: bool = False,
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name of a step: got {name[:80]!r}, need that of a file")
        self.folder = folder
        self.name = name
        self.inputs: dict[str, Any] = files.plain(inputs, spelt=True)
        self.after = dict(after)
        self.key = key_of(name, inputs, after)
        self._staging = folder / files.temporary_name(name) if staged else None
        self._manifest = folder / STEPS / f"{name}.json"
        self.reason = self._why_needed()
        self.needed = bool(self.reason)
        self._journal = Journal(folder / STEPS / journal_name(name, self.key))
        self._outputs: dict[str, Output] = {}
        self._started = time.perf_counter()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What a killed attempt with the same key remembered with `keep`, oldest first."""
        return list(self._journal.records)

    def _why_needed(self) -> str:
        """Why the step is to be done; "" when its results can be trusted."""
        if not self._manifest.exists():
            return "it was not done before"
        try:
            old = Manifest.read(self._manifest)
        except ForeignManifestError:
            raise
        except InputError:
            return "its manifest is damaged"
        if old.key != self.key:
            changes = (difference(old.inputs, self.inputs), difference(old.after, self.after))
            return " and ".join(filter(None, changes)) or "its key changed"
        return old.damage(self.folder)

    def begin(self) -> None:
        """Forget what an earlier key left, so that a kill half-way cannot look like a done step.

        Staged outputs stand apart until `finish`, and leave what is there alone until then.
        """
        self._remove_journals()
        if not self.needed:
            log.info("%s: kept", self.name)
            return
        if self._manifest.exists():
            log.info("%s: redone because %s", self.name, self.reason)
            if self._staging is None:
                self.forget()
        if self.records:
            log.info("%s: goes on after %d finished parts", self.name, len(self.records))

    def _remove_journals(self) -> None:
        """Remove the journals of other keys, and of this one when the step is done."""
        for path, step, key in journals(self._manifest.parent):
            if step == self.name and not (self.needed and key == self.key[:OF_A_KEY]):
                path.unlink()

    def forget(self) -> None:
        """Remove the manifest first, then the outputs that it vouched for."""
        try:
            outputs = Manifest.read(self._manifest).outputs
        except InputError:
            outputs = {}
        self._manifest.unlink(missing_ok=True)
        for name in outputs:
            if name not in self._outputs:
                _remove(self.folder, name)

    def discard(self) -> None:
        """Remove what was staged and did not take its place."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _take_place(self) -> None:
        """Put what was staged where the outputs of an earlier key were."""
        if self._staging is None:
            return
        self.forget()
        for name in self._outputs:
            staged = self._staging / name
            if staged.exists():
                files.move(staged, place_in(self.folder, name))

    def finish(self) -> None:
        """Write the manifest, last of all."""
        if not self.needed:
            return
        self._take_place()
        seconds = round(time.perf_counter() - self._started, 3)
        manifest = Manifest(
            step=self.name,
            key=self.key,
            inputs=self.inputs,
            after=self.after,
            outputs=self._outputs,
            seconds=seconds,
            finished=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
            versions=versions(),
        )
        files.write_json(self._manifest, asdict(manifest))
        self._journal.remove()
        log.info("%s: done in %.1f s", self.name, seconds)

    def keep(self, record: Mapping[str, Any]) -> None:
        """Remember a finished part of a long step now, so that a kill costs only the next part."""
        self._journal.append(record)

    def write_json(self, name: str, value: Any) -> None:
        """Write an output as JSON; NaN becomes null."""
        with self._output(name) as path:
            files.write_json(path, value)

    def write_jsonl(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write an output with one JSON object per line."""
        with self._output(name) as path:
            files.write_jsonl(path, rows)

    def write_csv(self, name: str, frame: Any) -> None:
        """Write a pandas DataFrame as an output; NaN becomes an empty cell."""
        with self._output(name) as path:
            files.write_csv(path, frame)

    def write_text(self, name: str, text: str) -> None:
        """Write text as an output."""
        with self._output(name) as path:
            files.write_text(path, text)

    def write_safetensors(
        self, name: str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write named torch tensors as an output."""
        with self._output(name) as path:
            tensors_file.write_safetensors(path, tensors, metadata)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Yield a temporary path for something that writes its own file; it becomes the output."""
        with self._output(name) as path, files.writing(path) as temporary:
            yield temporary

    def adopt(self, name: str) -> None:
        """Count a file that something else wrote into the folder among the outputs."""
        with self._output(name, self.folder):
            pass

    @contextmanager
    def _output(self, name: str, folder: Path | None = None) -> Iterator[Path]:
        """Yield where an output goes, and record what was written there."""
        if not self.needed:
            raise RuntimeError(f"step {self.name} is done and may not write {name} again")
        if not is_inside(name):
            raise ValueError(f"step {self.name}: got output {name!r}, need one inside of the run")
        place_in(self.folder, name)
        path = (folder or self._staging or self.folder) / name
        yield path
        self._outputs[name] = Output.of(path)


def _remove(folder: Path, name: str) -> None:
    """Remove an output; what is reached through a link, or is no file, is left alone."""
    try:
        place_in(folder, name).unlink(missing_ok=True)
    except InputError as error:
        log.warning("left alone: %s", error)


def key_of(name: str, inputs: Mapping[str, Any], after: Mapping[str, str]) -> str:
    """SHA-256 of a step's name, inputs and the keys of the steps before it, as canonical JSON."""
    whole = {"step": name, "inputs": files.plain(inputs, spelt=True), "after": dict(after)}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def difference(old: Mapping[str, Any], new: Mapping[str, Any], *, shown: int = 3) -> str:
    """Say in words what changed between two mappings; "" when nothing did.

    >>> difference({"kl": 0.1, "prompts": {"n": 4}}, {"kl": 0.05, "prompts": {"n": 4}})
    'kl changed 0.1 -> 0.05'
    """
    before, now = _flat(old), _flat(new)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    changes = [_change(name, before.get(name), now.get(name)) for name in names[:shown]]
    more = [f"{len(names) - shown} more"] if len(names) > shown else []
    return " and ".join([", ".join(changes), *more])


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item
    return flat


def _change(name: str, old: Any, new: Any) -> str:
    """One change; long values, such as hashes, are not spelled out."""
    name = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}\u2026"
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    if max(map(len, texts)) > _LONGEST_VALUE:
        return f"{name} changed"
    return f"{name} changed {texts[0]} -> {texts[1]}"
