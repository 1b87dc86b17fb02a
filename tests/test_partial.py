"""A run on a model whose stream hooks cannot follow: refused at once, or gone on with and said on the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import folder

from refusal_lens.errors import InputError
from refusal_lens.pipeline import RunConfig, run_pipeline
from refusal_lens.runs import read_json


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """RWKV, whose blocks rescale the stream itself, with a few prompts of each kind."""
    torch.set_num_threads(1)
    files = []
    for kind in ("harmful", "harmless"):
        files.append(tmp_path / f"{kind}.txt")
        files[-1].write_text("".join(f"{kind} {i}\n" for i in range(6)))
    positive, negative = map(str, files)
    return RunConfig(
        model=str(folder("rwkv")), device="cpu", positive=positive, negative=negative, n_train=2, n_val=2,
        n_test=2, first_tokens=("I",), max_new_tokens=3, n_null=0,
    )  # fmt: skip


def test_a_run_stops_with_the_reason_or_goes_on_and_says_so(config: RunConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    reason = r"(?s)^hooks on [^\n]* --allow-partial to leave that in the stream$"
    with pytest.raises(InputError, match=reason):
        run_pipeline(config, out)
    assert not (out / "behaviour.json").exists()
    summary = run_pipeline(replace(config, allow_partial=True), out)
    (flag,) = [f for f in summary["flags"] if f["name"] == "hooks_miss_a_write"]
    assert "not those of edited weights" in flag["text"]
    assert "hooks_miss_a_write" in {f["name"] for f in read_json(out / "summary.json")["flags"]}
    assert "not those of edited weights" in (out / "report.html").read_text()
    with pytest.raises(InputError, match=reason):
        run_pipeline(config, out)
