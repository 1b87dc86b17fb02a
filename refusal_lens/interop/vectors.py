"""A direction in the formats of other tools: llama.cpp, lm-evaluation-harness, the reference implementation."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..directions import Candidates, Direction
from ..door import checked
from ..errors import InputError
from ..model.stream.writers import Writers
from ..runs import write_json
from ..weights.atomic import Recorded, atomic_files, atomic_folder
from ..weights.edits import AddBias, Orthogonalise, WeightEdit


@checked
def write_gguf(
    path: str | Path,
    edit: WeightEdit,
    *,
    architecture: str,
    provenance: Mapping[str, Any],
    recorded: Recorded = nullcontext,
) -> Path:
    """A llama.cpp control vector: ``direction.K``, added behind block K (0-based), for ``resid_pre[K + 1]``.

    architecture is the model's, as llama.cpp names it (a hint only); recorded surrounds the file's appearing.
    llama.cpp has no place before block 2's entry: it ignores ``direction.0``. Raises InputError for an
    ablation and for layers 0 and 1.
    """
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "GGUF export: needs gguf; try pip install 'refusal-lens[export]'"
        ) from error
    if not isinstance(edit, AddBias):
        raise InputError(
            "GGUF export of an ablation: a control vector only adds; try --edit add or --edit subtract, or "
            "export a checkpoint and convert that"
        )
    if edit.layer < 2:
        raise InputError(
            f"GGUF export of a direction of layer {edit.layer}: llama.cpp adds control vectors behind block 1 "
            "at the earliest, so the layer must be 2 or more"
        )
    path = Path(path)
    with atomic_files([path], recorded=recorded) as hidden:
        writer = gguf.GGUFWriter(str(hidden / path.name), "controlvector")
        # It keeps its file open when a write fails.
        with closing(writer):
            writer.add_string("controlvector.model_hint", architecture)
            writer.add_uint32("controlvector.layer_count", 1)
            writer.add_string("refusal_lens.provenance", json.dumps(provenance, sort_keys=True))
            values = (edit.strength * edit.vector).float().numpy()
            writer.add_tensor(f"direction.{edit.layer - 1}", values)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
    return path


@checked
def read_gguf(path: str | Path) -> tuple[int, Tensor]:
    """Layer (of resid_pre) and vector [d_model] of a control vector with one direction.

    Raises InputError for a file that is missing, damaged or something else.
    """
    import gguf

    try:
        tensors = {t.name: t.data for t in gguf.GGUFReader(str(path)).tensors}
    except (OSError, ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"control vector {path}: cannot be read ({why:.100})") from error
    if len(tensors) != 1:
        raise InputError(f"control vector {path}: got {len(tensors)} directions, need one")
    ((name, data),) = tensors.items()
    number = name.removeprefix("direction.")
    if not number.isdecimal():
        raise InputError(f"control vector {path}: got a tensor {name[:40]!r}, need direction.<block>")
    return int(number) + 1, torch.tensor(data.copy())


@checked
def write_steered(
    path: str | Path,
    edit: WeightEdit,
    writers: Writers,
    *,
    base: str,
    provenance: Mapping[str, Any],
    recorded: Recorded = nullcontext,
) -> Path:
    """A ``.pt`` file for lm-evaluation-harness, ``--model steered --model_args steer_path=...``.

    Addition is one entry behind a block. Ablation, which that model type does not have, is a clamp to 0 on
    every module that writes to the stream, post-norms included, so it is exact on every architecture whose
    writers are known. base: the name of the inner model, from which lm-eval counts module names. Provenance
    goes beside it, as ``<name>.json``, since lm-eval takes every key of the file for a module; it appears first.
    """
    if isinstance(edit, Orthogonalise):
        if edit.strength != 1 or edit.keep_norms:
            raise InputError("steered file of an ablation: needs strength 1, not norm-preserving")
        _require_clampable(writers)
        sites = dict.fromkeys(writer.site for writer in writers.writers)
        entries = {_inside(site, base): _clamp(edit.vector) for site in sites}
    else:
        site = _entry(writers, edit.layer)
        entries = {_inside(site, base): _added(edit.strength * edit.vector)}
    path = Path(path)
    beside = path.with_suffix(".json")
    with atomic_files([beside, path], recorded=recorded) as hidden:
        write_json(hidden / beside.name, provenance)
        _save(entries, hidden / path.name)
    return path


def _save(value: Any, path: Path) -> None:
    """``torch.save``, whose own writer knows no OSError when a disk is full."""
    held = io.BytesIO()
    torch.save(value, held)
    path.write_bytes(held.getbuffer())


def _require_clampable(writers: Writers) -> None:
    """Raise InputError when something reaches the stream past the outputs of the modules that write to it."""
    apart = [f"{w.parameter}: added beside its module's output" for w in writers.writers if w.apart]
    for what in (*writers.obstacles, *apart):
        raise InputError(
            f"steered file of an ablation of {writers.architecture}: {what}, where no clamp reaches it; "
            "try --to checkpoint or --to lora"
        )


def _clamp(vector: Tensor) -> dict[str, Any]:
    unit = (vector / vector.norm()).float()
    return {"steering_vector": unit, "steering_coefficient": 0.0, "action": "clamp", "bias": None}


def _added(vector: Tensor) -> dict[str, Any]:
    return {
        "steering_vector": vector.float(),
        "steering_coefficient": 1.0,
        "action": "add",
        "bias": None,
    }


def _entry(writers: Writers, layer: int) -> str:
    """The module behind which lies the entry of a block."""
    if layer:
        return f"{writers.blocks}.{layer - 1}"
    tables = [
        w for w in writers.writers if w.lookup and w.layer is None and (w.norms or w.scale == 1)
    ]
    if not tables:
        raise InputError(
            f"steered file for layer 0 of {writers.architecture}: its embedding is rescaled on the way to "
            "block 0; use a direction of a later layer"
        )
    return tables[0].site


def _inside(name: str, base: str) -> str:
    return name.removeprefix(f"{base}.") if base else name


@checked
def write_reference(
    out: str | Path,
    direction: Direction,
    candidates: Candidates,
    *,
    provenance: Mapping[str, Any],
    recorded: Recorded = nullcontext,
) -> Path:
    """A folder as the reference implementation writes it, which its own scripts can load.

    ``direction.pt`` [d_model] and ``generate_directions/mean_diffs.pt`` [position layer d_model], float64, and
    ``direction_metadata.json`` with ``pos`` and ``layer``.
    """
    if direction.position is None or any(place.position is None for place in candidates.places):
        raise InputError(
            f"direction at {direction.place}: got other places than post-instruction tokens, which the reference's "
            "format does not know; try another export"
        )
    needed = candidates.mean_diffs.numel() * 8
    with atomic_folder(Path(out), needed=needed, recorded=recorded) as hidden:
        (hidden / "generate_directions").mkdir()
        _save(direction.vector.clone(), hidden / "direction.pt")
        _save(candidates.mean_diffs.clone(), hidden / "generate_directions" / "mean_diffs.pt")
        place = {"pos": direction.position, "layer": direction.layer}
        (hidden / "direction_metadata.json").write_text(json.dumps(place, indent=4))
        write_json(hidden / "refusal_lens.json", provenance)
    return Path(out)


@checked
def read_reference(folder: str | Path) -> tuple[Tensor, Tensor, int, int]:
    """Direction, candidates, position and layer of a folder in the reference implementation's format.

    Nothing but tensors is unpickled. Raises InputError for a missing or damaged file.
    """
    folder = Path(folder)
    try:
        vector = torch.load(folder / "direction.pt", weights_only=True, map_location="cpu")
        means = torch.load(
            folder / "generate_directions" / "mean_diffs.pt", weights_only=True, map_location="cpu"
        )
        place = json.loads((folder / "direction_metadata.json").read_text())
        return vector.double(), means.double(), int(place["pos"]), int(place["layer"])
    except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"reference folder {folder}: cannot be read ({str(error).splitlines()[0]})"
        ) from error
