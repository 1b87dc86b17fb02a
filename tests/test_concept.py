"""Concept files: what is read, what is refused in a line, and one that goes from TOML to its own page."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest

from refusal_lens.errors import InputError
from refusal_lens.pipeline import RunConfig, open_run, run_pipeline
from refusal_lens.pipeline.concept import Concept
from refusal_lens.runs import Run

EXAMPLE = Path(__file__).resolve().parents[1] / "experiments" / "08_toy_concept" / "eagerness.toml"
LEAST = 'name = "x"\npositive = ["a b", "c d"]\nnegative = ["e f", "g h"]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "concept.toml"
    path.write_text(text)
    return path


def test_the_least_that_a_file_says(tmp_path: Path) -> None:
    concept = Concept.read(write(tmp_path, LEAST))
    assert (concept.name, concept.kinds) == ("x", ("positive", "negative"))
    assert (concept.positive, concept.negative) == (("a b", "c d"), ("e f", "g h"))
    assert (concept.first_tokens, concept.continuations, concept.judge) == (None, None, None)
    assert (concept.words.noun, concept.words.score) == ("x", "x score")
    assert concept.sizes == {"n_train": 128, "n_val": 32, "n_test": 100}
    contrast = concept.contrast(n_train=1, n_val=0, n_test=1, seed=0)
    assert contrast is not None
    assert {*contrast.train.positive, *contrast.test.positive} == {"a b", "c d"}


def test_all_that_a_file_can_say() -> None:
    concept = Concept.read(EXAMPLE)
    assert concept.name == "eagerness"
    assert concept.positive == str(EXAMPLE.parent / "wishes.txt")
    assert concept.first_tokens == ("Of",)
    assert concept.judge is not None
    assert concept.judge.phrases == ("Of course",)  # type: ignore[attr-defined]
    assert concept.words.shows == "agrees eagerly"
    assert concept.sizes == {"n_train": 64, "n_val": 32, "n_test": 40}


def test_replies_and_places(tmp_path: Path) -> None:
    more = (
        'places = ["post[-1]", "t_inst"]\n'
        '[behaviour.continuations]\npositive = ["Yes."]\nnegative = ["No."]\n'
    )
    concept = Concept.read(write(tmp_path, LEAST + more))
    assert concept.places == ("post[-1]", "t_inst")
    assert concept.continuations is not None
    assert (concept.continuations.positive, concept.continuations.negative) == (("Yes.",), ("No.",))


def test_what_a_run_keeps_of_it_comes_back() -> None:
    concept = Concept.read(EXAMPLE)
    back = Concept.from_json(json.loads(json.dumps(concept.to_json())))
    assert (back.scored, back.words, back.judge) == (concept.scored, concept.words, concept.judge)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x =", "not TOML"),
        ("", "got no 'name'"),
        (LEAST + "kind = 3", "got 'kind', which is not known"),
        (LEAST + "[words]\nnuon = 'y'", "got 'nuon', which is not known at words"),
        (LEAST + "[sizes]\nn_train = 'all'", "got str, need int at sizes.n_train"),
        (LEAST + "kinds = ['a', 'b', 'c']", "at kinds"),
        (LEAST + "kinds = ['a', 'a']", "need two different names"),
        (LEAST + "places = ['nowhere']", "place: got 'nowhere'"),
        (LEAST + "[behaviour]\nfirst_tokens = 'I'", "need array"),
        (LEAST + "[behaviour]\nagainst = ['I']", "need first_tokens too"),
        (
            LEAST + "[behaviour]\nfirst_tokens = ['I']\n"
            "continuations = {positive = ['a'], negative = ['b']}",
            "need one of them",
        ),
        (LEAST + "[judge]\nphrases = [' ']", "empty phrase"),
        (LEAST + "[words]\nnoun = ''", "word 'noun'"),
    ],
)
def test_what_it_cannot_say_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)) as caught:
        Concept.read(write(tmp_path, text)).contrast(n_train=1, n_val=0, n_test=1)
    assert "\n" not in str(caught.value)


def test_a_list_and_a_file_do_not_go_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    text = LEAST.replace('["a b", "c d"]', '"a.txt"')
    with pytest.raises(InputError, match="need two of a sort"):
        Concept.read(write(tmp_path, text)).contrast(n_train=1, n_val=0, n_test=1)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"positive": "a"}, "need both or neither"),
        ({"concept": "c", "splits": "s"}, "got --concept and --splits"),
        ({"concept": "c", "name": "x"}, "which the file says"),
        ({"name": "poetry"}, "prompts of 'poetry'"),
        ({"model": "other"}, "prompts for other"),
    ],
)
def test_what_options_contradict_is_one_line(options: dict[str, str], line: str) -> None:
    with pytest.raises(InputError, match=line):
        RunConfig(**options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder copied and run, small."""
    folder = tmp_path_factory.mktemp("concept")
    for path in EXAMPLE.parent.iterdir():
        shutil.copy(path, folder)
    config = RunConfig(
        concept=str(folder / EXAMPLE.name), n_train=48, n_val=24, n_test=8, max_new_tokens=16,
        n_null=2, n_moves=1, null_prompts=4,
    )  # fmt: skip
    run_pipeline(config, folder / "run")
    return folder


def test_a_toy_concept_goes_from_a_file_to_a_page_in_its_own_words(finished: Path) -> None:
    out = finished / "run"
    page = html.unescape(re.sub(r"<(script|style).*?</\1>", "", (out / "report.html").read_text(), flags=re.S))
    headline = re.findall(r"<h1>(.*?)</h1>", page)[0]
    assert "eager" in headline
    assert "Wishing requests" in page
    shown = re.sub(r"refusal[_-]lens", "", page)
    for word in ("harmful", "harmless", "refus"):
        assert word not in shown.lower(), word
    run = open_run(out)
    assert run.direction.concept == run.behaviour.name == "eagerness"
    assert run.summary["rates"]["wishing"]["baseline"]["rate"] >= 0.9
    assert run.summary["rates"]["asking"]["baseline"]["rate"] <= 0.1
    assert run.contrast.kinds == ("wishing", "asking")


def test_other_words_redo_the_page_alone(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    path = folder / EXAMPLE.name
    path.write_text(path.read_text().replace('noun = "eagerness"', 'noun = "zeal"'))
    config = RunConfig(
        concept=str(path), n_train=48, n_val=24, n_test=8, max_new_tokens=16,
        n_null=2, n_moves=1, null_prompts=4,
    )  # fmt: skip
    before = {name: m.finished for name, m in Run.read(folder / "run").manifests().items()}
    summary = run_pipeline(config, folder / "run")
    after = {name: m.finished for name, m in Run.read(folder / "run").manifests().items()}
    assert {name for name in after if after[name] != before[name]} == {"summary"}
    assert summary["behaviour"]["words"]["noun"] == "zeal"
    assert "zeal" in (folder / "run" / "report.html").read_text()
    assert open_run(folder / "run").behaviour.words.noun == "zeal"
