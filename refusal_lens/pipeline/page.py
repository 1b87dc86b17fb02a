"""The page of a run folder: every step's sections, read by every step's forms."""

from __future__ import annotations

from pathlib import Path

from ..door import checked
from ..errors import InputError
from ..interop.reference import convert_reference_run
from ..report.folder import RunFolder
from ..report.page import write_page
from .measurements import FORMS, SECTIONS


def open_folder(path: str | Path) -> RunFolder:
    """A run folder as the page reads it: whole, partial or damaged. Raises InputError for a folder without run."""
    return RunFolder.open(path, FORMS)


@checked
def write_report(run_folder: str | Path) -> Path:
    """Write report.html and figures/ of a run into its folder; returns the page's path.

    The page holds every section whose data the folder has and says which are missing. Each figure
    is also a small page of its own in figures/, beside one copy of plotly.js.

    Raises:
        InputError: the folder holds no run, or a damaged one.
        OSError: the folder cannot be written.

    """
    return write_page(open_folder(run_folder), SECTIONS)


def write_whole_report(run_folder: str | Path) -> Path:
    """Like `write_report`, for whoever takes a page for a whole run.

    Raises:
        InputError: also, after the page is written, for a run that is not finished or in which a
            file is not as its step left it.

    """
    page = write_report(run_folder)
    if lack := open_folder(run_folder).lack:
        raise InputError(f"run folder at {run_folder}: {lack}; the page of what there is: {page}")
    return page


@checked
def write_reference_report(folder: str | Path, out: str | Path) -> Path:
    """Apply the selection rule to a reference run and write it as a run of ours; its page's path.

    Raises:
        InputError: a damaged or foreign folder, an `out` that holds something else, or no candidate
            that passes the rule (then everything is written before).

    """
    failure = convert_reference_run(folder, out)
    page = write_report(out)
    if failure is not None:
        raise InputError(f"{failure}; the page is {page}") from failure
    return page
