"""Every public function, each of its parameters in turn with values that it cannot use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import kit
import numpy as np
import pandas as pd
import torch

import refusal_lens as rl
from refusal_lens import evaluation, runs, weights
from refusal_lens.activations import (
    Means,
    cache_residuals,
    map_last_logits,
    mean_next_token_probabilities,
    mean_residuals,
)
from refusal_lens.attribution import (
    Head,
    Regions,
    attribute_sources,
    head_effects,
    last_head_outputs,
    mean_head_outputs,
    random_head_sets,
    replaced_heads,
)
from refusal_lens.behaviours import (
    Continuations,
    FirstTokens,
    Replies,
    behaviour_from_json,
    choose_first_tokens,
    from_logits,
    from_replies,
)
from refusal_lens.chat import ChatFormat, Place
from refusal_lens.chat.suffixed import render_suffixed
from refusal_lens.conversations import Conversation, Message
from refusal_lens.directions import Candidates, Thresholds, score_candidates, select
from refusal_lens.directions.finding import (
    choose_behaviour,
    extract_candidates,
    filter_by_behaviour,
)
from refusal_lens.directions.sweep import sweep
from refusal_lens.interop import vectors
from refusal_lens.interventions import Ablate, Add, Clamp, NormMatchedMove, affine, clamp
from refusal_lens.judges import PhraseJudge, judge_from_json, judge_replies, phrase_judge
from refusal_lens.metrics import (
    binomial_standard_error,
    cosine_similarity,
    cross_entropy,
    first_token_log_odds,
    kl_divergence,
)
from refusal_lens.model import ChatModel, Site
from refusal_lens.pipeline import write_reference_report, write_report
from refusal_lens.prompts import PromptPair
from refusal_lens.studies import suffix

NAN, INF, HUGE = math.nan, math.inf, 10**30


class Case(NamedTuple):
    """One wrong call; `fine` is the reason where the value can after all be used."""

    name: str
    call: Callable[[], Any]
    fine: str = ""


class Taken(NamedTuple):
    """A parameter: a value that it takes, and the kinds of values that it does not."""

    value: Any
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A public function with values that it takes."""

    name: str
    fn: Callable[..., Any]
    parameters: Mapping[str, Taken]

    def call(self, **wrong: Any) -> Any:
        """Call it, and go through what it returns lazily."""
        given = {name: taken.value for name, taken in self.parameters.items()} | wrong
        for name, value in given.items():
            given[name] = value.made() if isinstance(value, Fresh) else value
        done = self.fn(**given)
        if isinstance(done, AbstractContextManager) and not isinstance(done, runs.Run):
            with done:
                return None
        return list(done) if isinstance(done, Iterator) else done


class Fresh(NamedTuple):
    """A value that is made anew for every call."""

    made: Callable[[], Any]


def takes(value: Any, *kinds: str) -> Taken:
    """Short for Taken."""
    return Taken(value, kinds)


PASSED_ON = "NaN in, NaN out: the table of candidates says which of them scored NaN"
UNASKED = "as many as fit"
LATER = "said in one line when the model is loaded, which knows dtypes and the context length"
FINE: dict[tuple[str, str], str] = {
    ("first_token_log_odds.logits", "nan"): PASSED_ON,
    ("kl_divergence.baseline", "nan"): PASSED_ON,
    ("kl_divergence.edited", "nan"): PASSED_ON,
    ("cosine_similarity.x", "nan"): "NaN in, NaN out",
    ("cosine_similarity.x", "inf"): "NaN in, NaN out",
    ("cosine_similarity.r", "nan"): "NaN in, NaN out",
    ("cosine_similarity.r", "inf"): "NaN in, NaN out",
    ("RunConfig.dtype", "unknown"): LATER,
    ("RunConfig.dtype", "empty"): LATER,
    ("RunConfig.max_new_tokens", "None"): UNASKED,
    ("RunConfig.max_new_tokens", "a million million"): LATER,
    ("RunConfig.max_new_tokens", "2^62"): LATER,
    (
        "replaced_heads.heads",
        "empty",
    ): "no head is replaced, as `head_effects` measures for comparison",
    ("ChatModel.generate.max_new_tokens", "None"): UNASKED,
    ("ChatModel.generate.prompts", "str"): "one prompt",
    ("Conversation.of.prompt", "str"): "one message",
    ("complete.max_new_tokens", "None"): UNASKED,
    ("FirstTokens.of.against", "texts"): "a text of digits is an id",
    ("FirstTokens.of.against", "empty"): "there need be none",
    ("complete.behaviour", "None"): "where there are no refusal tokens; the scores are NaN",
    ("complete.judge", "None"): "the behaviour's own",
    ("nulls.judge", "None"): "the behaviour's own",
    ("judge_from_json.data", "judge without others"): "they need not be given",
    ("mean_head_outputs.one", "no such layer"): "a mean needs no model",
}
"""(function.parameter, value) that can be used after all, with the reason."""
NUMPY = "NumPy's whole numbers are whole numbers"


def make_world(place: Path) -> SimpleNamespace:
    """A tiny model and everything that public functions take, right values."""
    model = ChatModel.load(str(kit.folder("llama")), device="cpu", dtype="float32")
    prompts = ["Paint the door.", "Wake!", "How does one bake bread?"]
    width, vocab = model.d_model, model.d_vocab
    generator = torch.Generator().manual_seed(0)
    random = partial(torch.randn, generator=generator, dtype=torch.float64)
    direction = rl.Direction(random(width), 1, Place.post(-1))
    n_positions = len(model.chat.positions)
    means = [random(n_positions, model.n_layers, width) for _ in range(2)]
    candidates = Candidates(*means, Place.posts(n_positions), model.chat.positions)
    rendered = model.chat.render(prompts)
    answered = model.chat.render(prompts, replies=["Red.", "Yes.", "With care."])
    pair = PromptPair(positive=tuple(prompts), negative=("Sing.", "Count to ten.", "Dance!"))
    others = [
        PromptPair(
            tuple(f"{kind} {n} a" for n in range(3)), tuple(f"{kind} {n} b" for n in range(3))
        )
        for kind in ("Read", "Write")
    ]
    contrast = rl.Contrast(pair, *others)
    table = pd.DataFrame(
        [
            {"position": p, "layer": l, "bypass": -1.0 - l, "induce": 1.0, "kl": 0.01}
            for p in (-2, -1)
            for l in range(model.n_layers)  # noqa: E741
        ]
    )
    place.mkdir(parents=True, exist_ok=True)
    direction_file = direction.save(place / "direction.safetensors")
    candidates_file = candidates.save(place / "candidates.safetensors")
    (place / "prompts.txt").write_text("\n".join(f"Do thing {n}." for n in range(12)))
    (place / "others.txt").write_text("\n".join(f"Say thing {n}." for n in range(12)))
    (place / "suffix.txt").write_text(" please now")
    (place / "empty").write_bytes(b"")
    (place / "binary").write_bytes(bytes(range(256)) * 8)
    (place / "folder").mkdir(exist_ok=True)
    (place / "value.json").write_text('{"a": 1}')
    (place / "rows.jsonl").write_text('{"a": 1}\n')
    (place / "table.csv").write_text("a,b\n1,2\n")
    finished = place / "run"
    with runs.Run.open(finished) as opened, opened.step("one", inputs={}) as step:
        step.write_json("one.json", [1])
    [completion] = rl.complete(
        model, prompts[:1], behaviour=FirstTokens((4,)), max_new_tokens=2
    )
    return SimpleNamespace(**locals())


