"""The page: whole or partial runs, honest claims, no text of a model that acts, foreign runs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from kit import body, visit, without_scripts
from synthetic_run import EXPORT, HOSTILE, HOSTILE_TOKEN, write_run

from refusal_lens.errors import InputError
from refusal_lens.pipeline import page as page_module
from refusal_lens.pipeline import write_report
from refusal_lens.pipeline.measurements import SECTIONS
from refusal_lens.pipeline.page import open_folder
from refusal_lens.report.claim import make_claim
from refusal_lens.report.entry import Entry
from refusal_lens.report.facts import change
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Cell, Html, Section, plain, table, text
from refusal_lens.report.page import render_sections
from refusal_lens.report.sections import exports
from refusal_lens.runs import Run

FIGURES = {
    "candidate_map",
    "cosine",
    "sweep",
    "pca",
    "rates",
    "scores",
    "top_tokens",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("report") / "run")
    write_report(folder)
    return folder


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", n_prompts=8, n_layers=5)


def source(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def edit_summary(folder: Path, **changes: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---------------------------------------------------------------- the page


def test_a_run_becomes_one_page_with_every_section(run: Path) -> None:
    page = source(run)
    for entry in SECTIONS:
        section = entry.render(open_folder(run))
        assert entry.optional or section is not None, entry.title
        if section is not None:
            assert f'<section id="{section.key}">' in page
    assert "Not in this run folder" not in page


def test_the_page_needs_nothing_but_itself(run: Path) -> None:
    page = source(run)
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=", page)
    assert page.count("* plotly.js v") == 1
    assert len(page) < 8_000_000


def test_every_figure_is_also_a_file_that_opens_offline(run: Path) -> None:
    files = {path.stem for path in (run / "figures").glob("*.html")}
    assert files == FIGURES
    for name in files:
        figure = (run / "figures" / f"{name}.html").read_text()
        assert re.findall(r'src="([^"]+)"', figure) == ["plotly.min.js"]
    assert (run / "figures" / "plotly.min.js").stat().st_size > 1_000_000


def test_writing_twice_gives_the_same_bytes(run: Path) -> None:
    before = source(run)
    write_report(run)
    assert source(run) == before


def test_texts_of_a_model_are_escaped(run: Path) -> None:
    page = source(run)
    for hostile in (HOSTILE, HOSTILE_TOKEN, "<img src=x", "</script><b>"):
        assert hostile not in page
    assert html.escape(HOSTILE) in page
    assert page.count("<script") == page.count("</script>")


def test_figure_json_cannot_end_its_script(run: Path) -> None:
    specs = re.findall(
        r'<script type="application/json" id="spec-(\w+)">(.*?)</script>', source(run)
    )
    assert {name for name, _ in specs} == FIGURES
    for _, spec in specs:
        assert not set("<>&") & set(spec)
        assert json.loads(spec)["data"]


@pytest.mark.parametrize("raw", ["\x00", "\x1b[31m", "\u202e", "\ud800", "\u2066"])
def test_text_that_hides_or_reorders_is_shown_as_codes(raw: str) -> None:
    assert raw not in text(f"a{raw}b")
    assert text(f"a{raw}b").encode("utf-8")


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    ordinary = "naïve 你好 👩\u200d🔬 שלום\nnext\tline"
    assert text(ordinary) == ordinary


def test_completions_stand_beside_each_other(run: Path) -> None:
    page = body(run)
    blocks = re.findall(r'<div class="exchange">.*?</div></div></div></div>', page, flags=re.DOTALL)
    first = blocks[0]
    assert "harmful lantern number 0" in first
    assert first.count('<div class="reply">') == 3
    assert first.index("no intervention") < first.index("directional ablation")
    assert "Harmful instructions that still show refusal after ablation" in page
    assert "Harmless instructions that show no refusal after addition" in page


def test_the_table_of_candidates_gives_each_its_reason(run: Path) -> None:
    scores = pd.read_csv(run / "candidates.csv", keep_default_na=False)
    page = body(run)
    section = page[page.index('id="candidates"') :]
    rows = re.findall(r"<tr[^>]*>(<td.*?)</tr>", section[: section.index("</section>")])
    assert len(rows) == len(scores)
    assert "selected" in rows[0]
    for reason in set(scores["reason"]) - {""}:
        assert html.escape(reason) in section


# ---------------------------------------------------------------- partial runs


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("candidates.csv", "sweeps"),
        ("curves.csv", "cosine"),
        ("metrics.csv", "scores"),
        ("top_tokens.csv", "tokens"),
        ("pca.csv", "pca"),
        ("nulls.csv", "nulls"),
        ("losses.csv", "losses"),
    ],
)
def test_a_section_without_its_file_is_left_out_and_named(fresh: Path, file: str, key: str) -> None:
    (fresh / file).unlink()
    sections, missing = render_sections(open_folder(fresh), SECTIONS)
    assert key not in {section.key for section in sections}
    assert "rates" in {section.key for section in sections}
    assert len([what for what in missing if f"needs {file}" in what]) == len(missing) > 0


def test_a_run_that_stopped_early_still_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    assert "not finished" in page
    assert "rates (needs" in page


def test_an_unselected_run_says_that_none_passes(fresh: Path) -> None:
    (fresh / "summary.json").unlink()
    assert "not finished" in make_claim(open_folder(fresh)).headline
    scores = pd.read_csv(fresh / "candidates.csv", keep_default_na=False)
    scores.assign(passes=False).to_csv(fresh / "candidates.csv", index=False)
    assert "No candidate" in make_claim(open_folder(fresh)).headline
    assert '<section id="candidates">' in write_report(fresh).read_text()


def in_steps(folder: Path, *, threshold: float) -> Path:
    """A run made in steps, with a study and an export of its direction when they are not there."""
    with Run.open(folder) as run:
        with run.step("selection", inputs={"threshold": threshold}) as step:
            if step.needed:
                rows = "position,layer,bypass,induce,kl,passes,reason\n-1,1,0.5,1,0.1,False,kl\n"
                step.write_text("candidates.csv", rows)
        run.finish(config={})
        for name, files in (("suffix", ["suffix/summary.json"]), ("export-e", ["exports/e.json"])):
            if not (folder / files[0]).exists():
                with run.addition(name, inputs={}, after=["selection"]) as step:
                    step.write_json(files[0], EXPORT)
    return folder




def test_what_was_made_with_an_earlier_direction_is_marked(tmp_path: Path) -> None:
    run = open_folder(in_steps(tmp_path, threshold=0.1))
    with pytest.raises(InputError, match=r"suffix.summary\.json"):
        render_sections(run, SECTIONS)
    assert "earlier direction" not in str(exports.render(run))
    run = open_folder(in_steps(tmp_path, threshold=0.2))
    found = {section.key: str(section) for section in render_sections(run, SECTIONS)[0]}
    assert "suffix/ was made with an earlier direction" in found["suffix"]
    assert "made with an earlier direction; mine" in found["exports"]
    assert (tmp_path / "suffix/summary.json").is_file()


def test_a_file_that_no_step_left_is_not_shown(tmp_path: Path) -> None:
    in_steps(tmp_path, threshold=0.1)
    (tmp_path / "summary.json").write_text('{"model": "stray"}')
    (tmp_path / "losses.csv").write_text("condition,ce,perplexity,n_tokens\nbaseline,1,2,3\n")
    run = open_folder(tmp_path)
    assert run.value("model") is None
    assert run.table("losses.csv") is None
    assert run.table("candidates.csv") is not None


def test_figures_that_a_page_no_longer_has_are_gone(fresh: Path) -> None:
    write_report(fresh)
    (fresh / "figures" / "mine.html").write_text("mine")
    (fresh / "curves.csv").unlink()
    write_report(fresh)
    left = {path.stem for path in (fresh / "figures").glob("*.html")}
    assert left == FIGURES - {"cosine"} | {"mine"}


def test_an_empty_table_counts_as_missing(fresh: Path) -> None:
    (fresh / "nulls.csv").write_text("null,index,kind,score,rate,n\n")
    assert "Not in this run folder: nulls (needs nulls.csv)." in write_report(fresh).read_text()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", "{"),
        ("summary.json", "[1]"),
        ("manifest.json", "\x00"),
        ("candidates.csv", "a,b\n1,2\n"),
        ("candidates.csv", "position,layer,bypass,induce,kl\n-1,x,1,1,1\n"),
        ("candidates.csv", "position,layer,bypass,induce,kl\n-1,0.5,1,1,1\n"),
        ("candidates.csv", ""),
        ("curves.csv", '"'),
        ("pca.csv", "layer,kind,pc1,pc2\nnan,harmful,1,1\n"),
        ("completions/harmful_baseline.jsonl", "{not json}\n"),
        ("completions/harmful_baseline.jsonl", '{"prompt": "x"}\n'),
    ],
)
def test_a_damaged_file_is_named_in_one_line(fresh: Path, file: str, content: str) -> None:
    (fresh / file).write_text(content)
    with pytest.raises(InputError) as caught:
        write_report(fresh)
    assert Path(file).name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named_in_one_line(fresh: Path) -> None:
    (fresh / "summary.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"summary\.json"):
        write_report(fresh)


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, make: bool) -> None:
    folder = tmp_path / "nothing"
    if make:
        folder.mkdir()
    with pytest.raises(InputError, match="nothing"):
        write_report(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"selected": {"position": "x", "layer": None}},
        {"scores": [1]},
        {"behaviour": {"name": "x", "unit": "nats", "words": "refusal"}},
        {"n_layers": True},
        {"n_layers": 10**30},
        {"rates": {"harmful": {"baseline": {"rate": "NaN"}}}},
        {"rates": {"harmless": 3}},
        {"thresholds": {"kl_threshold": "0.1"}},
        {"model": ["<b>x</b>"]},
    ],
)
def test_odd_values_in_the_summary_are_one_line(fresh: Path, change: dict[str, Any]) -> None:
    edit_summary(fresh, **change)
    with pytest.raises(InputError, match=rf"summary\.json: .* at {next(iter(change))}") as caught:
        write_report(fresh)
    assert "\n" not in str(caught.value)


def test_what_a_summary_does_not_say_is_left_out(fresh: Path) -> None:
    edit_summary(fresh, selected=None, scores=None, baseline=None, rates=None, later={"x": 1})
    assert '<section id="candidates">' in write_report(fresh).read_text()


# ---------------------------------------------------------------- the claim


def claim_of(folder: Path, **options: float) -> str:
    run = open_folder(write_run(folder, **options))
    return make_claim(run).headline


def test_a_strong_effect_is_claimed_with_its_numbers(tmp_path: Path) -> None:
    headline = claim_of(tmp_path / "run", ablated_rate=0.02)
    assert headline.startswith("Ablating one direction takes organism")
    assert "98\u202f%" in headline
    assert "2\u202f%" in headline


@pytest.mark.parametrize(
    ("ablated", "random", "moved", "words"),
    [
        (0.98, 0.98, 0.98, "does not lower"),
        (0.95, 0.98, 0.98, "does not lower"),
        (0.70, 0.98, 0.98, "only in part"),
        (0.02, 0.20, 0.98, "not special to this direction"),
        (0.02, 0.98, 0.20, "the size of the move alone may explain it"),
        (0.02, 0.98, 0.80, "takes"),
    ],
)
def test_the_words_follow_the_numbers(
    tmp_path: Path, ablated: float, random: float, moved: float, words: str
) -> None:
    headline = claim_of(
        tmp_path / "run", ablated_rate=ablated, random_rate=random, moved_rate=moved
    )
    assert words in headline
    assert words == "takes" or "takes" not in headline


def test_a_rise_and_a_model_that_hardly_refuses_are_said(fresh: Path) -> None:
    def headline(before: float, after: float) -> str:
        rates = {"baseline": before, "ablation": after}
        scores = {c: {"rate": r, "se": 0.01, "n": 100} for c, r in rates.items()}
        edit_summary(fresh, rates={"harmful": scores})
        (fresh / "nulls.csv").unlink(missing_ok=True)
        (fresh / "metrics.csv").unlink(missing_ok=True)
        edit_summary(fresh, nulls={})
        return make_claim(open_folder(fresh)).headline

    assert "raises" in headline(0.3, 0.9)
    assert "refuses only" in headline(0.15, 0.0)
    assert "refuses 0\u202f%" in headline(0.0, 0.0)
    assert "measures little" in headline(0.02, 0.0)


def metric_of(folder: Path, harmful: float, ablated: float, *, chance: float = 5.0) -> None:
    """Let the run's refusal metric on harmful prompts be as given, and what random moves leave."""
    metrics = pd.read_csv(folder / "metrics.csv")
    for condition, value in (("baseline", harmful), ("ablation", ablated)):
        here = (metrics["kind"] == "harmful") & (metrics["condition"] == condition)
        metrics.loc[here, "score"] = value
    metrics.to_csv(folder / "metrics.csv", index=False)
    nulls = pd.read_csv(folder / "nulls.csv")
    nulls.assign(score=chance).to_csv(folder / "nulls.csv", index=False)


