"""`refusal-lens report`: a run folder, ours or the reference implementation's, to its page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    """Render the page of RUN again.

    The page of a run that is not finished is rendered too, and the command fails. A run folder of
    the reference implementation is read, its candidates are put to the selection rule, and the
    table, summary and figures are written to --out.
    """
    from refusal_lens.report import is_reference_run, write_reference_report, write_report
    from refusal_lens.report.folder import RunFolder

    ours = not is_reference_run(run)
    if ours and out is not None:
        raise typer.BadParameter("a run is rendered in its own folder", param_hint="--out")
    if ours:
        page = write_report(run).resolve()
    elif out is None:
        raise typer.BadParameter(
            f"{run} is of the reference implementation and is left as it is; name a folder",
            param_hint="--out",
        )
    else:
        page = write_reference_report(run, out).resolve()
    summary = RunFolder.open(page.parent).summary
    if json:
        deliver_json({"report": page, "summary": summary})
    else:
        show(f"report: {page}")
    if ours:
        _require_finished(run, summary)
        if summary.get("selected") is None:
            raise typer.Exit(UNMET)


def _require_finished(folder: Path, summary: Mapping[str, Any]) -> None:
    """Raise InputError for a run whose last step was not done."""
    from refusal_lens.runs import Run

    if (folder / "run.json").exists():
        Run.read(folder).whole()
    if not summary:
        raise InputError(
            f"run folder at {folder}: got no summary.json, so its page shows only what is there; need "
            f"a finished run; try refusal-lens run --out {folder} again"
        )
