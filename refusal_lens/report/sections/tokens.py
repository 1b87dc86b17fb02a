"""The first tokens of replies, where refusal tokens come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from refusal_lens.plotting import top_tokens, visible
from refusal_lens.report.facts import not_selected
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Plot, Section, numeric, paragraph, plain, table

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
    return Section("tokens", "Top next tokens", (*_source(run, refusal), plot, *_evidence(run)))


def _source(run: RunFolder, refusal: Sequence[int]) -> list[Html]:
    """Where the refusal tokens come from, or that there are none."""
    source = run.value("refusal_token_source")
    if not refusal and not_selected(run):
        words = "No refusal tokens were found: no first token tells refusals from answers."
        return [paragraph(words, css="warning")]
    return [paragraph(f"Refusal tokens: {source}.")] if isinstance(source, str) else []


def _evidence(run: RunFolder) -> list[Html]:
    """The first tokens that the refusal tokens were chosen among."""
    entries = run.value("refusal_token_evidence")
    ids, rows = run.value("refusal_tokens"), []
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and {"token_id", "token", *_KINDS} <= set(entry):
            chosen = isinstance(ids, list) and entry["token_id"] in ids
            shares = [entry[kind] if isinstance(entry[kind], float) else None for kind in _KINDS]
            rows.append(
                [
                    plain(visible(str(entry["token"]))),
                    plain(entry["token_id"]),
                    *(numeric(share, 3) for share in shares),
                    plain("refusal token" if chosen else ""),
                ]
            )
    if not rows:
        return []
    return [paragraph(_CHOSEN_AMONG), table(("token", "id", *_KINDS, ""), rows, css="data")]


_KINDS = ("harmful", "harmless")
_CHOSEN_AMONG = (
    "The evidence: mean probability of first tokens on the training prompts of each kind. A refusal token is "
    "likely on harmful prompts and rare on harmless ones."
)
