"""The refusal metric of each test prompt."""

from __future__ import annotations

from refusal_lens.plotting import metric_histograms
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section, paragraph

_CAPTION = (
    "One count per test instruction. Refusal metric: log-odds that the next token is a refusal "
    "token; above zero the model is more likely to open with one than not."
)
_TITLE = "Refusal metric of each prompt"
_NO_TOKENS = (
    "Not measured: the metric is the log-odds of the refusal tokens, and none were found. "
    "--refusal-tokens names them."
)


def render(run: RunFolder) -> Section | None:
    """Histograms from metrics.csv."""
    metrics = run.table("metrics.csv")
    if metrics is None:
        return None
    if metrics["metric"].isna().all():
        return Section("metrics", _TITLE, (paragraph(_NO_TOKENS),))
    plot = Plot("metric_histograms", metric_histograms(metrics), _CAPTION)
    return Section("metrics", _TITLE, (plot,))
