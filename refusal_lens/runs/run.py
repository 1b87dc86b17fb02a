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

from refusal_lens.display import shown
from refusal_lens.door import checked
from refusal_lens.errors import InputError
from refusal_lens.runs import files
from refusal_lens.runs.environment import machine, versions
from refusal_lens.runs.folder import (
    MARK,
    refuse_models,
    refuse_what_is_no_run,
    sweep_temporaries,
)
from refusal_lens.runs.journal import OF_A_KEY, journals
from refusal_lens.runs.lock import FolderLock
from refusal_lens.runs.open_step import (
    FORMAT,
    STEPS,
    ForeignManifestError,
    Manifest,
    OpenStep,
    key_of,
)
from refusal_lens.runs.plan import NOT_PLANNED, Facts, facts_of_steps, in_order, stale_steps
from refusal_lens.runs.schema import Mark, Whole

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PLAN = "plan"

Determined = tuple[Mapping[str, Any], Sequence[str]]
"""What determines a step's results: its inputs, and the steps before it."""


@shown("path")
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
    >>> place.cleanup()
    """

    def __init__(self, path: Path, *, lock: FolderLock | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    @checked
    def open(cls, path: str | os.PathLike[str]) -> Run:
        """Open a run folder to write to, made when missing; nobody else may until it is closed.

        Raises:
            InputError: `path` is a file, holds something else than a run or anything but regular
                files, lies in a model folder, or is in use.
            OSError: the folder cannot be made.

        """
        folder = Path(path)
        refuse_models(folder)
        refuse_what_is_no_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder)
        try:
            sweep_temporaries(folder)
            if not os.path.lexists(folder / MARK):
                files.write_json(folder / MARK, {"format": FORMAT, "made_by": "refusal_lens"})
        except BaseException:
            lock.release()
            raise
        return cls(folder, lock=lock)

    @classmethod
    @checked
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

    @checked
    @contextmanager
    def step(
        self, name: str, *, inputs: Mapping[str, Any], after: Sequence[str] = ()
    ) -> Iterator[OpenStep]:
        """Yield a step; `if step.needed:` guards its work, and its manifest is written at the end.

        Args:
            name: a file name without suffix, unique in the run.
            inputs: everything that determines the results and does not come from earlier steps;
                anything that `plain` turns into JSON.
            after: the steps whose results this one uses; each must be done.

        Raises:
            OSError: a file cannot be written; strerror is one clear line.

        """
        self._announce(name)
        step = self._step(name, inputs, after)
        if step.needed:
            # The whole is no longer what its manifest says.
            (self.path / MANIFEST).unlink(missing_ok=True)
        step.begin()
        yield step
        step.finish()

    def _announce(self, name: str) -> None:
        """Log which of the planned steps this is: "step 3 of 13: scores"."""
        planned = [step for step, key in self._plan().items() if key is not None]
        if name in planned:
            log.info("step %d of %d: %s", planned.index(name) + 1, len(planned), name)

    def plan(self, steps: Mapping[str, Determined], *, without: Sequence[str] = ()) -> None:
        """Say which steps make the run from now on; those before a step come before it.

        Results of other inputs stay on the disk until their step is done again, and hold again if
        they are planned again, but count as out of date. Without a plan a step is out of date when
        one that it builds on was done anew.

        Args:
            steps: the steps that will be done or found done, by name.
            without: names of steps that an earlier plan may have, and that this one has not.

        Raises:
            InputError: a manifest in the folder is foreign, or damaged and of a step that will not be
                done again; said before any work rather than after it.

        """
        self._require_lock()
        keys: dict[str, str | None] = dict.fromkeys(without)
        for name, (inputs, after) in steps.items():
            keys[name] = key_of(name, inputs, {other: str(keys[other]) for other in after})
        self._refuse_manifests(but=[name for name, key in keys.items() if key is not None])
        mark = files.read_json(self.path / MARK, Mark)
        if mark.get(PLAN) != keys:
            files.write_json(self.path / MARK, {**mark, PLAN: keys})
        self._remove_journals(keys, {*keys, *mark.get(PLAN, {})})

    def _remove_journals(self, keys: Mapping[str, str | None], names: set[str]) -> None:
        """Remove what killed steps of these names left, unless it is for what is planned now."""
        for path, step, key in journals(self.path / STEPS):
            if step in names and (keys.get(step) or "")[:OF_A_KEY] != key:
                path.unlink()

    def _refuse_manifests(self, but: Sequence[str]) -> None:
        """Raise InputError for a manifest that cannot be read, unless it is damaged and of a step in `but`."""
        for path in sorted((self.path / STEPS).glob("*.json")):
            try:
                Manifest.read(path)
            except ForeignManifestError:
                raise
            except InputError:
                if path.stem not in but:
                    raise

    def invalidate(self, name: str, inputs: Mapping[str, Any], after: Sequence[str]) -> bool:
        """Remove the results of a step unless they are those of these inputs; whether they are gone.

        For what would be read as the outcome of the whole run while its steps are done again.
        """
        self._require_lock()
        keys = self._plan()
        step = OpenStep(self.path, name, inputs=inputs, after={o: str(keys[o]) for o in after})
        if step.needed:
            (self.path / MANIFEST).unlink(missing_ok=True)
            step.forget()
        return step.needed

    @checked
    @contextmanager
    def addition(
        self, name: str, *, inputs: Mapping[str, Any], after: Sequence[str] = ()
    ) -> Iterator[OpenStep]:
        """Yield a step that is added to a finished run, such as a study of its direction.

        Like `step`, but the run stays finished and an earlier addition of that name stays as it is
        until this one is whole, also when its work fails or is killed half-way. Then its outputs
        take their place, and `manifest.json` is brought up to date.

        Raises:
            InputError: the run is not finished.
            OSError: a file cannot be written; strerror is one clear line.

        """
        whole = self.whole()
        step = self._step(name, inputs, after, staged=True)
        step.begin()
        if not step.needed:
            yield step
            return
        try:
            yield step
            others = {other: m for other, m in self.manifests().items() if other != name}
            files.write_json(self.path / MANIFEST, {**whole, **facts_of_steps(others, self._plan())})
            step.finish()
        finally:
            step.discard()
        done = facts_of_steps(self.manifests(), self._plan())
        files.write_json(self.path / MANIFEST, {**whole, **done})

    def remove_addition(self, name: str) -> None:
        """Remove an addition with its outputs, as if it had not been made; nothing happens without one.

        Raises:
            InputError: the run is not finished, or the addition's manifest names files outside of it.
            OSError: a file cannot be written; strerror is one clear line.

        """
        self._require_lock()
        whole, path = self.whole(), self.path / STEPS / f"{name}.json"
        if not path.exists():
            return
        outputs = Manifest.read(path).outputs
        path.unlink()
        for output in outputs:
            (self.path / output).unlink(missing_ok=True)
        done = facts_of_steps(self.manifests(), self._plan())
        files.write_json(self.path / MANIFEST, {**whole, **done})

    def _step(
        self, name: str, inputs: Mapping[str, Any], after: Sequence[str], *, staged: bool = False
    ) -> OpenStep:
        self._require_lock()
        keys = {other: self.manifest(other).key for other in after}
        return OpenStep(self.path, name, inputs=inputs, after=keys, staged=staged)

    def _require_lock(self) -> None:
        if self._lock is None:
            raise RuntimeError("this run was opened to read; use Run.open to write")

    def _plan(self) -> dict[str, str | None]:
        """The keys that `plan` wrote down; empty for a run without a plan."""
        mark = self.path / MARK
        return files.read_json(mark, Mark).get(PLAN, {}) if mark.exists() else {}

    @checked
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
        manifests = [Manifest.read(path) for path in paths if not path.name.startswith(".")]
        return {manifest.step: manifest for manifest in in_order(manifests)}

    def current(self) -> dict[str, Manifest]:
        """Read the manifests of the steps that are done and not out of date."""
        done = self.manifests()
        stale = stale_steps(done, self._plan())
        return {name: manifest for name, manifest in done.items() if name not in stale}

    @checked
    def output(self, name: str) -> Path:
        """Where a result is.

        Raises:
            InputError: it is not there, or no step that is done vouches for it as it is.

        """
        path = self.path / name
        for manifest in self.current().values():
            if name in manifest.outputs:
                damage = manifest.outputs[name].damage(self.path, name)
                if not damage:
                    return path
                raise InputError(
                    f"run folder at {self.path}: got {name} that {damage}, need it as step "
                    f"{manifest.step!r} left it; try refusal-lens run --out {self.path} again"
                )
        if (self.path / MANIFEST).exists():
            raise InputError(
                f"run folder at {self.path}: got a finished run that came to no {name}, need one; its "
                "report.html says why"
            )
        raise InputError(
            f"run folder at {self.path}: got none of its finished steps with {name}, need it; "
            f"try refusal-lens run --out {self.path} again"
        )

    def whole(self) -> dict[str, Any]:
        """Read what `finish` wrote; to ask it or its "config" for what it lacks is an InputError.

        Raises:
            InputError: the run is not finished, or the file is damaged.

        """
        path = self.path / MANIFEST
        if not path.exists():
            raise InputError(
                f"run folder at {self.path}: got a run that is not finished, need a whole one; "
                f"try refusal-lens run --out {self.path} again"
            )
        contents = files.read_json(path, Whole)
        self._require_agreement(contents, path)
        if "config" in contents:
            contents["config"] = Facts(contents["config"], f"{path}, config")
        return Facts(contents, str(path))

    def _require_agreement(self, whole: Mapping[str, Any], path: Path) -> None:
        """Raise InputError when the manifest of the whole tells of other results than the steps'."""
        done = self.manifests()
        for name, facts in whole.get("steps", {}).items():
            if name not in done or done[name].key != facts["key"]:
                raise InputError(
                    f"{path}: got step {name[:60]!r} otherwise than its own manifest, need one "
                    f"story; try refusal-lens run --out {self.path} again"
                )
        for name, facts in whole.get("outputs", {}).items():
            step = done.get(facts["step"])
            kept = step.outputs.get(name) if step else None
            if kept is None or (kept.sha256, kept.bytes) != (facts["sha256"], facts["bytes"]):
                raise InputError(
                    f"{path}: got {name[:60]!r} otherwise than its step's manifest, need one story; "
                    f"try refusal-lens run --out {self.path} again"
                )

    @property
    def seconds(self) -> dict[str, float]:
        """How long each step took, of those that are not out of date."""
        return {name: manifest.seconds for name, manifest in self.current().items()}

    def stale(self) -> dict[str, str]:
        """The finished steps that are out of date, each with the reason."""
        return stale_steps(self.manifests(), self._plan())

    def damage(self) -> list[str]:
        """Read every file of every finished step, and say which are not as they were left."""
        return [f"{name} {what}" for name, what in self.damages().items()]

    def damages(self) -> dict[str, str]:
        """What is wrong with each result that is not as its step left it."""
        damages: dict[str, str] = {}
        for manifest in self.manifests().values():
            damages |= manifest.damages(self.path)
        return damages

    def finish(self, *, irreproducible: str = "", **facts: Any) -> None:
        """Write `manifest.json`, which says that the whole run is done and what it comes from.

        Args:
            irreproducible: why somebody else could not make the same results from the manifest
                (a model that is only a local folder, prompts not published); "" when they could.
            facts: configuration, seeds, hashes of model and data, and so on, as JSON.

        """
        done, plan = self.manifests(), self._plan()
        for name, reason in stale_steps(done, plan).items():
            if reason != NOT_PLANNED:
                log.warning("%s: out of date because %s", name, reason)
        whole = {
            "format": FORMAT,
            **facts,
            "independently_reproducible": not irreproducible,
            "reproducibility": irreproducible or "everything it needs is named here",
            "versions": versions(),
            "machine": machine(),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **facts_of_steps(done, plan),
        }
        files.write_json(self.path / MANIFEST, whole)
