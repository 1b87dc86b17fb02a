"""Which part of a prompt a token belongs to: BOS, template, instruction, suffix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ..chat import Rendered
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..shapes import Spans

NAMES = ("BOS", "template", "instruction", "suffix")
PADDING = -1


@shown()
@dataclass(frozen=True, eq=False)
class Regions:
    """The region of every token of a left-padded batch, as an index into names; padding is -1."""

    index: Int[Tensor, "batch pos"]
    names: tuple[str, ...] = NAMES

    @classmethod
    @checked
    def of(cls, rendered: Rendered, *, suffix: Spans | None = None) -> Regions:
        """Regions of rendered prompts; suffix: half-open spans inside the instruction's.

        The first token of every prompt is "BOS", whether or not the template calls it that: it is
        where attention rests when it looks at nothing.
        """
        columns = torch.arange(rendered.ids.shape[1])[None]
        real = rendered.mask.bool().cpu()
        index = torch.where(real, 1, PADDING)
        index[_inside(columns, rendered.instruction.cpu()) & real] = 2
        if suffix is not None:
            spans = suffix.cpu()
            if bool((spans[:, 0] < rendered.instruction[:, 0].cpu()).any()):
                raise InputError(
                    "suffix spans: got one that starts before its instruction, need them inside "
                    "the instruction's span"
                )
            index[_inside(columns, spans) & real] = 3
        index.scatter_(1, real.long().argmax(1, keepdim=True), 0)
        return cls(index)

    def sums(
        self, values: Float64[Tensor, "batch chosen pos"]
    ) -> Float64[Tensor, "batch chosen region"]:
        """Sum over the tokens of each region."""
        total = [(values * (self.index == i)[:, None]).sum(-1) for i in range(len(self.names))]
        return torch.stack(total, -1)

    def __getitem__(self, name: str) -> Tensor:
        """Where the region is, [batch pos]."""
        if name not in self.names:
            raise InputError(f"region {name!r}: need one of {', '.join(self.names)}")
        return self.index == self.names.index(name)


def _inside(columns: Tensor, spans: Tensor) -> Tensor:
    return (columns >= spans[:, :1]) & (columns < spans[:, 1:])
