"""What a run shows, in words that follow its numbers: also when they show nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refusal_lens.display import shown
from refusal_lens.plotting import visible
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.markup import MINUS, percent

_LITTLE_REFUSAL = 0.2
_NULLS = {
    ("random_direction", "harmful"): "random directions ablated instead",
    ("norm_matched_move", "harmful"): "random moves as large as the ablation\u2019s",
    ("norm_matched_move", "harmless"): "random moves as large as r",
}
_DOUBTS = {
    "random_direction": "the effect is not special to this direction",
    "norm_matched_move": "the size of the move alone may explain it",
}
_Z = 1.96


@shown()
@dataclass(frozen=True)
class Claim:
    """A sentence with its numbers, and the evidence in further sentences. Plain text."""

    headline: str
    evidence: tuple[str, ...]


def make_claim(run: RunFolder) -> Claim:
    """The claim of a run; of a run without refusal rates, what its selection says."""
    rates = run.rates
    harmful = rates.get("harmful", {})
    if "baseline" in harmful and "ablation" in harmful:
        headline = _ablation_headline(run, harmful["baseline"], harmful["ablation"])
    elif run.selected is not None:
        headline = f"The selection rule takes {_candidate(run)}{_as_the_reference(run)}."
    elif _none_passes(run):
        headline = "No candidate direction passes the selection rule, so there is none to test."
    else:
        headline = "This run is not finished: no direction is selected yet."
    evidence = (
        str(run.value("reference", "verdict") or ""),
        _selection_evidence(run),
        _harmful_evidence(harmful),
        _chance(run, "harmful"),
        _harmless_evidence(rates.get("harmless", {})),
        _chance(run, "harmless"),
    )
    return Claim(headline, tuple(sentence for sentence in evidence if sentence))


def change(before: Rate, after: Rate) -> str:
    """Say "lowers", "raises", or "none" when a two-proportion z-test at 5% sees no difference."""
    n_before, n_after = before.get("n", 0.0), after.get("n", 0.0)
    gap = after["rate"] - before["rate"]
    if n_before <= 0 or n_after <= 0:
        bound = _Z * math.hypot(before.get("se", 0.0), after.get("se", 0.0))
    else:
        pooled = (before["rate"] * n_before + after["rate"] * n_after) / (n_before + n_after)
        bound = _Z * math.sqrt(pooled * (1 - pooled) * (1 / n_before + 1 / n_after))
    if abs(gap) <= bound or gap == 0:
        return "none"
    return "lowers" if gap < 0 else "raises"


def _ablation_headline(run: RunFolder, before: Rate, after: Rate) -> str:
    model, numbers = _model(run), f"{percent(before['rate'])} to {percent(after['rate'])}"
    verdict = change(before, after)
    if verdict == "none":
        return (
            f"Ablating the selected direction does not lower {model}\u2019s refusal of harmful "
            f"instructions measurably: {percent(before['rate'])} before, "
            f"{percent(after['rate'])} after."
        )
    if verdict == "raises":
        return (
            f"Ablating the selected direction raises {model}\u2019s refusal of harmful "
            f"instructions, from {numbers}: it is not the direction that refusal depends on."
        )
    doubt = _explained_by_chance(run, before, after)
    if doubt:
        return (
            f"Ablating the selected direction lowers {model}\u2019s refusal of harmful "
            f"instructions from {numbers}, but {doubt}."
        )
    if before["rate"] < _LITTLE_REFUSAL:
        return (
            f"{model} refuses only {percent(before['rate'])} of the harmful instructions; ablating "
            f"the selected direction leaves {percent(after['rate'])}."
        )
    if after["rate"] > 0.5 * before["rate"]:
        return (
            f"Ablating one direction lowers {model}\u2019s refusal of harmful instructions only in "
            f"part, from {numbers}."
        )
    return (
        f"Ablating one direction takes {model}\u2019s refusal of harmful instructions from "
        f"{numbers}."
    )


def _none_passes(run: RunFolder) -> bool:
    candidates = run.table("candidates.csv")
    if candidates is None or "passes" not in candidates:
        return False
    return not candidates["passes"].any()


def _as_the_reference(run: RunFolder) -> str:
    agrees = run.value("reference", "agrees")
    if agrees is None:
        return "; there are no replies here that show its effect"
    return ", as the reference did" if agrees else ", but the reference took another candidate"


def _harmful_evidence(rates: dict[str, Rate]) -> str:
    if "baseline" not in rates:
        return ""
    parts = [f"Harmful test instructions{_sample(rates)}: refusal {_rate(rates['baseline'])}"]
    if "ablation" in rates:
        parts.append(f"{_rate(rates['ablation'])} with r ablated at every layer and token")
    if "subtraction" in rates:
        parts.append(f"{_rate(rates['subtraction'])} with r subtracted at its layer")
    return ", ".join(parts) + "."


def _harmless_evidence(rates: dict[str, Rate]) -> str:
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
    return f"{sentence}; {words[verdict]} {_rate(rates['addition'])}."


def _chance(run: RunFolder, kind: str) -> str:
    """What random edits of the same kind and size do to the same instructions."""
    parts = []
    for (null, of_kind), words in _NULLS.items():
        rates = run.null_rates(null, of_kind)
        if of_kind == kind and rates.size:
            parts.append(
                f"{rates.size} {words}, refusal {percent(rates.mean())} on average "
                f"({percent(rates.min())} to {percent(rates.max())})"
            )
    return f"Chance, {kind} instructions: {'; '.join(parts)}." if parts else ""


def _explained_by_chance(run: RunFolder, before: Rate, after: Rate) -> str:
    """Words for the null that lowers refusal by at least half as much as r does, else ""."""
    for (null, kind), words in _NULLS.items():
        rates = run.null_rates(null, kind)
        if kind == "harmful" and rates.size:
            mean = float(rates.mean())
            if before["rate"] - mean >= 0.5 * (before["rate"] - after["rate"]):
                return f"{words} lower it to {percent(mean)} on average: {_DOUBTS[null]}"
    return ""


def _selection_evidence(run: RunFolder) -> str:
    if run.selected is None:
        return ""
    n, passing = run.number("n_candidates"), run.number("n_passing")
    among = "" if n is None else f", one of {n:.0f} candidates"
    among += "" if passing is None else f", {passing:.0f} of which pass the rule"
    return f"The direction r: difference of means at {_candidate(run)}{among}."


def _candidate(run: RunFolder) -> str:
    if run.selected is None:
        return "no candidate"
    position, layer = run.selected
    depth = "" if run.n_layers is None else f" of {run.n_layers}"
    name = run.value("selected", "position_name")
    token = f" ({visible(name)})" if isinstance(name, str) and name else ""
    return f"layer {layer}{depth}, position {str(position).replace('-', MINUS)}{token}"


def _model(run: RunFolder) -> str:
    name = run.value("model")
    return visible(str(name).rstrip("/").split("/")[-1]) if name else "the model"


def _rate(score: Rate) -> str:
    se = score.get("se")
    return percent(score["rate"]) + ("" if se is None else f" (SE {100 * se:.1f})")


def _sample(rates: dict[str, Rate]) -> str:
    n = rates["baseline"].get("n")
    return "" if n is None else f" (n = {n:.0f})"
