"""Exports of a finished run's direction: weights and files for other tools, checked against the hooks."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import Field, asdict, dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch

from .. import __version__
from ..conversations import Prompt
from ..display import shown
from ..door import checked
from ..errors import InputError
from ..evaluation.parity import Answers, Parity, Promise, ask, parity
from ..interop.adapter import write_adapter
from ..interop.vectors import write_gguf, write_reference, write_steered
from ..interventions import ablate, add, applied
from ..model import ChatModel
from ..model.shards import DTYPES
from ..progress import Progress
from ..runs import Run
from ..weights import (
    ExportPlan,
    Orthogonalise,
    WeightEdit,
    Writers,
    add_bias,
    orthogonalise,
    prepare,
    write_checkpoint,
    writers_of_config,
)
from ..weights.arithmetic import NewBias
from ..weights.atomic import leftovers, require_outside, require_room, shortened, there
from ..weights.checkpoint import configuration
from .export_model import check_belongs, model_folder, where
from .finding import LoadOptions, open_run
from .measurements import FORMS
from .measurements.exports import ExportRecord, step_of
from .page import write_report

log = logging.getLogger(__name__)

Format = Literal["checkpoint", "lora", "gguf", "steered", "reference"]
EditName = Literal["ablate", "add", "subtract"]
OF_THE_CHECK = ("n_prompts", "max_new_tokens", "batch_size", "dtype", "device")
UNUSED: dict[Format, tuple[str, ...]] = {
    "gguf": ("norm_preserving", "allow_partial", *OF_THE_CHECK),
    "steered": ("norm_preserving", "allow_partial", *OF_THE_CHECK),
    "reference": (
        *("model", "edit", "strength", "norm_preserving", "allow_partial"),
        *OF_THE_CHECK,
    ),
}
"""Options that a format cannot honour: one holds the direction alone, three are not loaded and compared."""
ANOTHER_MODEL = 0.5
"""Mean difference of the refusal metric from the run's own, in nats, that another model would make."""
NOTE = (
    "Edited weights for research on a model that one may modify. They refuse less, or more, than the model "
    "that they were made from; its licence still holds. Nothing was uploaded."
)
HOOKS_MISS = (
    "hooks leave a write to the residual stream unedited ({}), in the run's own figures too"
)


@shown()
@checked
@dataclass(frozen=True)
class ExportConfig:
    """What to export, and how: the names are those of the options of `refusal-lens export`."""

    to: Format
    out: Path
    model: str | None = None
    edit: EditName = "ablate"
    strength: float = 1.0
    norm_preserving: bool = False
    allow_partial: bool = False
    check: bool = True
    n_prompts: int = 32
    max_new_tokens: int | None = None
    batch_size: int = 32
    dtype: str | None = None
    device: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        given = [f"--{f.name.replace('_', '-')}" for f in fields(self) if self._is_unused(f)]
        if given:
            raise InputError(
                f"--to {self.to}: got {', '.join(given)}, which it cannot honour; leave that out or choose "
                "another format"
            )
        if self.norm_preserving and self.edit != "ablate":
            raise InputError(f"norm-preserving edit: got --edit {self.edit}, need ablate")
        if self.n_prompts < 1 or (self.max_new_tokens is not None and self.max_new_tokens < 1):
            raise InputError("prompts and tokens of the check: need at least 1 of each")

    def _is_unused(self, option: Field[Any]) -> bool:
        unused = option.name in UNUSED.get(self.to, ())
        return unused and getattr(self, option.name) != option.default


@shown()
@dataclass
class Exported:
    """What was written: the map of writers and the parity table where there are any."""

    out: Path
    writers: Writers | None = None
    parity: Parity | None = None
    notes: list[str] = field(default_factory=list)


@checked
def run_export(
    folder: str | Path, config: ExportConfig, *, on_progress: Progress | None = None
) -> Exported:
    """Export a run's direction, check it against the hooks, and note it in the run folder and its page.

    Raises InputError for anything that cannot be used, an edit that cannot be made, or files that do not
    equal the hooks; OSError when writing fails. Either way nothing is left at `config.out`, nor noted in the
    run, unless only its page could not be written anew.
    """
    work = _Export(Path(folder), config, on_progress)
    work.require_outside_models()
    done: Exported = getattr(work, f"_to_{config.to}")()
    write_report(work.finding.path)
    return done


