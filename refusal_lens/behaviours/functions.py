"""Behaviours of plain Python functions of the next-token logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..display import shown
from ..door import checked
from ..errors import InputError
from ..judges import Judge
from ..shapes import LastLogits, as_float64
from .last_token import ByLastToken
from .words import REFUSAL, Words


@shown("name", "fn")
@checked
@dataclass(frozen=True)
class LogitFunction(ByLastToken):
    """``fn(logits)`` of the last position's logits [row d_vocab], a number per row; `from_logits` makes one.

    bounds: no number lies outside of them, which a lazy sweep relies on. Raises InputError for bounds out of order.
    """

    fn: Callable[[LastLogits], Tensor]
    name: str
    unit: str = ""
    words: Words = REFUSAL
    judge: Judge | None = field(default=None, compare=False)
    threshold: float = 0.0
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        if not self.bounds[0] < self.bounds[1]:
            raise InputError(f"bounds of {self.name}: got {self.bounds}, need the lower one first")
        if self.words is REFUSAL:
            object.__setattr__(self, "words", Words.of(self.name))

    def number(
        self, logits: Float[Tensor, "row k d_vocab"], ids: Int[Tensor, "row n_ids"]
    ) -> Float64[Tensor, " row"]:
        """What the function says of each row. Raises InputError unless that is a number per row, within the bounds."""
        numbers = self.fn(logits[:, -1])
        if not isinstance(numbers, Tensor) or numbers.shape != (len(logits),):
            what = list(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
            raise InputError(
                f"{self.name} of logits [{len(logits)} rows]: got {what}, need a tensor of one number per row"
            )
        numbers = as_float64(numbers)
        lowest, highest = self.bounds
        outside = numbers[(numbers < lowest) | (numbers > highest)]
        if len(outside):
            raise InputError(
                f"{self.name} of logits: got {float(outside[0]):g}, need numbers within {lowest:g} and {highest:g}"
            )
        return numbers

    def to_json(self) -> dict[str, Any]:
        """The function's name alone stands for what it does; no run can give the function back."""
        return {
            "kind": "function of logits",
            "name": self.name,
            "words": asdict(self.words),
            "function": f"{self.fn.__module__}.{getattr(self.fn, '__qualname__', type(self.fn).__qualname__)}",
            "unit": self.unit,
            "threshold": self.threshold,
        }


@checked
def from_logits(fn: Callable[[LastLogits], Tensor], *, name: str, **facts: Any) -> LogitFunction:
    """A behaviour of a plain function from last-position logits [row d_vocab] to a number per row.

    facts: the other fields of `LogitFunction`. A sweep batches it like any behaviour of logits; a run cannot be
    reopened with it.
    """
    return LogitFunction(fn, name, **facts)
