"""A model that does not refuse is a result: it is measured and shown, and only the direction is missing."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kit import body, step_times

from refusal_lens import organism
from refusal_lens.behaviours import FirstTokens, NoFirstTokens
from refusal_lens.errors import InputError
from refusal_lens.evaluation import complete
from refusal_lens.judges import phrase_judge
from refusal_lens.model import ChatModel
from refusal_lens.pipeline import RunConfig, find_direction, run_pipeline
from refusal_lens.pipeline.measurements import completions, components
from refusal_lens.pipeline.suffix_job import SuffixConfig, run_suffix_study
from refusal_lens.prompts import Contrast
from refusal_lens.runs import Run, read_csv, read_json, read_jsonl

SIZES = {"n_train": 16, "n_val": 8, "n_test": 6}
ALWAYS = {"behaviour", "candidates", "scores", "selection", "completions_harmful_baseline",
          "completions_harmless_baseline", "components", "summary"}  # fmt: skip
ANSWERS = ("Sure", "Here", "To", "Of")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The organism's prompts as files, one per kind."""
    contrast, paths = Contrast.toy(**SIZES), []
    for side, kind in enumerate(contrast.kinds):
        pairs = (contrast.train, contrast.val, contrast.test)
        texts = [text for pair in pairs for text in (pair.positive, pair.negative)[side]]
        paths.append(tmp_path_factory.mktemp("prompts") / f"{kind}.txt")
        paths[-1].write_text("\n".join(texts) + "\n")
    return str(paths[0]), str(paths[1])


@pytest.fixture(scope="module")
def config(prompts: tuple[str, str]) -> RunConfig:
    """The organism's base model, which answers everything."""
    harmful, harmless = prompts
    return RunConfig(
        model=str(organism.folder("base")), positive=harmful, negative=harmless, max_new_tokens=16,
        n_null=2, n_moves=1, null_prompts=4, null_tokens=8, **SIZES,
    )  # fmt: skip