@pytest.mark.parametrize(
    ("rates", "metric", "chance", "words"),
    [
        # A direction of another concept, or a judge that does not know how this model refuses.
        ((0.0, 0.0), (4.7, -3.1), 5.0, ["sees no refusal", "falls from +4.7 to \u22123.1 nats."]),
        ((0.1, 0.0), (4.7, -3.1), 5.0, ["sees little refusal", "falls from +4.7 to \u22123.1"]),
        ((0.0, 0.0), (4.7, -3.1), -2.0, ["falls from +4.7", "not special to this direction"]),
        ((0.6, 0.55), (4.7, -3.1), 5.0, ["as it was for the phrase judge", "falls from +4.7"]),
        ((0.0, 0.0), (-3.1, 4.7), 5.0, ["sees no refusal", "rises from \u22123.1 to +4.7"]),
        # The metric tells nothing else, or nothing at all.
        ((0.0, 0.0), (-4.0, -5.0), 5.0, ["refuses 0\u202f%", "measures little"]),
        ((0.98, 0.97), (4.7, 4.5), 5.0, ["does not lower"]),
        # The judge's change is not the metric's.
        ((0.98, 0.02), (4.7, 4.5), 5.0, ["from 98\u202f% to 2\u202f%, but", "does not follow: +4.7"]),
        ((0.3, 0.9), (4.7, -3.1), 5.0, ["raises", "but the refusal metric falls"]),
    ],
)
def test_the_headline_follows_the_metric_too(
    tmp_path: Path,
    rates: tuple[float, float],
    metric: tuple[float, float],
    chance: float,
    words: list[str],
) -> None:
    folder = write_run(tmp_path / "run", n_layers=5)
    metric_of(folder, *metric, chance=chance)
    names = ("baseline", "ablation")
    scores = {c: {"rate": r, "n": 100} for c, r in zip(names, rates, strict=True)}
    edit_summary(folder, rates={"harmful": scores})
    headline = make_claim(open_folder(folder)).headline
    assert all(word in headline for word in words), headline


