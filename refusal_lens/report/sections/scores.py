"""The behaviour's score of each test prompt."""

from __future__ import annotations

from refusal_lens.plotting import score_histograms
from refusal_lens.plotting.labels import capital
from refusal_lens.report.facts import score_meaning, who_names_tokens
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section, paragraph


def render(run: RunFolder) -> Section | None:
    """Histograms from metrics.csv."""
    scores, words = run.table("metrics.csv"), run.words
    if scores is None:
        return None
    title = f"{capital(words.score)} of each prompt"
    if scores["score"].isna().all():
        return Section("scores", title, (paragraph(_not_measured(run)),))
    meaning, threshold = score_meaning(run), f"{run.labels.threshold:g}"
    caption = (
        f"One count per test prompt.{f' {capital(words.score)}: {meaning}.' if meaning else ''} Dotted: the "
        f"{words.number} above which a prompt counts as {words.noun}, {threshold}."
    )
    plot = Plot("scores", score_histograms(scores, labels=run.labels), caption)
    return Section("scores", title, (plot,))


def _not_measured(run: RunFolder) -> str:
    words = run.words
    if run.token_ids != ():
        return f"Not measured: no prompt has a {words.score}."
    return (
        f"Not measured: the {words.number} is the log-odds of the {words.noun} tokens, and none were found. "
        f"{capital(who_names_tokens(run.behaviour))} names them."
    )
