"""What a direction is about: a number per prompt, under whatever edits are installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Float64, Int
from torch import Tensor

from ..conversations import Prompt
from ..judges import Judge
from ..model import ChatModel
from ..progress import Progress
from ..shapes import PerPrompt
from .words import Words


@runtime_checkable
class Behaviour(Protocol):
    """What a direction is about: a score per prompt (higher: more of it) and the words for it."""

    name: str
    """What it is called, such as "refusal"; also the concept that directions carry."""
    unit: str
    """Of its scores, such as "nats"."""
    words: Words
    judge: Judge | None
    """What judges replies by default; None where replies are not judged."""
    threshold: float
    """Prompts that score above it show the behaviour, those below do not."""
    bounds: tuple[float, float]
    """No prompt scores outside of these; infinite where nothing is known. Exact early rejection rests on them."""

    def scores(
        self,
        model: ChatModel,
        prompts: Sequence[Prompt],
        *,
        batch_size: int = 32,
        on_progress: Progress | None = None,
    ) -> PerPrompt:
        """The score of every prompt, float64 on the CPU, under the edits that are installed."""

    def to_json(self) -> dict[str, Any]:
        """What determines the scores: JSON-able, the same for equal behaviours."""


class Reading(NamedTuple):
    """One row that is run for a prompt: the ids put behind it, and the weight of what they give in its score.

    With no ids the prompt is read at its last token. With n ids it is read at the n positions that predict them.
    """

    ids: tuple[int, ...]
    weight: float


@runtime_checkable
class LogitBehaviour(Behaviour, Protocol):
    """A behaviour that forward passes decide: a prompt's score is the weighted sum of its readings' numbers."""

    def readings(self, prompts: Sequence[Prompt]) -> list[tuple[Reading, ...]]:
        """What to run for each prompt, at least one reading."""

    def number(
        self, logits: Float[Tensor, "row k d_vocab"], ids: Int[Tensor, "row n_ids"]
    ) -> Float64[Tensor, " row"]:
        """Each row's number from its logits at the k positions read, and the ids predicted there.

        A reading without ids has k = 1, and an id axis of length 0.
        """
