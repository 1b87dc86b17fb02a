"""What every test needs: no network, one thread per worker, no run of a user's environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from importlib.metadata import version

import pytest

# Set before any library reads them: huggingface_hub and transformers look once, when imported.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    TQDM_DISABLE="1",
    NO_COLOR="1",
    COLUMNS="100",
    # On small models threads cost more than they give, and the workers already share the cores.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs TransformerLens 3 where there is another."""
    if version("transformer_lens").startswith("3."):
        return
    skip = pytest.mark.skip(reason="needs TransformerLens 3")
    for item in items:
        if item.get_closest_marker("tl3"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command line turns the package's messages on; a test that calls it leaves them off again."""
    loggers = (logging.getLogger(), logging.getLogger("refusal_lens"))
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers
