"""One step of a run: what determines its results, and whether those on the disk can be trusted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
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
from refusal_lens.runs import files
from refusal_lens.runs.environment import versions
from refusal_lens.runs.journal import Journal

log = logging.getLogger(__name__)

FORMAT = 1
STEPS = "steps"
_DAMAGED = "got something that is not a step's manifest; try again without the file"


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

    def damage(self, path: Path, *, verify: bool = False) -> str:
        """Say what is wrong with the file at `path` ("" for nothing); `verify` reads all of it."""
        if not path.is_file():
            return "is missing"
        if path.stat().st_size != self.bytes:
            return "has another size than it was written with"
        if verify and files.sha256_of(path) != self.sha256:
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
        try:
            outputs = {name: Output(**output) for name, output in fields.pop("outputs").items()}
            manifest = cls(outputs=outputs, **fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: {_DAMAGED}") from error
        if manifest.format != FORMAT:
            raise InputError(f"{path}: got format {manifest.format}, need {FORMAT}")
        if not (isinstance(manifest.inputs, dict) and isinstance(manifest.after, dict)):
            raise InputError(f"{path}: {_DAMAGED}")
        for name in outputs:
            if not is_inside(name):
                raise ForeignManifestError(
                    f"{path}: got output {name!r}, need one inside of the run; the folder is "
                    "damaged or foreign, try another one"
                )
        return manifest

    def damage(self, folder: Path, *, verify: bool = False) -> str:
        """Say which output is not as it was left ("" when none); `verify` hashes their contents."""
        for name, output in self.outputs.items():
            if damage := output.damage(folder / name, verify=verify):
                return f"{name} {damage}"
        return ""


def is_inside(name: str) -> bool:
    """Whether the name of an output stays inside of the folder of its run."""
    path = Path(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


class Step:
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
        verify: bool = False,
        staged: bool = False,
    ) -> None:
        self.folder = folder
        self.name = name
        self.inputs: dict[str, Any] = files.plain(inputs, spelt=True)
        self.after = dict(after)
        self.key = key_of(name, inputs, after)
        self._staging = folder / f".{name}.{os.getpid()}{files.TEMPORARY}" if staged else None
        self._manifest = folder / STEPS / f"{name}.json"
        self.reason = self._judge(verify)
        self.needed = bool(self.reason)
        self._journal = Journal(folder / STEPS / f"{name}.{self.key[:12]}.journal")
        self._outputs: dict[str, Output] = {}
        self._started = time.perf_counter()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What a killed attempt with the same key remembered with `keep`, oldest first."""
        return list(self._journal.records)

    def _judge(self, verify: bool) -> str:
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
        return old.damage(self.folder, verify=verify)

    def begin(self) -> None:
        """Forget what an earlier key left, so that a kill half-way cannot look like a done step.

        Staged outputs stand apart until `finish`, and leave what is there alone until then.
        """
        if not self.needed:
            log.info("%s: kept", self.name)
            return
        if self._manifest.exists():
            log.info("%s: redone because %s", self.name, self.reason)
            if self._staging is None:
                self.forget()
        for journal in self._manifest.parent.glob(f"{self.name}.*.journal"):
            if journal != self._journal.path:
                journal.unlink()
        if self.records:
            log.info("%s: goes on after %d finished parts", self.name, len(self.records))

    def forget(self) -> None:
        """Remove the manifest first, then the outputs that it vouched for."""
        try:
            outputs = Manifest.read(self._manifest).outputs
        except InputError:
            outputs = {}
        self._manifest.unlink(missing_ok=True)
        for name in outputs:
            if name not in self._outputs:
                (self.folder / name).unlink(missing_ok=True)

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
                files.move(staged, self.folder / name)

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
            files.write_safetensors(path, tensors, metadata)

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
        path = (folder or self._staging or self.folder) / name
        yield path
        self._outputs[name] = Output.of(path)


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
    said = [_change(name, before.get(name), now.get(name)) for name in names[:shown]]
    more = [f"{len(names) - shown} more"] if len(names) > shown else []
    return " and ".join([", ".join(said), *more])


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
    texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
    if max(map(len, texts)) > 30:
        return f"{name} changed"
    return f"{name} changed {texts[0]} -> {texts[1]}"
