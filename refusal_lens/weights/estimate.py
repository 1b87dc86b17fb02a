"""What an export needs, worked out from shapes alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .checkpoint import SLAB
from .writers import writers_of_config


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
        gb = 1e9
        return (
            f"{self.architecture}, {self.parameters / gb:.1f} billion parameters",
            f"read and write: {self.checkpoint / gb:.1f} GB, of which {self.edited / gb:.1f} GB are worked out "
            f"anew"
            + (
                f", and {self.added / gb:.2f} GB added for an unembedding of its own"
                if self.added
                else ""
            ),
            f"disk: {(self.checkpoint + self.added) / gb:.1f} GB free",
            f"memory: {self.held / gb:.2f} GB of weights at a time (the largest edited tensor has "
            f"{self.largest_edited / gb:.2f} GB), beside about 0.6 GB for Python and its libraries",
            f"as a LoRA: {self.lora / 1e6:.1f} MB",
        )


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
    held = [
        min(edited[w.parameter], SLAB)
        if w.axis == len(w.shape) - 1
        else torch.Size(w.shape[w.axis :]).numel() * size
        for w in writers.writers
    ]
    return Estimate(
        architecture=writers.architecture,
        parameters=sum(numbers.values()),
        checkpoint=sum(numbers.values()) * size,
        edited=sum(edited.values()),
        added=edited[tied.parameter] if tied else 0,
        largest_edited=max(edited.values(), default=0),
        held=max(held, default=0),
        lora=sum(
            4 * (torch.Size(w.shape).numel() // w.shape[w.axis] + w.shape[w.axis])
            for w in writers.writers
        ),
    )
