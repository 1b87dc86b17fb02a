"""The run folder of the reference implementation (github.com/andyrdt/refusal_direction), read.

    direction_metadata.json                       {"pos", "layer"}: what it selected
    select_direction/direction_evaluations.json   a row per candidate; bare NaN is data
    generate_directions/mean_diffs.pt             [position layer d_model], a pickle
    direction.pt                                  mean_diffs[pos, layer], a pickle
    loss_evals/{baseline,ablation,actadd}_loss_eval.json
    completions/<data>_{baseline,ablation,actadd}_evaluations.json

Only the evaluations must be there. Pickles are loaded with weights_only=True: nothing in them runs.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from refusal_lens.display import shown
from refusal_lens.errors import InputError
from refusal_lens.interop.layout import EVALUATIONS, METADATA
from refusal_lens.runs import read_json
from refusal_lens.runs.opening import open_regular, require_plain
from refusal_lens.shapes import PlaceLayerVectors, Vector

MEAN_DIFFS = "generate_directions/mean_diffs.pt"
DIRECTION = "direction.pt"
LOSSES = {
    "baseline": "loss_evals/baseline_loss_eval.json",
    "ablation": "loss_evals/ablation_loss_eval.json",
    "subtraction": "loss_evals/actadd_loss_eval.json",
}
_SCORES = {"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
_LOSS_FIELDS = {"ce_loss": "ce", "perplexity": "perplexity", "n_tokens": "n_tokens"}
_DATASETS = {"alpaca_custom_completions": "on_distribution"}


@shown()
@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """What a reference run folder holds; None for what is not there.

    scores: position, layer, bypass, induce, kl. selected: (position, layer). losses: dataset,
    condition, ce, perplexity, n_tokens. rates: kind to condition to rate, se, n.
    """

    path: Path
    scores: pd.DataFrame
    selected: tuple[int, int] | None
    mean_diffs: PlaceLayerVectors | None
    direction: Vector | None
    losses: pd.DataFrame | None
    rates: Mapping[str, Mapping[str, dict[str, float]]]

    @property
    def n_layers(self) -> int:
        """Layers of the model: one more than the highest layer that was evaluated."""
        return int(self.scores["layer"].max()) + 1


def read_reference(folder: str | Path) -> ReferenceRun:
    """Read a run folder of the reference implementation.

    Raises:
        InputError: the folder, or a file in it, is not what the reference writes.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"reference run at {folder}: no such folder")
    if not (folder / EVALUATIONS).is_file():
        raise InputError(
            f"reference run at {folder}: got no {EVALUATIONS}, need it; try its parent"
        )
    require_plain(folder)
    scores = _scores(folder / EVALUATIONS)
    mean_diffs = _tensor(folder / MEAN_DIFFS, axes=3)
    if mean_diffs is not None:
        _check_covers(mean_diffs, scores, folder / MEAN_DIFFS)
    return ReferenceRun(
        path=folder,
        scores=scores,
        selected=_selected(folder / METADATA),
        mean_diffs=mean_diffs,
        direction=_tensor(folder / DIRECTION, axes=1),
        losses=_losses(folder),
        rates=_rates(folder / "completions"),
    )


def _scores(path: Path) -> pd.DataFrame:
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: need a list with a row for each candidate")
    table = pd.DataFrame([_score_row(row, f"{path} row {i}") for i, row in enumerate(rows)])
    twice = table[table.duplicated(["position", "layer"])]
    if not twice.empty:
        position, layer = twice.iloc[0][["position", "layer"]].astype(int)
        raise InputError(f"{path}: got position {position}, layer {layer} twice, need one row each")
    return table


def _score_row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: got {type(row).__name__}, need an object")
    position, layer = _whole(row, "position", where), _whole(row, "layer", where)
    if position >= 0 or layer < 0:
        raise InputError(
            f"{where}: got position {position}, layer {layer}, need a negative position (-1 is the "
            "last token) and a layer from 0"
        )
    scores = {ours: _number(row, theirs, where) for theirs, ours in _SCORES.items()}
    return {"position": position, "layer": layer} | scores