def test_flags_stand_above_everything_else_and_are_text(fresh: Path) -> None:
    flags = [{"name": "score_and_judge", "text": f"They disagree on 41 of 100. {HOSTILE}"}]
    edit_summary(fresh, flags=flags)
    write_report(fresh)
    page = body(fresh)
    assert "41 of 100" in page[page.index("</h1>") : page.index("<nav")]
    assert page.count("<li>They disagree") == 1
    assert HOSTILE not in page
    edit_summary(fresh, flags=[])
    write_report(fresh)
    assert 'class="flags"' not in body(fresh)


def test_a_lazy_run_says_at_least(fresh: Path) -> None:
    scores = pd.read_csv(fresh / "candidates.csv", keep_default_na=False)
    n = int(scores["passes"].sum())
    open_ = scores.index[~scores["passes"]][0]
    assert f"{n} of which pass" in " ".join(make_claim(open_folder(fresh)).evidence)
    scores.loc[open_, "reason"] = "not needed: bypass is worse than the best"
    scores.to_csv(fresh / "candidates.csv", index=False)
    write_report(fresh)
    assert body(fresh).count(f"at least {n}") == 3
    # One that finds none has ruled out every other.
    scores.assign(passes=False).to_csv(fresh / "candidates.csv", index=False)
    edit_summary(fresh, selected=None, scores=None, not_selected="selection: 0 pass")
    write_report(fresh)
    assert "at least" not in body(fresh)


