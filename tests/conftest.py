"""What every test needs: no network, one thread per worker, nothing left behind, and no silent skip."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import version
from typing import Any

import pytest

# Set before any library reads them: huggingface_hub and transformers look once, when imported.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="disabled",
    TQDM_DISABLE="1",
    NO_COLOR="1",
    COLUMNS="100",
    # On small models threads cost more than they give, and the workers already share the cores.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --no-skips."""
    parser.addoption(
        "--no-skips",
        action="store_true",
        help="a skipped test fails, since nobody reads skips in CI; only published runs may be absent",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs TransformerLens 3 or the published runs where they are not."""
    published = config.rootpath.parent / "shared" / "published-runs"
    absent = {
        "tl3": not version("transformer_lens").startswith("3."),
        "published": not published.is_dir(),
    }
    for item in items:
        for marker in (name for name in absent if absent[name] and item.get_closest_marker(name)):
            item.add_marker(pytest.mark.skip(reason=f"{marker}: not on this machine"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a skipped test under --no-skips."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and item.config.option.no_skips and not item.get_closest_marker("published"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --no-skips forbids: {call.excinfo and call.excinfo.value}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail a file that skips itself under --no-skips."""
    report = yield
    if report.skipped and collector.config.option.no_skips:
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"the file is skipped, which --no-skips forbids: {reason}"
    return report


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """The command line turns the package's messages on; a test that calls it leaves them off again."""
    loggers = (logging.getLogger(), logging.getLogger("refusal_lens"))
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(autouse=True)
def no_hook_survives() -> Iterator[None]:
    """Models are shared by tests: a hook that one leaves would change the numbers of the next."""
    if "torch" not in sys.modules:
        yield
        return
    from kit import no_hook_left

    with no_hook_left():
        yield


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command in this process; gives a `kit.Done`."""
    from kit import Done

    from refusal_lens.cli import shell

    def call(*args: object) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            shell.app(args=[str(arg) for arg in args], prog_name="refusal-lens")
        return Done(left.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's command."""
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium on PATH (looked for {', '.join(BROWSERS)})")
    return path
