"""Find, explain, edit and measure the direction in a chat model that makes it refuse.

The names of `__all__` are imported from their rooms when they are first used, so that
`import refusal_lens` costs milliseconds.

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
    "errors": ("InputError", "UnmetError"),
    "progress": ("bars",),
    "runs": ("Run",),
    "prompts": ("Contrast", "PromptPair"),
    "chat": ("ChatFormat", "Rendered"),
    "model": ("ChatModel", "Site"),
    "activations": ("cache_residuals", "mean_residuals"),
    "interventions": ("Edit", "ablate", "add", "affine", "applied", "clamp", "subtract"),
    "metrics": ("kl_divergence", "first_token_log_odds"),
    "directions": (
        "Candidates",
        "Direction",
        "NoCandidateError",
        "Selection",
        "Thresholds",
        "score_candidates",
        "select",
    ),
    "evaluation": ("complete", "rate"),
    "judges": ("phrase_judge",),
    "attribution": ("attribute", "attribute_sources"),
    "pipeline": ("Finding", "RunConfig", "find_direction", "open_run", "run_pipeline", "write_report"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

if TYPE_CHECKING:
    from refusal_lens.activations import cache_residuals, mean_residuals
    from refusal_lens.attribution import attribute, attribute_sources
    from refusal_lens.chat import ChatFormat, Rendered
    from refusal_lens.directions import (
        Candidates,
        Direction,
        NoCandidateError,
        Selection,
        Thresholds,
        score_candidates,
        select,
    )
    from refusal_lens.errors import InputError, UnmetError
    from refusal_lens.evaluation import complete, rate
    from refusal_lens.interventions import Edit, ablate, add, affine, applied, clamp, subtract
    from refusal_lens.judges import phrase_judge
    from refusal_lens.metrics import first_token_log_odds, kl_divergence
    from refusal_lens.model import ChatModel, Site
    from refusal_lens.pipeline import (
        Finding,
        RunConfig,
        find_direction,
        open_run,
        run_pipeline,
        write_report,
    )
    from refusal_lens.progress import bars
    from refusal_lens.prompts import Contrast, PromptPair
    from refusal_lens.runs import Run

__all__ = [
    "Candidates",
    "ChatFormat",
    "ChatModel",
    "Contrast",
    "Direction",
    "Edit",
    "Finding",
    "InputError",
    "NoCandidateError",
    "PromptPair",
    "Rendered",
    "Run",
    "RunConfig",
    "Selection",
    "Site",
    "Thresholds",
    "UnmetError",
    "ablate",
    "add",
    "affine",
    "applied",
    "attribute",
    "attribute_sources",
    "bars",
    "cache_residuals",
    "clamp",
    "complete",
    "find_direction",
    "first_token_log_odds",
    "kl_divergence",
    "mean_residuals",
    "open_run",
    "phrase_judge",
    "rate",
    "run_pipeline",
    "score_candidates",
    "select",
    "subtract",
    "write_report",
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
