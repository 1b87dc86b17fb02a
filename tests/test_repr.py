"""What a notebook shows of a value: one short line, a small table, and nothing a text could break out of."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import kit
import pandas as pd
import pytest
import torch

import refusal_lens
from refusal_lens import Continuations, Contrast, Conversation, Direction, RunConfig
from refusal_lens.activations import Means
from refusal_lens.attribution import attribute, attribute_sources
from refusal_lens.attribution.heads import Head
from refusal_lens.behaviours import FirstTokens
from refusal_lens.chat import Place, Rendered
from refusal_lens.directions import Candidates, Selection, Thresholds, score_candidates
from refusal_lens.directions.finding import FilteredPrompts
from refusal_lens.display import shown
from refusal_lens.evaluation import complete
from refusal_lens.interventions import ablate, add, clamp
from refusal_lens.judges import phrase_judge
from refusal_lens.model import ChatModel, Site
from refusal_lens.pipeline.export_job import ExportConfig, Exported
from refusal_lens.prompts import PromptPair
from refusal_lens.runs import Run
from refusal_lens.weights import add_bias, orthogonalise, prepare, writers_of

LONGEST = 400
EVIL = "<script>alert('x')</script>\x1b[2J" + "long " * 5_000


@pytest.fixture(scope="module")
def model() -> ChatModel:
    return kit.load("qwen2")


@pytest.fixture(scope="module")
def values(model: ChatModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each that people hold in a notebook, with texts as long and as nasty as they come."""
    prompts = tuple(f"{EVIL[:30]} {i}" for i in range(6))
    pair = PromptPair(prompts, tuple(f"{p}!" for p in prompts))
    splits = {s: PromptPair((f"{EVIL}{s}",), (f"{s}{EVIL}",)) for s in ("train", "val", "test")}
    positions = model.chat.positions
    mean = torch.randn(len(positions), model.n_layers, model.d_model, dtype=torch.float64)
    candidates = Candidates(mean, -mean, Place.posts(len(positions)), positions, {"concept": EVIL})
    direction = candidates.direction("post[-1]", 1)
    table = pd.DataFrame({"passes": [True] * 500})
    scores = {"bypass": 0.1, "induce": 1.0, "kl": 0.01}
    selection = Selection(Place.post(-1), 1, scores, table, Thresholds())
    tokens = FirstTokens(tuple(range(3000)), texts=(EVIL,) * 3000, source=EVIL)
    filtered = FilteredPrompts(tokens, pair, torch.ones(6).double(), torch.ones(6).double())
    found = attribute(model, prompts[:2], direction)
    job = prepare(kit.folder("qwen2"), orthogonalise(direction))
    return {

        "Candidates": candidates,
        "Selection": selection,
        "FirstTokens": tokens,
        "Continuations": Continuations(((1, 2),), ((3,),)),
        "Conversation": Conversation.of(EVIL),
        "FilteredPrompts": filtered,
        "Direction": direction,
        "PromptPair": PromptPair((EVIL,) * 100, (EVIL,)),
        "Contrast": Contrast(**splits, source={"file": EVIL}),
        "Rendered": model.chat.render(list(prompts)),
        "ChatFormat": model.chat,
        "ChatModel": model,
        "Means": Means(mean, 6, candidates.places, positions),
        "Ablate": ablate(direction),
        "Add": add(direction),
        "Clamp": clamp(direction, value=1.0),
        "Attribution": found,
        "SourceAttribution": attribute_sources(model, prompts[:2], direction, heads=[Head(0, 0)]),
        "Completion": complete(
            model, [EVIL[:60]], behaviour=FirstTokens((40,)), edit=ablate(direction), max_new_tokens=40
        )[0],
        "PhraseJudge": phrase_judge,
        "RunConfig": RunConfig(EVIL, positive=EVIL, negative=EVIL, system=EVIL, n_train=9),
        "Run": Run(Path("/tmp") / EVIL[:500].replace("/", "")),
        "Writers": writers_of(model.hf),
        "ExportPlan": job,
        "Orthogonalise": orthogonalise(direction),
        "AddBias": add_bias(direction),
        "ExportConfig": ExportConfig("lora", Path(EVIL[:200].replace("/", ""))),
        "Exported": Exported(Path("x"), writers_of(model.hf), notes=[EVIL] * 50),
        "Site": Site("resid_pre", 1),
        "Scored": score_candidates,
    }


NAMES = re.findall(r'^        "(\w+)":', Path(__file__).read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", NAMES)
def test_a_line_is_short_and_says_what_it_is(values: dict[str, Any], name: str) -> None:
    value = values[name]
    line = repr(value)
    assert len(line) < LONGEST
    assert line.isprintable()
    if name != "Scored":
        assert line.startswith(f"{name}(")
        assert "object at 0x" not in line


class Cells(HTMLParser):
    """The tags of a page, and how deep it is at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("Site", "Scored")])
def test_a_table_is_small_and_holds_no_markup_of_a_text(values: dict[str, Any], name: str) -> None:
    page = values[name]._repr_html_()
    cells = Cells()
    cells.feed(page)
    assert set(cells.tags) == {"table", "caption", "tr", "th", "td"}
    assert cells.open == 0
    assert "\x1b" not in page
    assert len(page) < 4_000


def test_a_selection_says_what_was_selected(values: dict[str, Any]) -> None:
    line = repr(values["Selection"])
    assert "place=Place(post[-1]), layer=1" in line
    assert "bypass" in line


def test_settings_that_are_as_always_are_left_out() -> None:
    assert repr(RunConfig()) == "RunConfig()"
    assert repr(RunConfig(n_train=9)) == "RunConfig(n_train=9)"


def test_a_subclass_goes_by_its_own_name() -> None:
    @shown("one")
    class First:
        one = 1

    class Second(First):
        one = 2

    assert (repr(First()), repr(Second())) == ("First(one=1)", "Second(one=2)")


def dataclasses() -> Iterator[type]:
    for module in pkgutil.walk_packages(refusal_lens.__path__, "refusal_lens."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.name:
                yield value


def test_every_dataclass_with_a_tensor_or_a_table_is_shown_short() -> None:
    """Printed field by field one of them fills a screen, and in a notebook the page."""
    from refusal_lens import shapes

    big = {name for name in vars(shapes) if name[0].isupper()} | {"Tensor", "DataFrame"}
    long = [
        f"{each.__module__}.{each.__name__}"
        for each in dataclasses()
        if not each.__name__.startswith("_")
        and not hasattr(each, "_repr_html_")
        and any(big & set(re.findall(r"\w+", str(field.type))) for field in fields(each))
    ]
    assert not long


def test_names_of_the_package_are_covered(values: dict[str, Any]) -> None:
    items = {name: getattr(refusal_lens, name) for name in refusal_lens.__all__}
    public = {n for n, item in items.items() if isinstance(item, type) and is_dataclass(item)}
    assert public <= set(values)
    assert isinstance(values["Rendered"], Rendered)
    assert isinstance(values["Direction"], Direction)
