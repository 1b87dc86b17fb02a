"""`refusal-lens report`: a run folder, ours or the reference implementation's, to its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        Path, typer.Argument(help="A run folder, or one of the reference implementation.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the results for a reference run go."),
    ] = None,
) -> None:
    """Render the page of RUN again; a run that is not whole has one too, and is an error.

    A run folder of the reference implementation is read, its candidates are put to the selection
    rule, and the table, summary and figures are written to --out.
    """
    from refusal_lens.report import (
        is_reference_run,
        write_reference_report,
        write_whole_report,
    )

    if not is_reference_run(run):
        if out is not None:
            raise typer.BadParameter("a run is rendered in its own folder", param_hint="--out")
        print(f"report: {write_whole_report(run).resolve()}")
        return
    if out is None:
        raise typer.BadParameter(
            f"{run} is of the reference implementation and is left as it is; name a folder",
            param_hint="--out",
        )
    print(f"report: {write_reference_report(run, out).resolve()}")
