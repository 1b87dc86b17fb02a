"""`refusal-lens run`: the main job, from a chat model to a run folder and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from refusal_lens.cli.codes import UNMET
from refusal_lens.cli.options import (
    SHARED,
    Debug,
    Json,
    Quiet,
    check_place,
    no_nan,
    progress,
    usage,
)
from refusal_lens.cli.output import deliver_json, one_line, say, show


def run(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The run folder; an unfinished one is gone on with.")
    ],
    model: Annotated[
        str, typer.Argument(help="Hugging Face name, a folder, or organism (bundled, offline).")
    ] = "organism",
    concept: Annotated[
        str | None,
        typer.Option(help="A TOML file: kinds, prompts, behaviour, judge, words, places, sizes."),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive",
            "--harmful",
            help="Prompts that show it (to refuse): .txt, .json, .jsonl, .csv, data set.",
        ),
    ] = None,
    negative: Annotated[
        str | None,
        typer.Option("--negative", "--harmless", help="Prompts that do not (to answer), likewise."),
    ] = None,
    splits: Annotated[
        str | None, typer.Option(help="Folder of splits in the reference repository's layout.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model it was tuned from, to compare with.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What the direction is about  [default: refusal]")
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(help="Where it is sought: t_inst,post[-1]  [default: all behind the prompt]"),
    ] = None,
    first_tokens: Annotated[
        str | None,
        typer.Option(
            "--first-tokens",
            "--refusal-tokens",
            help="First tokens of replies that show it, as texts or ids: I,As  [default: found out]",
        ),
    ] = None,
    n_train: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind for the means  [default: 128]")
    ] = None,
    n_val: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind for the scores  [default: 32]")
    ] = None,
    n_test: Annotated[
        int | None, typer.Option(min=1, help="Prompts of each kind for the tests  [default: 100]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits and the nulls.")] = 0,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    prefill: Annotated[str, typer.Option(help="Text that opens every answer.")] = "",
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking",
            help="A thinking model's reasoning  [default: as its template has it]",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16  [default: float32 on a CPU]")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps  [default: the best there is]")
    ] = None,
    device_map: Annotated[
        str | None, typer.Option(help="auto: spread the model over all devices.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit, tag or branch on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    mode: Annotated[
        Literal["exhaustive", "lazy"],
        typer.Option(help="Score every candidate, or only what the choice needs."),
    ] = "exhaustive",
    kl_threshold: Annotated[
        float, typer.Option(callback=no_nan, help="Most KL on harmless prompts, nats.")
    ] = 0.1,
    induce_threshold: Annotated[
        float, typer.Option(callback=no_nan, help="Least induce score.")
    ] = 0.0,
    prune_layers: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the last layers to leave out.")
    ] = 0.2,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest completion  [default: 512, or what the model's positions leave]"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Prompts in a forward pass (64, or 256 for small models)."),
    ] = None,
    n_null: Annotated[int, typer.Option(min=0, help="Random directions; 0 for no nulls.")] = 32,
    n_moves: Annotated[int, typer.Option(min=0, help="Norm-matched random moves.")] = 8,
    null_prompts: Annotated[int, typer.Option(min=1, help="Test prompts for each null.")] = 32,
    null_tokens: Annotated[int, typer.Option(min=1, help="Longest completion for nulls.")] = 16,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Go on where hooks miss a write to the stream.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the direction of refusal, or of another concept, in MODEL; test it, and write a run folder with a page.

    Killed or interrupted, the same command goes on where it was. With changed options it redoes
    just the steps that depend on them. By default 260 distinct prompts of each kind are needed.
    """
    options = {name: value for name, value in locals().items() if name not in ("out", *SHARED)}
    for option, listed in (("first_tokens", first_tokens), ("places", places)):
        options[option] = None if listed is None else _listed(option, listed)

    from refusal_lens.directions import Thresholds
    from refusal_lens.pipeline import RunConfig, run_pipeline
    from refusal_lens.pipeline.page import open_folder
    from refusal_lens.report.claim import make_claim

    check_place(dtype, device, device_map)
    with usage():
        Thresholds(kl_threshold, induce_threshold, prune_layers)
        config = RunConfig(**options)
        config.asked_concept()
    with progress() as on_progress:
        summary = run_pipeline(config, out, on_progress=on_progress)
    headline = make_claim(open_folder(out)).headline
    page = (out / "report.html").resolve()
    if json:
        deliver_json({"headline": headline, "report": page, "summary": summary})
    else:
        show(headline)
        show(f"report: {page}")
    if summary.get("selected") is None:
        say(one_line(str(summary.get("not_selected") or "no direction was selected")))
        raise typer.Exit(UNMET)


def _listed(option: str, listed: str) -> tuple[str, ...]:
    """What an option lists with commas."""
    texts = tuple(listed.split(","))
    if "" in texts:
        need = {"first_tokens": "texts or ids", "places": "places"}[option]
        such = {"first_tokens": "I,As", "places": "t_inst,post[-1]"}[option]
        raise typer.BadParameter(
            f"got {listed!r}, need {need} with commas between them, such as {such}",
            param_hint=f"--{option.replace('_', '-')}",
        )
    return texts
