"""What a run shows, in words that follow its numbers: also when they show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refusal_lens.display import shown
from refusal_lens.evaluation.conditions import CONDITIONS, OF_KIND
from refusal_lens.plotting.labels import capital
from refusal_lens.plotting.nulls import NULLS
from refusal_lens.report.facts import (
    change,
    flags,
    from_to,
    not_selected,
    passing,
    score_meaning,
    scores_of,
    signed,
)
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.headline import candidate, headline
from refusal_lens.report.markup import percent


@shown()
@dataclass(frozen=True)
class Claim:
    """A sentence with its numbers, the evidence in further ones, and what speaks against. Plain text."""

    headline: str
    evidence: tuple[str, ...]
    flags: tuple[str, ...] = ()


def make_claim(run: RunFolder) -> Claim:
    """The claim of a run; of a run without rates, what its scores or its selection say."""
    evidence = (
        str(run.value("reference", "verdict") or ""),
        _sentence(not_selected(run)),
        _selection(run),
        _kept(run),
        _on_positive(run),
        _chance(run, 0),
        _on_negative(run),
        _chance(run, 1),
        _mean_scores(run),
    )
    sentences = tuple(sentence for sentence in evidence if sentence)
    return Claim(headline(run), sentences, tuple(flags(run)))


def _selection(run: RunFolder) -> str:
    if run.selected is None:
        return ""
    n, pass_ = run.number("n_candidates"), passing(run)
    among = "" if n is None else f", one of {n:.0f} candidates"
    among += f", {pass_} of which pass the rule" if pass_ else ""
    return f"The direction r: difference of means at {candidate(run)}{among}."


def _kept(run: RunFolder) -> str:
    """How many prompts behave as their kind should, which is what means and scores are of."""
    splits = run.value("kept_prompts")
    parts = []
    for split in splits if isinstance(splits, Mapping) else ():
        counts = splits[split] if isinstance(splits[split], Mapping) else {}
        kept = [
            f"{run.number('kept_prompts', split, kind, 'kept'):.0f} of "
            f"{run.number('kept_prompts', split, kind, 'of'):.0f} {kind}"
            for kind in counts
            if run.number("kept_prompts", split, kind, "kept") is not None
            and run.number("kept_prompts", split, kind, "of") is not None
        ]
        if kept:
            parts.append(f"{split}: {', '.join(kept)}")
    return (
        f"Prompts on which the model behaves as their kind should ({'; '.join(parts)})."
        if parts
        else ""
    )


def _on_positive(run: RunFolder) -> str:
    rates = run.rates_of(0)
    if "baseline" not in rates:
        return ""
    parts = [_plain(run, 0)]
    if "ablation" in rates:
        parts.append(f"{_rate(rates['ablation'])} with r ablated at every layer and token")
    if "subtraction" in rates:
        parts.append(f"{_rate(rates['subtraction'])} with r subtracted at its layer")
    return ", ".join(parts) + "."


def _on_negative(run: RunFolder) -> str:
    rates = run.rates_of(1)
    if "baseline" not in rates:
        return ""
    parts = [_plain(run, 1)]
    if "ablation" in rates:
        parts.append(f"{_rate(rates['ablation'])} with r ablated")
    sentence = ", ".join(parts)
    if "addition" not in rates:
        return sentence + "."
    verdict = change(rates["baseline"], rates["addition"])
    words = {
        "raises": "adding r makes it",
        "none": "adding r does not change that measurably:",
        "lowers": "adding r lowers it to",
    }
    by_score = _score_under_addition(run) if verdict == "none" else ""
    return f"{sentence}; {words[verdict]} {_rate(rates['addition'])}{by_score}."


def _plain(run: RunFolder, side: int) -> str:
    """What the unedited model does on one kind of test prompts."""
    rate = run.rates_of(side)["baseline"]
    n = "" if rate.get("n") is None else f" (n = {rate['n']:.0f})"
    return f"{capital(run.kinds[side])} test {run.words.prompts}{n}: {run.words.noun} {_rate(rate)}"


def _score_under_addition(run: RunFolder) -> str:
    """Words for a score that addition moves where the judge sees nothing, else ""."""
    before, after = (scores_of(run, 1, condition) for condition in ("baseline", "addition"))
    if before is None or after is None or change(before.share, after.share) == "none":
        return ""
    moves = from_to(before.mean, after.mean, run.labels.unit)
    return f" by {run.judge}, though the {run.words.score} goes {moves}"


def _mean_scores(run: RunFolder) -> str:
    """Mean score under each condition, beside what the judge says."""
    parts = []
    for side, conditions in enumerate(OF_KIND):
        means = []
        for condition in conditions:
            scores, edit = scores_of(run, side, condition), CONDITIONS[condition].edit
            if scores is not None:
                means.append(signed(scores.mean) + (f" with {edit}" if edit else ""))
        if means:
            parts.append(f"{run.kinds[side]} {', '.join(means)}")
    meaning = ", ".join(part for part in (score_meaning(run), run.labels.unit) if part)
    return f"Mean {run.words.score} ({meaning}): {'; '.join(parts)}." if parts else ""


def _chance(run: RunFolder, side: int) -> str:
    """What random edits of the same kind and size do to the same prompts."""
    column = "rate" if run.rates_of(side) else "score"
    name = run.words.noun if column == "rate" else run.words.score
    tell = percent if column == "rate" else signed
    parts = []
    for null in NULLS:
        draws = run.null_draws(null.name, side, column)
        if null.side == side and draws.size:
            parts.append(
                f"{draws.size} {null.instead}, {name} {tell(draws.mean())} on average "
                f"({tell(draws.min())} to {tell(draws.max())})"
            )
    return f"Chance, {run.labels.prompts(side)}: {'; '.join(parts)}." if parts else ""


def _sentence(text: str) -> str:
    """A one-line reason as a sentence."""
    end = "" if text.endswith((".", "?", "!")) else "."
    return text[:1].upper() + text[1:] + end if text else ""


def _rate(score: Rate) -> str:
    se, exact, unjudged = score.get("se"), score.get("paper_count"), score.get("n_unjudged")
    notes = [] if se is None else [f"SE {100 * se:.1f}"]
    if exact is not None and exact != score["rate"]:
        notes.append(f"{percent(exact)} by the paper\u2019s exact phrases")
    if unjudged:
        notes.append(f"{unjudged:.0f} more not judged")
    return percent(score["rate"]) + (f" ({'; '.join(notes)})" if notes else "")
