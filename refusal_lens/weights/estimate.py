"""What an export needs, worked out from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..model.stream.mapping import writers_of_config
from .atomic import size_in_words
from .checkpoint import ExportPlan, bytes_held
from .copying import THREADS


@dataclass(frozen=True)
class Estimate:
    """Bytes of an export: the checkpoint, what is rewritten, what is added, and what is in memory."""

    architecture: str
    parameters: int
    checkpoint: int
    edited: int
    added: int
    largest_edited: int
    held: int
    lora: int

    @property
    def lines(self) -> tuple[str, ...]:
        """The same in words."""
        added = f", and {size_in_words(self.added)} added for an unembedding of its own"
        return (
            f"{self.architecture}, {_rounded(self.parameters)} parameters",
            f"read and write: {size_in_words(self.checkpoint)}, of which {size_in_words(self.edited)} are "
            f"worked out anew{added if self.added else ''}",
            f"disk: {size_in_words(self.checkpoint + self.added)} free",
            f"memory: {size_in_words(self.held)} in each of {THREADS} threads (the largest edited tensor has "
            f"{size_in_words(self.largest_edited)}), beside about 0.5 GB for Python and its libraries",
            f"as a LoRA: {size_in_words(self.lora)}",
        )


def _rounded(count: int) -> str:
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def estimate(
    config: Any, *, dtype: torch.dtype = torch.bfloat16, trust_remote_code: bool = False
) -> Estimate:
    """What the export of a model with this configuration needs; no weights are looked at.

    Raises InputError when transformers cannot build the model.
    """
    model, writers = writers_of_config(config, trust_remote_code=trust_remote_code)
    size = dtype.itemsize
    numbers = {name: p.numel() for name, p in model.named_parameters()}
    edited = {w.parameter: torch.Size(w.shape).numel() * size for w in writers.writers}
    tied = next((w for w in writers.writers if writers.tied and writers.tied in w.copies), None)
    return Estimate(
        architecture=writers.architecture,
        parameters=sum(numbers.values()),
        checkpoint=sum(numbers.values()) * size,
        edited=sum(edited.values()),
        added=edited[tied.parameter] if tied else 0,
        largest_edited=max(edited.values(), default=0),
        held=max((bytes_held(w.shape, w.axis, dtype) for w in writers.writers), default=0),
        lora=sum(
            4 * (torch.Size(w.shape).numel() // w.shape[w.axis] + w.shape[w.axis])
            for w in writers.writers
        ),
    )


def estimate_of(plan: ExportPlan) -> Estimate:
    """What an export needs whose source is on disk: the bytes are those of its files."""
    tensors = plan.checkpoint.tensors
    edited = [(tensors[name].shape, change.axis) for name, change in plan.changes.items()]
    return Estimate(
        architecture=plan.writers.architecture,
        parameters=sum(
            torch.Size(tensor.shape).numel() for name, tensor in tensors.items() if name not in plan.unread
        ),
        checkpoint=plan.checkpoint.size,
        edited=plan.edited_bytes,
        added=sum(tensor.bytes for tensor in plan.added),
        largest_edited=plan.largest_edited,
        held=plan.held_bytes,
        lora=sum(4 * (torch.Size(s).numel() // s[axis] + s[axis]) for s, axis in edited),
    )
