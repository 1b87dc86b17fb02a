"""The map of writers: every parameter that adds to the residual stream, and how an edit reaches it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from ...display import shown
from ...door import checked
from ...errors import InputError
from .empty import empty_model, trace_empty
from .trace import Trace, trace
from .tracer import Write

if TYPE_CHECKING:
    import pandas as pd

Treatment = Literal["edited", "folded", "unchanged", "not editable"]
Exactness = Literal["exact", "exact with untied unembedding", "post-norm", "not editable"]

MIXERS = re.compile(
    r"attn|attention|mixer|mamba|conv|temporal|operator|lstm|ssm|recurrent|linear_out"
)


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
        found = []
        if self.tied:
            found.append(
                f"{self.tied} gets the unedited values of the embedding that it was tied to"
            )
        if self.beside:
            found.append(
                f"block {self.beside[0]} also reads an earlier state of the stream directly; hooks equal the "
                "weights only if they act on that too (on the embedding's output)"
            )
        if self.idle:
            found.append(f"{', '.join(self.idle)} do not run on text and are not edited")
        if self.unread:
            more = f" and {len(self.unread) - 3} more" if len(self.unread) > 3 else ""
            found.append(
                f"{', '.join(self.unread[:3])}{more}: named like writers, but in no layer that transformers runs "
                "(layers that draft tokens, perhaps); not edited, which matters to an engine that runs them"
            )
        return tuple(found)

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


@checked
def writers_of(model: nn.Module) -> Writers:
    """The map of a model that is in memory: a Hugging Face model, under hooks or not.

    Runs it once on a few tokens. Raises InputError when its blocks cannot be found or run, or its stream
    cannot be followed; what is found but not understood is in `obstacles`.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise InputError(
            f"map of writers: got {type(model).__name__}, need a Hugging Face model; try ChatModel.hf"
        )
    return classified(model, trace(model))


@checked
def writers_of_config(config: Any, *, trust_remote_code: bool = False) -> tuple[nn.Module, Writers]:
    """The empty model of the model that a configuration describes, and its map; no weights needed.

    Errors as for `writers_of`, and InputError when transformers cannot build the model.
    """
    model = empty_model(config, trust_remote_code=trust_remote_code)
    return model, classified(model, trace_empty(model))


def classified(model: nn.Module, found: Trace) -> Writers:
    """The map of what a trace found in a model."""
    writes = _one_each([*found.writes, *_like_those_found(found)])
    writers = [_writer(model, found, write) for write in writes]
    return Writers(
        architecture=type(model).__name__,
        writers=tuple(sorted(writers, key=_in_order_of_the_model(found))),
        obstacles=tuple(f"{o.where}: {o.what}" for o in found.obstacles),
        idle=_idle(found),
        blocks=found.blocks,
        n_layers=found.n_layers,
        d_model=found.d_model,
        tied=_tied(model, found),
        beside=found.beside,
        calls={
            name: calls for name, calls in found.calls.items() if name in {w.site for w in writers}
        },
    )


def _in_order_of_the_model(found: Trace) -> Callable[[Writer], int]:
    order = {name: index for index, name in enumerate(found.shapes)}
    return lambda writer: order.get(writer.parameter, len(order))


def _one_each(writes: list[Write]) -> list[Write]:
    """Writes by parameter; one that is reached with and without a norm keeps both in its path."""
    known: dict[str, Write] = {}
    for write in writes:
        other = known.setdefault(write.parameter, write)
        if other is not write and other.through != write.through:
            both = (*other.through, *write.through, "and on another path without")
            known[write.parameter] = replace(other, through=both, scale=None)
    return list(known.values())


def _like_those_found(found: Trace) -> list[Write]:
    """Experts that no token was sent to: same name but for the numbers, same shape, never run."""
    patterns = {re.sub(r"\d+", "#", write.parameter): write for write in found.writes}
    reached = {write.parameter for write in found.writes}
    alike = []
    for name, shape in found.shapes.items():
        model = patterns.get(re.sub(r"\d+", "#", name))
        if model is None or name in reached or found.shapes[model.parameter] != shape:
            continue
        if name not in found.used:
            alike.append(replace(model, parameter=name))
    return alike


def _writer(model: nn.Module, found: Trace, write: Write) -> Writer:
    layer = _layer(write.parameter, found.blocks)
    ties = found.ties.get(write.parameter, (write.parameter,))
    treatment, why = _treatment(write)
    return Writer(
        parameter=write.parameter,
        shape=tuple(found.shapes[write.parameter]),
        axis=write.axis,
        layer=layer,
        role=_role(write, found.shapes[write.parameter], layer),
        lookup=write.lookup,
        norms=write.through,
        scale=write.scale,
        treatment=treatment,
        why=why,
        site=write.site,
        late=write.late,
        apart=write.apart,
        copies=ties[1:],
    )


def _treatment(write: Write) -> tuple[Treatment, str]:
    if not write.through:
        return "edited", ""
    if len(write.through) == 1:
        return (
            "folded",
            "a norm rescales its output: the projection goes to 0, a scale per token remains",
        )
    return "not editable", "its output passes several norms on the way to the stream"


def _layer(parameter: str, blocks: str) -> int | None:
    found = re.match(rf"{re.escape(blocks)}\.(\d+)\.", parameter)
    return int(found.group(1)) if found else None


def _role(write: Write, shape: tuple[int, ...], layer: int | None) -> str:
    """What the parameter is, in words."""
    inside = (
        write.parameter.rpartition(".")[0]
        if layer is None
        else write.parameter.partition(f".{layer}.")[2]
    )
    is_bias = not write.lookup and (len(shape) == 1 or "bias" in write.parameter.rpartition(".")[2])
    if layer is None:
        position = re.search(r"wpe|position", inside)
        kind = "position embedding" if position else "token embedding"
        kind = kind if write.lookup else "embedding"
    else:
        experts = "expert " if "expert" in inside or len(shape) == 3 else ""
        kind = "attention output" if MIXERS.search(inside) else f"{experts}MLP output"
    return f"{kind} bias" if is_bias else kind


def _idle(found: Trace) -> tuple[str, ...]:
    """Modules that take no part in a forward pass on text although they are wide enough to write."""
    written = {re.sub(r"\d+", "#", write.parameter) for write in found.writes}
    names = (
        re.sub(r"\.\d+\..*", "", name.rpartition(".")[0])
        for name, shape in found.shapes.items()
        if name not in found.used
        and "_original_component" not in name  # a bridge keeps split copies of fused matrices
        and found.d_model in shape
        and re.sub(r"\d+", "#", name) not in written
    )
    return tuple(sorted(set(names)))


def _output_embeddings(model: Any) -> Any:
    return model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None


def _tied(model: nn.Module, found: Trace) -> str:
    """Name of the unembedding matrix when it shares its values with a writer, or nothing."""
    written = {write.parameter for write in found.writes}
    weight = getattr(_output_embeddings(model), "weight", None)
    for names in found.ties.values():
        if written & set(names) and weight is not None:
            heads = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
            shared = [n for n in heads if n in names and n not in written]
            if shared:
                return shared[0]
    return ""
