"""Find, explain, edit and measure the direction of refusal, or of another concept, in a chat model.

The names of `__all__` are those that the README teaches; each room has more. They are imported from their rooms
when they are first used, so that `import refusal_lens` costs milliseconds.

>>> import refusal_lens
>>> refusal_lens.__version__
'0.1.0'
>>> "find_direction" in dir(refusal_lens)
True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_ROOMS = {
    "errors": ("InputError",),
    "progress": ("bars",),
    "conversations": ("Conversation",),
    "prompts": ("Contrast",),
    "model": ("ChatModel",),
    "direction": ("Direction",),
    "interventions": ("ablate", "add", "applied", "subtract"),
    "behaviours": ("Continuations", "FirstTokens"),
    "attribution": ("attribute",),
    "evaluation": ("complete", "rate"),
    "pipeline": ("RunConfig", "find_direction", "open_run", "run_pipeline", "run_suffix_study"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from refusal_lens.attribution import attribute
    from refusal_lens.behaviours import Continuations, FirstTokens
    from refusal_lens.conversations import Conversation
    from refusal_lens.direction import Direction
    from refusal_lens.errors import InputError
    from refusal_lens.evaluation import complete, rate
    from refusal_lens.interventions import ablate, add, applied, subtract
    from refusal_lens.model import ChatModel
    from refusal_lens.pipeline import (
        RunConfig,
        find_direction,
        open_run,
        run_pipeline,
        run_suffix_study,
    )
    from refusal_lens.progress import bars
    from refusal_lens.prompts import Contrast

__all__ = [
    "ChatModel",
    "Continuations",
    "Contrast",
    "Conversation",
    "Direction",
    "FirstTokens",
    "InputError",
    "RunConfig",
    "ablate",
    "add",
    "applied",
    "attribute",
    "bars",
    "complete",
    "find_direction",
    "open_run",
    "rate",
    "run_pipeline",
    "run_suffix_study",
    "subtract",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room (PEP 562)."""
    if name not in _ROOM_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_ROOM_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
