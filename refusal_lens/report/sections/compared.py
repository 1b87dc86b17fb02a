"""What the ablated model's replies share with others': equal ones, and words beside a null."""

from __future__ import annotations

from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Cell, Section, numeric, paragraph, plain, table

_TEXT = (
    "Overlap: pairs of neighbouring words that two replies share, of those that either has (Jaccard). Other "
    "prompts: the same with replies to other prompts, which is what there is to share by chance."
)
_HEAD = ("replies", "prompts", "equal, letter for letter", "overlap, same prompt", "other prompts")


def render(run: RunFolder) -> Section | None:
    """A row per comparison of the summary."""
    positive, negative = run.kinds
    comparisons = (
        (
            f"{negative}: ablated model and plain model",
            ("overlap", "ablated_with_plain"),
            ("unchanged", "ablation"),
        ),
        (
            f"{positive}, without {run.words.noun}: ablated model and base model",
            ("base", "overlap"),
            ("base", "ablated_equals_base"),
        ),
    )
    rows: list[list[Cell]] = []
    for words, overlap, equal in comparisons:
        if run.number(*overlap, "same_prompt") is not None:
            shares = (run.number(*overlap, name) for name in ("same_prompt", "other_prompts"))
            n = numeric(run.number(*overlap, "n"), 0)
            rows.append([plain(words), n, numeric(run.number(*equal)), *map(numeric, shares)])
    if not rows:
        return None
    parts = (paragraph(_TEXT), table(_HEAD, rows, css="data"))
    return Section("compared", "Replies compared", parts)
