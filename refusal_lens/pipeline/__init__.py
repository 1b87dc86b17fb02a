"""The main job: from a chat model and two sets of prompts to a run folder and its page."""

from .config import RunConfig
from .main_job import run_pipeline

__all__ = ["RunConfig", "run_pipeline"]
