"""The main job: from a chat model and two sets of prompts to a run folder and its page."""

from .config import RunConfig
from .finding import Finding, LoadOptions, SavedFinding, find_direction, open_run
from .main_job import run_pipeline
from .page import write_reference_report, write_report, write_whole_report
from .suffix_job import SuffixConfig, run_suffix_study

__all__ = [
    "Finding",
    "LoadOptions",
    "RunConfig",
    "SavedFinding",
    "SuffixConfig",
    "find_direction",
    "open_run",
    "run_pipeline",
    "run_suffix_study",
    "write_reference_report",
    "write_report",
    "write_whole_report",
]