def test_the_papers_count_and_the_prompts_kept_are_said(fresh: Path) -> None:
    rate = {"rate": 0.9, "se": 0.03, "n": 100, "paper_count": 0.4}
    kept = {"val": {"harmful": {"kept": 9, "of": 32}}}
    edit_summary(fresh, rates={"harmful": {"baseline": rate}}, kept_prompts=kept)
    evidence = " ".join(make_claim(open_folder(fresh)).evidence)
    assert "90\u202f% (SE 3.0; 40\u202f% by the paper\u2019s exact phrases)" in evidence
    assert "(val: 9 of 32 harmful)" in evidence
    rate["paper_count"] = 0.9
    edit_summary(fresh, rates={"harmful": {"baseline": rate}})
    assert "exact phrases" not in " ".join(make_claim(open_folder(fresh)).evidence)


def test_replies_are_compared_beside_what_chance_shares(fresh: Path) -> None:
    shares = {"same_prompt": 0.41, "other_prompts": 0.07, "n": 40}
    edit_summary(fresh, base={"ablated_equals_base": 0.0, "overlap": shares}, overlap={"x": 1})
    write_report(fresh)
    section = body(fresh).split('<section id="compared">')[1].split("</section>")[0]
    assert re.findall(r'<td class="num">([^<]*)</td>', section) == ["40", "0.000", "0.410", "0.070"]


