"""The main job: from a chat model and two sets of prompts to a run folder and its page."""

from .config import RunConfig
from .finding import Finding, LoadOptions, SavedFinding, find_direction, open_run
from .main_job import run_pipeline
from .page import write_reference_report, write_report, write_whole_report

__all__ = [
    "Finding",
    "LoadOptions",
    "RunConfig",
    "SavedFinding",
    "find_direction",
    "open_run",
    "run_pipeline",
    "write_reference_report",
    "write_report",
    "write_whole_report",
]
