"""A page about poems speaks of poems: nothing that a reader sees of a run names another concept."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic_run import LABELS, POETRY, Concept, write_run

from refusal_lens.behaviours.words import Words
from refusal_lens.pipeline import write_report
from refusal_lens.pipeline.page import open_folder
from refusal_lens.plotting import Labels
from refusal_lens.report.claim import make_claim

FOREIGN = re.compile("harm|refus|jailbreak", re.IGNORECASE)
TOOL = re.compile(r"refusal[_-]lens")
UNJUDGED = replace(POETRY, judge=None)
BY_FIRST_TOKENS = replace(POETRY, first_tokens=True)


def told(folder: Path) -> dict[str, str]:
    """Every text that a reader can see: page and figure pages without code, and each figure's data."""
    texts = {}
    for page in (folder / "report.html", *(folder / "figures").glob("*.html")):
        source = page.read_text(encoding="utf-8")
        for name, figure in re.findall(r'json" id="spec-(\w+)">(.*?)</script>', source):
            texts[f"{page.name} {name}"] = json.dumps(json.loads(figure), ensure_ascii=False)
        source = re.sub(r"<(script|style).*?</\1>", " ", source, flags=re.DOTALL)
        texts[page.name] = html.unescape(TOOL.sub("", source))
    return texts


@pytest.mark.parametrize("concept", [POETRY, UNJUDGED, BY_FIRST_TOKENS], ids=["judge", "scores", "tokens"])
def test_a_page_about_poems_names_nothing_else(tmp_path: Path, concept: Concept) -> None:
    folder = write_run(tmp_path / "run", concept=concept, n_layers=6, n_prompts=24)
    rows = [{"null": "norm_matched_move", "kind": "verse", "same_prompt": 0.4}]
    summary = json.loads((folder / "summary.json").read_text())
    shares = {"same_prompt": 0.41, "other_prompts": 0.07, "n": 40}
    more = {"base": {"overlap": shares}, "overlap": {"ablated_with_plain": shares}, "rows": rows}
    (folder / "summary.json").write_text(json.dumps(summary | more))
    curves = pd.read_csv(folder / "curves.csv")
    curves[curves["condition"] == "baseline"].to_csv(folder / "base_curves.csv", index=False)
    write_report(folder)
    texts = told(folder)
    assert len(texts) > 15
    for name, text in texts.items():
        found = FOREIGN.search(text)
        assert found is None, f"{name}: {text[max(0, found.start() - 80) : found.end() + 40]}"
    page = texts["report.html"]
    assert "<title>organism: poetry direction</title>" in page
    assert "Rhyme score (bits)" in texts["report.html scores"]
    for word in ("verse", "prose"):
        assert word in page


