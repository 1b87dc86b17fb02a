"""What lies in a model's weight files, told from their headers, against what its configuration says."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .boundary import loading
from .shards import DTYPES, INDEX, SINGLE, Stored, read_header, tensors_of
from .source import read_object, weight_files

SCALES = re.compile(
    r"(_scale|_scale_inv|_scale_2|_scale_inverse|\.scales?|\.scb|absmax|zeros|zero_point)$"
)
"""Ends of the names of what quantised weights are multiplied with."""
MOST_LAYERS = 10_000
NAMED = 3
"""Tensors that a message names before it counts the rest."""


def require_fitting(folder: Path, config: Any, auto: Any) -> None:
    """Raise InputError unless a folder's weight files can be those of its configuration.

    auto: the auto class that makes the model.
    Reads headers only: quantised weights that nobody would scale, an index that does not list what its
    files hold, sizes of which the files hold a fraction.
    """
    files = weight_files(folder)
    if not files:
        raise InputError(
            f"model folder {folder}: no weights, need model.safetensors, its index with shards, or "
            "pytorch_model.bin"
        )
    method = quantisation(config, folder)
    tensors = _headers(folder, files)
    if method is None:
        _require_plain(folder, tensors)
    _require_size(folder, files, config, auto, quantised=method is not None)


def quantisation(config: Any, where: str | Path) -> str | None:
    """How a model's weights are quantised; None for plain ones. Raises InputError for unknown methods."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    for part in (config, config.get_text_config()):
        settings = getattr(part, "quantization_config", None) or getattr(
            part, "compression_config", None
        )
        if settings is None:
            continue
        facts = settings if isinstance(settings, Mapping) else getattr(settings, "to_dict", dict)()
        method = facts.get("quant_method")
        method = str(getattr(method, "value", method))
        if facts.get("load_in_8bit") or facts.get("load_in_4bit") or method == "bitsandbytes":
            return "bitsandbytes"
        if method not in KNOWN:
            raise InputError(
                f"model {where}: quantised with {method!r}, which transformers does not read, so its weights "
                "would be taken as they stand; try the model that it was made from"
            )
        return method
    return None


def require_whole(name: str, report: Mapping[str, Any], *, quantised: bool) -> tuple[str, ...]:
    """The checkpoint's tensors that no parameter took, from transformers' loading report.

    Raises InputError naming parameters that the checkpoint lacks or has in another size, and scales of
    quantised weights that nobody read.
    """
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    unread = tuple(sorted(report["unexpected_keys"]))
    if missing:
        raise InputError(
            f"model {name!r}: {len(missing)} parameters are not in its weights ({first_of(missing)}) and would be "
            "random; is a shard missing, or config.json another model's?"
        )
    if mismatched:
        first, stored, wanted = mismatched[0]
        raise InputError(
            f"model {name!r}: {len(mismatched)} parameters have other sizes in its weights than config.json says "
            f"({first}: {tuple(stored)}, need {tuple(wanted)}); is config.json another model's?"
        )
    if report.get("error_msgs"):
        raise InputError(f"model {name!r}: {first_of([str(e) for e in report['error_msgs']])}"[:290])
    scales = [name for name in unread if SCALES.search(name.lower())]
    if scales and not quantised:
        raise InputError(
            f"model {name!r}: {len(scales)} scales of quantised weights would not be read ({first_of(scales)}); "
            "is quantization_config missing from config.json? try the model that it was made from"
        )
    return unread


def first_of(names: Sequence[str]) -> str:
    """The first few names, and how many more.

    >>> first_of(["a", "b", "c", "d"])
    'a, b, c and 1 more'
    """
    shown = ", ".join(name if len(name) <= 50 else "..." + name[-47:] for name in names[:NAMED])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _headers(folder: Path, files: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor in safetensors files; {} for pickled ones, which have no header."""
    if any(path.suffix != ".safetensors" for path in files):
        return {}
    shards = []
    for path in files:
        with loading(path):
            shards.append(read_header(path))
    tensors = tensors_of(folder, shards)
    if files[0] != folder / SINGLE:
        index = folder / INDEX
        listed = set(read_object(index)["weight_map"])
        if odd := sorted(listed ^ set(tensors)):
            raise InputError(
                f"{index}: {len(odd)} tensors are in the index or in its files, but not in both ({first_of(odd)}); "
                "download the folder again"
            )
    return tensors


def _require_plain(folder: Path, tensors: Mapping[str, Stored]) -> None:
    """Raise InputError for weights in a dtype that needs scales, where nothing says how they are applied."""
    odd = [
        name
        for name, tensor in sorted(tensors.items())
        if tensor.dtype.startswith(("F8", "F4", "F6"))
        or (tensor.dtype not in DTYPES and name.endswith(".weight"))
    ]
    if odd:
        raise InputError(
            f"model folder {folder}: {len(odd)} weights are stored as {tensors[odd[0]].dtype} ({first_of(odd)}), but "
            "config.json has no quantization_config that says how to scale them; try the original model"
        )


def _require_size(
    folder: Path, files: Sequence[Path], config: Any, auto: Any, *, quantised: bool
) -> None:
    """Raise InputError for a configuration of many more numbers than the files can hold.

    Such a model would fill the memory with parameters that are then found missing.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 1)
    if not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise InputError(
            f"model folder {folder}: config.json has num_hidden_layers {str(layers)[:20]}, need 1 to {MOST_LAYERS}"
        )
    if type(config) not in auto._model_mapping:
        return
    room = sum(path.stat().st_size for path in files) * (8 if quantised else 2)
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(config))
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > 4 * room:
        raise InputError(
            f"model folder {folder}: config.json describes {needed:,} numbers, far more than its weight files "
            "hold; is config.json another model's?"
        )