def wrong_values(w: SimpleNamespace) -> dict[str, dict[str, Any]]:
    """The values of each kind that cannot be used, by what they are."""
    width, n_layers, vocab = w.width, w.model.n_layers, w.vocab
    zeros = torch.zeros(width, dtype=torch.float64)
    place = w.place
    not_text = {"None": None, "int": 3, "bytes": b"I", "list": ["I"], "nan": NAN, "bool": True}
    not_texts = {
        "None": None,
        "str": "one text",
        "int": 3,
        "ints": [1, 2],
        "holds None": ["a", None],
        "last is no text": ["a"] * 40 + [3],
        "set": {"a", "b"},
        "generator": Fresh(lambda: (text for text in ["a", "b"])),
        "bytes": b"ab",
        "nested": [["a"]],
        "nan": NAN,
        "object": object(),
    }
    not_whole = {"half": 2.5, "nan": NAN, "inf": INF, "str": "3", "bool": True, "list": [1]}
    layers = {"-1": -1, "too high": n_layers, "huge": HUGE}
    vectors = {
        "None": None,
        "str": "r",
        "list": [0.0] * width,
        "numpy": np.zeros(width),
        "whole numbers": torch.ones(width, dtype=torch.long),
        "scalar": torch.tensor(1.0),
        "empty": torch.zeros(0),
        "nan": zeros + NAN,
        "inf": zeros + INF,
        "complex": torch.ones(width, dtype=torch.complex64),
    }
    paths = {"None": None, "int": 3, "list": ["a"], "object": object(), "nan": NAN, "bool": False}
    files = {
        "missing": place / "none" / "none",
        "folder": place / "folder",
        "empty": place / "empty",
        "binary": place / "binary",
        "nul": "a\0b",
        "long name": "x" * 5000,
        "empty name": "",
    }
    model_of_another_width = rl.Direction(torch.ones(width + 1), 1, Place.post(-1))
    logits = {
        "None": None,
        "list": [[0.0, 1.0]],
        "numpy": np.zeros((3, vocab)),
        "one axis": torch.zeros(vocab),
        "three axes": torch.zeros(2, 3, vocab),
        "whole numbers": torch.zeros(3, vocab, dtype=torch.long),
        "nan": torch.full((3, vocab), NAN),
    }
    return {
        "text": not_text,
        "some text": {"empty": "", "white space": " \n", "lone surrogate": "a\ud800"},
        "texts": not_texts,
        "some": {"empty": []},
        "prompts": {
            "empty": [],
            "empty text": ["a", ""],
            "white space": ["a", " \n"],
            "lone surrogate": ["a", "\ud800"],
        },
        "ids": {
            "None": None,
            "str": "40",
            "int": 40,
            "texts": ["40"],
            "floats": [4.5],
            "nan": [NAN],
            "negative": [-1],
            "too high": [vocab],
            "huge": [HUGE],
            "bools": [True],
            "empty": [],
            "nested": [[4]],
            "tensor": torch.tensor([4]),
        },
        "tokens": {"int": 40, "float": [4.5], "negative": [-1], "huge": [HUGE], "empty": []},
        "whole": not_whole | {"None": None},
        "whole or None": not_whole,
        "at least 1": {"0": 0, "-1": -1, "-huge": -HUGE},
        "at least 0": {"-1": -1, "-huge": -HUGE},
        "at most a million": {"a million million": 10**12, "2^62": 2**62},
        "layer": layers,
        "place": {"None": None, "int": -1, "empty": "", "unknown": "post", "far": "post[-9999]"},
        "place name": {"None": None, "int": -1, "empty": "", "unknown": "post", "no number": "post[x]", "nul": "a\0b"},
        "region": {"None": None, "int": -1, "unknown": "prompt", "place": "t_inst", "empty": ""},
        "index": {"str": "-1", "float": 0.5, "nan": NAN, "bool": True},
        "replied place": {"no reply": "reply.mean", "reply.first": "reply.first"},
        "messages": {
            "None": None,
            "str": "Hi",
            "int": 3,
            "empty": [],
            "texts": ["Hi"],
            "users": [("user", "a"), ("user", "b")],
            "system alone": [("system", "a")],
            "system behind": [("user", "a"), ("system", "b")],
            "assistant first": [("assistant", "a"), ("user", "b")],
            "unknown role": [("robot", "a")],
            "no content": [{"role": "user"}],
            "content None": [{"role": "user", "content": None}],
            "content parts": [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "white space": [("user", " \n")],
            "holds None": [None],
        },
        "reply or None": {"int": 3, "list": ["a"], "bytes": b"a"},
        "lists": {
            "holds empty": [*w.prompts, []],
            "holds users": [*w.prompts, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]],
            "half characters": [*w.prompts, "\ud800"],
        },
        "places": {
            "str": "t_inst",
            "ints": [-1],
            "far": ["post[-9999]"],
            "no reply": ["reply.mean"],
            "unknown": ["post"],
            "empty": [],
        },
        "number": {
            "None": None,
            "str": "1",
            "list": [1.0],
            "bool": True,
            "complex": 1j,
            "nan": NAN,
            "object": object(),
        },
        "finite": {"inf": INF, "-inf": -INF},
        "share": {"below": -0.1, "above": 1.5},
        "flag": {"None": None, "int": 2, "str": "yes", "list": []},
        "vector": vectors,
        "of the width": {"wrong width": torch.ones(width + 1), "matrix": torch.ones(width, width)},
        "no zero": {"zeros": zeros},
        "stack": {
            "vector": zeros,
            "None": None,
            "list": [],
            "int tensor": torch.ones(2, 3, 4).long(),
        },
        "logits": logits,
        "as many": {"fewer rows": torch.zeros(2, vocab), "fewer tokens": torch.zeros(3, vocab - 1)},
        "model": {"None": None, "str": "organism", "hf": w.model.hf, "class": ChatModel, "int": 3},
        "module": {"None": None, "str": "organism", "class": ChatModel, "int": 3},
        "direction": {
            "None": None,
            "str": "r",
            "dict": {"vector": zeros, "layer": 1},
            "list": [0.0] * width,
            "selection": w.candidates,
            "class": rl.Direction,
        },
        "layered": {"tensor": torch.ones(width)},
        "fits": {
            "wrong width": model_of_another_width,
            "layer too high": rl.Direction(torch.ones(width), n_layers, Place.post(-1)),
        },
        "fitting layer": {"layer too high": rl.Direction(torch.ones(width), n_layers, Place.post(-1))},
        "fitting width": {"wrong width": model_of_another_width},
        "edit": {
            "None": None,
            "str": "ablate",
            "function": abs,
            "direction": w.direction,
            "int": 1,
        },
        "fitting edit": {
            "wrong width": Ablate(torch.ones(width + 1)),
            "wrong layer": Add(torch.ones(width), n_layers),
        },
        "edits": {"holds None": [None], "holds text": ["ablate"], "holds function": [abs]},
        "weight edit": {"None": None, "str": "ablate", "hook edit": Ablate(torch.ones(width))},
        "fitting weight edit": {
            "wrong width": weights.orthogonalise(model_of_another_width),
            "wrong layer": weights.add_bias(rl.Direction(torch.ones(width), n_layers, Place.post(-1))),
        },
        "function": {"int": 3, "str": "print", "list": []},
        "no None": {"None": None},
        "judge": {"None": None, "str": "phrases", "int": 1},
        "judge object": {"function": len, "class": PhraseJudge},
        "behaviour": {
            "None": None,
            "str": "refusal",
            "ids": [4],
            "judge": phrase_judge,
            "class": FirstTokens,
        },
        "behaviour of the vocabulary": {"too high": FirstTokens((vocab,))},
        "behaviour as JSON": {
            "None": None,
            "str": "refusal",
            "empty": {},
            "another kind": FirstTokens((4,)).to_json() | {"kind": "poem"},
            "no ids": FirstTokens((4,)).to_json() | {"ids": []},
            "ids are texts": FirstTokens((4,)).to_json() | {"ids": ["I"]},
            "no words": FirstTokens((4,)).to_json() | {"words": None},
            "a function": from_logits(first_logit, name="a").to_json(),
        },
        "tuple of ids": {
            "None": None,
            "str": "40",
            "int": 40,
            "list": [40],
            "texts": ("40",),
            "floats": (4.5,),
            "bools": (True,),
        },
        "no id": {"empty": ()},
        "tuple of replies": {
            "None": None,
            "text": "No.",
            "texts": ("No.",),
            "ids": (4, 5),
            "empty": (),
            "empty reply": ((4,), ()),
        },
        "bounds": {"None": None, "one": (0.0,), "turned": (1.0, 0.0), "texts": ("0", "1")},
        "phrases": {"empty": [], "empty text": ["a", ""]},
        "judge as JSON": {
            "None": None,
            "str": "phrases",
            "empty": {},
            "text": {"phrases": "I cannot"},
            "no phrases": {"phrases": []},
            "holds None": {"phrases": [None]},
            "another key": {"phrases": ["I cannot"], "phrase": 1},
        },
        "two kinds": {"one": {"a": w.prompts}, "three": dict.fromkeys("abc", w.prompts)},
        "word": {"None": None, "unknown": "unknown", "int": 1, "empty": "", "list": ["all"]},
        "sites": {
            "str": "resid_pre",
            "site": Site("resid_pre", 0),
            "texts": ["resid_pre"],
            "holds None": [None],
            "too high": [Site("resid_pre", n_layers)],
            "layer too high": [n_layers],
            "bools": [True],
        },
        "heads": {
            "None": None,
            "str": "1.2",
            "ints": [1, 2],
            "texts": ["1.2"],
            "empty": [],
            "layer too high": [Head(n_layers, 0)],
            "head too high": [Head(0, 99)],
            "negative": [Head(-1, 0)],
            "triples": [(0, 1, 2)],
            "halves": [(0.5, 0)],
        },
        "layers": {
            "None": None,
            "int": 1,
            "str": "01",
            "floats": [0.5],
            "negative": [-1],
            "too high": [n_layers],
        },
        "candidates": {"None": None, "direction": w.direction, "list": [], "table": w.table},
        "fitting candidates": {
            "wrong width": Candidates(
                torch.ones(1, n_layers, width + 1).double(),
                torch.zeros(1, n_layers, width + 1).double(),
                Place.posts(1),
                ("a",),
            ),
            "wrong layers": Candidates(
                torch.ones(1, n_layers + 1, width).double(),
                torch.zeros(1, n_layers + 1, width).double(),
                Place.posts(1),
                ("a",),
            ),
        },
        "contrast": {"None": None, "pair": w.pair, "dict": {}, "list": w.prompts},
        "pair": {
            "None": None,
            "list": w.prompts,
            "contrast": w.contrast,
            "tuple": (("a",), ("b",)),
        },
        "thresholds": {"int": 1, "dict": {"kl_threshold": 1}, "tuple": (0.1, 0, 0.2)},
        "table": {
            "None": None,
            "list": [1],
            "dict": {"position": [1]},
            "no columns": pd.DataFrame(),
            "no rows": w.table[:0],
            "texts": w.table.astype(str),
            "fewer columns": w.table[["position", "layer"]],
        },
        "completions": {
            "None": None,
            "empty": [],
            "texts": ["I cannot"],
            "one": w.completion,
            "int": 3,
        },
        "texts by kind": {
            "None": None,
            "list": w.prompts,
            "str": "harmful",
            "value is str": {"harmful": "one text"},
            "holds None": {"harmful": [None]},
            "key is int": {1: w.prompts},
        },
        "edits by kind": {
            "None": None,
            "list": [None],
            "not nested": {"harmful": None},
            "holds text": {"harmful": {"ablation": "ablate"}},
            "another kind": {"other": {"plain": None}},
        },
        "streams": {
            "None": None,
            "tensor": torch.zeros(2, 1, 3, 4),
            "empty": {},
            "three axes": {"a": torch.zeros(2, 3, 4)},
            "other layers": {"a": torch.zeros(2, 1, 3, 4), "b": torch.zeros(2, 1, 2, 4)},
            "no prompts": {"a": torch.zeros(0, 1, 3, 4)},
        },
        "outputs": {
            "list": [],
            "tensor": torch.zeros(3, 4, 8),
            "texts": {0: "z"},
            "no such layer": {9: torch.zeros(1, 4, 8)},
        },
        "rendered": {"None": None, "texts": w.prompts, "tensor": w.rendered.ids},
        "path": paths,
        "file": files,
        "new file": {"nul": "a\0b", "long name": "x" * 5000, "folder": place / "folder"},
        "run": {
            "missing": place / "none",
            "file": place / "value.json",
            "empty folder": place / "folder",
            "nul": "a\0b",
            "long name": "x" * 5000,
        },
        "no model": {
            "missing": str(place / "none"),
            "file": str(place / "value.json"),
            "empty folder": str(place / "folder"),
            "empty": "",
            "nul": "a\0b",
        },
        "dtype": {"unknown": "float7", "int": 32, "list": ["float32"], "empty": ""},
        "device": {"unknown": "toaster", "int": 3.5, "list": ["cpu"]},
        "tokenizer": {"None": None, "str": "gpt2", "int": 3, "class": type(w.model.tokenizer)},
        "names": {
            "list": ["a", "b"],
            "one": ("a",),
            "three": ("a", "b", "c"),
            "str": "ab",
            "ints": (1, 2),
        },
        "same names": {"same": ("a", "a")},
        "mapping": {"None": None, "list": [1], "str": "x", "pairs": [("a", 1)]},
        "provenance": {"None": None, "str": "x", "object": {"a": object()}},
        "scalar": {"None": None, "str": "2", "list": [2.0], "nan": NAN, "inf": INF, "bool": True},
        "summand": {"None": None, "int": 1, "str": "x", "wrong width": model_of_another_width},
        "other vector": {
            "None": None,
            "str": "r",
            "list": [1.0],
            "wrong width": torch.ones(width + 1),
        },
        "anything wrapped": {
            "None": None,
            "str": "gpt2",
            "int": 3,
            "module": torch.nn.Linear(2, 2),
        },
        "split": {"None": None, "unknown": "dev", "int": 0, "empty": ""},
        "seed": {"-1": -1, "huge": HUGE},
        "one suffix": {"one": [" now"], "four": [" now"] * 4},
        "empty suffix": {"empty": ["", " now", " now"]},
        "suffixed": {"empty": "", "white space": "  "},
        "config": {
            "None": None,
            "str": "organism",
            "dict": {"model": "organism"},
            "class": rl.RunConfig,
        },
        "means": {"None": None, "tensor": w.means[0], "list": []},
        "mask": {
            "None": None,
            "ints": torch.ones(3, 4, dtype=torch.long),
            "other shape": torch.ones(3, 5, dtype=torch.bool),
            "first": torch.ones(3, 4, dtype=torch.bool),
        },
        "token ids": {
            "None": None,
            "list": [[1, 2, 3, 4]],
            "floats": torch.zeros(3, 4),
            "other shape": torch.zeros(3, 5, dtype=torch.long),
            "one axis": torch.zeros(4, dtype=torch.long),
        },
        "known token ids": {
            "negative": torch.full((3, 4), -1),
            "too high": torch.full((3, 4), vocab),
        },
        "units of rows": {
            "rate": "0.5",
            "above": 1.5,
            "below": -0.1,
            "nan": NAN,
            "None": None,
            "bool": True,
        },
        "replies": {"fewer": ["a"], "more": ["a"] * 4},
    }


