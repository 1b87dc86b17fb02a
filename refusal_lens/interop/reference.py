"""A run of the reference implementation, selected anew and written as a run folder of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from refusal_lens import __version__
from refusal_lens.behaviours.words import REFUSAL
from refusal_lens.directions import Direction, NoCandidateError, Selection, Thresholds, select
from refusal_lens.errors import InputError
from refusal_lens.interop.layout import EVALUATIONS, METADATA
from refusal_lens.interop.reference_files import (
    DIRECTION,
    LOSSES,
    MEAN_DIFFS,
    ReferenceRun,
    read_reference,
)
from refusal_lens.runs import (
    read_json,
    sha256_of,
    write_csv,
    write_json,
    write_safetensors,
    writing,
)
from refusal_lens.runs.folder import refuse_models
from refusal_lens.runs.opening import require_plain

FORMAT = "refusal_lens reference run 1"
_FILES = (EVALUATIONS, METADATA, MEAN_DIFFS, DIRECTION, *LOSSES.values())
_COLUMNS = (
    "position",
    "position_name",
    "layer",
    "norm",
    "bypass",
    "induce",
    "kl",
    "passes",
    "reason",
)


def convert_reference_run(folder: str | Path, out: str | Path) -> NoCandidateError | None:
    """Apply the rule to a reference run's candidates and write our files into `out`.

    Writes candidates.csv, summary.json, manifest.json, losses.csv, candidates.safetensors and
    direction.safetensors (where mean_diffs.pt is there). Returns why no candidate passes the rule,
    None when one does.

    Raises:
        InputError: the folder is damaged or foreign, or `out` holds something else.

    """
    out = _checked_out(Path(out), Path(folder))
    run = read_reference(folder)
    failure: NoCandidateError | None = None
    selection: Selection | None = None
    try:
        selection = select(_candidates(run), run.n_layers)
        table = selection.table
    except NoCandidateError as error:
        failure, table = error, error.table
    _write_files(run, selection, table, out)
    return failure


def _checked_out(out: Path, folder: Path) -> Path:
    if out.resolve() == folder.resolve():
        raise InputError(f"output folder {out}: is the reference run itself; need another one")
    refuse_models(out)
    if out.is_dir():
        require_plain(out)
    if out.is_dir() and any(out.iterdir()):
        manifest = out / "manifest.json"
        known = read_json(manifest) if manifest.is_file() else None
        if not isinstance(known, Mapping) or known.get("format") != FORMAT:
            raise InputError(
                f"output folder {out}: holds other files, need an empty or new folder, or one that "
                "this command wrote before"
            )
    return out


def _candidates(run: ReferenceRun) -> pd.DataFrame:
    """The scores in our columns; norm is NaN without mean_diffs, and token names are not known."""
    table = run.scores.copy()
    table["position_name"] = ""
    table["norm"] = float("nan")
    if run.mean_diffs is not None:
        norms = run.mean_diffs.norm(dim=-1)
        table["norm"] = [
            float(norms[place]) for place in zip(table["position"], table["layer"], strict=True)
        ]
    return table


def _write_files(run: ReferenceRun, selection: Selection | None, table: pd.DataFrame, out: Path) -> None:
    for name in ("losses.csv", "candidates.safetensors", "direction.safetensors"):
        (out / name).unlink(missing_ok=True)
    write_csv(out / "candidates.csv", table[list(_COLUMNS)])
    if run.losses is not None:
        write_csv(out / "losses.csv", run.losses)
    if run.mean_diffs is not None:
        _write_candidates(run, out / "candidates.safetensors")
    if selection is not None:
        _write_direction(run, selection, out / "direction.safetensors")
    write_json(out / "summary.json", _summary(run, selection, table))
    write_json(out / "manifest.json", _manifest(run))


def _write_candidates(run: ReferenceRun, path: Path) -> None:
    if run.mean_diffs is None:
        return
    header = {
        "format": "refusal_lens candidates 1",
        "positions": json.dumps(_positions(run.mean_diffs.shape[0])),
        "provenance": json.dumps({"model": run.path.resolve().name, "source": FORMAT}),
    }
    write_safetensors(path, {"mean_diffs": run.mean_diffs}, header)


def _write_direction(run: ReferenceRun, selection: Selection, path: Path) -> None:
    """The selected row of mean_diffs; without those, direction.pt if it is the same candidate."""
    if run.mean_diffs is not None:
        vector = run.mean_diffs[selection.position, selection.layer]
    elif run.direction is not None and run.selected == (selection.position, selection.layer):
        vector = run.direction
    else:
        return
    direction = Direction(
        vector,
        selection.layer,
        selection.place,
        model=run.path.resolve().name,
        more={"source": FORMAT},
    )
    with writing(path) as temporary:
        direction.save(temporary)


def _summary(run: ReferenceRun, selection: Selection | None, table: pd.DataFrame) -> dict[str, Any]:
    rule = Thresholds()
    n_positions = -int(run.scores["position"].min())
    summary: dict[str, Any] = {
        "behaviour": {"name": "refusal", "unit": "nats", "judge": "phrases", "words": asdict(REFUSAL)},
        "kinds": ["harmful", "harmless"],
        "model": run.path.resolve().name,
        "n_layers": run.n_layers,
        "positions": _positions(n_positions),
        "n_candidates": len(table),
        "n_passing": int(table["passes"].sum()),
        "thresholds": {
            "kl_threshold": rule.kl_threshold,
            "induce_threshold": rule.induce_threshold,
            "prune_layers": rule.prune_layers,
        },
        "selected": None,
        "baseline": _baseline(run.scores),
        "version": __version__,
        "reference": _agreement(run, selection, table),
    }
    if run.mean_diffs is not None:
        summary["d_model"] = int(run.mean_diffs.shape[2])
    if selection is not None:
        selected = {"position": selection.position, "layer": selection.layer, "position_name": ""}
        summary |= {"selected": selected, "scores": selection.scores}
    if run.rates:
        summary["rates"] = run.rates
    if run.losses is not None:
        summary |= _loss_summary(run.losses)
    return summary


def _baseline(scores: pd.DataFrame) -> dict[str, float]:
    """Mean metric of the unedited model, which the reference does not store.

    At layer 0 the template's tokens do not see the instruction, so that the candidates are rounding
    noise and editing with them does nothing: rows with KL exactly 0 hold the baselines. They are
    taken only when all such rows agree.
    """
    still = scores[(scores["layer"] == 0) & (scores["kl"] == 0.0)]
    found = {"harmful": still["bypass"], "harmless": still["induce"]}
    return {kind: float(v.iloc[0]) for kind, v in found.items() if v.nunique(dropna=False) == 1
            and v.notna().all()}  # fmt: skip


def _loss_summary(losses: pd.DataFrame) -> dict[str, Any]:
    """losses: on-distribution by condition, as in our runs; losses_by_dataset: all of them."""
    by_dataset = {
        str(dataset): {
            row["condition"]: {name: row[name] for name in ("ce", "perplexity", "n_tokens")}
            for row in rows.to_dict("records")
        }
        for dataset, rows in losses.groupby("dataset")
    }
    own = {"losses": by_dataset["on_distribution"]} if "on_distribution" in by_dataset else {}
    return own | {"losses_by_dataset": by_dataset}


def _agreement(run: ReferenceRun, selection: Selection | None, table: pd.DataFrame) -> dict[str, Any]:
    agrees = None
    if run.selected is not None:
        agrees = selection is not None and run.selected == (selection.position, selection.layer)
    facts: dict[str, Any] = {
        "folder": run.path.resolve().name,
        "selected": None
        if run.selected is None
        else {"position": run.selected[0], "layer": run.selected[1]},
        "agrees": agrees,
        "verdict": _verdict(run, selection, table),
        "files": [name for name in _FILES if (run.path / name).is_file()],
        "missing": [name for name in _FILES if not (run.path / name).is_file()],
        "notes": _notes(run),
    }
    if run.direction is not None and run.mean_diffs is not None and run.selected is not None:
        facts["direction_is_mean_diff"] = _is_mean_diff(run)
    return facts


def _verdict(run: ReferenceRun, selection: Selection | None, table: pd.DataFrame) -> str:
    ours = "no candidate"
    if selection is not None:
        ours = f"position {selection.position}, layer {selection.layer}"
    if run.selected is None:
        return f"The rule selects {ours}; without {METADATA} there is nothing to compare it with."
    position, layer = run.selected
    if selection is not None and run.selected == (selection.position, selection.layer):
        return f"The rule selects {ours}, as {METADATA} does."
    row = table[(table["position"] == position) & (table["layer"] == layer)]
    if row.empty:
        why = "which is not among the evaluated candidates"
    elif row["passes"].iloc[0]:
        why = f"which passes but has a higher bypass score ({row['bypass'].iloc[0]:.4g})"
    else:
        why = f"which the rule rejects ({row['reason'].iloc[0]})"
    return (
        f"The rule selects {ours}, but {METADATA} says position {position}, layer {layer}, {why}."
    )


def _is_mean_diff(run: ReferenceRun) -> bool:
    if run.selected is None or run.mean_diffs is None or run.direction is None:
        return False
    position, layer = run.selected
    n_positions, n_layers = run.mean_diffs.shape[:2]
    if not (-n_positions <= position < 0 and 0 <= layer < n_layers):
        return False
    row = run.mean_diffs[position, layer]
    return row.shape == run.direction.shape and bool((row == run.direction).all())


def _notes(run: ReferenceRun) -> list[str]:
    notes = ["token names are not stored by the reference, so positions are numbers only"]
    if run.mean_diffs is not None and run.mean_diffs.shape[1] != run.n_layers:
        notes.append(
            f"mean_diffs.pt has {run.mean_diffs.shape[1]} layers, the evaluations {run.n_layers}"
        )
    if _baseline(run.scores):
        notes.append("baseline metrics are read off the layer-0 candidates, which change nothing")
    return notes


def _positions(n_positions: int) -> list[str]:
    return [str(position) for position in range(-n_positions, 0)]


def _manifest(run: ReferenceRun) -> dict[str, Any]:
    hashes = {name: sha256_of(run.path / name) for name in _FILES if (run.path / name).is_file()}
    return {"format": FORMAT, "version": __version__, "sha256": hashes}
