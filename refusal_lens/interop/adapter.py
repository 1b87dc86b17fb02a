"""The edit as a PEFT LoRA adapter: it is of rank one for every matrix, ``B = -s a``, ``A = b^T W``."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..door import checked
from ..errors import InputError
from ..model.stream.empty import empty_model
from ..runs import write_json, write_safetensors
from ..weights.arithmetic import Change, NewBias, Offset, Project, change_in_place
from ..weights.atomic import Recorded, atomic_folder, require_outside
from ..weights.checkpoint import ExportPlan, configuration, require_plan
from ..weights.contraction import contraction
from ..weights.copying import OnBytes
from ..weights.export import PROVENANCE

if TYPE_CHECKING:
    from peft import LoraConfig

BASE = "base_model.model."
LAYERS = ("linear", "embedding", "new bias")
PARAMETERS = ("experts", "matrix")
MOVED = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
"""Names that peft takes for parts of experts in models that have them, wherever they stand."""


class _Part(NamedTuple):
    """How one change is expressed: a LoRA on a module or a parameter, or a bias stored whole."""

    change: Change
    kind: str
    module: str
    leaf: str

    @property
    def parameter(self) -> str:
        return f"{self.module}.{self.leaf}"


@checked
def write_adapter(
    plan: ExportPlan,
    out: str | Path,
    *,
    provenance: Mapping[str, Any],
    allow_partial: bool = False,
    trust_remote_code: bool = False,
    progress: OnBytes = lambda _: None,
    check: Callable[[Path], None] = lambda _: None,
    recorded: Recorded = nullcontext,
) -> Path:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``, which peft loads.

    Matrices, embeddings and stacks of experts become LoRAs of rank one; biases, which a LoRA cannot change,
    are stored whole under peft's ``bias="all"``. Raises InputError when peft is not installed, the edit is
    not of rank one, or a parameter fits neither form (unless allow_partial).
    """
    require_plan(plan)
    require_outside(Path(out), plan.checkpoint.folder)
    peft = _peft()
    if any(isinstance(change, Project) and change.keep_norms for change in plan.parameter_changes):
        raise InputError(
            "norm-preserving edit: not of rank one, so it is no LoRA; use --to checkpoint"
        )
    config = configuration(plan.checkpoint.folder, trust_remote_code=trust_remote_code)
    model = empty_model(config, trust_remote_code=trust_remote_code, meta=True)
    mixture = any(len(w.shape) == 3 for w in plan.writers.writers)
    parts = [_part(model, change, mixture) for change in plan.parameter_changes]
    missed = [part.parameter for part in parts if part.kind == "none"]
    if missed and not allow_partial:
        raise InputError(
            f"{missed[0]}: fits no LoRA (it is neither a linear layer, an embedding, a stack of experts nor a "
            "bias); use --to checkpoint, or pass --allow-partial to leave it as it is"
        )
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=1,
        lora_alpha=1,
        lora_dropout=0.0,
        # What a loader does not find then has no effect, where False would leave it random.
        init_lora_weights=True,
        bias="all" if any(part.kind == "bias" for part in parts) else "none",
        target_modules=sorted({p.module for p in parts if p.kind in LAYERS}),
        target_parameters=sorted({p.parameter for p in parts if p.kind in PARAMETERS}) or None,
        lora_bias=any(part.kind == "new bias" for part in parts),
        base_model_name_or_path=str(provenance.get("model", "")),
        inference_mode=True,
    )
    wrapped = _wrapped(peft, model, settings, parts)
    with atomic_folder(Path(out), needed=_size(plan), check=check, recorded=recorded) as hidden:
        tensors = dict(_tensors(plan, wrapped, parts, progress))
        write_safetensors(hidden / "adapter_model.safetensors", tensors, {"format": "pt"})
        write_json(hidden / PROVENANCE, {**provenance, "not_covered": missed})
        _save_settings(settings, hidden)
        _require_loaded_whole(peft, config, settings, hidden, trust_remote_code=trust_remote_code)
    return Path(out)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            "LoRA export: needs peft; try pip install 'refusal-lens[export]'"
        ) from error
    return peft