def test_the_words_of_pages_about_refusal_are_found_by_the_same_search(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", n_layers=6, n_prompts=24)
    write_report(folder)
    silent = {name for name, text in told(folder).items() if not FOREIGN.search(text)}
    assert silent == {"cosine.html", "pca.html"}  # Their texts are in their figures.


def claim(folder: Path) -> tuple[str, str]:
    made = make_claim(open_folder(folder))
    return made.headline, " ".join(made.evidence)


def test_a_claim_about_poems_is_plain_english(tmp_path: Path) -> None:
    headline, evidence = claim(write_run(tmp_path / "run", concept=POETRY, ablated_rate=0.03))
    assert headline == (
        "Ablating one direction takes organism’s poetry on verse prompts from 98\u202f% to 3\u202f%."
    )
    assert "Verse test prompts (n = 100): poetry 98\u202f% (SE 1.4)" in evidence
    assert "adding r makes it 97\u202f%" in evidence
    assert "Mean rhyme score (bits): verse +8.1" in evidence
    assert "Chance, verse prompts: 32 random directions ablated instead, poetry" in evidence


@pytest.mark.parametrize(
    ("ablated", "random", "words"),
    [
        (0.97, 0.98, "does not lower organism’s poetry on verse prompts measurably"),
        (0.70, 0.98, "lowers organism’s poetry on verse prompts only in part"),
        (0.02, 0.10, "but random directions ablated instead lower it to"),
    ],
)
def test_words_follow_the_numbers_for_poems_too(
    tmp_path: Path, ablated: float, random: float, words: str
) -> None:
    options = {"ablated_rate": ablated, "random_rate": random}
    assert words in claim(write_run(tmp_path / "run", concept=POETRY, n_layers=6, **options))[0]


def scored(folder: Path, ablated: float, *, chance: float = 8.0) -> str:
    """The headline of an unjudged run whose mean scores are 8.1 before, this after, and this by chance."""
    write_run(folder, concept=UNJUDGED, n_layers=6)
    scores = pd.read_csv(folder / "metrics.csv")
    for condition, mean in (("baseline", 8.0), ("ablation", ablated)):
        here = (scores["kind"] == "verse") & (scores["condition"] == condition)
        scores.loc[here, "score"] += mean - scores.loc[here, "score"].mean()
    scores.to_csv(folder / "metrics.csv", index=False)
    nulls = pd.read_csv(folder / "nulls.csv")
    nulls.assign(score=chance).to_csv(folder / "nulls.csv", index=False)
    return claim(folder)[0]


@pytest.mark.parametrize(
    ("ablated", "chance", "sentence"),
    [
        (-7.5, 8.0, "Ablating one direction takes {it} from +8.0 to \u22127.5 bits."),
        (8.1, 8.0, "Ablating the selected direction does not lower {it} measurably: +8.0 before, +8.1 bits after."),
        (4.0, 8.0, "Ablating one direction lowers {it} only in part, from +8.0 to +4.0 bits, where prose prompts have"),
        (-7.5, -6.0, "Ablating the selected direction lowers {it} from +8.0 to \u22127.5 bits, but random directions "),
        (20.0, 8.0, "raises {it}, from +8.0 to +20.0 bits: it is not the direction that poetry depends on."),
    ],
)  # fmt: skip
def test_without_a_judge_the_headline_is_about_the_score(
    tmp_path: Path, ablated: float, chance: float, sentence: str
) -> None:
    headline = scored(tmp_path / "run", ablated, chance=chance)
    assert sentence.format(it="organism’s mean rhyme score on verse prompts") in headline


def test_without_a_judge_no_rate_is_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", concept=UNJUDGED, n_layers=6, n_prompts=12)
    write_report(folder)
    page = told(folder)["report.html"]
    assert 'id="rates"' not in page
    assert not (folder / "figures" / "rates.html").exists()
    assert "not judged" not in page
    evidence = claim(folder)[1]
    assert "32 random directions ablated instead, rhyme score +8.0 on average" in evidence
    assert "%" not in evidence.replace("98%", "")


def test_a_judge_that_cannot_tell_is_said_to(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", concept=POETRY, n_layers=6, n_prompts=12)
    summary = json.loads((folder / "summary.json").read_text())
    summary["rates"]["verse"]["baseline"] |= {"n": 10, "n_unjudged": 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    file = folder / "completions" / "verse_baseline.jsonl"
    rows = [json.loads(line) | {"shows": None} for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    write_report(folder)
    page = told(folder)["report.html"]
    assert "2 more not judged" in page
    assert page.count('<span class="badge">not judged</span>') == 6
    assert "the rhyme judge sees poetry, of those that it judged" in page


def test_the_selected_place_is_named_on_page_and_figures(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", concept=POETRY, n_layers=12)
    summary = json.loads((folder / "summary.json").read_text())
    selected = {"place": "t_inst", "position": None, "layer": 6, "position_name": ""}
    (folder / "summary.json").write_text(json.dumps(summary | {"selected": selected}))
    write_report(folder)
    texts = told(folder)
    assert "difference of means at layer 6 of 12, t_inst, one of" in texts["report.html"]
    assert "<dt>place</dt><dd>t_inst</dd>" in texts["report.html"]
    for figure in ("sweep", "candidate_map"):
        assert "reply.mean" in texts[f"report.html {figure}"]
        assert "t_inst" in texts[f"report.html {figure}"]


def test_kinds_and_words_that_hold_markup_stay_text(tmp_path: Path) -> None:
    tag = "<img src=x onerror=alert(1)>"
    words = Words(*(f"{name}{tag}" for name in ("noun", "shows", "lacks", "score", "prompts")))
    labels = Labels((f"verse{tag}", "prose<script>&lt;"), words, f"bits{tag}")
    concept = Concept(f"poetry{tag}", labels, judge=f"rhyme{tag}", places=(f"place{tag}",))
    folder = write_run(tmp_path / "run", concept=concept, n_layers=6, n_prompts=12)
    write_report(folder)
    for path in (folder / "report.html", *(folder / "figures").glob("*.html")):
        assert tag not in path.read_text(), path.name
    page = (folder / "report.html").read_text()
    assert html.escape(tag) in page
    assert page.count("<script") == page.count("</script>")
    figures = {name: text for name, text in told(folder).items() if " " in name}
    assert all("<img" not in text and "<script" not in text for text in figures.values())
    assert all("&lt;img" in text for text in figures.values())


@pytest.mark.parametrize("change", [{"words": {"noun": "x"}}, {"words": None}, {"unit": 3}, {"threshold": "0"}])
def test_a_damaged_behaviour_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write_run(tmp_path / "run", concept=POETRY, n_layers=5, n_prompts=4)
    summary = json.loads((folder / "summary.json").read_text())
    summary["behaviour"] |= change
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(Exception, match=r"summary\.json: .*behaviour") as caught:
        write_report(folder)
    assert "\n" not in str(caught.value)


def test_a_run_that_is_not_finished_speaks_its_own_words_too(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", concept=POETRY, n_layers=5, n_prompts=8)
    summary = json.loads((folder / "summary.json").read_text())
    known = {name: summary[name] for name in ("behaviour", "kinds", "kept_prompts")} | {"model": {}}
    (folder / "behaviour.json").write_text(json.dumps(known))
    (folder / "summary.json").unlink()
    run = open_folder(folder)
    assert (run.kinds, run.words.noun, run.labels.unit) == (("verse", "prose"), "poetry", "bits")
    write_report(folder)
    assert not FOREIGN.search(told(folder)["report.html"])
    assert LABELS.words.noun not in told(folder)["report.html"]