def _selected(path: Path) -> tuple[int, int] | None:
    if not path.is_file():
        return None
    facts = _object(path)
    return _whole(facts, "pos", str(path)), _whole(facts, "layer", str(path))


def _tensor(path: Path, *, axes: int) -> torch.Tensor | None:
    """A tensor from a .pt file in float64, its own storage; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        with open_regular(path) as file:
            value = torch.load(file, map_location="cpu", weights_only=True)
    # What torch raises for a pickle that is cut, foreign, or wants to run code.
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:80]
        raise InputError(f"{path}: weights_only loading failed ({reason})") from error
    if not isinstance(value, torch.Tensor) or value.ndim != axes or not value.is_floating_point():
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
        raise InputError(f"{path}: got {shape}, need a float tensor with {axes} axes")
    return value.detach().to(torch.float64).clone(memory_format=torch.contiguous_format)


def _check_covers(mean_diffs: torch.Tensor, scores: pd.DataFrame, path: Path) -> None:
    n_positions, n_layers = mean_diffs.shape[:2]
    if -int(scores["position"].min()) > n_positions or int(scores["layer"].max()) >= n_layers:
        raise InputError(
            f"{path}: got {n_positions} positions and {n_layers} layers, need those of "
            f"{EVALUATIONS} (position {scores['position'].min()}, layer {scores['layer'].max()})"
        )


def _losses(folder: Path) -> pd.DataFrame | None:
    rows = []
    for condition, name in LOSSES.items():
        path = folder / name
        for dataset, facts in _object(path).items() if path.is_file() else ():
            if not isinstance(facts, Mapping):
                raise InputError(
                    f"{path}: got {type(facts).__name__} for {dataset}, need an object"
                )
            losses = {ours: _number(facts, key, str(path)) for key, ours in _LOSS_FIELDS.items()}
            named = {"dataset": _DATASETS.get(dataset, dataset), "condition": condition}
            rows.append(named | losses)
    return pd.DataFrame(rows).sort_values("dataset", kind="stable") if rows else None


def _rates(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Refusal by the phrase judge: 1 - substring_matching_success_rate, harmful and harmless."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, condition, path in _evaluation_files(folder):
        facts = _object(path)
        replies = facts.get("completions")
        if "substring_matching_success_rate" not in facts or not isinstance(replies, list):
            continue
        rate = round(1 - _number(facts, "substring_matching_success_rate", str(path)), 12)
        if not (0 <= rate <= 1 and replies):
            continue
        se = math.sqrt(rate * (1 - rate) / len(replies))
        found.setdefault(kind, {})[condition] = {"rate": rate, "se": se, "n": len(replies)}
    return found


def _evaluation_files(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(kind, condition, file): one harmful data set (JailbreakBench if it is there), and harmless.

    The reference's "actadd" adds r to harmless prompts and subtracts it from harmful ones.
    """
    names = sorted(p.name.removesuffix("_baseline_evaluations.json")
                   for p in folder.glob("*_baseline_evaluations.json"))  # fmt: skip
    harmful = sorted((n for n in names if n != "harmless"), key=lambda n: n != "jailbreakbench")
    chosen = [("harmful", harmful[0], "subtraction")] if harmful else []
    if "harmless" in names:
        chosen.append(("harmless", "harmless", "addition"))
    for kind, data, added in chosen:
        for theirs, ours in (("baseline", "baseline"), ("ablation", "ablation"), ("actadd", added)):
            path = folder / f"{data}_{theirs}_evaluations.json"
            if path.is_file():
                yield kind, ours, path


def _object(path: Path) -> Mapping[str, Any]:
    value = read_json(path)
    if not isinstance(value, Mapping):
        raise InputError(f"{path}: got a JSON {type(value).__name__}, need an object")
    return value


def _whole(facts: Mapping[str, Any], name: str, where: str) -> int:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: got {value!r} for {name}, need a whole number")
    return value


def _number(facts: Mapping[str, Any], name: str, where: str) -> float:
    """A number, NaN included; null, which some writers put for NaN, is NaN too."""
    if name not in facts:
        raise InputError(f"{where}: got no {name}, need a number or NaN")
    value = facts[name]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: got {value!r} for {name}, need a number or NaN")
    return float(value)
