"""Cross-entropy loss under each edit (paper, Table 9)."""

from __future__ import annotations

from refusal_lens.evaluation.conditions import condition_text
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Section, numeric, paragraph, plain, table

_TEXT = (
    "Cross-entropy per token in nats, perplexity its exponential. On-distribution: the unedited "
    "model\u2019s own completions of {prompts}, completion tokens only."
)
_DATASETS = {"on_distribution": "on-distribution", "pile": "The Pile", "alpaca": "Alpaca"}


def render(run: RunFolder) -> Section | None:
    """A row per data set and condition, with the difference from the unedited model."""
    losses = run.table("losses.csv")
    if losses is None:
        return None
    if "dataset" not in losses:
        losses["dataset"] = "on_distribution"
    plain_model = losses[losses["condition"] == "baseline"].set_index("dataset")["ce"].to_dict()
    rows = [
        [
            plain(_DATASETS.get(row["dataset"], row["dataset"])),
            plain(condition_text(row["condition"])),
            numeric(row["ce"]),
            numeric(row["ce"] - plain_model.get(row["dataset"], float("nan"))),
            numeric(row["perplexity"]),
            numeric(row["n_tokens"], 0),
        ]
        for row in losses.to_dict("records")
    ]
    head = ("data", "condition", "CE loss", "against unedited", "perplexity", "tokens")
    text = _TEXT.format(prompts=run.labels.prompts(1))
    return Section("losses", "Losses", (paragraph(text), table(head, rows, css="data")))
