"""The first tokens of replies, where a behaviour of first tokens gets them from."""

from __future__ import annotations

from refusal_lens.plotting import top_tokens, visible
from refusal_lens.plotting.labels import capital
from refusal_lens.report.facts import not_selected
from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Html, Plot, Section, numeric, paragraph, plain, table

_CAPTION = "Mean probability of the next token after the template, unedited model. {tokens}\u2423 is a space."
_CHOSEN_AMONG = (
    "The evidence: mean probability of first tokens on the training prompts of each kind. A {noun} token is "
    "likely on {positive} prompts and rare on {negative} ones."
)


def render(run: RunFolder) -> Section | None:
    """Bars from top_tokens.csv, those whose log-odds are the score in full colour."""
    tokens, ids = run.table("top_tokens.csv"), run.token_ids
    if tokens is None:
        return None
    full = f"{capital(run.words.noun)} tokens are in full colour; " if ids else ""
    figure = top_tokens(tokens, labels=run.labels, scored=ids or ())
    plot = Plot("top_tokens", figure, _CAPTION.format(tokens=full))
    return Section("tokens", "Top next tokens", (*_source(run), plot, *_evidence(run)))


def _source(run: RunFolder) -> list[Html]:
    """Where the scored tokens come from, or that there are none."""
    noun, tokens = run.words.noun, run.behaviour.get("first_tokens") or {}
    if run.token_ids == () and not_selected(run):
        words = f"No {noun} tokens were found: no first token tells {noun} from its absence."
        return [paragraph(words, css="warning")]
    source = tokens.get("source")
    return [paragraph(f"{capital(noun)} tokens: {source}.")] if source else []


def _evidence(run: RunFolder) -> list[Html]:
    """The first tokens that the scored ones were chosen among."""
    tokens, (positive, negative) = run.behaviour.get("first_tokens") or {}, run.kinds
    noun, ids = run.words.noun, run.token_ids or ()
    rows = [
        [
            plain(visible(str(entry["token"]))),
            plain(entry["token_id"]),
            numeric(entry["positive"], 3),
            numeric(entry["negative"], 3),
            plain(f"{noun} token" if entry["token_id"] in ids else ""),
        ]
        for entry in tokens.get("evidence") or ()
    ]
    if not rows:
        return []
    chosen_among = _CHOSEN_AMONG.format(noun=noun, positive=positive, negative=negative)
    return [
        paragraph(chosen_among),
        table(("token", "id", positive, negative, ""), rows, css="data"),
    ]