class _Export:
    """One export: the run's facts, read when they are needed."""

    def __init__(self, folder: Path, config: ExportConfig, on_progress: Progress | None) -> None:
        self.config = config
        options = LoadOptions(config.dtype, config.device, trust_remote_code=config.trust_remote_code)
        self.finding = open_run(folder, options)
        # Whether the export can be noted there is known before hours of work.
        with Run.open(folder) as run:
            _remove_what_never_appeared(run)
        self.on_progress = on_progress
        self.direction = self.finding.direction

    @property
    def edit(self) -> WeightEdit:
        c = self.config
        if c.edit == "ablate":
            return orthogonalise(self.direction, strength=c.strength, keep_norms=c.norm_preserving)
        return add_bias(self.direction, strength=c.strength if c.edit == "add" else -c.strength)

    @cached_property
    def source(self) -> Path:
        """The folder of the model whose weights are edited, checked to be the direction's own."""
        settings = self.finding.settings
        name = self.config.model or settings["model"]
        folder = model_folder(name, settings["revision"] if name == settings["model"] else None)
        trust = self.config.trust_remote_code
        check_belongs(self.direction, folder, settings, trust_remote_code=trust)
        return folder

    @cached_property
    def provenance(self) -> dict[str, Any]:
        c = self.config
        return {
            "made_by": f"refusal_lens {__version__}",
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": self.direction.model,
            "revision": self.direction.revision,
            "edit": c.edit,
            "strength": c.strength,
            "norm_preserving": c.norm_preserving,
            "direction": {**self.direction.provenance, "vector": self.direction.vector.tolist()},
            "note": NOTE,
        }

    def require_outside_models(self) -> None:
        """Raise InputError when the output lies in the run's model, the edited one or the packaged ones."""
        for name in {self.config.model, self.finding.settings["model"], "organism"} - {None}:
            require_outside(self.config.out, where(name))

    # ---------------------------------------------------------------- formats

    def _to_checkpoint(self) -> Exported:
        plan = self._prepared(new_biases=True)
        done = Exported(self.config.out, plan.writers, notes=list(plan.writers.notes))
        require_room(self.config.out, plan.total_bytes)
        wanted = self._hook_scores(done)

        def check(hidden: Path) -> None:
            done.parity = self._parity(plan, wanted, lambda: self.finding.load(str(hidden)))

        write_checkpoint(
            plan,
            self.config.out,
            provenance=self._of_weights(plan),
            progress=self._bytes(plan.total_bytes),
            check=check,
            recorded=lambda: self._recorded(done),
        )
        return done

    def _to_lora(self) -> Exported:
        plan = self._prepared(new_biases=False)
        done = Exported(self.config.out, plan.writers, notes=_lora_notes(plan))
        require_room(self.config.out, 0)
        wanted = self._hook_scores(done)

        def check(hidden: Path) -> None:
            done.parity = self._parity(plan, wanted, lambda: self._load_adapted(hidden))

        write_adapter(
            plan,
            self.config.out,
            provenance=self._of_weights(plan),
            allow_partial=self.config.allow_partial,
            trust_remote_code=self.config.trust_remote_code,
            progress=self._bytes(plan.edited_bytes),
            check=check,
            recorded=lambda: self._recorded(done),
        )
        return done

    def _prepared(self, *, new_biases: bool) -> ExportPlan:
        return prepare(
            self.source,
            self.edit,
            allow_partial=self.config.allow_partial,
            trust_remote_code=self.config.trust_remote_code,
            new_biases=new_biases,
        )

    def _to_gguf(self) -> Exported:
        self._fresh_file(".gguf")
        architecture = (
            configuration(self.source, trust_remote_code=self.config.trust_remote_code)
            .get_text_config()
            .model_type
        )
        done = Exported(self.config.out)
        write_gguf(
            self.config.out,
            self.edit,
            architecture=architecture,
            provenance=self.provenance,
            recorded=lambda: self._recorded(done),
        )
        return done

    def _to_steered(self) -> Exported:
        self._fresh_file(".pt", beside=".json")
        model, writers = writers_of_config(
            configuration(self.source, trust_remote_code=self.config.trust_remote_code),
            trust_remote_code=self.config.trust_remote_code,
        )
        base = getattr(model, "base_model_prefix", "")
        done = Exported(self.config.out, writers if self.config.edit == "ablate" else None)
        write_steered(
            self.config.out,
            self.edit,
            writers,
            base=base,
            provenance=self.provenance,
            recorded=lambda: self._recorded(done),
        )
        return done

    def _to_reference(self) -> Exported:
        done = Exported(self.config.out)
        write_reference(
            self.config.out,
            self.direction,
            self.finding.candidates,
            provenance=self.provenance,
            recorded=lambda: self._recorded(done),
        )
        return done

    def _fresh_file(self, suffix: str, *, beside: str | None = None) -> None:
        """Raise InputError unless the output has this suffix and is not there, nor what goes beside it."""
        out = self.config.out
        if out.suffix != suffix:
            raise InputError(f"output file {out}: got suffix {out.suffix!r}, need {suffix!r}")
        for path in (out, *([out.with_suffix(beside)] if beside else [])):
            if there(path):
                raise InputError(f"output file {path}: is there already; choose another name")

    def _of_weights(self, plan: ExportPlan) -> dict[str, Any]:
        return {
            **self.provenance,
            "exactness": plan.writers.exactness,
            "notes": list(plan.writers.notes),
            "left_unedited": list(plan.writers.problems),
            "writers": {
                w.parameter: f"{w.treatment}: {w.why}" if w.why else w.treatment
                for w in plan.writers.writers
            },
            "edited_tensors": sorted(plan.changes),
            "added_tensors": [each.name for each in plan.added],
        }

    def _bytes(self, total: int) -> Any:
        done = 0

        def progress(moved: int) -> None:
            nonlocal done
            done += moved
            if self.on_progress is not None:
                self.on_progress("bytes", min(done, total), total)

        return progress

    # ---------------------------------------------------------------- hooks against files

    def _load_adapted(self, adapter: Path) -> ChatModel:
        """The original model with the adapter as peft loads it."""
        import peft
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoModelForCausalLM

        plain = self.finding.load(str(self.source))
        chat, device, dtype = plain.chat, plain.device, plain.dtype
        del plain
        gc.collect()
        hf: Any = AutoModelForCausalLM.from_pretrained(
            self.source,
            dtype=dtype,
            attn_implementation="eager",
            trust_remote_code=self.config.trust_remote_code,
        )
        hf.to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of merging, which is not done
            adapted = peft.PeftModel.from_pretrained(hf, str(adapter)).eval()
        bridge = TransformerBridge.boot_transformers(
            str(self.source),
            hf_model=adapted.base_model.model,
            tokenizer=chat.tokenizer,
            dtype=dtype,
        )
        return ChatModel.wrap(bridge, chat=chat, name=str(adapter))

    def _hook_scores(self, done: Exported) -> Answers | None:
        """The test prompts under hooks, before anything is written; None without a check."""
        if not self.config.check:
            return None
        original = self.finding.load(str(self.source))
        self._check_same_model(original)
        hooks = self._hooks(original)
        if isinstance(self.edit, Orthogonalise) and original.missed_writes:
            done.notes.append(HOOKS_MISS.format(original.missed_writes[0]))
        return self._scores(original, hooks)

    def _scores(self, model: ChatModel, under: AbstractContextManager[Any] | None = None) -> Answers:
        return ask(
            model,
            self.prompts,
            self.edit,
            behaviour=self.finding.behaviour,
            under=under,
            max_new_tokens=self.config.max_new_tokens,
            batch_size=self.config.batch_size,
        )

    def _parity(
        self, plan: ExportPlan, wanted: Answers | None, load: Callable[[], ChatModel]
    ) -> Parity | None:
        """The table of hooks against files; raises unless they agree as far as the class promises."""
        if wanted is None:
            return None
        gc.collect()
        model = load()
        got = self._scores(model)
        rounded = {model.dtype, *(DTYPES[plan.checkpoint.tensors[n].dtype] for n in plan.changes)}
        coarsest = min(rounded, key=lambda d: (d.itemsize, d == torch.float16))
        edit, complete = self.edit, not plan.writers.problems
        preserving = isinstance(edit, Orthogonalise) and edit.keep_norms
        table = parity(
            wanted,
            got,
            words=self.finding.behaviour.words,
            promise=Promise(
                dtype=coarsest,
                exact=plan.writers.exactness != "post-norm",
                cleans=isinstance(edit, Orthogonalise) and edit.strength == 1 and complete,
                made=complete and not preserving,
            ),
        )
        table.require(str(self.config.out))
        return table

    def _hooks(self, model: ChatModel) -> AbstractContextManager[Any]:
        """The edit as hooks, which the run measured with."""
        edit = self.edit
        if isinstance(edit, Orthogonalise):
            return applied(model, ablate(self.direction, strength=edit.strength))
        return applied(model, add(self.direction, strength=edit.strength))

    @cached_property
    def prompts(self) -> dict[str, Sequence[Prompt]]:
        """The first test prompts of each kind."""
        contrast, n = self.finding.contrast, self.config.n_prompts
        test = (contrast.test.positive[:n], contrast.test.negative[:n])
        return dict(zip(contrast.kinds, test, strict=True))

    def _check_same_model(self, model: ChatModel) -> None:
        """Raise InputError when the model does not say what the run's model said."""
        metrics = self.finding.frame("metrics")
        for kind, texts in self.prompts.items():
            rows = metrics[(metrics["kind"] == kind) & (metrics["condition"] == "baseline")]
            then = rows.sort_values("index")["score"].to_numpy(float)[: min(8, len(texts))]
            if not len(then):
                continue
            now = self.finding.behaviour.scores(model, texts[: len(then)]).numpy()
            apart = float(abs(now - then).mean())
            if not apart <= ANOTHER_MODEL:
                raise InputError(
                    f"model {self.source}: its {self.finding.behaviour.words.score} on {kind} prompts is {apart:.1f} "
                    f"{self.finding.behaviour.unit} from the run's; is it another model than {self.direction.model}?"
                )

    # ---------------------------------------------------------------- what stays in the run folder

    @contextmanager
    def _recorded(self, done: Exported) -> Iterator[None]:
        """The export's record and map of writers as a step of the run; taken back when it does not appear."""
        c = self.config
        entry = {
            **{k: v for k, v in self.provenance.items() if k not in ("direction", "note")},
            "to": c.to,
            "out": str(c.out.resolve()),
            "from": str(self.source) if c.to != "reference" else None,
            "exactness": done.writers.exactness if done.writers else None,
            "left_unedited": list(done.writers.problems) if done.writers else [],
            "notes": done.notes,
            "parity": [asdict(row) | {"equal": row.equal} for row in done.parity.rows]
            if done.parity
            else None,
        }
        with Run.open(self.finding.path) as run:
            writers = done.writers.frame() if done.writers else None
            record = ExportRecord(_free_name(run, c.out), entry, writers)
            step = step_of(record.label)
            try:
                with run.addition(step.name, inputs=step.inputs(record), after=step.after) as opened:
                    step.work(record, opened)
                yield
            except BaseException:
                run.remove_addition(step.name)
                raise


