"""What a run shows, in words that follow its numbers: also when they show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from refusal_lens.display import shown
from refusal_lens.report.facts import change, flags, metric_of, not_selected, passing, signed
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.headline import NULLS, candidate, headline
from refusal_lens.report.markup import percent

_EDITS = {"ablation": "r ablated", "subtraction": "r subtracted", "addition": "r added"}


@shown()
@dataclass(frozen=True)
class Claim:
    """A sentence with its numbers, the evidence in further ones, and what speaks against. Plain text."""

    headline: str
    evidence: tuple[str, ...]
    flags: tuple[str, ...] = ()


def make_claim(run: RunFolder) -> Claim:
    """The claim of a run; of a run without refusal rates, what its selection says."""
    rates = run.rates
    evidence = (
        str(run.value("reference", "verdict") or ""),
        _sentence(not_selected(run)),
        _selection(run),
        _kept(run),
        _harmful(rates.get("harmful", {})),
        _chance(run, "harmful"),
        _harmless(run, rates.get("harmless", {})),
        _chance(run, "harmless"),
        _metric(run),
    )
    shown = tuple(sentence for sentence in evidence if sentence)
    return Claim(headline(run), shown, tuple(flags(run)))


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


def _harmful(rates: dict[str, Rate]) -> str:
    if "baseline" not in rates:
        return ""
    parts = [f"Harmful test instructions{_sample(rates)}: refusal {_rate(rates['baseline'])}"]
    if "ablation" in rates:
        parts.append(f"{_rate(rates['ablation'])} with r ablated at every layer and token")
    if "subtraction" in rates:
        parts.append(f"{_rate(rates['subtraction'])} with r subtracted at its layer")
    return ", ".join(parts) + "."


def _harmless(run: RunFolder, rates: dict[str, Rate]) -> str:
    if "baseline" not in rates:
        return ""
    parts = [f"Harmless test instructions{_sample(rates)}: refusal {_rate(rates['baseline'])}"]
    if "ablation" in rates:
        parts.append(f"{_rate(rates['ablation'])} with r ablated")
    sentence = ", ".join(parts)
    if "addition" not in rates:
        return sentence + "."
    verdict = change(rates["baseline"], rates["addition"])
    words = {
        "raises": "adding r makes it refuse",
        "none": "adding r does not change that measurably:",
        "lowers": "adding r lowers it to",
    }
    metric = _metric_under_addition(run) if verdict == "none" else ""
    return f"{sentence}; {words[verdict]} {_rate(rates['addition'])}{metric}."


def _metric_under_addition(run: RunFolder) -> str:
    """Words for a metric that addition moves where the judge sees nothing, else ""."""
    before, after = (metric_of(run, "harmless", name) for name in ("baseline", "addition"))
    if before is None or after is None or change(before.share, after.share) == "none":
        return ""
    moves = f"from {signed(before.mean)} to {signed(after.mean)} nats"
    return f" by the phrase judge, though the refusal metric goes {moves}"


def _metric(run: RunFolder) -> str:
    """Mean refusal metric under each condition, beside what the judge says."""
    parts = []
    for kind, conditions in (
        ("harmful", ("baseline", "ablation", "subtraction")),
        ("harmless", ("baseline", "ablation", "addition")),
    ):
        means = []
        for condition in conditions:
            found = metric_of(run, kind, condition)
            if found is not None:
                edit = _EDITS.get(condition)
                means.append(signed(found.mean) + (f" with {edit}" if edit else ""))
        if means:
            parts.append(f"{kind} {', '.join(means)}")
    return (
        f"Mean refusal metric (log-odds of a refusal token first, nats): {'; '.join(parts)}."
        if parts
        else ""
    )


def _chance(run: RunFolder, kind: str) -> str:
    """What random edits of the same kind and size do to the same instructions."""
    parts = []
    for (null, of_kind), words in NULLS.items():
        rates = run.null_rates(null, of_kind)
        if of_kind == kind and rates.size:
            parts.append(
                f"{rates.size} {words}, refusal {percent(rates.mean())} on average "
                f"({percent(rates.min())} to {percent(rates.max())})"
            )
    return f"Chance, {kind} instructions: {'; '.join(parts)}." if parts else ""


def _sentence(text: str) -> str:
    """A one-line reason as a sentence."""
    end = "" if text.endswith((".", "?", "!")) else "."
    return text[:1].upper() + text[1:] + end if text else ""


def _rate(score: Rate) -> str:
    se, exact = score.get("se"), score.get("paper_count")
    notes = [] if se is None else [f"SE {100 * se:.1f}"]
    if exact is not None and exact != score["rate"]:
        notes.append(f"{percent(exact)} by the paper\u2019s exact phrases")
    return percent(score["rate"]) + (f" ({'; '.join(notes)})" if notes else "")


def _sample(rates: dict[str, Rate]) -> str:
    n = rates["baseline"].get("n")
    return "" if n is None else f" (n = {n:.0f})"
