"""`refusal-lens report`: a run folder, ours or the reference implementation's, to its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refusal_lens.cli.codes import UNMET
from refusal_lens.cli.options import Debug, Json, Quiet
from refusal_lens.cli.output import deliver_json, show
from refusal_lens.errors import InputError


def report(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or one of the reference implementation.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the results for a reference run go."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Render the page of RUN again; a run that is not whole has one too, and is an error.

    The page of a run that is not finished is rendered too, and the command fails. A run folder of
    the reference implementation is read, its candidates are put to the selection rule, and the
    table, summary and figures are written to --out.
    """
    from refusal_lens.interop.layout import is_reference_run
    from refusal_lens.pipeline.page import open_folder, write_reference_report, write_whole_report

    ours = not is_reference_run(run)
    if ours and out is not None:
        raise typer.BadParameter("a run is rendered in its own folder", param_hint="--out")
    if ours:
        page = write_whole_report(run).resolve()
    elif out is None:
        raise typer.BadParameter(
            f"{run} is of the reference implementation and is left as it is; name a folder",
            param_hint="--out",
        )
    else:
        page = write_reference_report(run, out).resolve()
    summary = open_folder(page.parent).summary
    if json:
        deliver_json({"report": page, "summary": summary})
    else:
        show(f"report: {page}")
    if ours and "selected" not in summary:
        raise InputError(
            f"run folder at {run}: its summary.json does not say what was selected, need a whole one; try "
            f"refusal-lens run --out {run} again"
        )
    if ours and summary["selected"] is None:
        raise typer.Exit(UNMET)
