"""A run folder: who may write to it, its steps in order, and the manifest of the whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from refusal_lens.errors import InputError
from refusal_lens.runs import files
from refusal_lens.runs.environment import machine, versions
from refusal_lens.runs.folder import MARK, refuse_what_is_no_run, sweep_temporaries
from refusal_lens.runs.lock import FolderLock
from refusal_lens.runs.step import FORMAT, STEPS, Manifest, Step

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class Run:
    """A folder of results that remembers how far it got.

    A step is a name, the inputs that determine its results, and the steps that it builds on. Its
    results are trusted when its manifest exists, has the same key, and its files are as they were
    left. Killed at any moment and started again, a run goes on where it was; with a changed input,
    the steps that depend on it are done again and say why. What only changes speed (batch size,
    device) is no input.

    >>> from tempfile import TemporaryDirectory
    >>> place = TemporaryDirectory()
    >>> def work(threshold):
    ...     with Run.open(Path(place.name) / "run") as run:
    ...         with run.step("means", inputs={"data": "a1b2"}) as step:
    ...             if step.needed:
    ...                 step.write_json("means.json", [1, 2, 3])
    ...         with run.step("scores", inputs={"threshold": threshold}, after=["means"]) as step:
    ...             if step.needed:
    ...                 means = files.read_json(run.path / "means.json")
    ...                 step.write_json("scores.json", [m for m in means if m > threshold])
    ...         return step.reason
    >>> work(1), work(1), work(2)
    ('it was not done before', '', 'threshold changed 1 -> 2')
    """

    def __init__(self, path: Path, *, lock: FolderLock | None = None, verify: bool = False) -> None:
        self.path = path
        self._lock = lock
        self._verify = verify

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = False) -> Run:
        """Open a run folder to write to, made when missing; nobody else may until it is closed.

        `verify` reads every file of the steps found done and compares its hash, not just its size.

        Raises:
            InputError: `path` is a file, holds something else than a run, or is in use.
            OSError: the folder cannot be made.

        """
        folder = Path(path)
        refuse_what_is_no_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            sweep_temporaries(folder)
            if not (folder / MARK).exists():
                files.write_json(folder / MARK, {"format": FORMAT, "made_by": "refusal_lens"})
        except BaseException:
            lock.release()
            raise
        return cls(folder, lock=lock, verify=verify)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Run:
        """Open a run folder to read from.

        Raises:
            InputError: there is no run there.

        """
        folder = Path(path)
        if not folder.exists():
            raise InputError(
                f"run folder at {folder}: got none, need one; try refusal-lens run --out {folder}"
            )
        refuse_what_is_no_run(folder)
        if not (folder / MARK).exists():
            raise InputError(
                f"run folder at {folder}: got an empty folder, need a run; "
                f"try refusal-lens run --out {folder}"
            )
        return cls(folder)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write to the folder."""
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def step(
        self, name: str, *, inputs: Mapping[str, Any], after: Sequence[str] = ()
    ) -> Iterator[Step]:
        """Yield a step; `if step.needed:` guards its work, and its manifest is written at the end.

        Args:
            name: a file name without suffix, unique in the run.
            inputs: everything that determines the results and does not come from earlier steps;
                anything that `plain` turns into JSON.
            after: the steps whose results this one uses; each must be done.

        Raises:
            OSError: a file cannot be written; strerror is one clear line.

        """
        step = self._step(name, inputs, after)
        if step.needed:
            # The whole is no longer what its manifest says.
            (self.path / MANIFEST).unlink(missing_ok=True)
        step.begin()
        yield step
        step.finish()

    @contextmanager
    def addition(
        self, name: str, *, inputs: Mapping[str, Any], after: Sequence[str] = ()
    ) -> Iterator[Step]:
        """Yield a step that is added to a finished run, such as a study of its direction.

        Like `step`, but the run stays finished, also when the addition is killed half-way: before
        its work and after it, `manifest.json` is brought up to date with the steps that are done.

        Raises:
            InputError: the run is not finished.
            OSError: a file cannot be written; strerror is one clear line.

        """
        whole = self.whole()
        step = self._step(name, inputs, after)
        if not step.needed:
            step.begin()
            yield step
            return
        others = {other: m for other, m in self.manifests().items() if other != name}
        files.write_json(self.path / MANIFEST, {**whole, **_of_steps(others)})
        step.begin()
        yield step
        step.finish()
        files.write_json(self.path / MANIFEST, {**whole, **_of_steps(self.manifests())})

    def _step(self, name: str, inputs: Mapping[str, Any], after: Sequence[str]) -> Step:
        if self._lock is None:
            raise RuntimeError("this run was opened to read; use Run.open to write")
        keys = {other: self.manifest(other).key for other in after}
        return Step(self.path, name, inputs=inputs, after=keys, verify=self._verify)

    def manifest(self, step: str) -> Manifest:
        """Read the manifest of a step that is done.

        Raises:
            InputError: the step is not done, or its manifest is damaged.

        """
        path = self.path / STEPS / f"{step}.json"
        if not path.exists():
            raise InputError(
                f"run folder at {self.path}: got one where step {step!r} is not done, need it; "
                f"try refusal-lens run --out {self.path} again"
            )
        return Manifest.read(path)

    def manifests(self) -> dict[str, Manifest]:
        """Read the manifests of all steps that are done, in the order in which they were."""
        paths = sorted((self.path / STEPS).glob("*.json"))
        found = [Manifest.read(path) for path in paths if not path.name.startswith(".")]
        return {m.step: m for m in _in_order(found)}

    def output(self, name: str) -> Path:
        """Where a result is.

        Raises:
            InputError: it is not there, or no step that is done vouches for it as it is.

        """
        path = self.path / name
        for manifest in self.manifests().values():
            if name in manifest.outputs:
                damage = manifest.outputs[name].damage(path)
                if not damage:
                    return path
                raise InputError(
                    f"run folder at {self.path}: got {name} that {damage}, need it as step "
                    f"{manifest.step!r} left it; try refusal-lens run --out {self.path} again"
                )
        raise InputError(
            f"run folder at {self.path}: got none of its finished steps with {name}, need it; "
            f"try refusal-lens run --out {self.path} again"
        )

    def whole(self) -> dict[str, Any]:
        """Read what `finish` wrote.

        Raises:
            InputError: the run is not finished, or the file is damaged.

        """
        path = self.path / MANIFEST
        if not path.exists():
            raise InputError(
                f"run folder at {self.path}: got a run that is not finished, need a whole one; "
                f"try refusal-lens run --out {self.path} again"
            )
        contents = files.read_json(path)
        if not isinstance(contents, dict):
            raise InputError(f"{path}: got {type(contents).__name__}, need a JSON object")
        return contents

    @property
    def seconds(self) -> dict[str, float]:
        """How long each step took."""
        return {name: manifest.seconds for name, manifest in self.manifests().items()}

    def stale(self) -> dict[str, str]:
        """The finished steps that build on something done anew since, each with the reason."""
        return _stale(self.manifests())

    def damage(self) -> list[str]:
        """Read every file of every finished step, and say which are not as they were left."""
        found = (m.damage(self.path, verify=True) for m in self.manifests().values())
        return [line for line in found if line]

    def finish(self, *, irreproducible: str = "", **facts: Any) -> None:
        """Write `manifest.json`, which says that the whole run is done and what it comes from.

        Args:
            irreproducible: why somebody else could not make the same results from the manifest
                (a model that is only a local folder, prompts not published); "" when they could.
            facts: configuration, seeds, hashes of model and data, and so on, as JSON.

        """
        done = self.manifests()
        for name, reason in _stale(done).items():
            log.warning("%s: out of date because %s", name, reason)
        whole = {
            "format": FORMAT,
            **facts,
            "independently_reproducible": not irreproducible,
            "reproducibility": irreproducible or "everything it needs is named here",
            "versions": versions(),
            "machine": machine(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **_of_steps(done),
        }
        files.write_json(self.path / MANIFEST, whole)


def _of_steps(done: Mapping[str, Manifest]) -> dict[str, Any]:
    """What `manifest.json` says of the steps that are done and of their outputs."""
    outputs = {
        name: {"step": step, "sha256": output.sha256, "bytes": output.bytes}
        for step, manifest in done.items()
        for name, output in manifest.outputs.items()
    }
    steps = {name: {"key": m.key, "seconds": m.seconds} for name, m in done.items()}
    return {"steps": steps, "stale": _stale(done), "outputs": outputs}


def _stale(done: Mapping[str, Manifest]) -> dict[str, str]:
    """The steps that build on something done anew since, each with the reason."""
    keys = {name: m.key for name, m in done.items()}
    changed = {
        name: [other for other, key in m.after.items() if keys.get(other) != key]
        for name, m in done.items()
    }
    return {name: f"{', '.join(others)} changed" for name, others in changed.items() if others}


def _in_order(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Steps after the ones they build on, otherwise by the time they finished."""
    waiting = sorted(manifests, key=lambda m: (m.finished, m.step))
    names = {m.step for m in waiting}
    ordered: list[Manifest] = []
    while waiting:
        placed = {m.step for m in ordered}
        free = [m for m in waiting if not (set(m.after) & names) - placed] or waiting
        ordered.append(free[0])
        waiting.remove(free[0])
    return ordered
