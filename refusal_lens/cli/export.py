"""`refusal-lens export`: a run's direction as edited weights or as a file for another tool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from refusal_lens.cli.options import (
    SHARED,
    Debug,
    Json,
    Quiet,
    check_place,
    finite,
    progress,
    usage,
)
from refusal_lens.cli.output import deliver, deliver_json, show

if TYPE_CHECKING:
    from refusal_lens.pipeline.export_job import Exported
    from refusal_lens.weights.estimate import Estimate


def export(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    to: Annotated[
        Literal["checkpoint", "lora", "gguf", "steered", "reference"],
        typer.Option(
            help="Edited safetensors, a PEFT adapter, a llama.cpp control vector, a file for "
            "lm-eval, or the reference implementation's folder."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder, or file for gguf (.gguf), steered (.pt)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Folder or name of the model to edit  [default: the run's own]"),
    ] = None,
    edit: Annotated[
        Literal["ablate", "add", "subtract"], typer.Option(help="What to do with the direction.")
    ] = "ablate",
    strength: Annotated[
        float,
        typer.Option(callback=finite, help="Share of it ablated, or multiple of r added."),
    ] = 1.0,
    norm_preserving: Annotated[
        bool, typer.Option("--norm-preserving", help="Stretch what is written back to its length.")
    ] = False,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Go on where a writer cannot be edited.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load it again and compare with hooks.")
    ] = True,
    n_prompts: Annotated[int, typer.Option(min=1, help="Test prompts of a kind to check.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply in the check  [default: 64, or what fits]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in a forward pass.")] = 32,
    dtype: Annotated[str | None, typer.Option(help="Of the check  [default: the run's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: the best there is]")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Say what it needs, and write nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write the direction of RUN as edited weights, or as a file for another tool.

    Weights are loaded again and compared with the hooks; where they differ the command fails and
    nothing is left. For research on models that you may modify; nothing is uploaded.
    """
    options = {n: v for n, v in locals().items() if n not in ("run", "estimate", *SHARED)}
    if estimate:
        needs = _estimate(run, model, trust_remote_code=trust_remote_code)
        if json:
            deliver_json(needs)
        else:
            deliver("\n".join(needs.lines))
        return
    if out is None:
        raise typer.BadParameter("name the folder or file to write", param_hint="--out")

    from refusal_lens.pipeline.export_job import ExportConfig, run_export

    check_place(dtype, device)
    with usage():
        config = ExportConfig(**options)
    with progress() as on_progress:
        done = run_export(run, config, on_progress=on_progress)
    if json:
        deliver_json(_as_json(done))
    else:
        show("\n".join(_lines(done)))


def _estimate(run: Path, model: str | None, *, trust_remote_code: bool) -> Estimate:
    """What an ablation needs, from the headers of the model's files."""
    from refusal_lens.pipeline.export_model import model_folder
    from refusal_lens.pipeline.finding import open_run
    from refusal_lens.weights import orthogonalise, prepare
    from refusal_lens.weights.estimate import estimate_of

    finding = open_run(run)
    settings = finding.settings
    folder = model_folder(model or settings["model"], None if model else settings["revision"])
    edit = orthogonalise(finding.direction)
    job = prepare(folder, edit, allow_partial=True, trust_remote_code=trust_remote_code)
    return estimate_of(job)


def _as_json(done: Exported) -> dict[str, Any]:
    """Where the result is, its class, the coverage, and the parity table."""
    facts: dict[str, Any] = {"export": done.out.resolve(), "notes": list(done.notes)}
    if done.writers is not None:
        facts["architecture"] = done.writers.architecture
        facts["exactness"] = done.writers.exactness
        facts["writers"] = _treatments(done)
        facts["left_unedited"] = list(done.writers.problems)
    if done.parity is not None:
        facts["parity"] = done.parity.rows
    return facts


def _treatments(done: Exported) -> dict[str, int]:
    """How many writers were treated in each way."""
    assert done.writers is not None
    treated = [writer.treatment for writer in done.writers.writers]
    return {treatment: treated.count(treatment) for treatment in dict.fromkeys(treated)}


def _lines(done: Exported) -> Iterator[str]:
    """The class, the coverage, the parity table and where the result is."""
    if done.writers is not None:
        counts = ", ".join(f"{n} {treatment}" for treatment, n in _treatments(done).items())
        yield f"{done.writers.architecture}: {done.writers.exactness}; writers: {counts}"
        for line in (*done.notes, *done.writers.problems):
            yield f"note: {line}"
    if done.parity is not None:
        heads = ("hooks", "files", "apart", "allowed")
        yield f"{'':<28}{'prompts':<10}" + "".join(f"{head:>12}" for head in heads)
        for row in done.parity.rows:
            cells = [row.hooks, row.files, row.difference]
            shown = [f"{value:>12.4g}" for value in cells]
            shown.append(f"{'' if row.allowed is None else f'{row.allowed:.2g}':>12}")
            yield f"{row.quantity:<28}{row.kind:<10}" + "".join(shown)
    yield f"export: {done.out.resolve()}"
