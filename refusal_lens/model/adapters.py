"""PEFT adapters as models: the base with the adapter merged, and the adapter's own matrices kept."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..display import shown
from ..errors import InputError
from .stored import first_of


@shown()
@dataclass(frozen=True, eq=False)
class Adapter:
    """A PEFT adapter that was merged into a model.

    folder: where it lies; base: the model beneath; settings: adapter_config.json; tensors: its matrices by the
    names of its file, for LoRA ``...lora_A.weight`` [rank d_in] and ``...lora_B.weight`` [d_out rank].
    """

    folder: Path
    base: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def merged(hf: Any, folder: Path, base: str, settings: Mapping[str, Any]) -> tuple[Any, Adapter]:
    """The base model with an adapter's changes in its weights; the base itself is changed.

    Raises InputError for adapters that cannot be merged (prompts, prefixes), and unless every matrix of the
    adapter was in the file and every tensor of the file was taken.
    """
    try:
        import peft
        from peft.utils import load_peft_weights
    except ImportError as error:
        raise InputError(
            f"adapter {folder}: needs the package peft; try pip install 'refusal-lens[export]'"
        ) from error

    config = peft.PeftConfig.from_pretrained(str(folder))
    if config.is_prompt_learning or getattr(config, "is_adaption_prompt", False):
        raise InputError(
            f"adapter {folder}: got {settings.get('peft_type')}, which is no change of weights; need one that can "
            "be merged, such as LoRA"
        )
    config.inference_mode = True
    tensors = load_peft_weights(str(folder), device="cpu")
    with warnings.catch_warnings():
        # What it warns of is checked below.
        warnings.simplefilter("ignore")
        wrapped = peft.PeftModel(hf, config)
        report = wrapped.load_adapter(str(folder), "default", torch_device="cpu")
    _require_whole(folder, wrapped, tensors, report)
    merge = getattr(wrapped, "merge_and_unload", None) or getattr(
        wrapped.base_model, "merge_and_unload", None
    )
    if merge is None:
        raise InputError(
            f"adapter {folder}: {settings.get('peft_type')} cannot be merged into weights"
        )
    whole = merge(safe_merge=True)
    for parameter in whole.parameters():
        parameter.requires_grad_(False)
    if hasattr(whole, "peft_config"):
        del whole.peft_config
    whole._hf_peft_config_loaded = False
    return whole, Adapter(folder, base, settings, tensors)


def _require_whole(folder: Path, wrapped: Any, tensors: Mapping[str, Tensor], report: Any) -> None:
    missing, unread = sorted(report.missing_keys), sorted(report.unexpected_keys)
    if missing or unread:
        told = f"{len(missing)} matrices of the model are not in it ({first_of(missing)})"
        if not missing:
            told = f"{len(unread)} of its tensors fit nothing in the model ({first_of(unread)})"
        raise InputError(f"adapter {folder}: {told}; is it an adapter of another model?"[:299])
    if not tensors:
        raise InputError(f"adapter {folder}: holds no tensors; download it again")
    odd = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if odd:
        raise InputError(f"adapter {folder}: NaN or infinity in {first_of(odd)}; download it again")
