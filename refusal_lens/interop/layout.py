"""The files by which a run folder of the reference implementation is known."""

from __future__ import annotations

from pathlib import Path

EVALUATIONS = "select_direction/direction_evaluations.json"
METADATA = "direction_metadata.json"


def is_reference_run(folder: str | Path) -> bool:
    """Whether a folder is laid out as a run of the reference implementation."""
    return any((Path(folder) / name).is_file() for name in (EVALUATIONS, METADATA))
