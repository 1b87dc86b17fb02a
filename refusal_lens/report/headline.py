"""The headline of a run: one sentence that its numbers carry, also when they show nothing."""

from __future__ import annotations

from refusal_lens.plotting import visible
from refusal_lens.plotting.labels import capital
from refusal_lens.plotting.nulls import NULLS
from refusal_lens.plotting.places import place_text
from refusal_lens.report.facts import (
    Scores,
    change,
    from_to,
    mean_change,
    not_selected,
    scores_of,
    signed,
    who_names_tokens,
)
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.markup import percent

LITTLE = 0.2
"""Share of the positive prompts below which a model hardly shows the behaviour."""
MUCH = 0.1
"""Share of prompts on which judge and score may disagree without a word."""
_VERBS = {"lowers": "falls", "raises": "rises"}


def headline(run: RunFolder) -> str:
    """What the run shows: by the judge, else by the scores, else what its selection says."""
    rates = run.rates_of(0)
    if "baseline" in rates and "ablation" in rates:
        return _by_judge(run, rates["baseline"], rates["ablation"])
    before, after = (scores_of(run, 0, condition) for condition in ("baseline", "ablation"))
    if before is not None and after is not None:
        return _by_score(run, before, after)
    if run.selected is not None:
        return f"The selection rule takes {candidate(run)}{_as_the_reference(run)}."
    if _none_passes(run):
        return "No candidate direction passes the selection rule, so there is none to test."
    if not_selected(run):
        return _not_sought(run, rates.get("baseline"))
    return "This run is not finished: no direction is selected yet."


def candidate(run: RunFolder) -> str:
    """The selected candidate in words."""
    if run.selected is None:
        return "no candidate"
    place, layer = run.selected
    depth = "" if run.n_layers is None else f" of {run.n_layers}"
    name = run.value("selected", "position_name")
    token = f" ({visible(name)})" if isinstance(name, str) and name else ""
    return f"layer {layer}{depth}, {place_text(place)}{token}"


def _by_judge(run: RunFolder, before: Rate, after: Rate) -> str:
    """Judge first; the score where it tells another story than the judge."""
    numbers = f"{percent(before['rate'])} to {percent(after['rate'])}"
    verdict = change(before, after)
    scores = (scores_of(run, 0, "baseline"), scores_of(run, 0, "ablation"))
    if verdict == "raises":
        return (
            f"Ablating the selected direction raises {_behaviour(run)}, from {numbers}: "
            f"{_of_a_rise(run, *scores)}."
        )
    if verdict == "none" or before["rate"] < LITTLE:
        by_score = _score_alone(run, before, after, *scores)
        if by_score:
            return by_score
    if before["rate"] < LITTLE:
        only = "only " if before["rate"] > 0 else ""
        little = ", which measures little" if verdict == "none" else ""
        return (
            f"{_model(run)} {run.words.shows_on} {only}{percent(before['rate'])} of the "
            f"{run.labels.prompts(0)}; ablating the selected direction leaves "
            f"{percent(after['rate'])}{little}."
        )
    if verdict == "none":
        return (
            f"Ablating the selected direction does not lower {_behaviour(run)} measurably: "
            f"{percent(before['rate'])} before, {percent(after['rate'])} after."
        )
    doubt = _explained_by_chance(run, before["rate"], after["rate"], "rate")
    doubt = doubt or _unmoved_score(run, *scores)
    if doubt:
        return f"Ablating the selected direction lowers {_behaviour(run)} from {numbers}, but {doubt}."
    if after["rate"] > 0.5 * before["rate"]:
        return f"Ablating one direction lowers {_behaviour(run)} only in part, from {numbers}."
    return f"Ablating one direction takes {_behaviour(run)} from {numbers}."


def _by_score(run: RunFolder, before: Scores, after: Scores) -> str:
    """The headline of a run whose replies nobody judged."""
    score = f"{_model(run)}\u2019s mean {run.words.score} on {run.labels.prompts(0)}"
    numbers = from_to(before.mean, after.mean, run.labels.unit)
    others = scores_of(run, 1, "baseline")
    verdict = mean_change(before, after)
    if verdict == "none":
        return (
            f"Ablating the selected direction does not lower {score} measurably: {signed(before.mean)} "
            f"before, {signed(after.mean)} {run.labels.unit} after."
        )
    if verdict == "raises":
        return (
            f"Ablating the selected direction raises {score}, {numbers}: it is not the direction that "
            f"{run.words.noun} depends on."
        )
    doubt = _explained_by_chance(run, before.mean, after.mean, "score")
    if doubt:
        return f"Ablating the selected direction lowers {score} {numbers}, but {doubt}."
    if others is not None and before.mean - after.mean < 0.5 * (before.mean - others.mean):
        return (
            f"Ablating one direction lowers {score} only in part, {numbers}, where "
            f"{run.labels.prompts(1)} have {signed(others.mean)}."
        )
    return f"Ablating one direction takes {score} {numbers}."