def _wrapped(
    peft: Any, model: nn.Module, settings: LoraConfig, parts: Sequence[_Part]
) -> nn.Module:
    """The model as peft wraps it, with a LoRA in every place that needs one."""
    try:
        with warnings.catch_warnings():
            # It speaks of renaming the base model and of merging; this copy is neither kept nor merged.
            warnings.simplefilter("ignore")
            wrapped: nn.Module = peft.get_peft_model(model, copy.deepcopy(settings))
    except ValueError as error:
        raise InputError(f"LoRA export: peft refuses ({str(error).splitlines()[0]})") from error
    for part in parts:
        if part.kind not in (*LAYERS, *PARAMETERS):
            continue
        if not hasattr(wrapped.get_submodule(f"{BASE}{part.module}"), "lora_A"):
            raise InputError(
                f"{part.parameter}: peft did not put a LoRA there, so the adapter would not equal the edit; use "
                "--to checkpoint"
            )
    return wrapped


def _require_loaded_whole(
    peft: Any, config: Any, settings: LoraConfig, folder: Path, *, trust_remote_code: bool
) -> None:
    """Raise InputError unless peft finds a place for every tensor of the adapter, and a tensor for every place.

    It renames keys on loading, as transformers does for some architectures, and only warns of those it lost.
    """
    model = empty_model(config, trust_remote_code=trust_remote_code, meta=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = peft.get_peft_model(model, copy.deepcopy(settings))
            found = wrapped.load_adapter(str(folder), "default", torch_device="cpu")
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        why = (str(error).splitlines() or ["?"])[0]
        raise InputError(
            f"LoRA export: peft cannot load the adapter ({why:.100}); use --to checkpoint"
        ) from error
    lost = [*found.missing_keys, *found.unexpected_keys]
    if lost:
        name = str(lost[0]).removeprefix(BASE)
        raise InputError(
            f"LoRA export: peft loads this architecture's adapters under other names and loses {len(lost)} of "
            f"their tensors ({name:.120}), so the adapter would not equal the edit; use --to checkpoint"
        )


def _save_settings(settings: LoraConfig, folder: Path) -> None:
    settings.save_pretrained(str(folder))


def _size(plan: ExportPlan) -> int:
    """Upper bound of the adapter's bytes: one number per row and column."""
    return sum(4 * sum(plan.checkpoint.tensors[name].shape) for name in plan.changes)


def _part(model: nn.Module, change: Change, mixture: bool) -> _Part:
    """How to express a change in a model, which may be a mixture of experts."""
    module, _, leaf = change.parameter.rpartition(".")
    owner = model.get_submodule(module)
    linear = isinstance(owner, nn.Linear) or type(owner).__name__ == "Conv1D"
    kind = "none"
    if isinstance(change, NewBias):
        return _Part(change, "new bias" if linear else "none", module, leaf)
    shape = tuple(model.get_parameter(change.parameter).shape)
    if leaf == "weight" and linear:
        kind = "matrix" if mixture and module.rpartition(".")[2] in MOVED else "linear"
    elif leaf == "weight" and isinstance(owner, nn.Embedding):
        # A table with a lookup of its own, as OPT's for positions, is changed as a parameter.
        own = type(owner).forward is not nn.Embedding.forward and not hasattr(owner, "embed_scale")
        kind = "matrix" if own else "embedding"
    elif len(shape) == 3:
        kind = "experts"
    elif len(shape) == 1 or leaf.endswith("bias"):
        kind = "bias"
    return _Part(change, kind, module, leaf)


def _tensors(
    plan: ExportPlan, wrapped: nn.Module, parts: Sequence[_Part], progress: OnBytes
) -> Iterator[tuple[str, Tensor]]:
    """The adapter's tensors by the names that peft saves them under."""
    for part in parts:
        if part.kind == "bias":
            yield _stored_name(wrapped, part), _edited_bias(plan, part)
        elif part.kind == "new bias":
            yield from _bias_alone(wrapped, part)
        elif part.kind != "none":
            yield from _factors(plan, wrapped, part)
        sources = plan.sources.get(part.change.parameter, ())
        progress(sum(plan.checkpoint.tensors[source.name].bytes for source in sources))


def _factors(plan: ExportPlan, wrapped: nn.Module, part: _Part) -> Iterator[tuple[str, Tensor]]:
    """A and B such that ``W + B A`` is the edited parameter."""
    along, across = _rank_one(plan, part)
    name = f"{BASE}{part.module}"
    if part.kind == "embedding":
        yield f"{name}.lora_embedding_A", along.view(1, -1)
        yield f"{name}.lora_embedding_B", across.view(-1, 1)
        return
    experts = along.shape[0] if part.kind == "experts" else 1
    inputs, outputs = along.view(experts, -1), across.view(1, -1).expand(experts, -1)
    if part.kind in PARAMETERS and not _writes_are_outputs(wrapped, part):
        inputs, outputs = outputs, inputs
    yield f"{name}.lora_A.weight", inputs.contiguous()
    yield f"{name}.lora_B.weight", outputs.T.contiguous()


def _bias_alone(wrapped: nn.Module, part: _Part) -> Iterator[tuple[str, Tensor]]:
    """A LoRA whose matrices are zero and whose bias is the vector."""
    assert isinstance(part.change, NewBias)
    name = f"{BASE}{part.module}"
    layer: Any = wrapped.get_submodule(name)
    yield f"{name}.lora_A.weight", torch.zeros(1, layer.in_features)
    yield f"{name}.lora_B.weight", torch.zeros(layer.out_features, 1)
    yield f"{name}.lora_B.bias", part.change.vector.float()


def _rank_one(plan: ExportPlan, part: _Part) -> tuple[Tensor, Tensor]:
    """What each input writes along b, and ``-s a``; for an addition to a table ones, and the vector."""
    change, sources = part.change, plan.sources[part.change.parameter]
    if isinstance(change, Offset):
        rows = plan.checkpoint.tensors[sources[0].name].shape[1 - sources[0].axis]
        return torch.ones(rows), change.vector.float()
    assert isinstance(change, Project)
    along = [contraction(plan.checkpoint, s.name, s.axis, change.right) for s in sources]
    whole = torch.stack(along) if part.kind == "experts" and along[0].ndim == 1 else along[0]
    return whole.float(), (-change.strength * change.left).float()


def _writes_are_outputs(wrapped: nn.Module, part: _Part) -> bool:
    """Whether peft takes the axis of d_model of a bare parameter for its outputs."""
    assert not isinstance(part.change, NewBias)
    if part.kind == "matrix":
        return part.change.axis == 0
    layer: Any = wrapped.get_submodule(f"{BASE}{part.module}")
    transposed = bool(getattr(layer.get_base_layer(), "is_transposed", False))
    return (part.change.axis == 2) == transposed


def _stored_name(wrapped: nn.Module, part: _Part) -> str:
    """Where peft keeps a parameter of the base model, which it may have wrapped."""
    plain = f"{BASE}{part.parameter}"
    return plain if _has(wrapped, plain) else f"{BASE}{part.module}.base_layer.{part.leaf}"


def _has(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_parameters(remove_duplicate=False))


def _edited_bias(plan: ExportPlan, part: _Part) -> Tensor:
    assert not isinstance(part.change, NewBias)
    (source,) = plan.sources[part.change.parameter]
    bias = plan.checkpoint.read(source.name)
    change_in_place(bias, plan.changes[source.name])
    return bias
