"""The suite's own checks can fail: hooks that stay, and skips that nobody would read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import kit
import pytest
import torch
import transformers
from architectures import folder

from refusal_lens.model import ChatModel, Site


def test_a_hook_that_stays_is_told() -> None:
    module = torch.nn.Linear(2, 2)
    with pytest.raises(AssertionError, match=r"left behind: .*<lambda>"), kit.no_hook_left():
        handle = module.register_forward_hook(lambda *_: None)
    handle.remove()
    model = kit.load("qwen2")
    with pytest.raises(AssertionError, match="left behind"), kit.no_hook_left():
        hooks = model.hooked([(Site("resid_pre", 0), lambda x: x)])
        hooks.__enter__()
    hooks.__exit__(None, None, None)


def test_a_hook_that_goes_or_goes_with_its_module_is_none() -> None:
    with kit.no_hook_left():
        torch.nn.Linear(2, 2).register_forward_pre_hook(lambda *_: None)
        with kit.load("qwen2").hooked([(Site("resid_pre", 0), lambda x: x)]):
            pass


def test_a_hook_that_a_model_has_from_the_start_is_none() -> None:
    config = transformers.Mamba2Config(
        **{"num_heads": 4, "head_dim": 16, "hidden_size": 32, "state_size": 8, "n_groups": 1},
        **{"vocab_size": 8, "num_hidden_layers": 1},
    )
    with kit.no_hook_left():
        model = transformers.Mamba2Model(config)
    assert model._load_state_dict_pre_hooks
    with pytest.raises(AssertionError, match="left behind"), kit.no_hook_left():
        handle = model.register_forward_hook(lambda *_: None)
    handle.remove()


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_a_bridge_s_own_wiring_is_none_and_another_hook_on_it_is_one(architecture: str) -> None:
    with kit.no_hook_left():
        model = ChatModel.load(str(folder(architecture)), device="cpu", dtype="float32")
    point = model.bridge.hook_dict["blocks.0.hook_out"]
    with pytest.raises(AssertionError, match="left behind"), kit.no_hook_left():
        point.add_hook(lambda tensor, hook: tensor, is_permanent=True)
    del model, point


SKIPPING = """
import pytest
@pytest.mark.browser
def test_in_the_browser(chromium): pass
@pytest.mark.skip(reason="not today")
def test_lazy(): pass
@pytest.mark.published
@pytest.mark.skip(reason="absent")
def test_of_data_elsewhere(): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
def test_right(): pass
"""


BARE = ("-q", "-n0", "-c", os.devnull, "--rootdir", ".", "--continue-on-collection-errors")
BARE += ("-W", "ignore")


@pytest.mark.parametrize(
    ("flags", "outcome"),
    [
        ([], "1 passed, 4 skipped, 1 xfailed"),
        (["--no-skips"], "1 passed, 1 skipped, 1 xfailed, 3 errors"),
    ],
)
def test_no_skip_is_silent_in_ci(tmp_path: Path, flags: list[str], outcome: str) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_it.py").write_text(SKIPPING)
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('absent')\n")
    path = os.pathsep.join([str(kit.ROOT), str(kit.ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *BARE, *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert outcome in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if flags else 0)