def _of_a_rise(run: RunFolder, before: Scores | None, after: Scores | None) -> str:
    """What a rise of the rate means, which the score may doubt."""
    if before is not None and after is not None and change(before.share, after.share) == "lowers":
        means = f"{signed(before.mean)} to {signed(after.mean)} {run.labels.unit}"
        return f"but the {run.words.score} falls, {means}"
    return f"it is not the direction that {run.words.noun} depends on"


def _score_alone(
    run: RunFolder, before: Rate, after: Rate, plain: Scores | None, ablated: Scores | None
) -> str:
    """The headline where the score moves, the judge sees little, and they disagree on much; else ""."""
    if plain is None or ablated is None:
        return ""
    moved = change(plain.share, ablated.share)
    gaps = [
        abs(scores.share["rate"] - rate["rate"])
        for scores, rate in ((plain, before), (ablated, after))
    ]
    if moved == "none" or max(gaps) <= MUCH:
        return ""
    numbers = from_to(plain.mean, ablated.mean, run.labels.unit)
    doubt = _explained_by_chance(run, plain.mean, ablated.mean, "score")
    by_score = f"the {run.words.score} {_VERBS[moved]} {numbers}" + (f", and {doubt}" if doubt else "")
    rates = f"{percent(before['rate'])} before, {percent(after['rate'])} after"
    if max(before["rate"], after["rate"]) < LITTLE:
        sees = "little" if before["rate"] or after["rate"] else "no"
        return (
            f"{capital(run.judge)} sees {sees} {run.words.noun} by {_model(run)} before or after ablating "
            f"the selected direction ({rates}); {by_score}."
        )
    return (
        f"Ablating the selected direction leaves {_behaviour(run)} as it was for {run.judge} "
        f"({rates}), but {by_score}."
    )


def _unmoved_score(run: RunFolder, before: Scores | None, after: Scores | None) -> str:
    """Words for a score that does not follow the judge, else ""."""
    if before is None or after is None or change(before.share, after.share) == "lowers":
        return ""
    return (
        f"the {run.words.score} does not follow: {signed(before.mean)} before, "
        f"{signed(after.mean)} {run.labels.unit} after"
    )


def _explained_by_chance(run: RunFolder, before: float, after: float, column: str) -> str:
    """Words for the null that moves the rate or score at least half as far as r does, else ""."""
    for null in NULLS:
        draws = run.null_draws(null.name, 0, column)
        if null.side == 0 and draws.size:
            mean = float(draws.mean())
            if (mean - before) / (after - before) >= 0.5:
                to = f"lower it to {percent(mean)}" if column == "rate" else f"take it to {signed(mean)}"
                return f"{null.instead} {to} on average: {null.doubt}"
    return ""


def _not_sought(run: RunFolder, plain: Rate | None) -> str:
    """The headline of a run whose model gives no ground for a direction."""
    model, words = _model(run), run.words
    shows = (
        ""
        if plain is None
        else f"{model} {words.shows_on} {percent(plain['rate'])} of the {run.labels.prompts(0)}"
    )
    much = plain is not None and plain["rate"] >= LITTLE
    if run.token_ids != ():
        why = "too few prompts behave as their kind should for a direction to be sought"
        if much and run.token_ids is None:
            return f"{shows}, but by the {words.score} {why}."
        if much:
            return f"{shows}, but by its first tokens {why}: are the {words.noun} tokens right?"
    elif much:
        return (
            f"{shows}, but no {words.noun} tokens were found, so no direction was sought: "
            f"{who_names_tokens(run.behaviour)} names them."
        )
    else:
        why = f"no first token marks {words.noun}, so no direction was sought"
    return f"{shows}; {why}." if shows else f"{model}: {why}."


def _behaviour(run: RunFolder) -> str:
    """The model's behaviour on the positive prompts."""
    return f"{_model(run)}\u2019s {run.words.noun_on} {run.labels.prompts(0)}"


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