def test_an_addition_that_does_nothing_is_not_called_an_effect(fresh: Path) -> None:
    rate = {"rate": 0.01, "se": 0.01, "n": 100}
    edit_summary(fresh, rates={"harmless": {"baseline": rate, "addition": rate}})
    evidence = " ".join(make_claim(open_folder(fresh)).evidence)
    assert "does not change that measurably: 1\u202f% (SE 1.0) by the phrase judge" in evidence
    assert "though the refusal metric goes from \u2212" in evidence
    (fresh / "metrics.csv").unlink()
    evidence = " ".join(make_claim(open_folder(fresh)).evidence)
    assert "does not change that measurably: 1\u202f% (SE 1.0)." in evidence


@pytest.mark.parametrize(
    ("before", "after", "n", "verdict"),
    [
        (0.98, 0.02, 100, "lowers"),
        (0.02, 0.98, 100, "raises"),
        (0.98, 0.95, 100, "none"),
        (1.0, 1.0, 100, "none"),
        (0.0, 0.0, 100, "none"),
        (1.0, 0.0, 2, "lowers"),
        (1.0, 0.5, 4, "none"),
        (0.6, 0.5, 100, "none"),
        (0.6, 0.5, 1000, "lowers"),
    ],
)
def test_change_is_a_test_of_two_proportions(
    before: float, after: float, n: int, verdict: str
) -> None:
    assert change({"rate": before, "n": n}, {"rate": after, "n": n}) == verdict


# ---------------------------------------------------------------- building blocks


