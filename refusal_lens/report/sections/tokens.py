"""The first tokens of replies, where refusal tokens come from."""

from __future__ import annotations

from refusal_lens.plotting import top_tokens
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Plot, Section

_CAPTION = (
    "Mean probability of the next token after the template, unedited model. Refusal tokens are "
    "in full colour; \u2423 is a space."
)


def render(run: RunFolder) -> Section | None:
    """Bars from top_tokens.csv, the summary's refusal tokens in full colour."""
    tokens = run.table("top_tokens.csv")
    if tokens is None:
        return None
    ids = run.value("refusal_tokens")
    refusal = [i for i in ids if isinstance(i, int)] if isinstance(ids, list) else []
    plot = Plot("top_tokens", top_tokens(tokens, refusal_tokens=refusal), _CAPTION)
    return Section("tokens", "Top next tokens", (plot,))
