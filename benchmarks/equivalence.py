"""Edited weights against hooks on every architecture of tests/architectures.py, as a markdown table.

    python benchmarks/equivalence.py [--rows llama gpt2] [--json found.json]

Each row is a tiny random model that is saved to disk, edited and compared with hooks that know nothing of
writers (they project whatever reads the residual stream). The figures are the largest difference of
any logit, in float32: hooks against weights edited in memory, against the exported and reloaded folder,
against the LoRA as peft loads it, and against this package's own hooks on a TransformerLens bridge.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import transformers as hf
from architectures import POST_NORM, REFUSED, ROWS, Row, by_id, folder, make
from kit import CLOSE, direction, gap, hooked_logits, logits, plain, tokens

from refusal_lens.errors import InputError
from refusal_lens.interop.adapter import write_adapter
from refusal_lens.interventions import ablate, applied
from refusal_lens.model import ChatModel
from refusal_lens.weights import (
    ExportPlan,
    edited,
    orthogonalise,
    prepare,
    write_checkpoint,
    writers_of,
)

HEADS = ("architecture", "class", "writers", "in memory", "files", "LoRA", "bridge")
NO_BRIDGE = (InputError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError)
"""What TransformerLens raises for a model that it has no adapter for."""


def main() -> None:
    """Measure every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", default=None, metavar="ROW")
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    hf.utils.logging.disable_progress_bar()
    rows = [by_id(name) for name in asked.rows] if asked.rows else [*ROWS, *REFUSED]
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)
    found = []
    for row in rows:
        one = refused(row) if row in REFUSED else measured(row)
        found.append({"architecture": row.id, "class": row.exactness, **one})
        print(f"| {' | '.join(cells(found[-1]))} |", flush=True)
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def cells(found: dict[str, Any]) -> list[str]:
    """One row as text: differences with two digits."""
    texts = [found["architecture"], found["class"], str(found["writers"])]
    if "why" in found:
        return [*texts, f"refused: {found['why']}", "", "", ""]
    for name in HEADS[3:]:
        value = found[name]
        texts.append(f"{value:.0e}" if isinstance(value, float) else value)
    if isinstance(found["bridge"], float):
        whole = found["bridge"] < CLOSE
        texts[6] = texts[6] if whole else f"yes, but its hooks miss a write ({texts[6]})"
    if found.get("folded") is not None:
        texts[3] += " (hook)"
        texts[4] += f" (folded: {found['folded']:.1g} from hooks)"
    return texts


def measured(row: Row) -> dict[str, Any]:
    """The differences of one architecture; those of files and LoRA are from what they were made to be.

    That is the hooks, or with a norm behind an output, where only hooks are exact, the folded weights.
    """
    source = folder(row.id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _measured(row, source)
    finally:
        shutil.rmtree(source)
        folder.cache_clear()


def _measured(row: Row, source: Path) -> dict[str, Any]:
    model, edit = plain(source), orthogonalise(direction())
    writers = writers_of(model)
    hooks = wanted = hooked_logits(model, row)
    with edited(model, edit, post_norm="hook", writers=writers):
        in_memory = gap(logits(model), hooks)
    if row.exactness == POST_NORM:
        with edited(model, edit, writers=writers):
            wanted = logits(model)
    job = prepare(source, edit)
    with tempfile.TemporaryDirectory() as place:
        return {
            "writers": len(writers.writers),
            "in memory": in_memory,
            "files": gap(logits(plain(exported(job, Path(place)))), wanted),
            "LoRA": or_no(
                lambda: gap(adapted_logits(job, source, Path(place)), wanted), (InputError,)
            ),
            "bridge": or_no(lambda: gap(bridged_logits(source), hooks), NO_BRIDGE),
            "folded": gap(wanted, hooks) if row.exactness == POST_NORM else None,
        }


def or_no(measure: Callable[[], float], refusals: tuple[type[Exception], ...]) -> float | str:
    """What was measured, or "no" when it is refused."""
    try:
        return measure()
    except refusals:
        return "no"


def exported(job: ExportPlan, place: Path) -> Path:
    """The folder that an export writes."""
    return write_checkpoint(job, place / "checkpoint", provenance={})


def adapted_logits(job: ExportPlan, source: Path, place: Path) -> torch.Tensor:
    """Logits of the unedited model with the adapter on."""
    import peft

    adapter = write_adapter(job, place / "lora", provenance={})
    return logits(peft.PeftModel.from_pretrained(plain(source), adapter).eval())


def bridged_logits(source: Path) -> torch.Tensor:
    """Logits of the model in a TransformerLens bridge under this package's own hooks."""
    model = ChatModel.load(str(source))
    with applied(model, ablate(direction())), torch.no_grad():
        return model.run(tokens(), torch.ones_like(tokens()), all_positions=True)


def refused(row: Row) -> dict[str, Any]:
    """The number of writers that were found, and the first thing in the way."""
    writers = writers_of(make(row))
    return {"writers": len(writers.writers), "why": shortest(writers.problems)}


def shortest(problems: Sequence[str]) -> str:
    """What the first problem is, without where."""
    return problems[0].partition(": ")[2]


if __name__ == "__main__":
    main()
