"""Behaviours that a prompt's last token decides: scored from logits that are there already."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..conversations import Prompt
from ..errors import InputError
from ..shapes import LastLogits, PerPrompt
from .behaviour import Behaviour, LogitBehaviour, Reading
from .scoring import ByLogits

LAST = (Reading((), 1.0),)
"""The prompt as it is, read at its last token."""


class ByLastToken(ByLogits):
    """What behaviours of next-token logits have in common."""

    def readings(self, prompts: Sequence[Prompt]) -> list[tuple[Reading, ...]]:
        """The prompt itself, at its last token."""
        return [LAST] * len(prompts)


def reads_last_token(behaviour: Behaviour, prompts: Sequence[Prompt]) -> bool:
    """Whether next-token logits behind the prompts are all that the behaviour asks for."""
    return isinstance(behaviour, LogitBehaviour) and all(
        readings == LAST for readings in behaviour.readings(prompts)
    )


def last_token_scores(behaviour: Behaviour, logits: LastLogits) -> PerPrompt:
    """The scores of prompts from their next-token logits. Raises InputError for a behaviour that needs more."""
    if not isinstance(behaviour, LogitBehaviour):
        raise InputError(
            f"behaviour {behaviour.name}: got {type(behaviour).__name__}, need one that the last token of a prompt "
            "decides, such as FirstTokens"
        )
    no_ids = torch.zeros((len(logits), 0), dtype=torch.long, device=logits.device)
    return behaviour.number(logits[:, None], no_ids)


def require_last_token(behaviour: Behaviour, prompts: Sequence[Prompt], what: str) -> None:
    """Raise InputError, naming what needs it, unless the prompts' last tokens decide the behaviour."""
    if not reads_last_token(behaviour, prompts):
        raise InputError(
            f"behaviour {behaviour.name} of {what}: got {type(behaviour).__name__}, need one that the last token of "
            "a prompt decides, such as FirstTokens"
        )