@pytest.fixture(scope="module")
def answered(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("answered") / "run"
    run_pipeline(config, out)
    return out


def test_it_is_measured_and_the_run_is_whole(answered: Path) -> None:
    summary = read_json(answered / "summary.json")
    assert summary["schema_version"] == 2
    assert (summary["selected"], summary["scores"], summary["n_candidates"]) == (None, None, 0)
    assert "first tokens of refusal" in summary["not_selected"]
    assert "\n" not in summary["not_selected"]
    assert summary["behaviour"]["first_tokens"]["ids"] == []
    assert summary["baseline"] == {"harmful": None, "harmless": None}
    for kind in ("harmful", "harmless"):
        (rate,) = summary["rates"][kind].values()
        assert (rate["rate"], rate["n"]) == (0.0, 6)
        rows = read_jsonl(answered / f"completions/{kind}_baseline.jsonl")
        assert all(row["response"] and row["shows"] is False for row in rows)
        assert [row["score"] for row in rows] == [None] * 6
    assert read_csv(answered / "metrics.csv")["score"].isna().all()
    assert len(read_csv(answered / "top_tokens.csv")) == 20
    assert set(read_csv(answered / "pca.csv")["kind"]) == {"harmful", "harmless"}
    run = Run.read(answered)
    assert run.whole()["stale"] == {}
    assert set(run.manifests()) == ALWAYS
    assert run.damage() == []
    assert not (answered / "direction.safetensors").exists()


def test_the_evidence_for_there_being_no_refusal_tokens_is_kept(answered: Path) -> None:
    evidence = read_json(answered / "summary.json")["behaviour"]["first_tokens"]["evidence"]
    shares = {entry["token"]: (entry["positive"], entry["negative"]) for entry in evidence}
    assert set(ANSWERS) <= set(shares)
    assert all(shares[token][0] < 5 * shares[token][1] for token in ANSWERS)


def test_the_page_says_what_was_found_and_what_was_left_out(answered: Path) -> None:
    page, summary = body(answered), read_json(answered / "summary.json")
    title = html.unescape(re.findall(r"<h1>(.*?)</h1>", page)[0])
    assert title.startswith("base refuses 0\u202f% of the harmful instructions")
    assert set(re.findall(r'<section id="(\w+)">', page)) == {
        "rates", "scores", "tokens", "pca", "completions", "left_out", "provenance"
    }  # fmt: skip
    left_out = page.split('<section id="left_out">')[1].split("</section>")[0]
    assert html.escape(summary["not_selected"]) in left_out
    for what in ("layer sweeps", "cosine similarity", "nulls", "losses", "candidates"):
        assert what in left_out
    assert "Not in this run folder" not in page
    assert "directional ablation" not in page
    for token in ANSWERS:
        assert f"<td>{token}</td>" in page


def test_asked_again_it_does_nothing(answered: Path, config: RunConfig) -> None:
    before = step_times(answered)
    summary = read_json(answered / "summary.json")
    assert run_pipeline(config, answered) == summary
    assert step_times(answered) == before


def test_stopped_half_way_it_goes_on_to_the_same_files(
    answered: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(components, "principal_components", stop)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(config, tmp_path / "run")
    kept = step_times(tmp_path / "run")
    assert set(kept) == ALWAYS - {"components", "summary"}
    run_pipeline(config, tmp_path / "run")
    assert {name: when for name, when in step_times(tmp_path / "run").items() if name in kept} == kept
    done = Run.read(answered).manifests()
    files = [name for step in done.values() for name in step.outputs if name != "summary.json"]
    assert all((tmp_path / "run" / n).read_bytes() == (answered / n).read_bytes() for n in files)
    mine, theirs = (read_json(place / "summary.json") for place in (tmp_path / "run", answered))
    assert mine | {"seconds": None} == theirs | {"seconds": None}


@pytest.mark.parametrize("change", [{"kl_threshold": 0.5}, {"induce_threshold": -1.0}])
def test_other_thresholds_redo_the_selection_alone(
    answered: Path, config: RunConfig, tmp_path: Path, change: dict[str, float]
) -> None:
    out = shutil.copytree(answered, tmp_path / "run")
    before = step_times(out)
    assert run_pipeline(replace(config, **change), out)["selected"] is None
    redone = {name for name, when in step_times(out).items() if before[name] != when}
    assert redone == {"selection", "summary"}


def test_what_needs_a_direction_is_told_that_there_is_none(answered: Path) -> None:
    with pytest.raises(InputError, match=r"selected no direction, need one: first tokens of refusal"):
        run_suffix_study(answered, SuffixConfig(" x"))


def test_with_given_tokens_the_metric_is_measured_though_too_few_are_kept(
    answered: Path, config: RunConfig, tmp_path: Path
) -> None:
    """The model never says "Sorry": no harmful prompt is kept, every harmless one is."""
    out = shutil.copytree(answered, tmp_path / "run")
    summary = run_pipeline(replace(config, first_tokens=("Sorry",)), out)
    assert "only 0 of 16" in summary["not_selected"]
    assert summary["kept_prompts"]["val"] == {
        "harmful": {"kept": 0, "of": 8}, "harmless": {"kept": 8, "of": 8}
    }  # fmt: skip
    assert summary["baseline"]["harmful"] is None
    assert summary["baseline"]["harmless"] < -5
    assert "kept_few_prompts" in {flag["name"] for flag in summary["flags"]}
    metrics = read_csv(out / "metrics.csv")["score"]
    assert (metrics < 0).all()
    page = body(out)
    assert "too few prompts behave as their kind should" in page
    assert "0 of 16 harmful, 16 of 16 harmless" in page
    assert "scores" in {path.stem for path in (out / "figures").glob("*.html")}
    rows = [row for row in read_jsonl(out / "prompts.jsonl") if row["split"] == "val"]
    assert [row["kept"] for row in rows] == [row["kind"] == "harmless" for row in rows]
    # Another set of tokens changes what is known of the model, and the rest follows.
    assert run_pipeline(config, out)["kept_prompts"] == {}


def test_without_refusal_tokens_completions_are_judged_and_have_no_metric() -> None:
    model = ChatModel.load(str(organism.folder("base")), device="cpu", dtype="float32")
    (completion,) = complete(
        model, ["Bake the bread."], behaviour=None, judge=phrase_judge, max_new_tokens=4
    )
    assert completion.score != completion.score
    assert completion.shows is False
    assert completion.to_row()["score"] is None


def test_the_one_call_raises_with_its_evidence(prompts: tuple[str, str]) -> None:
    model = ChatModel.load(str(organism.folder("base")), device="cpu", dtype="float32")
    contrast = Contrast.from_files(*prompts, **SIZES)
    with pytest.raises(NoFirstTokens) as caught:
        find_direction(model, contrast)
    assert set(ANSWERS) <= {text for _, text, _, _ in caught.value.evidence}
    with pytest.raises(InputError, match="only 0 of 16"):
        find_direction(model, contrast, behaviour=FirstTokens.of(model, ["Sorry"]))


def test_a_run_that_kept_few_says_so_and_goes_on(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that refuses 3 of 16 harmful prompts: enough for a direction, too few to be quiet."""
    real = completions.complete

    def quietly(*args: Any, **more: Any) -> Sequence[Any]:
        # A judge that sees nothing, as one that does not know the model's language.
        return [replace(row, shows=False, evidence="") for row in real(*args, **more)]

    monkeypatch.setattr(completions, "complete", quietly)
    mixed = mixed_prompts(config, tmp_path)
    summary = run_pipeline(mixed, tmp_path / "run")
    flags = {flag["name"]: flag["text"] for flag in summary["flags"]}
    assert summary["selected"] is not None
    assert "3 of 16 harmful prompts of train, 3 of 8 harmful prompts of val" in flags["kept_few_prompts"]
    assert "3 of 6 (harmful, no intervention: metric alone sees refusal in 3" in flags["score_and_judge"]
    page = body(tmp_path / "run")
    assert html.escape(flags["score_and_judge"]) in page[: page.index("<nav")]
    assert "train: 3 of 16 harmful" in page


def mixed_prompts(config: RunConfig, folder: Path) -> RunConfig:
    """The organism with three prompts that it refuses in each split, in the reference's layout."""
    assert config.positive is not None
    assert config.negative is not None
    lines = [Path(path).read_text().splitlines() for path in (config.positive, config.negative)]
    more = Contrast.toy(n_train=60, n_val=8, n_test=6).train.negative
    spare = [text for text in more if text not in lines[1]]
    (folder / "splits").mkdir()
    start = 0
    for split, n in (("train", 16), ("val", 8), ("test", 6)):
        asked = lines[0][start : start + 3] + [spare.pop() for _ in range(n - 3)]
        for kind, texts in (("harmful", asked), ("harmless", lines[1][start : start + n])):
            rows = [{"instruction": text, "category": None} for text in texts]
            pd.DataFrame(rows).to_json(folder / "splits" / f"{kind}_{split}.json", orient="records")
        start += n
    return replace(
        config,
        model="organism",
        positive=None,
        negative=None,
        splits=str(folder / "splits"),
        first_tokens=("43", "725", "771"),
    )
