"""The suffix study: exact spans, fair random suffixes, numbers that agree, and clear refusals."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import kit
import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_run import LABELS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusal_lens.activations import map_last_logits
from refusal_lens.attribution import attribute
from refusal_lens.behaviours import FirstTokens, Reading, Words
from refusal_lens.chat import ChatFormat, Place
from refusal_lens.chat.suffixed import render_suffixed
from refusal_lens.cli.shell import app
from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.judges import judge_replies
from refusal_lens.metrics import first_token_log_odds
from refusal_lens.model import Site
from refusal_lens.pipeline import write_report, write_whole_report
from refusal_lens.pipeline.suffix_job import SuffixConfig, run_suffix_study
from refusal_lens.plotting.tokens import attention_view, contribution_view
from refusal_lens.report.sections.suffix import headline, title
from refusal_lens.runs import Run, read_csv, read_json, read_jsonl
from refusal_lens.studies.suffix import (
    ConditionNames,
    SuffixStudy,
    measure,
    random_suffixes,
    read_suffix,
    study_suffix,
)
from refusal_lens.studies.suffix.measure import Condition, _unchanged
from refusal_lens.studies.suffix.suffixes import with_suffix

CONDITIONS = ConditionNames.of("harmful", "harmless")
HARMFUL, RANDOM, ADVERSARIAL, HARMLESS = CONDITIONS
SUFFIX = " zq!! now"
PROMPTS = [
    f"Please {verb} the {noun}."
    for verb in ("paint", "wake", "bake", "count", "sing to")
    for noun in ("door", "old cat", "river", "moon")
]


@lru_cache
def refusal_tokens() -> tuple[int, ...]:
    """A set R for which a random model "refuses" about half of the prompts."""
    logits = map_last_logits(kit.load("qwen2"), PROMPTS)
    order = logits.softmax(-1).std(0).argsort(descending=True).tolist()

    def imbalance(n: int) -> int:
        return abs(int((first_token_log_odds(logits, order[:n]) > 0).sum()) - len(PROMPTS) // 2)

    return tuple(order[: min(range(1, len(order)), key=imbalance)])


@lru_cache
def sides() -> tuple[list[str], list[str]]:
    metric = first_token_log_odds(map_last_logits(kit.load("qwen2"), PROMPTS), refusal_tokens())
    refused = [p for p, m in zip(PROMPTS, metric.tolist(), strict=True) if m > 0]
    return refused, [p for p in PROMPTS if p not in refused]


def direction(layer: int = 2) -> Direction:
    model = kit.load("qwen2")
    return kit.direction(layer, model=model.name, template_sha256=model.chat.template_sha256)


def run_study(**changes: Any) -> SuffixStudy:
    asked = {
        "prompts": dict(zip(("harmful", "harmless"), sides(), strict=True)),
        "suffix": SUFFIX,
        "behaviour": FirstTokens(refusal_tokens()),
        "n_heads": 2,
        "n_random_sets": 3,
        "max_new_tokens": 4,
        "batch_size": 6,
    }
    return study_suffix(kit.load("qwen2"), direction(), **(asked | changes))


@lru_cache
def study() -> SuffixStudy:
    return run_study()


def prompts_of(condition: str) -> list[Any]:
    return [completion.prompt for completion in study().conditions[condition].completions]


def merging_chat() -> ChatFormat:
    """A chat whose tokenizer merges "cat" + "s" and " now"."""
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("c", "a"), ("ca", "t"), ("cat", "s"), ("n", "o"), ("no", "w"), ("\u0120", "now")]
    for a, b in merges:
        letters[a + b] = len(letters)
    inner = Tokenizer(models.BPE(vocab=letters, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(kit.SPECIALS))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="left"
    )
    wrapped.chat_template = kit.CHATML.replace("message['content']", "message['content'] | trim")
    return ChatFormat.from_tokenizer(wrapped)


def test_the_suffix_is_spanned_exactly_and_a_merge_is_said() -> None:
    chat = merging_chat()
    instructions = ["Sing, cat", "Sing, cat", "  Sing", "写 cat"]
    suffixes = [" now", "s now ", " cats", " \U0001f600now"]
    found = render_suffixed(chat, instructions, suffixes)
    texts = [
        chat.decode(ids[a:b])
        for ids, (a, b) in zip(found.rendered.ids, found.suffix.tolist(), strict=True)
    ]
    assert texts == [" now", "cats now", " cats", " \U0001f600now"]
    assert found.merged.tolist() == [False, True, False, False]
    assert torch.equal(found.suffix[:, 1], found.rendered.instruction[:, 1])


@pytest.mark.parametrize("tail", ["", "  ", "\n"])
def test_a_suffix_that_leaves_no_token_gets_a_line(tail: str) -> None:
    with pytest.raises(InputError, match="leaves no token"):
        render_suffixed(merging_chat(), ["Sing", "Sing"], [" ok", tail])


@pytest.mark.parametrize("like", [" now", "now"])
def test_random_suffixes_have_the_same_length_in_place_and_are_fresh(like: str) -> None:
    chat = merging_chat()
    instructions = ["Sing, cat", "Sing.", "Please", "c", "Sing, cat!"]
    lengths = [5, 5, 1, 7, 2]
    drawn = random_suffixes(chat, instructions, n_tokens=lengths, like=like, seed=4)
    found = render_suffixed(chat, instructions, drawn)
    assert list(found.n_tokens) == lengths
    assert not any(found.merged.tolist())
    assert len(set(drawn)) == len(drawn)
    assert all(text[:1].isspace() == like[:1].isspace() for text in drawn)
    again = {"n_tokens": lengths, "like": like}
    assert drawn == random_suffixes(chat, instructions, seed=4, **again)
    assert drawn != random_suffixes(chat, instructions, seed=5, **again)


def test_conditions_hold_what_they_should() -> None:
    found = study()
    harmful = sides()[0]
    assert tuple(found.conditions) == CONDITIONS
    assert prompts_of(HARMFUL) == harmful
    assert prompts_of(ADVERSARIAL) == [p + SUFFIX for p in harmful]
    random, adversarial = found.conditions[RANDOM], found.conditions[ADVERSARIAL]
    assert random.n_suffix_tokens == adversarial.n_suffix_tokens == (9,) * len(harmful)
    assert all(p.startswith(h) for p, h in zip(prompts_of(RANDOM), harmful, strict=True))
    assert found.kept["harmful"] == {"kept": len(harmful), "of": len(harmful)}


def test_heads_are_chosen_once_on_plain_harmful_prompts() -> None:
    plain = attribute(kit.load("qwen2"), sides()[0], direction())
    assert study().heads == plain.top_heads(2)
    torch.testing.assert_close(study().conditions[HARMFUL].dfa, plain.of(study().heads))


def test_regions_add_up_to_heads_and_attention_to_one() -> None:
    for name, found in study().conditions.items():
        torch.testing.assert_close(found.dfa_by_region.sum(-1), found.dfa)
        assert float((found.attention.sum(-1) - 1).abs().max()) < 1e-5
        suffix = found.attention[..., study().regions.index("suffix")]
        assert bool((suffix > 0).all()) == (name in (RANDOM, ADVERSARIAL))
        assert found.error < 1e-5


def test_cosines_and_metrics_are_those_of_the_model() -> None:
    found = study().conditions[ADVERSARIAL]
    rendered = kit.load("qwen2").chat.render(prompts_of(ADVERSARIAL))
    stream = kit.load("qwen2").read(rendered, [Site("resid_pre", 1)])[Site("resid_pre", 1)][:, -1].double()
    expected = stream @ direction().unit / stream.norm(dim=-1)
    torch.testing.assert_close(found.cosine[:, 1], expected, rtol=1e-4, atol=1e-6)
    logits = map_last_logits(kit.load("qwen2"), rendered)
    torch.testing.assert_close(
        found.scores, first_token_log_odds(logits, refusal_tokens()), rtol=1e-4, atol=1e-6
    )


def test_frame_holds_every_number() -> None:
    found, frame = study(), study().frame()
    n = sum(len(c.completions) for c in found.conditions.values())
    sizes = frame.groupby("quantity").size().to_dict()
    heads, regions = len(found.heads), len(found.regions)
    assert sizes == {
        "cosine": n * kit.LAYERS,
        "projection": n,
        "score": n,
        "shows": n,
        "dfa": n * heads,
        "attention": n * heads * regions,
        "source dfa": n * heads * regions,
    }
    own = frame[(frame["condition"] == RANDOM) & (frame["quantity"] == "dfa")]
    assert own["value"].sum() == pytest.approx(float(found.conditions[RANDOM].dfa.sum()))


def test_correlations_are_numpys() -> None:
    lost, table = study().lost(), study().correlations()
    for row in table.to_dict("records"):
        pair = [lost[row[which]] for which in ("first", "second")]
        assert row["pearson"] == pytest.approx(np.corrcoef(*pair)[0, 1])
        ranks = [np.argsort(np.argsort(values)) for values in pair]
        assert row["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    region = study().regions.index("instruction")
    gap = (study().conditions[RANDOM].attention - study().conditions[ADVERSARIAL].attention)[
        ..., region
    ].sum(1)
    np.testing.assert_allclose(lost["attention lost"], gap.numpy())


def test_summary_agrees_with_the_frame_and_is_json() -> None:
    found = json.loads(json.dumps(study().summary()))
    frame = study().frame()
    own = frame[(frame["condition"] == ADVERSARIAL) & (frame["quantity"] == "score")]
    assert found["conditions"][ADVERSARIAL]["score"] == pytest.approx(own["value"].mean())
    totals = study().conditions
    ratio = float(totals[ADVERSARIAL].dfa.sum(1).mean() / totals[RANDOM].dfa.sum(1).mean())
    assert found["against_random"]["dfa"] == pytest.approx(ratio)
    assert found["merged_at_border"] == 0
    assert headline(found, LABELS).startswith("Refusal of harmful instructions: 0")


def test_the_causal_check_has_every_edit_with_its_random_sets() -> None:
    effects = study().effects
    edits = effects.groupby(["condition", "edit"])["heads"].nunique()
    assert len(edits) == 4
    assert set(edits) == {2 + 1}, "both heads are in layer 1, which has two others"
    by_set = effects[effects["edit"] == "patch from random suffix"].groupby("heads")["score"]
    assert by_set.mean()["none"] == pytest.approx(
        float(study().conditions[ADVERSARIAL].scores.mean()), abs=1e-6
    )


def test_what_follows_leaves_the_instruction_unchanged_and_the_check_can_fail() -> None:
    assert study().unchanged < 1e-5
    instructions = PROMPTS[:3]
    plain = Condition(kit.load("qwen2").chat.render(instructions))
    suffixed = Condition.of(with_suffix(kit.load("qwen2"), instructions, [SUFFIX] * 3))

    def leak(x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * x[:, -1:]

    with kit.load("qwen2").hooked([(Site("resid_pre", 1), leak)]):
        assert _unchanged(kit.load("qwen2"), plain, suffixed, 4) > 1e-3


def test_prompts_are_kept_token_by_token() -> None:
    assert list(study().tokens) == [HARMFUL, RANDOM, ADVERSARIAL]
    assert {len(prompts) for prompts in study().tokens.values()} == {2}
    story = study().tokens[ADVERSARIAL][0]
    assert "".join(story.tokens).count(SUFFIX) == 1
    assert story.regions.count("suffix") == 9
    assert story.projection.shape == (kit.LAYERS, len(story.tokens))
    found = study().conditions[ADVERSARIAL]
    torch.testing.assert_close(story.contribution.sum(-1), found.dfa[0], rtol=1e-4, atol=1e-6)
    assert float(story.projection[2, -1]) == pytest.approx(float(found.projection[0]), rel=1e-4)
    torch.testing.assert_close(story.pattern.sum(-1), torch.ones_like(story.pattern[..., 0]))


def test_another_concept_has_its_own_names_and_what_is_unjudged_stays_unknown() -> None:
    odd = judge_replies(lambda reply: None if len(reply) % 3 == 0 else len(reply) % 2, "odd")
    behaviour = FirstTokens(refusal_tokens(), name="poetry", words=Words.of("poetry"), judge=odd)
    prompts = {"verse": sides()[0][:3], "prose": sides()[1][:3]}
    found = run_study(prompts=prompts, behaviour=behaviour, n_by_token=0)
    assert list(found.conditions) == [
        "verse",
        "verse + random suffix",
        "verse + adversarial suffix",
        "prose",
    ]
    assert list(found.kept) == ["verse", "prose"]
    shows = [shown for measured in found.conditions.values() for shown in measured.shows]
    assert None in shows
    for name, measured in found.conditions.items():
        rate = found.summary()["conditions"][name]["rate"]
        assert rate["n_unjudged"] == measured.shows.count(None)
        assert rate["n"] + rate["n_unjudged"] == 3
    judged = found.frame().query("quantity == 'shows'")["value"]
    assert judged.isna().tolist() == [shown is None for shown in shows]
    with pytest.raises(InputError, match=r"verse prompts .* on which the model shows poetry"):
        run_study(prompts={"verse": sides()[1], "prose": sides()[1]}, behaviour=behaviour)


def test_a_behaviour_that_reads_further_is_refused() -> None:
    class Further(FirstTokens):
        def readings(self, prompts: Any) -> Any:
            return [(Reading((5,), 1.0),)] * len(prompts)

    with pytest.raises(InputError, match="of the suffix study: got Further, need one that the last"):
        run_study(behaviour=Further(refusal_tokens()))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"suffix": ""}, "suffix: got ''"),
        ({"suffix": "  \n"}, "suffix: got"),
        ({"suffix": " x" * 200}, "need at most the context of 256"),
        ({"n_heads": 99}, "number of top heads: got 99, need 1 to 8"),
        ({"behaviour": FirstTokens((0,))}, "on which the model refuses without a suffix"),
        ({"prompts": {"harmful": PROMPTS}}, "got 1 kinds, need the positive and the negative one"),
    ],
)
def test_unusable_input_gets_a_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=re.escape(line)):
        run_study(**changes)


def test_a_direction_that_does_not_fit_gets_a_line() -> None:
    common = {"prompts": {"a": ["a"], "b": ["b"]}, "suffix": " c", "behaviour": FirstTokens((1,))}
    for wrong, line in (
        (Direction(torch.ones(16), 1, Place.post(-1)), "d_model 16"),
        (Direction(torch.ones(32), 7, Place.post(-1)), "layer 7"),
        (Direction(torch.ones(32), 1, Place.post(-1), weights_sha256="0" * 64), "got weights 0000"),
        (Direction(torch.ones(32), 0, Place.post(-1)), "a direction of layer 0"),
    ):
        with pytest.raises(InputError, match=line):
            study_suffix(kit.load("qwen2"), wrong, **common)


def test_suffix_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b" one\n two \n")
    assert read_suffix(tmp_path / "a.txt") == " one\n two "
    (tmp_path / "b.json").write_text('{"suffix": " three", "seed": 0}')
    assert read_suffix(tmp_path / "b.json") == " three"
    for name, content, line in (
        ("c.txt", b"\n", "need text"),
        ("d.txt", b"a\xff", "not UTF-8"),
        ("d16.txt", b"\xff\xfe", "need text"),
        ("null.json", b'{"suffix": null}', "got null, need one text"),
        ("list.json", b'{"suffix": [" a"]}', "got a list, need one text"),
        ("number.json", b'{"suffix": 3}', "got 3, need one text"),
        ("empty.JSON", b'{"suffix": ""}', "got '', need text"),
        ("half.json", rb'{"suffix": "\ud800"}', "got a lone surrogate"),
        ("text.json", b'"suffix"', 'need a JSON object with "suffix"'),
        ("e.json", b"[1]", 'need a JSON object with "suffix"'),
        ("f.json", b"{", 'need a JSON object with "suffix"'),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=line):
            read_suffix(tmp_path / name)
    with pytest.raises(InputError, match="got no such file"):
        read_suffix(tmp_path / "missing.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(InputError, match="got a pipe or device"):
        read_suffix(tmp_path / "pipe.txt")
    (tmp_path / "marked.json").write_bytes('{"suffix": " é"}'.encode("utf-16"))
    assert read_suffix(tmp_path / "marked.json") == " é"
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="need a JSON object"):
        read_suffix(tmp_path / "deep.json")


# ------------------------------------------------------------------------------ a run and its page


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """What `refusal-lens run` would have left of a run on the tiny model, as far as is needed."""
    folder = tmp_path / "run"
    rows = [
        {"split": "test", "kind": kind, "instruction": p, "kept": True}
        for kind, prompts in zip(("harmful", "harmless"), sides(), strict=True)
        for p in prompts
    ]
    with Run.open(folder) as run:
        with run.step("behaviour", inputs={}) as step:
            step.write_jsonl("prompts.jsonl", rows)
        with run.step("selection", inputs={}, after=["behaviour"]) as step:
            with step.writing("direction.safetensors") as path:
                direction().save(path)
        with run.step("summary", inputs={}, after=["selection"]) as step:
            about = kit.about(list(refusal_tokens()))
            step.write_json("summary.json", {"behaviour": about, "kinds": ["harmful", "harmless"]})
        config = {"model": kit.load("qwen2").name, "revision": None, "system": None, "dtype": None}
        run.finish(config=config, model={}, prompts={}, data_sha256="")
    return folder


def small(**changes: Any) -> dict[str, Any]:
    return {"n_heads": 2, "n_random_sets": 2, "max_new_tokens": 4, "suffix": SUFFIX} | changes


def test_the_study_joins_a_run_and_its_page(finished: Path) -> None:
    summary = run_suffix_study(finished, SuffixConfig(**small()))
    whole = Run.read(finished).whole()
    assert "suffix" in whole["steps"]
    assert Run.read(finished).damage() == []
    page = (finished / "report.html").read_text()
    values = read_csv(finished / "suffix/values.csv", text=("region",))
    assert f"<h2>{title(summary, values, LABELS)}</h2>" in page
    assert summary["suffix"] == SUFFIX
    values = read_csv(finished / "suffix/values.csv", text=("region",))
    assert set(values["condition"]) == set(CONDITIONS)
    assert len(read_jsonl(finished / "suffix/completions.jsonl")) == 3 * len(sides()[0]) + len(
        sides()[1]
    )
    before = (finished / "suffix/values.csv").stat().st_mtime_ns
    run_suffix_study(finished, SuffixConfig(**small()))
    assert (finished / "suffix/values.csv").stat().st_mtime_ns == before
    run_suffix_study(finished, SuffixConfig(**small(suffix=" other")))
    assert read_json(finished / "suffix/summary.json")["suffix"] == " other"


@pytest.mark.parametrize(
    ("judged", "score", "wanted"),
    [
        ((1.0, 0.9, 0.1), (1.0, 1.0, 0.1), "Why the suffix works"),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 0.95), "A suffix that does nothing measurable to refusal"),
        ((1.0, 0.2, 0.1), (1.0, 0.2, 0.1), "A suffix that lowers refusal, no more than random suffixes do"),
        ((0.5, 0.5, 1.0), (1.0, 1.0, 1.0), "A suffix that raises refusal"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 0.1), "A suffix that lowers refusal\u2019s metric, not the replies"),
        ((0.5, 0.9, 0.4), (0.5, 0.9, 0.4), "A suffix that lowers refusal only beside random suffixes"),
    ],
)
def test_the_title_of_the_study_follows_its_numbers(
    judged: tuple[float, ...], score: tuple[float, ...], wanted: str
) -> None:
    n, conditions, rows = 40, {}, []
    for name, rate, share in zip(CONDITIONS[:3], judged, score, strict=True):
        conditions[name] = {"rate": {"rate": rate, "n": n}}
        signs = [1.0] * round(share * n) + [-1.0] * (n - round(share * n))
        rows += [{"condition": name, "quantity": "score", "value": sign} for sign in signs]
    assert title({"conditions": conditions}, pd.DataFrame(rows), LABELS) == wanted


def test_a_failed_study_leaves_the_run_whole(finished: Path) -> None:
    with pytest.raises(InputError, match="context of 256"):
        run_suffix_study(finished, SuffixConfig(**small(suffix=" x" * 200)))
    assert Run.read(finished).whole()["config"]["model"] == kit.load("qwen2").name
    with pytest.raises(InputError, match="none given"):
        run_suffix_study(finished, SuffixConfig(**small(suffix=None)))


def test_the_page_trusts_no_reply_and_no_suffix(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = " <script>document.title='pwned'</script>"
    real = measure.complete

    def answering(*args: Any, **options: Any) -> list[Any]:
        return [replace(row, response=hostile) for row in real(*args, **options)]

    monkeypatch.setattr(measure, "complete", answering)
    run_suffix_study(finished, SuffixConfig(**small(suffix=hostile)))
    assert read_jsonl(finished / "suffix/completions.jsonl")[0]["response"] == hostile
    page = write_report(finished).read_text()
    assert "<script>document" not in page
    assert "&lt;script&gt;document" in page
    for view in (finished / "suffix").glob("*.html"):
        assert "<script>document" not in view.read_text()


def test_a_damaged_study_gets_a_line(finished: Path) -> None:
    run_suffix_study(finished, SuffixConfig(**small()))
    for name in ("suffix/effects.csv", "suffix/summary.json"):
        (finished / name).write_text("{}\n")
        with pytest.raises(InputError, match=name):
            write_whole_report(finished)


def test_circuitsvis_views_are_offline_and_closed() -> None:
    stories = study().by_token()
    assert [(s["prompt"], s["condition"]) for s in stories[2:5]] == [
        (0, ADVERSARIAL),
        (1, HARMFUL),
        (1, RANDOM),
    ]
    story = stories[2]
    assert json.loads(json.dumps(story)) == story
    hostile = ["</script><b>", "CircuitsVis.render(", "<!--"]
    story["tokens"] = [*hostile, *story["tokens"][len(hostile) :]]
    for view in (attention_view(story), contribution_view(story)):
        assert view.count("</script>") == 1
        assert "<b>" not in view.split("CircuitsVis.render(", 1)[-1]
        assert "\\u003c/script>\\u003cb>" in view
        assert "unpkg.com" not in view.split("CircuitsVis.render(")[-1]
        assert "CircuitsVis.render(" in view


@pytest.mark.parametrize(
    ("arguments", "line", "code"),
    [
        (["--suffix", "a", "--suffix-file", "b"], "give one of the two", 2),
        (["--suffix", ""], "suffix: got ''", 2),
        (["--suffix-file", "missing.txt"], "error: suffix file missing.txt: got no such file", 1),
        (["--n-heads", "99", "--suffix", " a"], "error: number of top heads: got 99", 1),
    ],
)
def test_the_command_answers_bad_input_with_a_line(
    finished: Path,
    arguments: list[str],
    line: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        app(["suffix", str(finished), *arguments], prog_name="refusal-lens")
    assert left.value.code == code
    said = capsys.readouterr().err
    assert line in said
    assert "Traceback" not in said


def test_the_command_wants_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app(["suffix", str(tmp_path / "none"), "--suffix", " a"], prog_name="refusal-lens")
    assert left.value.code == 1
    assert capsys.readouterr().err.startswith("error: run folder at")


def test_the_command_says_what_it_found(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        app(
            ["suffix", str(finished), "--suffix", SUFFIX, "--n-heads", "1", "--n-random-sets", "0",
             "--max-new-tokens", "2"],
            prog_name="refusal-lens",
        )  # fmt: skip
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "Refusal of harmful instructions" in said
    assert "report.html" in said


def test_effects_without_random_sets_still_draw(finished: Path) -> None:
    run_suffix_study(finished, SuffixConfig(**small(n_random_sets=0)))
    effects = pd.read_csv(finished / "suffix/effects.csv")
    assert set(effects["heads"]) == {"none", "top"}
