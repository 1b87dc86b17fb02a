"""`refusal-lens suffix`: why an adversarial suffix works, added to a run and its page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from refusal_lens.cli.options import Debug, Json, Quiet, check_place, progress, usage
from refusal_lens.cli.output import deliver_json, show


def suffix(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    text: Annotated[
        str | None,
        typer.Option("--suffix", help="The suffix, leading space included, as it stands."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--suffix-file", help='A text file, or JSON with a "suffix".'),
    ] = None,
    n_heads: Annotated[
        int | None,
        typer.Option(min=1, help="Top heads to follow  [default: 8, or fewer in a small model]"),
    ] = None,
    n_random_sets: Annotated[
        int, typer.Option(min=0, help="Random sets of heads for the causal check.")
    ] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of random suffixes and head sets.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply  [default: 64, or what fits]")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in a forward pass.")] = 64,
    dtype: Annotated[str | None, typer.Option(help="[default: the run's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: the best there is]")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the model over all devices.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Follow the heads that write the direction of RUN, with and without an adversarial suffix.

    For a run on the organism the bundled suffix is taken unless another one is given.
    """
    if text is not None and file is not None:
        raise typer.BadParameter("give one of the two", param_hint="--suffix and --suffix-file")

    from refusal_lens.pipeline.finding import LoadOptions
    from refusal_lens.pipeline.page import open_folder
    from refusal_lens.pipeline.suffix_job import SuffixConfig, run_suffix_study
    from refusal_lens.report.sections.suffix import headline
    from refusal_lens.studies.suffix import read_suffix

    check_place(dtype, device, device_map)
    with usage():
        config = SuffixConfig(
            text, n_heads, n_random_sets, seed, max_new_tokens=max_new_tokens, batch_size=batch_size
        )
    if file is not None:
        config = replace(config, suffix=read_suffix(file))
    options = LoadOptions(dtype, device, device_map, trust_remote_code)
    with progress() as on_progress:
        summary = run_suffix_study(run, config, options=options, on_progress=on_progress)
    page, labels = (run / "report.html").resolve(), open_folder(run).labels
    if json:
        deliver_json({"headline": headline(summary, labels), "report": page, "summary": summary})
    else:
        show(headline(summary, labels))
        show(f"report: {page}")
