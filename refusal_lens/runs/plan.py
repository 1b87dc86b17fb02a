"""Which steps of a run hold: those of its plan with the planned keys, the others with what they build on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refusal_lens.errors import InputError
from refusal_lens.runs.open_step import Manifest

NOT_PLANNED = "it is not asked for"


class Facts(dict[str, Any]):
    """What a manifest says; what it does not say is one clear line instead of a KeyError."""

    def __init__(self, facts: Mapping[str, Any], where: str) -> None:
        super().__init__(facts)
        self.where = where

    def __missing__(self, name: str) -> Any:
        raise InputError(
            f"{self.where}: got no {name!r}, need it; the file is damaged or foreign, try "
            "refusal-lens run into this folder again"
        )


def facts_of_steps(done: Mapping[str, Manifest], plan: Mapping[str, str | None]) -> dict[str, Any]:
    """What `manifest.json` says of the steps that are done and of their outputs."""
    stale = stale_steps(done, plan)
    current = {name: m for name, m in done.items() if name not in stale}
    outputs = {
        name: {"step": step, "sha256": output.sha256, "bytes": output.bytes}
        for step, manifest in current.items()
        for name, output in manifest.outputs.items()
    }
    steps = {name: {"key": m.key, "seconds": m.seconds} for name, m in current.items()}
    return {"steps": steps, "stale": stale, "outputs": outputs}


def stale_steps(done: Mapping[str, Manifest], plan: Mapping[str, str | None]) -> dict[str, str]:
    """The steps whose results no longer hold, each with the reason.

    Planned ones hold with the key that is planned, the others with the steps they build on.
    """
    keys = {name: m.key for name, m in done.items()}
    keys |= {name: key for name, key in plan.items() if key is not None}
    stale: dict[str, str] = {}
    for name, manifest in done.items():
        if name in plan:
            if plan[name] is None:
                stale[name] = NOT_PLANNED
            elif plan[name] != manifest.key:
                stale[name] = "it is asked for with other inputs"
            continue
        changed = [other for other, key in manifest.after.items() if keys.get(other) != key]
        behind = [
            other
            for other in manifest.after
            if other in stale and plan.get(other) is None and other not in changed
        ]
        reasons = [f"{', '.join(changed)} changed"] if changed else []
        reasons += [f"{', '.join(behind)} is out of date"] if behind else []
        if reasons:
            stale[name] = " and ".join(reasons)
    return stale


def in_order(manifests: Sequence[Manifest]) -> list[Manifest]:
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