def targets(w: SimpleNamespace) -> list[Target]:
    """The public functions with what they take."""
    place = w.place
    model = takes(w.model, "model")
    prompts = takes(w.prompts, "texts", "prompts")
    count = takes(2, "whole", "at least 1")
    tokens = takes([4, 5], "ids")
    behaviour = takes(FirstTokens((4, 5)), "behaviour", "behaviour of the vocabulary")
    told = takes(None, "function")
    short = takes(2, "whole", "at least 1", "at most a million")
    small = {"n_train": takes(3, "whole", "at least 1"), "n_val": takes(2, "whole", "at least 0")}
    small |= {"n_test": takes(2, "whole", "at least 0"), "seed": takes(0, "whole")}
    new = Fresh(lambda: place / "out.file")
    ids = torch.zeros(3, 4, dtype=torch.long)
    scored = torch.tensor([[False, True, True, True]] * 3)
    last = torch.zeros(3, w.vocab)
    direction = takes(w.direction, "direction", "layered", "fits")
    outputs = last_head_outputs(w.model, w.prompts, layers=[0])
    two = [Head(0, 0), Head(0, 1)]
    listed: list[tuple[str, Callable[..., Any], dict[str, Taken]]] = [
        # -------------------------------------------------------------- values
        (
            "Direction",
            rl.Direction,
            {
                "vector": takes(w.direction.vector, "vector"),
                "layer": takes(1, "whole", "at least 0"),
                "place": takes(Place.post(-1), "place"),
                "concept": takes("refusal", "text"),
                "more": takes({}, "mapping"),
            },
        ),
        ("Direction.cosine", w.direction.cosine, {"other": takes(w.direction, "other vector")}),
        (
            "Direction.save",
            w.direction.save,
            {"path": takes(new, "path", "new file")},
        ),
        (
            "Direction.load",
            rl.Direction.load,
            {
                "path": takes(w.direction_file, "path", "file"),
                "model": takes(w.model, "model or None"),
            },
        ),
        ("Direction.transferred", w.direction.transferred, {"model": model}),
        ("Direction.check_belongs_to", w.direction.check_belongs_to, {"model": model}),
        ("Direction * scale", lambda scale: w.direction * scale, {"scale": takes(2.0, "scalar")}),
        (
            "Direction / scale",
            lambda scale: w.direction / scale,
            {"scale": takes(2.0, "scalar", "zero")},
        ),
        (
            "Direction + other",
            lambda other: w.direction + other,
            {"other": takes(w.direction, "summand")},
        ),
        (
            "Candidates",
            Candidates,
            {
                "mean_positive": takes(w.means[0], "stack"),
                "mean_negative": takes(w.means[1], "stack"),
                "places": takes(w.candidates.places, "text", "some"),
                "names": takes(w.model.chat.positions, "text", "some"),
            },
        ),
        (
            "Candidates.from_means",
            Candidates.from_means,
            {
                "positive": takes(Means(w.means[0], 3, w.candidates.places, w.candidates.names), "means"),
                "negative": takes(Means(w.means[1], 3, w.candidates.places, w.candidates.names), "means"),
            },
        ),
        (
            "Candidates.direction",
            w.candidates.direction,
            {"place": takes("post[-1]", "place"), "layer": takes(1, "whole", "layer")},
        ),
        ("Candidates.load", Candidates.load, {"path": takes(w.candidates_file, "path", "file")}),
        ("Candidates.save", w.candidates.save, {"path": takes(new, "path", "new file")}),
        (
            "Site",
            Site,
            {"kind": takes("resid_pre", "word"), "layer": takes(0, "whole", "at least 0")},
        ),
        (
            "Thresholds",
            Thresholds,
            {
                "kl_threshold": takes(0.1, "number"),
                "induce_threshold": takes(0.0, "number"),
                "prune_layers": takes(0.2, "number", "share"),
            },
        ),
        (
            "PromptPair",
            PromptPair,
            {"positive": takes(("a",), "texts"), "negative": takes(("b",), "texts")},
        ),
        (
            "Contrast",
            rl.Contrast,
            {
                "train": takes(w.pair, "pair"),
                "val": takes(PromptPair(("c",), ("d",)), "pair"),
                "test": takes(PromptPair(("e",), ("f",)), "pair"),
                "kinds": takes(("harmful", "harmless"), "names"),
            },
        ),
        ("Contrast.pair", w.contrast.pair, {"split": takes("train", "split")}),
        ("Contrast.toy", rl.Contrast.toy, small | {"seed": takes(0, "whole")}),
        (
            "Contrast.of",
            rl.Contrast.of,
            {
                "positive": takes([f"Paint {i}." for i in range(9)], "texts", "prompts", "lists"),
                "negative": takes([f"Sing {i}." for i in range(9)], "texts", "prompts", "lists"),
                "kinds": takes(("a", "b"), "names", "same names"),
                "name": takes("poems", "text"),
                "n_train": takes(3, "whole or None", "at least 1"),
                "n_val": takes(2, "whole or None", "at least 0"),
                "n_test": takes(2, "whole or None", "at least 0"),
                "seed": takes(0, "whole"),
            },
        ),
        (
            "Conversation",
            Conversation,
            {
                "messages": takes((Message("user", "Hi"),), "messages"),
                "reply": takes(None, "reply or None"),
            },
        ),
        (
            "Conversation.of",
            Conversation.of,
            {"prompt": takes([Message("user", "Hi"), Message("assistant", "Ho")], "messages")},
        ),
        ("Place", Place, {"region": takes("post", "region"), "index": takes(-1, "index")}),
        ("Place.parse", Place.parse, {"text": takes("t_inst", "place name")}),
        (
            "Contrast.from_files",
            rl.Contrast.from_files,
            {
                "positive": takes(place / "prompts.txt", "path", "file"),
                "negative": takes(place / "others.txt", "path", "file"),
                "kinds": takes(("a", "b"), "names", "same names"),
                "column": takes(None, "some wrong text"),
                **small,
            },
        ),
        (
            "Contrast.from_reference_splits",
            rl.Contrast.from_reference_splits,
            {"folder": takes(place / "splits", "path", "file"), **small},
        ),
        (
            "RunConfig",
            rl.RunConfig,
            {
                "model": takes("organism", "text"),
                "seed": takes(0, "whole", "seed"),
                "first_tokens": takes(None, "texts or None"),
                "mode": takes("lazy", "word"),
                "kl_threshold": takes(0.1, "number"),
                "prune_layers": takes(0.2, "number", "share"),
                "max_new_tokens": short,
                "batch_size": takes(None, "whole or None", "at least 1"),
                "n_null": takes(0, "whole", "at least 0"),
                "n_moves": takes(0, "whole", "at least 0"),
                "dtype": takes("float32", "dtype"),
                "trust_remote_code": takes(False, "flag"),
                "system": takes(None, "some wrong text"),
            },
        ),
        # -------------------------------------------------------------- model and chat
        (
            "ChatModel.load",
            ChatModel.load,
            {
                "name": takes(str(kit.folder("llama")), "path", "no model"),
                "device": takes("cpu", "device"),
                "dtype": takes("float32", "dtype"),
                "revision": takes(None, "some wrong text"),
                "system": takes(None, "some wrong text"),
                "prefill": takes("", "text"),
                "thinking": takes(None, "flag or None"),
                "trust_remote_code": takes(False, "flag"),
            },
        ),
        (
            "ChatModel.wrap",
            lambda model: ChatModel.wrap(model),
            {"model": takes(w.model.bridge, "anything wrapped")},
        ),
        (
            "ChatModel.generate",
            w.model.generate,
            {
                "prompts": prompts,
                "max_new_tokens": short,
                "batch_size": count,
                "stop": takes(True, "flag"),
                "use_cache": takes(True, "flag"),
                "on_progress": told,
            },
        ),
        ("ChatModel.logits", w.model.logits, {"prompts": prompts}),
        (
            "ChatModel.read",
            w.model.read,
            {
                "prompts": prompts,
                "sites": takes([Site("resid_pre", 0)], "sites", "no None"),
            },
        ),
        (
            "ChatModel.hooked",
            w.model.hooked,
            {"hooks": takes([(Site("resid_pre", 0), lambda x: None)], "sites", "no None", "edits")},
        ),
        ("ChatModel.writes", w.model.writes, {"layers": takes([0], "layers or None")}),
        (
            "ChatFormat.from_tokenizer",
            ChatFormat.from_tokenizer,
            {
                "tokenizer": takes(w.model.tokenizer, "tokenizer"),
                "system": takes(None, "some wrong text"),
                "prefill": takes("", "text"),
                "extra_stop_ids": takes([4], "stop ids"),
            },
        ),
        (
            "ChatFormat.plain",
            ChatFormat.plain,
            {
                "tokenizer": takes(w.model.tokenizer, "tokenizer"),
                "suffix": takes("\n", "text", "no suffix"),
            },
        ),
        (
            "ChatFormat.render",
            w.model.chat.render,
            {"prompts": prompts, "replies": takes(None, "texts or None", "replies")},
        ),
        ("ChatFormat.decode", w.model.chat.decode, {"ids": takes([4], "decoded")}),
        ("Rendered.at", w.rendered.at, {"place": takes("post[-1]", "place", "replied place")}),
        (
            "render_suffixed",
            render_suffixed,
            {
                "chat": takes(w.model.chat, "tokenizer"),
                "prompts": prompts,
                "suffixes": takes([" now"] * 3, "texts", "one suffix", "empty suffix"),
            },
        ),
        ("Rendered.batches", w.rendered.batches, {"batch_size": count}),
        # -------------------------------------------------------------- reading
        (
            "mean_residuals",
            mean_residuals,
            {"model": model, "prompts": prompts, "batch_size": count, "on_progress": told},
        ),
        (
            "cache_residuals",
            cache_residuals,
            {
                "model": model,
                "prompts": prompts,
                "places": takes(["post[-1]"], "places"),
                "batch_size": count,
            },
        ),
        (
            "map_last_logits",
            map_last_logits,
            {
                "model": model,
                "prompts": prompts,
                "number": takes(torch.Tensor.cpu, "judge"),
                "batch_size": count,
            },
        ),
        (
            "mean_next_token_probabilities",
            mean_next_token_probabilities,
            {"model": model, "prompts": prompts, "batch_size": count},
        ),
        # -------------------------------------------------------------- edits
        (
            "ablate",
            rl.ablate,
            {
                "direction": takes(w.direction, "direction"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "ablate a vector",
            rl.ablate,
            {"direction": takes(w.direction.vector, "vector", "no zero")},
        ),
        (
            "add",
            rl.add,
            {
                "direction": takes(w.direction, "direction", "layered"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "subtract",
            rl.subtract,
            {
                "direction": takes(w.direction, "direction", "layered"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "clamp",
            clamp,
            {
                "direction": takes(w.direction, "direction", "layered"),
                "value": takes(0.0, "number", "finite"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "affine",
            affine,
            {
                "direction": takes(w.direction, "direction", "layered"),
                "reference": takes(torch.ones(w.width), "vector", "of the width"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "Ablate",
            Ablate,
            {
                "vector": takes(w.direction.vector, "vector", "no zero"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "Add",
            Add,
            {
                "vector": takes(w.direction.vector, "vector"),
                "layer": takes(1, "whole", "at least 0"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "Clamp",
            Clamp,
            {
                "vector": takes(w.direction.vector, "vector", "no zero"),
                "layer": takes(1, "whole", "at least 0"),
                "value": takes(0.0, "number", "finite"),
            },
        ),
        (
            "NormMatchedMove",
            NormMatchedMove,
            {
                "vector": takes(w.direction.vector, "vector", "no zero"),
                "other": takes(torch.ones(w.width), "vector", "no zero"),
            },
        ),
        (
            "applied",
            rl.applied,
            {
                "model": model,
                "edit": takes(rl.ablate(w.direction), "edit", "fitting edit", "edits"),
                "at": takes(None, "sites"),
                "when": takes("all", "word"),
            },
        ),
        # -------------------------------------------------------------- metrics
        (
            "first_token_log_odds",
            first_token_log_odds,
            {"logits": takes(last, "logits"), "ids": tokens},
        ),
        (
            "kl_divergence",
            kl_divergence,
            {
                "baseline": takes(last, "logits", "as many"),
                "edited": takes(last, "logits", "as many"),
            },
        ),
        (
            "cross_entropy",
            cross_entropy,
            {
                "logits": takes(torch.zeros(3, 4, w.vocab), "logits of all"),
                "ids": takes(ids, "token ids", "known token ids"),
                "scored": takes(scored, "mask"),
            },
        ),
        (
            "cosine_similarity",
            cosine_similarity,
            {
                "x": takes(torch.ones(3, w.width), "vector", "of the width of r"),
                "r": takes(torch.ones(w.width), "vector", "of the width"),
            },
        ),
        (
            "binomial_standard_error",
            binomial_standard_error,
            {"rate": takes(0.5, "units of rows"), "n": takes(4, "whole", "at least 1")},
        ),
        # -------------------------------------------------------------- directions
        (
            "find_direction",
            rl.find_direction,
            {
                "model": model,
                "contrast": takes(w.contrast, "contrast"),
                "behaviour": takes(None, "behaviour or None"),
                "places": takes(None, "places or None"),
                "rule": takes(None, "thresholds"),
                "mode": takes("lazy", "word"),
                "batch_size": count,
                "on_progress": told,
            },
        ),
        (
            "FirstTokens.of",
            FirstTokens.of,
            {
                "model": model,
                "tokens": takes([4], "tokens"),
                "against": takes([], "tokens"),
            },
        ),
        (
            "Continuations.of",
            Continuations.of,
            {
                "model": model,
                "positive": takes(["Yes"], "texts"),
                "negative": takes(["No"], "texts"),
            },
        ),
        (
            "FirstTokens",
            FirstTokens,
            {
                "ids": takes((4,), "tuple of ids", "no id"),
                "against": takes((), "tuple of ids"),
                "name": takes("a", "text"),
                "judge": takes(None, "judge object"),
            },
        ),
        (
            "Continuations",
            Continuations,
            {
                "positive": takes(((4, 5),), "tuple of replies"),
                "negative": takes(((6,),), "tuple of replies"),
                "name": takes("a", "text"),
            },
        ),
        (
            "Replies",
            Replies,
            {
                "judge": takes(phrase_judge, "judge", "judge object"),
                "max_new_tokens": takes(2, "whole", "at least 1"),
                "name": takes("a", "text"),
                "threshold": takes(0.5, "number"),
            },
        ),
        (
            "from_logits",
            from_logits,
            {
                "fn": takes(first_logit, "function"),
                "name": takes("a", "text"),
                "threshold": takes(0.0, "number"),
                "bounds": takes((0.0, 1.0), "bounds"),
            },
        ),
        (
            "from_replies",
            from_replies,
            {
                "fn": takes(len, "function"),
                "name": takes("a", "text"),
                "max_new_tokens": takes(2, "whole", "at least 1"),
            },
        ),
        (
            "behaviour_from_json",
            behaviour_from_json,
            {
                "data": takes(FirstTokens((4,)).to_json(), "behaviour as JSON"),
                "judges": takes((), "judge", "judge object"),
            },
        ),
        (
            "choose_behaviour",
            choose_behaviour,
            {"model": model, "contrast": takes(w.contrast, "contrast"), "batch_size": count},
        ),
        (
            "extract_candidates",
            extract_candidates,
            {
                "model": model,
                "pair": takes(w.pair, "pair"),
                "data_sha256": takes("0", "text"),
                "concept": takes("a", "text"),
                "places": takes(["post[-1]"], "places"),
                "batch_size": count,
            },
        ),
        (
            "filter_by_behaviour",
            filter_by_behaviour,
            {
                "model": model,
                "pair": takes(w.pair, "pair"),
                "behaviour": takes(FirstTokens((4,)), "behaviour"),
                "batch_size": count,
            },
        ),
        (
            "choose_first_tokens",
            choose_first_tokens,
            {
                "model": model,
                "pair": takes(w.pair, "pair"),
                "name": takes("refusal", "text"),
                "judge": takes(None, "judge object"),
                "batch_size": count,
                "at_most": count,
            },
        ),
        *(
            (
                name,
                fn,
                {
                    "model": model,
                    "candidates": takes(w.candidates, "candidates", "fitting candidates"),
                    "positive": prompts,
                    "negative": prompts,
                    "behaviour": takes(FirstTokens((4, 5)), "behaviour"),
                    "mode": takes("exhaustive", "word"),
                    "rule": takes(None, "thresholds"),
                    "budget": takes(None, "whole or None", "at least 1"),
                    "memory": takes(None, "whole or None", "at least 1"),
                    "batch_size": takes(None, "whole or None", "at least 1"),
                    "on_progress": told,
                    "resume": takes(None, "thresholds"),
                },
            )
            for name, fn in (("score_candidates", score_candidates), ("sweep", sweep))
        ),
        (
            "select",
            select,
            {
                "table": takes(w.table, "table"),
                "n_layers": takes(w.model.n_layers, "whole", "at least 1"),
                "rule": takes(None, "thresholds"),
            },
        ),
        # -------------------------------------------------------------- attribution
        (
            "attribute",
            rl.attribute,
            {
                "model": model,
                "prompts": prompts,
                "direction": direction,
                "layer": takes(None, "whole or None", "layer"),
                "places": takes(("last",), "places", "no None"),
                "batch_size": count,
                "on_progress": told,
            },
        ),
        (
            "attribute_sources",
            attribute_sources,
            {
                "model": model,
                "prompts": prompts,
                "direction": direction,
                "heads": takes(two, "heads"),
                "regions": takes(None, "thresholds"),
                "layer": takes(None, "whole or None", "layer"),
                "batch_size": count,
            },
        ),
        (
            "last_head_outputs",
            last_head_outputs,
            {
                "model": model,
                "prompts": prompts,
                "layers": takes([0], "layers"),
                "batch_size": count,
            },
        ),
        (
            "replaced_heads",
            replaced_heads,
            {"model": model, "heads": takes(two, "heads"), "values": takes(None, "outputs")},
        ),
        (
            "random_head_sets",
            random_head_sets,
            {
                "heads": takes(two, "heads of any model"),
                "n_heads": takes(2, "whole", "at least 1", "at most a million"),
                "layers": takes([0, 1], "layers of any model"),
                "n_sets": takes(2, "whole", "at least 0", "at most a million"),
                "seed": takes(0, "whole", "seed"),
            },
        ),
        (
            "head_effects",
            head_effects,
            {
                "model": model,
                "prompts": prompts,
                "direction": direction,
                "heads": takes(two, "heads"),
                "values": takes(None, "outputs"),
                "behaviour": behaviour,
                "edit": takes("zero", "text"),
                "n_random": takes(1, "whole", "at least 0", "at most a million"),
                "seed": takes(0, "whole", "seed"),
                "batch_size": count,
            },
        ),
        (
            "mean_head_outputs",
            lambda one: mean_head_outputs(one),
            {"one": takes(outputs, "outputs", "no None")},
        ),
        ("Regions.of", Regions.of, {"rendered": takes(w.rendered, "rendered")}),
        # -------------------------------------------------------------- evaluation
        (
            "complete",
            rl.complete,
            {
                "engine": model,
                "prompts": prompts,
                "behaviour": behaviour,
                "edit": takes(None, "fitting edit", "edit or None"),
                "judge": takes(phrase_judge, "judge", "judge object"),
                "max_new_tokens": short,
                "batch_size": count,
                "on_progress": told,
            },
        ),
        ("phrase_judge.score", phrase_judge.score, {"reply": takes("I cannot.", "text")}),
        (
            "PhraseJudge",
            PhraseJudge,
            {
                "phrases": takes(["I cannot"], "texts", "phrases"),
                "others": takes((), "texts"),
                "exact": takes(False, "flag"),
                "name": takes("phrases", "text"),
            },
        ),
        (
            "judge_replies",
            judge_replies,
            {"fn": takes(len, "function", "no None"), "name": takes("length", "text")},
        ),
        (
            "judge_from_json",
            judge_from_json,
            {"data": takes({"phrases": ["I cannot"]}, "judge as JSON")},
        ),
        (
            "rate",
            rl.rate,
            {"completions": takes([w.completion], "completions")},
        ),
        (
            "nulls",
            evaluation.nulls,
            {
                "model": model,
                "direction": direction,
                "prompts": takes({"a": w.prompts, "b": w.prompts}, "texts by kind", "two kinds"),
                "behaviour": behaviour,
                "n": takes(1, "whole", "at least 1", "at most a million"),
                "n_moves": takes(1, "whole", "at least 0"),
                "seed": takes(0, "whole"),
                "max_new_tokens": short,
                "batch_size": count,
                "judge": takes(phrase_judge, "judge", "judge object"),
            },
        ),
        (
            "random_units",
            evaluation.random_units,
            {
                "n": takes(2, "whole", "at least 0", "at most a million"),
                "d_model": takes(2, "whole", "at least 1", "at most a million"),
                "seed": takes(0, "whole"),
            },
        ),
        (
            "cosine_by_layer",
            evaluation.cosine_by_layer,
            {
                "model": model,
                "direction": takes(w.direction, "direction", "fitting width"),
                "prompts": takes({"harmful": w.prompts}, "texts by kind"),
                "edits": takes({"harmful": {"plain": None}}, "edits by kind"),
                "batch_size": count,
            },
        ),
        (
            "principal_components",
            evaluation.principal_components,
            {
                "streams": takes(
                    {"a": torch.ones(3, 1, 2, 4), "b": torch.zeros(3, 1, 2, 4)}, "streams"
                )
            },
        ),
        (
            "agreement",
            evaluation.agreement,
            {
                "mine": takes(["a", "b"], "texts", "some", "fewer"),
                "theirs": takes(["a", "b"], "texts", "some", "fewer"),
            },
        ),
        (
            "cosine_in_both",
            evaluation.cosine_in_both,
            {
                "chat": model,
                "base": model,
                "direction": takes(w.direction, "direction", "fitting width"),
                "prompts": takes({"harmful": w.prompts}, "texts by kind"),
                "batch_size": count,
            },
        ),
        # -------------------------------------------------------------- weights
        (
            "weights.orthogonalise",
            weights.orthogonalise,
            {
                "direction": takes(w.direction, "direction"),
                "strength": takes(1.0, "number", "finite"),
                "keep_norms": takes(False, "flag"),
            },
        ),
        (
            "weights.orthogonalise a vector",
            weights.orthogonalise,
            {"direction": takes(w.direction.vector, "vector", "no zero")},
        ),
        (
            "weights.add_bias",
            weights.add_bias,
            {
                "direction": takes(w.direction, "direction", "layered"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        (
            "weights.prepare",
            weights.prepare,
            {
                "folder": takes(kit.folder("llama"), "path", "no model"),
                "edit": takes(
                    weights.orthogonalise(w.direction), "weight edit", "fitting weight edit"
                ),
            },
        ),
        (
            "weights.edited",
            weights.edited,
            {
                "model": takes(w.model, "module"),
                "edit": takes(
                    weights.orthogonalise(w.direction), "weight edit", "fitting weight edit"
                ),
                "post_norm": takes("fold", "word"),
            },
        ),
        ("weights.writers_of", weights.writers_of, {"model": takes(w.model.hf, "module")}),
        ("read_gguf", vectors.read_gguf, {"path": takes(None, "path", "file")}),
        ("read_reference", vectors.read_reference, {"folder": takes(None, "path", "file")}),
        (
            "weights.verify_files",
            weights.verify_files,
            {
                "original": takes(kit.folder("llama"), "path", "no model"),
                "edited": takes(kit.folder("llama"), "path", "no model"),
                "direction": takes(w.direction, "direction", "fitting width"),
                "strength": takes(1.0, "number", "finite"),
            },
        ),
        # -------------------------------------------------------------- studies, runs, pages
        ("read_suffix", suffix.read_suffix, {"path": takes(place / "suffix.txt", "path", "file")}),
        (
            "study_suffix",
            suffix.study_suffix,
            {
                "model": model,
                "direction": takes(w.direction, "direction", "fits"),
                "prompts": takes({"a": w.prompts, "b": w.prompts}, "texts by kind", "two kinds"),
                "suffix": takes(" please", "text", "suffixed"),
                "behaviour": behaviour,
                "n_heads": takes(1, "whole or None", "at least 1"),
                "n_random_sets": takes(1, "whole", "at least 0"),
                "seed": takes(0, "whole", "at least 0"),
                "max_new_tokens": short,
                "batch_size": count,
                "n_by_token": takes(1, "whole", "at least 0"),
            },
        ),
        ("Run.read", runs.Run.read, {"path": takes(w.finished, "path", "run")}),
        ("Run.open", runs.Run.open, {"path": takes(w.finished, "path", "not to write")}),
        ("read_json", runs.read_json, {"path": takes(place / "value.json", "path", "file")}),
        (
            "read_jsonl",
            runs.read_jsonl,
            {"path": takes(place / "rows.jsonl", "path", "file to read")},
        ),
        ("read_csv", runs.read_csv, {"path": takes(place / "table.csv", "path", "file")}),
        ("write_report", write_report, {"run_folder": takes(None, "path", "run")}),
        (
            "write_reference_report",
            write_reference_report,
            {"folder": takes(None, "path", "run"), "out": takes(place / "page", "path")},
        ),
        (
            "run_pipeline",
            rl.run_pipeline,
            {"config": takes(None, "config"), "out": takes(place / "pipeline", "path")},
        ),
    ]
    return [Target(*each) for each in listed]


BROKEN_BY_DESIGN = (
    "read_gguf",
    "read_reference",
    "write_report",
    "write_reference_report",
    "run_pipeline",
    "Contrast.from_reference_splits",
    "find_direction",
    "choose_first_tokens",
    "study_suffix",
)
"""Targets without a right call here: what they would need takes too long to make."""


def first_logit(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, 0]


def cases(w: SimpleNamespace) -> Iterator[Case]:
    """Every target with every wrong value of every parameter."""
    wrong = wrong_values(w)
    wrong |= {
        "behaviour or None": _but(wrong["behaviour"], "None"),
        "places or None": _but(wrong["places"], "far", "no reply"),
        "model or None": _but(wrong["model"], "None"),
        "texts or None": _but(wrong["texts"], "None"),
        "flag or None": _but(wrong["flag"], "None"),
        "layers or None": _but(wrong["layers"], "None"),
        "edit or None": _but(wrong["edit"], "None"),
        "some wrong text": _but(wrong["text"], "None"),
        "zero": {"0": 0},
        "fewer": {"fewer": ["a"]},
        "stop ids": {"str": "4", "int": 4, "floats": [4.5], "texts": ["4"], "nan": [NAN]},
        "no suffix": {"empty": ""},
        "decoded": {
            "None": None,
            "str": "4",
            "texts": ["4"],
            "floats": [4.5],
            "negative": [-1],
            "huge": [HUGE],
        },
        "heads of any model": {
            n: wrong["heads"][n] for n in ("None", "str", "ints", "texts", "triples")
        },
        "layers of any model": {n: wrong["layers"][n] for n in ("None", "int", "str", "floats")},
        "of the width of r": {"wrong width": torch.ones(3, w.width + 1)},
        "logits of all": {
            **_but(wrong["logits"], "three axes"),
            "fewer": torch.zeros(3, 3, w.vocab),
        },
        "file to read": _but(wrong["file"], "empty"),
        "not to write": _but(wrong["run"], "missing", "empty folder"),
    }
    for target in targets(w):
        if target.name not in BROKEN_BY_DESIGN:
            yield Case(f"{target.name}: right", target.call, "it is right")
        for parameter, taken in target.parameters.items():
            name = f"{target.name}.{parameter}"
            if target.name not in BROKEN_BY_DESIGN and (numbers := _of_numpy(taken.value)):
                call = partial(target.call, **{parameter: numbers[0]})
                yield Case(f"{name} = a number of NumPy's", call, NUMPY)
            for kind in taken.kinds:
                for label, value in wrong[kind].items():
                    call = partial(target.call, **{parameter: value})
                    yield Case(f"{name} = {kind}: {label}", call, FINE.get((name, label), ""))


def _of_numpy(value: Any) -> list[Any]:
    """The value with NumPy's numbers in it, in a list; nothing where it holds no numbers."""
    if type(value) is int:
        return [np.int64(value)]
    if type(value) is float:
        return [np.float32(value)]
    if isinstance(value, list) and value and type(value[0]) is int:
        return [[np.int64(one) for one in value]]
    return []


def _but(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}
