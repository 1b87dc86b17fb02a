"""What an export to a checkpoint will do, worked out from headers before a byte is written."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..display import shown
from ..door import checked
from ..errors import InputError
from ..model.boundary import loading
from ..model.norms import Norm, measure_norm
from ..model.shards import DTYPES, Checkpoint, Stored, folder_at, open_checkpoint
from ..model.stored import quantisation
from ..model.stream.empty import empty_model
from ..model.stream.mapping import writers_of_config
from ..model.stream.writers import Writers, name_pattern
from .addition import config_with_bias
from .arithmetic import Change, NewBias, Offset, Project, layout, precise, row_chunks
from .edits import WeightEdit, changes_of, map_after
from .names import FileNames, Source, file_names


@shown()
@dataclass(frozen=True, eq=False)
class Added:
    """A tensor that the checkpoint does not have: the bytes of another one, or values of its own."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    like: Stored | None = None
    values: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Size in the file."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize


@shown("writers.architecture", "edit", "changes", "added", "total_bytes")
@dataclass(frozen=True)
class ExportPlan:
    """An export to be.

    parameter_changes say what becomes of each parameter, sources which of the checkpoint's tensors hold it, and
    changes the same by those tensors' names, each with the tensor's own axis.
    """

    checkpoint: Checkpoint
    writers: Writers
    edit: WeightEdit
    parameter_changes: tuple[Change, ...]
    sources: Mapping[str, tuple[Source, ...]]
    changes: Mapping[str, Project | Offset]
    added: tuple[Added, ...]
    config: Mapping[str, Any]
    unread: tuple[str, ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all shards of the result."""
        return self.checkpoint.size + sum(added.bytes for added in self.added)

    @property
    def edited_bytes(self) -> int:
        """Bytes that are worked out anew."""
        return sum(self.checkpoint.tensors[name].bytes for name in self.changes)

    @property
    def largest_edited(self) -> int:
        """Bytes of the largest edited tensor."""
        return max((self.checkpoint.tensors[name].bytes for name in self.changes), default=0)

    @property
    def held_bytes(self) -> int:
        """Most bytes in memory at a time for the tensor that is being edited."""
        sizes = (
            bytes_held(self.checkpoint.tensors[n].shape, c.axis, DTYPES[self.checkpoint.tensors[n].dtype])
            for n, c in self.changes.items()
        )
        return max(sizes, default=0)


def bytes_held(shape: Sequence[int], axis: int, dtype: torch.dtype) -> int:
    """Bytes that editing a tensor along an axis takes: some rows, their new values, a few sums."""
    outer, d, inner = layout(shape, axis)
    n, width = (outer, d) if inner == 1 else (d, inner)
    rows = next(row_chunks(n, width, dtype), slice(0, 0)).stop
    finer = precise(dtype).itemsize
    sums = 4 * inner if inner > 1 else 2 * n
    return rows * width * (dtype.itemsize + 3 * finer) + sums * finer


def require_plan(plan: Any) -> None:
    """Raise InputError for anything but what `prepare` gives."""
    if not isinstance(plan, ExportPlan):
        raise InputError(f"export: got {type(plan).__name__}, need an ExportPlan; try prepare(folder, edit)")


@checked
def prepare(
    folder: str | Path,
    edit: WeightEdit,
    *,
    allow_partial: bool = False,
    trust_remote_code: bool = False,
    new_biases: bool = True,
) -> ExportPlan:
    """Work out an export from a checkpoint's headers; no weights are read but those of post-norms.

    new_biases=False leaves a bias that the model lacks out of the checkpoint, for an adapter to carry.
    Raises InputError for a folder, a checkpoint or an edit that cannot be used.
    """
    if not isinstance(edit, WeightEdit):
        raise InputError(
            f"weight edit: got {type(edit).__name__}, need what orthogonalise or add_bias of a direction give"
        )
    opened = _Opened.of(folder_at(folder), trust_remote_code=trust_remote_code)
    opened.writers.require_editable(allow_partial=allow_partial)
    parameter_changes = changes_of(opened.writers, edit, opened.norm)
    stored = [change for change in parameter_changes if not isinstance(change, NewBias)]
    sources = {change.parameter: opened.sources(change) for change in stored}
    changes = {
        source.name: replace(change, parameter=source.name, axis=source.axis)
        for change in stored
        for source in sources[change.parameter]
    }
    contents, added = dict(opened.checkpoint.config), []
    for change in parameter_changes:
        if isinstance(change, NewBias) and new_biases:
            flags, biases = config_with_bias(
                opened.names.model, opened.config, change, trust_remote_code
            )
            contents |= flags
            dtype = opened.stored(f"{change.module}.weight").dtype
            added += [Added(n, dtype, tuple(v.shape), values=v) for n, v in biases.items()]
    writers = map_after(opened.writers, edit, parameter_changes)
    writers = replace(writers, unread=opened.unread_writers(changes))
    if writers.tied:
        contents, more = opened.untied(contents, writers)
        added += more
    return ExportPlan(
        opened.checkpoint,
        writers,
        edit,
        parameter_changes,
        sources,
        changes,
        tuple(added),
        contents,
        opened.names.unread,
    )


@dataclass(frozen=True)
class _Opened:
    """A model folder whose headers are read: its configuration, the map of its writers, its tensors' names."""

    checkpoint: Checkpoint
    config: Any
    writers: Writers
    names: FileNames
    trust_remote_code: bool

    @classmethod
    def of(cls, folder: Path, *, trust_remote_code: bool) -> _Opened:
        """Raises InputError for a folder that cannot be used, and for quantised weights."""
        checkpoint = open_checkpoint(folder)
        config = configuration(folder, trust_remote_code=trust_remote_code)
        if method := quantisation(config, folder):
            raise InputError(
                f"model folder {folder}: quantised ({method}), need bf16, fp16 or fp32 weights; "
                "export the original model and quantise the result"
            )
        model, writers = writers_of_config(config, trust_remote_code=trust_remote_code)
        names = file_names(model, {name: t.shape for name, t in checkpoint.tensors.items()})
        return cls(checkpoint, config, writers, names, trust_remote_code)

    def _names_of(self, parameter: str) -> list[str]:
        """The checkpoint's tensors of a parameter, under whichever of its names; not the unembedding's."""
        tied, by_parameter = self.writers.tied, self.names.by_parameter
        copies = next((w.copies for w in self.writers.writers if w.parameter == parameter), ())
        names = [n for n in (parameter, *copies) if n != tied and n in by_parameter]
        if not names:
            where = "only as the unembedding" if tied in by_parameter else "nowhere"
            raise InputError(
                f"{parameter}: stored {where} in the checkpoint; open and save it with transformers first"
            )
        return [stored for name in names for stored in by_parameter[name]]

    def stored(self, parameter: str) -> Stored:
        """The first of the checkpoint's tensors of a parameter."""
        return self.checkpoint.tensors[self._names_of(parameter)[0]]

    def sources(self, change: Project | Offset) -> tuple[Source, ...]:
        """Every tensor of the checkpoint that holds a changed parameter, under each of its names."""
        wanted = set(self._names_of(change.parameter))
        sources = [
            source
            for parameter, members in self.names.by_parameter.items()
            if wanted & set(members)
            for source in self.names.sources(parameter, change.axis)
        ]
        for source in sources:
            stored = self.checkpoint.tensors[source.name]
            if stored.dtype not in DTYPES:
                raise InputError(
                    f"{source.name} in {self.checkpoint.folder / stored.file}: got dtype {stored.dtype}, need "
                    f"one of {', '.join(DTYPES)}; the checkpoint is quantised"
                )
        return tuple(sources)

    def norm(self, name: str) -> Norm:
        """A norm module of the model, measured with the checkpoint's values."""
        module = self.names.model.get_submodule(name)
        values = {}
        for leaf, parameter in module.named_parameters(recurse=False):
            stored = self.names.by_parameter.get(f"{name}.{leaf}", ())
            if len(stored) != 1:
                raise InputError(f"{name}.{leaf}: not in the checkpoint; is a shard missing?")
            values[leaf] = self.checkpoint.read(stored[0]).view(parameter.shape)
        return measure_norm(module, self.writers.d_model, values)

    def unread_writers(self, changes: Iterable[str]) -> tuple[str, ...]:
        """Tensors that no parameter takes and that look like writers: named as these, of the stream's width."""
        known = {name_pattern(n) for n in (*changes, *(w.parameter for w in self.writers.writers))}
        tails = {pattern.rpartition("#.")[2] for pattern in known if "#." in pattern}
        return tuple(
            name
            for name in self.names.unread
            if self.writers.d_model in self.checkpoint.tensors[name].shape
            and name_pattern(name).rpartition("#.")[2] in tails
        )

    def untied(
        self, contents: dict[str, Any], writers: Writers
    ) -> tuple[dict[str, Any], list[Added]]:
        """Configuration and tensor that give the unembedding the unedited values for its own."""
        config = copy.deepcopy(self.config)
        contents = {**contents, "tie_word_embeddings": False}
        for part in (config, config.get_text_config()):
            part.tie_word_embeddings = False
        for name, inner in contents.items():
            if isinstance(inner, dict) and (
                name == "text_config" or "tie_word_embeddings" in inner
            ):
                contents[name] = {**inner, "tie_word_embeddings": False}
        model = empty_model(config, trust_remote_code=self.trust_remote_code)
        unembedding = model.get_parameter(writers.tied)
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is unembedding]
        if names != [writers.tied]:
            raise InputError(
                f"{writers.architecture}: its unembedding is the embedding and cannot be made separate by "
                "tie_word_embeddings; edit it with hooks or as a LoRA"
            )
        if writers.tied in self.names.by_parameter:
            return contents, []
        source = next(w for w in writers.writers if writers.tied in w.copies)
        like = self.stored(source.parameter)
        return contents, [Added(writers.tied, like.dtype, like.shape, like=like)]


def configuration(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder. Raises InputError when transformers cannot read it."""
    from transformers import AutoConfig

    with loading(folder / "config.json"):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