def test_a_section_is_a_function_and_a_line(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(run: RunFolder) -> Section | None:
        return Section("mine", "My <study>", (Html("<p>hello</p>"),))

    entries = (
        Entry(200, "mine", "x", render),
        Entry(201, "other", "y", lambda run: None, optional=True),
    )
    monkeypatch.setattr(page_module, "SECTIONS", (*SECTIONS, *entries))
    page = write_report(fresh).read_text()
    assert '<section id="mine"><h2>My &lt;study&gt;</h2><p>hello</p></section>' in page
    assert "needs y" not in page


def test_a_table_escapes_heads_and_cells() -> None:
    made = table(["<i>a</i>"], [[plain("<b>x</b>")], [Cell("&amp;")]], css="sortable")
    assert "<i>" not in made.source
    assert "<b>" not in made.source
    assert made.source.count("<tr>") == 3


# ---------------------------------------------------------------- in the browser

def with_script(folder: Path, script: str, name: str) -> Path:
    """A copy of the page that lets any script run, with one more at its end."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source(folder))
    path = folder / name
    path.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    return path


@pytest.fixture(scope="module")
def visited(
    chromium: str, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[str]]:
    """The page as the browser has it in the end, without its scripts, and its console."""
    dom, console = visit(chromium, run / "report.html", tmp_path_factory.mktemp("profile"))
    return without_scripts(dom), console


@pytest.mark.browser
def test_every_figure_is_drawn_without_a_word_on_the_console(
    visited: tuple[str, list[str]],
) -> None:
    dom, console = visited
    assert console == []
    assert f'data-drawn="{len(FIGURES)}/{len(FIGURES)}"' in dom
    assert dom.count('class="main-svg"') >= len(FIGURES)
    assert "could not be drawn" not in dom


@pytest.mark.browser
def test_a_script_in_a_completion_does_not_run(visited: tuple[str, list[str]]) -> None:
    assert "<title>organism: refusal direction</title>" in visited[0]
    assert "<title>pwned</title>" not in visited[0]


@pytest.mark.browser
def test_no_button_sends_the_data_away(visited: tuple[str, list[str]]) -> None:
    buttons = set(re.findall(r'data-title="([^"]*)"', visited[0]))
    assert buttons
    assert not [title for title in buttons if re.search("cloud|share|edit", title, re.IGNORECASE)]


@pytest.mark.browser
def test_tokens_are_drawn_as_they_are(visited: tuple[str, list[str]]) -> None:
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", visited[0])
    ticks = {html.unescape(t).replace("\xa0", " ").split("  ")[0] for t in texts}
    assert {"</script><b>As</b>", "&lt;", "$x$", "%{y}", "\\n\\n", "␣sorry"} <= ticks


@pytest.mark.browser
def test_even_an_unescaped_script_would_not_run(chromium: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    page = write_report(tmp_path)
    injected = f"<main>{HOSTILE}<img src=x onerror=\"document.title='pwned'\">"
    page.write_text(page.read_text().replace("<main>", injected))
    dom, console = visit(chromium, page, tmp_path / "profile")
    assert "<title>pwned</title>" not in dom
    assert any("Content Security Policy" in line for line in console)


@pytest.mark.browser
def test_the_browser_tests_can_fail(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<html><head></head><body>{HOSTILE}<script>console.error('seen');</script>")
    dom, console = visit(chromium, page, tmp_path / "profile")
    assert any("seen" in line for line in console)
    assert "<title>pwned</title>" in dom


@pytest.mark.browser
def test_heads_sort_and_the_box_filters(chromium: str, run: Path, tmp_path: Path) -> None:
    script = """
      const table = document.querySelector("#candidates table");
      const heads = [...table.tHead.rows[0].cells];
      const read = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].dataset.sort);
      const out = {};
      const kl = heads.findIndex((head) => head.innerText === "KL");
      heads[kl].querySelector("button").click(); out.up = read(kl);
      heads[kl].querySelector("button").click(); out.down = read(kl);
      document.querySelector("input.filter").click();
      out.shown = [...table.tBodies[0].rows].filter((row) => row.offsetHeight > 0).length;
      document.documentElement.dataset.out = JSON.stringify(out);
    """
    dom, console = visit(chromium, with_script(run, script, "sorting.html"), tmp_path)
    assert console == []
    out = json.loads(html.unescape(re.findall(r'data-out="([^"]*)"', dom)[0]))
    scores = pd.read_csv(run / "candidates.csv")
    up = [float(value) for value in out["up"]]
    assert up == sorted(up)
    assert up[: scores["kl"].notna().sum()] == pytest.approx(sorted(scores["kl"].dropna()))
    assert [float(value) for value in out["down"]] == up[::-1]
    assert out["shown"] == scores["passes"].sum()


@pytest.mark.browser
def test_a_figure_file_draws_by_itself(chromium: str, run: Path, tmp_path: Path) -> None:
    dom, console = visit(chromium, run / "figures" / "sweep.html", tmp_path)
    assert console == []
    assert 'data-drawn="1/1"' in dom
