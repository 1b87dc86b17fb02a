"""The map of writers: every parameter that adds to the residual stream, and how an edit reaches it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ...display import shown
from ...errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Treatment = Literal["edited", "folded", "unchanged", "not editable"]
Exactness = Literal["exact", "exact with untied unembedding", "post-norm", "not editable"]


def name_pattern(name: str) -> str:
    """A name with its numbers blotted out, which the same part of another layer or expert shares."""
    return re.sub(r"\d+", "#", name)


@shown()
@dataclass(frozen=True)
class Writer:
    """A parameter that writes to the residual stream.

    axis is its axis of d_model; layer its block, None before the first; norms the modules that rescale
    what it writes before it is added, the last one first; site the module whose output is added; scale the
    factor on the way, None when it differs from token to token; late says that nothing in its block reads
    the stream after it; apart that it is added beside the output of its module; copies are the further names
    of a shared parameter.
    """

    parameter: str
    shape: tuple[int, ...]
    axis: int
    layer: int | None
    role: str
    lookup: bool
    norms: tuple[str, ...]
    scale: float | None
    treatment: Treatment
    why: str
    site: str
    late: bool = True
    apart: bool = False
    copies: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """Name of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    @property
    def is_vector(self) -> bool:
        """Whether it adds a vector of its own: a bias (one per expert, perhaps)."""
        return not self.lookup and self.role.endswith("bias")


@shown("architecture", "exactness", "writers")
@dataclass(frozen=True)
class Writers:
    """Every writer of a model, and what stands in the way of an exact edit.

    calls: of the sites that run several times in a pass and write in some of these only, which ones. unread:
    tensors of a checkpoint that look like writers but are of no module of the model.
    """

    architecture: str
    writers: tuple[Writer, ...]
    obstacles: tuple[str, ...]
    idle: tuple[str, ...]
    blocks: str
    n_layers: int
    d_model: int
    tied: str
    beside: tuple[int, ...] = ()
    calls: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know beyond the class."""
        notes = []
        if self.tied:
            notes.append(
                f"{self.tied} gets the unedited values of the embedding that it was tied to"
            )
        if self.beside:
            notes.append(
                f"block {self.beside[0]} also reads an earlier state of the stream directly; hooks equal the "
                "weights only if they act on that too (on the embedding's output)"
            )
        if self.idle:
            notes.append(f"{', '.join(self.idle)} do not run on text and are not edited")
        if self.unread:
            more = f" and {len(self.unread) - 3} more" if len(self.unread) > 3 else ""
            notes.append(
                f"{', '.join(self.unread[:3])}{more}: named like writers, but in no layer that transformers runs "
                "(layers that draft tokens, perhaps); not edited, which matters to an engine that runs them"
            )
        return tuple(notes)

    @property
    def exactness(self) -> Exactness:
        """How edited weights compare with hooks on this model."""
        if self.obstacles or any(w.treatment == "not editable" for w in self.writers):
            return "not editable"
        if any(w.treatment == "folded" for w in self.writers):
            return "post-norm"
        return "exact with untied unembedding" if self.tied else "exact"

    @property
    def problems(self) -> tuple[str, ...]:
        """One line for everything that an edit would leave in the stream."""
        missed = (w for w in self.writers if w.treatment == "not editable")
        return (*self.obstacles, *(f"{w.parameter}: {w.why}" for w in missed))

    def require_editable(self, *, allow_partial: bool) -> None:
        """Raise InputError when something that writes to the stream cannot be edited."""
        if self.problems and not allow_partial:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise InputError(
                f"weight edit of {self.architecture}: {self.problems[0]}{more}; "
                "edit it with hooks, or pass --allow-partial to leave that part in the stream"
            )

    def frame(self) -> pd.DataFrame:
        """The coverage report: one row per parameter and one per obstacle."""
        import pandas as pd

        rows = [
            {
                # A bridge keeps what it wraps under this name.
                "parameter": w.parameter.replace("._original_component", ""),
                "layer": w.layer,
                "role": w.role,
                "shape": "x".join(map(str, w.shape)),
                "axis": w.axis,
                "after_norm": w.norms[0] if w.norms else "",
                "treatment": w.treatment,
                "why": w.why,
            }
            for w in self.writers
        ]
        blank = dict.fromkeys(("layer", "role", "shape", "axis", "after_norm"), "")
        rows += [
            {
                "parameter": o,
                **blank,
                "treatment": "not editable",
                "why": "not a product of parameters",
            }
            for o in self.obstacles
        ]
        rows += [
            {"parameter": name, **blank, "treatment": "not run on text", "why": "other inputs only"}
            for name in self.idle
        ]
        columns = ["parameter", "layer", "role", "shape", "axis", "after_norm", "treatment", "why"]
        return pd.DataFrame(rows, columns=columns)