def _remove_what_never_appeared(run: Run) -> None:
    """Remove the records of exports that were killed just before their result got its name."""
    for name in run.manifests():
        if not name.startswith("export-"):
            continue
        label = name.removeprefix("export-")
        out = _out_of(run, label)
        if not out or there(Path(out)) or not leftovers(Path(out)):
            continue
        log.info("%s: was killed before it appeared, its record goes", out)
        run.remove_addition(name)


def _free_name(run: Run, out: Path) -> str:
    """What an export is called in its run: its own name, with a number if one elsewhere has that."""
    for number in count(1):
        # Names of files in the run are made of it, which must not get too long.
        name = shortened(out.resolve().name) + (f"-{number}" if number > 1 else "")
        if _out_of(run, name) in (None, str(out.resolve())):
            return name
    raise AssertionError


def _out_of(run: Run, label: str) -> str | None:
    """Where the export of this label was written to, by its record; None without a record."""
    name = f"exports/{label}.json"
    if not (run.path / name).is_file():
        return None
    out: str = FORMS.read(run.path, name).get("out", "")
    return out


def _lora_notes(plan: ExportPlan) -> list[str]:
    notes = [note for note in plan.writers.notes if "unedited values" not in note]
    if plan.writers.tied:
        notes.append(
            f"{plan.writers.tied} shares the embedding's values: load the adapter on the model, do not merge it, "
            "or the merge would change the unembedding too"
        )
    added = [change.module for change in plan.parameter_changes if isinstance(change, NewBias)]
    if added:
        notes.append(
            f"{added[0]} has no bias, and the adapter adds one, which peft's merge_and_unload cannot merge: load "
            "the adapter on the model"
        )
    return notes
