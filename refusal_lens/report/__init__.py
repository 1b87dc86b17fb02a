"""A finished run to one self-contained page; also a run of the reference implementation."""

from __future__ import annotations

from pathlib import Path

from refusal_lens.door import checked
from refusal_lens.errors import InputError
from refusal_lens.interop.layout import is_reference_run
from refusal_lens.report.page import write_report, write_whole_report


@checked
def write_reference_report(folder: str | Path, out: str | Path) -> Path:
    """Apply the selection rule to a reference run and write it as a run of ours; its page's path.

    Raises:
        InputError: a damaged or foreign folder, an `out` that holds something else, or no candidate
            that passes the rule (then everything is written before).

    """
    # Not at the top: the rule lives beside the models, whose libraries take seconds to load and are
    # not needed to render a run of ours.
    from refusal_lens.interop.reference import convert_reference_run

    failure = convert_reference_run(folder, out)
    page = write_report(out)
    if failure is not None:
        raise InputError(f"{failure}; the page is {page}") from failure
    return page


__all__ = ["is_reference_run", "write_reference_report", "write_report", "write_whole_report"]
