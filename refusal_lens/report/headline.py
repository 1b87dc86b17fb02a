"""The headline of a run: one sentence that its numbers carry, also when they show nothing."""

from __future__ import annotations

from refusal_lens.plotting import visible
from refusal_lens.report.facts import Metric, change, metric_of, not_selected, null_metric, signed
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.markup import MINUS, percent

LITTLE_REFUSAL = 0.2
MUCH = 0.1
"""Share of prompts on which judge and metric may disagree without a word."""
NULLS = {
    ("random_direction", "harmful"): "random directions ablated instead",
    ("norm_matched_move", "harmful"): "random moves as large as the ablation\u2019s",
    ("norm_matched_move", "harmless"): "random moves as large as r",
}
_DOUBTS = {
    "random_direction": "the effect is not special to this direction",
    "norm_matched_move": "the size of the move alone may explain it",
}


def headline(run: RunFolder) -> str:
    """What the run shows; of a run without replies under ablation, what its selection says."""
    harmful = run.rates.get("harmful", {})
    if "baseline" in harmful and "ablation" in harmful:
        return _ablation(run, harmful["baseline"], harmful["ablation"])
    if run.selected is not None:
        return f"The selection rule takes {candidate(run)}{_as_the_reference(run)}."
    if _none_passes(run):
        return "No candidate direction passes the selection rule, so there is none to test."
    if not_selected(run):
        return _not_sought(run, harmful.get("baseline"))
    return "This run is not finished: no direction is selected yet."


def candidate(run: RunFolder) -> str:
    """The selected candidate in words."""
    if run.selected is None:
        return "no candidate"
    position, layer = run.selected
    depth = "" if run.n_layers is None else f" of {run.n_layers}"
    name = run.value("selected", "position_name")
    token = f" ({visible(name)})" if isinstance(name, str) and name else ""
    return f"layer {layer}{depth}, position {str(position).replace('-', MINUS)}{token}"


def _ablation(run: RunFolder, before: Rate, after: Rate) -> str:
    """Judge first; the metric where it tells another story than the judge."""
    model, numbers = _model(run), f"{percent(before['rate'])} to {percent(after['rate'])}"
    verdict = change(before, after)
    metric = (metric_of(run, "harmful", "baseline"), metric_of(run, "harmful", "ablation"))
    if verdict == "raises":
        return (
            f"Ablating the selected direction raises {model}\u2019s refusal of harmful "
            f"instructions, from {numbers}: {_of_a_rise(*metric)}."
        )
    if verdict == "none" or before["rate"] < LITTLE_REFUSAL:
        told = _metric_alone(run, before, after, *metric)
        if told:
            return told
    if before["rate"] < LITTLE_REFUSAL:
        only = "only " if before["rate"] > 0 else ""
        little = ", which measures little" if verdict == "none" else ""
        return (
            f"{model} refuses {only}{percent(before['rate'])} of the harmful instructions; ablating "
            f"the selected direction leaves {percent(after['rate'])}{little}."
        )
    if verdict == "none":
        return (
            f"Ablating the selected direction does not lower {model}\u2019s refusal of harmful "
            f"instructions measurably: {percent(before['rate'])} before, "
            f"{percent(after['rate'])} after."
        )
    doubt = _explained_by_chance(run, before, after) or _unmoved_metric(*metric)
    if doubt:
        return (
            f"Ablating the selected direction lowers {model}\u2019s refusal of harmful "
            f"instructions from {numbers}, but {doubt}."
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


def _of_a_rise(before: Metric | None, after: Metric | None) -> str:
    """What a rise of refusal means, which the metric may doubt."""
    if before is not None and after is not None and change(before.share, after.share) == "lowers":
        return f"but the refusal metric falls, {signed(before.mean)} to {signed(after.mean)} nats"
    return "it is not the direction that refusal depends on"


def _metric_alone(
    run: RunFolder, before: Rate, after: Rate, m: Metric | None, n: Metric | None
) -> str:
    """The headline where the metric moves, the judge sees little, and they disagree on much; else ""."""
    if m is None or n is None:
        return ""
    moved = change(m.share, n.share)
    gaps = [abs(one.share["rate"] - rate["rate"]) for one, rate in ((m, before), (n, after))]
    if moved == "none" or max(gaps) <= MUCH:
        return ""
    verb = {"lowers": "falls", "raises": "rises"}[moved]
    metric = f"the refusal metric {verb} from {signed(m.mean)} to {signed(n.mean)} nats"
    doubt = _metric_explained_by_chance(run, m.mean, n.mean)
    doubt = f", and {doubt}" if doubt else ""
    rates = f"{percent(before['rate'])} before, {percent(after['rate'])} after"
    if max(before["rate"], after["rate"]) < LITTLE_REFUSAL:
        sees = "little" if before["rate"] or after["rate"] else "no"
        return (
            f"The phrase judge sees {sees} refusal by {_model(run)} before or after ablating the "
            f"selected direction ({rates}); {metric}{doubt}."
        )
    return (
        f"Ablating the selected direction leaves {_model(run)}\u2019s refusal of harmful instructions "
        f"as it was for the phrase judge ({rates}), but {metric}{doubt}."
    )


def _unmoved_metric(before: Metric | None, after: Metric | None) -> str:
    """Words for a metric that does not follow the judge, else ""."""
    if before is None or after is None or change(before.share, after.share) == "lowers":
        return ""
    return (
        f"the refusal metric does not follow: {signed(before.mean)} before, "
        f"{signed(after.mean)} nats after"
    )


def _explained_by_chance(run: RunFolder, before: Rate, after: Rate) -> str:
    """Words for the null that lowers refusal by at least half as much as r does, else ""."""
    for (null, kind), words in NULLS.items():
        rates = run.null_rates(null, kind)
        if kind == "harmful" and rates.size:
            mean = float(rates.mean())
            if before["rate"] - mean >= 0.5 * (before["rate"] - after["rate"]):
                return f"{words} lower it to {percent(mean)} on average: {_DOUBTS[null]}"
    return ""


def _metric_explained_by_chance(run: RunFolder, before: float, after: float) -> str:
    """Words for the null that moves the metric by at least half as much as r does, else ""."""
    for (null, kind), words in NULLS.items():
        mean = null_metric(run, null, kind)
        if kind == "harmful" and mean is not None and (mean - before) / (after - before) >= 0.5:
            return f"{words} take it to {signed(mean)} on average: {_DOUBTS[null]}"
    return ""


def _not_sought(run: RunFolder, plain: Rate | None) -> str:
    """The headline of a run whose model gives no ground for a direction."""
    model = _model(run)
    refuses = (
        ""
        if plain is None
        else f"{model} refuses {percent(plain['rate'])} of the harmful instructions"
    )
    if run.value("refusal_tokens"):
        why = "too few prompts behave as their kind should for a direction to be sought"
        if plain is not None and plain["rate"] >= LITTLE_REFUSAL:
            return f"{refuses}, but by its first tokens {why}: are the refusal tokens right?"
        return f"{refuses}; {why}." if refuses else f"{model}: {why}."
    if plain is None or plain["rate"] < LITTLE_REFUSAL:
        why = "no first token marks a refusal, so no direction was sought"
        return f"{refuses}; {why}." if refuses else f"{model}: {why}."
    return (
        f"{refuses}, but no refusal tokens were found, so no direction was sought: "
        "--refusal-tokens names them."
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


def _model(run: RunFolder) -> str:
    name = run.value("model")
    return visible(str(name).rstrip("/").split("/")[-1]) if name else "the model"
