"""The suffix study: why an adversarial suffix works. Model text here is untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from refusal_lens.behaviours.words import Words
from refusal_lens.errors import InputError
from refusal_lens.plotting.heads import (
    head_attention,
    head_attribution,
    head_effects,
    head_sources,
)
from refusal_lens.plotting.labels import Labels, capital
from refusal_lens.plotting.suffix import suffix_behaviour, suffix_cosine, suffix_losses
from refusal_lens.plotting.theme import visible
from refusal_lens.plotting.tokens import contribution_map, projection_map
from refusal_lens.report.facts import change, score_meaning, signed
from refusal_lens.report.folder import Rate, RunFolder
from refusal_lens.report.markup import (
    Html,
    Plot,
    Section,
    number,
    numeric,
    paragraph,
    percent,
    plain,
    table,
    text,
)

_REPLIES = 4
_TITLE = "Suffix study"
_EARLIER = (
    "The study in suffix/ was made with an earlier direction and is left out here; refusal-lens "
    "suffix makes it anew."
)


def render(run: RunFolder) -> Section | None:
    """Figures 5 and 6 of the paper, the causal check, and some prompts token by token."""
    if "suffix/summary.json" in run.outdated:
        return Section("suffix", _TITLE, (paragraph(_EARLIER),))
    broken = any(name.startswith("suffix/") for name in run.damaged)
    if broken or run.file("suffix/summary.json") is None:
        return None
    try:
        return _section(run)
    except InputError:
        raise
    # Tables of the right columns that hold no study: no rows of a condition, none of a quantity.
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise InputError(
            f"suffix study at {run.path / 'suffix'}: damaged ({type(error).__name__} {str(error)[:80]}); try "
            "refusal-lens suffix again"
        ) from error


def _section(run: RunFolder) -> Section:
    summary = _contents(run, "summary.json")
    values, effects, lost = (_contents(run, f"{name}.csv") for name in ("values", "effects", "lost"))
    by_token = [rows for rows in _contents(run, "tokens.json") if rows["prompt"] == 0]
    layer = int(summary["layer"])
    parts: list[Html | Plot] = [
        paragraph(headline(summary, run.labels)),
        paragraph(f"The suffix, as it stands: {visible(summary['suffix'])}", css="metric"),
        *(paragraph(sentence) for sentence in _evidence(summary, run.labels)),
        *_figures(run, summary, Tables(values, lost, effects)),
        _correlations(summary["correlations"]),
        Plot("suffix_projection_map", projection_map(by_token, selected_layer=layer), _MAP),
        Plot("suffix_contribution_map", contribution_map(by_token), _CONTRIBUTIONS),
        _views(run),
        *_replies(_contents(run, "completions.jsonl"), suffixes(summary), run.words),
    ]
    return Section("suffix", title(summary, values, run.labels), tuple(parts))


class Tables(NamedTuple):
    """The tables of the study."""

    values: pd.DataFrame
    lost: pd.DataFrame
    effects: pd.DataFrame


def suffixes(summary: Mapping[str, Any]) -> tuple[str, str, str]:
    """The conditions of the positive prompts: without suffix, with random ones, with the adversarial one."""
    plain_, random, adversarial, *_ = summary["conditions"]
    return plain_, random, adversarial


def title(summary: Mapping[str, Any], values: pd.DataFrame, labels: Labels) -> str:
    """What the suffix does, plain and beside random suffixes: judge first, then score."""
    names, noun = suffixes(summary), labels.words.noun
    judged: list[Rate] = [summary["conditions"][name]["rate"] for name in names]
    for rates in (judged, _above_threshold(values, names, labels.threshold)):
        if any(rate["rate"] is None for rate in rates):
            continue
        before, random, adversarial = rates
        effect = change(before, adversarial), change(random, adversarial)
        if effect != ("none", "none"):
            break
    else:
        return f"A suffix that does nothing measurable to {noun}"
    where = "" if rates is judged else f"\u2019s {labels.words.number}, not the replies"
    if effect == ("lowers", "lowers"):
        return f"A suffix that lowers {noun}{where}" if where else "Why the suffix works"
    if "raises" in effect:
        return f"A suffix that raises {noun}{where}"
    if effect[0] == "lowers":
        return f"A suffix that lowers {noun}{where}, no more than random suffixes do"
    return f"A suffix that lowers {noun}{where} only beside random suffixes"


def _above_threshold(
    values: pd.DataFrame, names: Sequence[str], threshold: float
) -> list[Rate]:
    """Per condition the share of prompts whose score is above the threshold."""
    scores = values[values["quantity"] == "score"].groupby("condition")["value"]
    return [
        {"rate": float((of_condition > threshold).mean()), "n": float(len(of_condition))}
        for of_condition in (scores.get_group(name) for name in names)
    ]


def headline(summary: Mapping[str, Any], labels: Labels) -> str:
    """The study in a sentence with its numbers, whatever they say."""
    words = labels.words
    measured = [summary["conditions"][name] for name in suffixes(summary)]
    rates = [_percent(condition["rate"]["rate"]) for condition in measured]
    means = [signed(condition["score"]) for condition in measured]
    _, random, adversarial = measured
    n = len(summary["heads"])
    heads = f"{n} head{'s' if n > 1 else ''}"
    looks = _change(random["attention"]["instruction"], adversarial["attention"]["instruction"])
    return (
        f"{capital(words.noun_on)} {labels.prompts(0)}: {rates[0]} plain, {rates[1]} with random suffixes, "
        f"{rates[2]} with the adversarial one (mean {words.score} {', '.join(means)} {labels.unit}). The "
        f"{heads} that write most of the direction give the instruction {looks} of their "
        f"attention and write {_change(random['dfa'], adversarial['dfa'])} along it."
    )


def _percent(rate: float | None) -> str:
    return "not judged" if rate is None else percent(rate)


def _change(before: float, after: float) -> str:
    return f"{number(after, 2)} instead of {number(before, 2)}"


def _evidence(summary: Mapping[str, Any], labels: Labels) -> list[str]:
    level, checks = summary["layers_at_harmless_level"], summary["checks"]
    showing, lacking = (summary["kept"][kind] for kind in labels.kinds)
    tokens, prompts = summary["n_suffix_tokens"], labels.words.prompts
    length = str(tokens[0]) if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
    merged = summary["merged_at_border"]
    border = (
        f" In {merged} of them a token straddles the border of instruction and suffix and counts "
        "as suffix."
        if merged
        else ""
    )
    positive, negative = labels.kinds
    return [
        f"Studied are the test {prompts} on which the model behaves as their kind should without a suffix: "
        f"{showing['kept']} of {showing['of']} {positive} and {lacking['kept']} of {lacking['of']} {negative} "
        f"ones. The suffix has {length} tokens, the random ones as many, drawn afresh for every prompt.{border}",
        f"In {level['n']} of {level['of']} layers from layer {summary['layer']} on, the mean "
        f"cosine with the suffix is at most one standard deviation above that of {labels.prompts(1)}.",
        f"Checks: the residual streams of the instruction's tokens change by at most a share of "
        f"{checks['instruction_unchanged']:.1g} when the suffix follows (causal attention), and "
        f"contributions add up to the projection within {checks['attribution_error']:.1g}.",
    ]


def _figures(run: RunFolder, summary: Mapping[str, Any], tables: Tables) -> list[Plot]:
    layer, labels = int(summary["layer"]), run.labels
    values, score = tables.values, labels.words.score
    cosine = suffix_cosine(values, labels=labels, selected_layer=layer)
    by_score = head_effects(tables.effects, labels=labels, quantity="score")
    return [
        Plot("suffix_cosine", cosine, _COSINE),
        Plot("suffix_behaviour", suffix_behaviour(values, labels=labels), _behaviour(run)),
        Plot(
            "suffix_heads",
            head_attribution(values, labels=labels),
            _HEADS.format(layer=layer, prompts=labels.prompts(0)),
        ),
        Plot("suffix_attention", head_attention(values), _ATTENTION),
        Plot("suffix_sources", head_sources(values, labels=labels), _SOURCES),
        Plot(
            "suffix_effects",
            head_effects(tables.effects, labels=labels),
            _EFFECTS.format(kinds=" and ".join(labels.kinds), prompts=labels.words.prompts),
        ),
        Plot("suffix_effects_score", by_score, _EFFECTS_SCORE.format(score=score)),
        Plot("suffix_losses", suffix_losses(tables.lost), _LOSSES.format(score=score)),
    ]


def _behaviour(run: RunFolder) -> str:
    meaning = score_meaning(run)
    return (
        f"Left: share of replies in which {run.judge} sees {run.words.noun}; bars are one standard error. "
        f"Right: {run.words.score}{f', {meaning}' if meaning else ''}; a dot per prompt."
    )


def _correlations(rows: Sequence[Mapping[str, Any]]) -> Html:
    body = [
        (
            plain(row["first"]),
            plain(row["second"]),
            numeric(row["pearson"]),
            numeric(row["spearman"]),
            numeric(row["n"], 0),
        )
        for row in rows
    ]
    return table(["", "", "Pearson", "Spearman", "prompts"], body)


def _contents(run: RunFolder, name: str) -> Any:
    """What a file of the study holds. InputError when it is missing or damaged."""
    if run.file(f"suffix/{name}") is None:
        raise InputError(
            f"{run.path / 'suffix' / name}: got none as the study left it, need it; try "
            "refusal-lens suffix again"
        )
    return run.forms.read(run.path, f"suffix/{name}")


def _views(run: RunFolder) -> Html:
    """Links to the circuitsvis pages, which lie beside the report."""
    pages = [
        f"{name}.html"
        for name in run.made("suffix", ".html")
        if name.startswith(("attention_", "tokens_"))
    ]
    links = ", ".join(
        f'<a href="suffix/{text(name)}">{text(name.removesuffix(".html").replace("_", " "))}</a>'
        for name in pages
    )
    return Html(f"<p>Interactive views of the first prompt, beside this page: {links}.</p>")


def _replies(
    rows: Sequence[Mapping[str, Any]], conditions: Sequence[str], words: Words
) -> list[Html]:
    by_prompt: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(int(row["prompt"]), {})[row["condition"]] = row
    body = [
        (
            plain(f"{prompt}: {condition}"),
            plain(of_prompt[condition]["instruction"]),
            plain(of_prompt[condition]["response"]),
            numeric(of_prompt[condition]["score"], 2),
        )
        for prompt, of_prompt in list(by_prompt.items())[:_REPLIES]
        for condition in conditions
        if condition in of_prompt
    ]
    heads = ["prompt and condition", "user turn", "reply", words.number]
    return [Html(f"<h3>{text(f'First test {words.prompts}')}</h3>"), table(heads, body)]


_COSINE = (
    "Cosine with r at the last token, by layer: mean over prompts, bands one population standard "
    "deviation (paper, Fig. 5)."
)
_HEADS = (
    "What the top heads write along the unit direction into the residual stream entering layer "
    "{layer}, at the last token (paper, Fig. 6a). The heads were chosen once, on {prompts} "
    "without a suffix, from the layers below."
)
_ATTENTION = (
    "Attention of the same heads from the last token, summed over the tokens of each region "
    "(paper, Fig. 6b). What is missing to the number of heads goes to template and BOS."
)
_SOURCES = (
    "The same contributions by the region that was read: attention times what each value writes "
    "along the direction."
)
_EFFECTS = (
    "Causal check: the heads' outputs at the last token are set to zero, to their mean over "
    "{kinds} {prompts}, or to what they are under the other suffix on the same "
    "instruction. Dots: as many random other heads."
)
_EFFECTS_SCORE = "The same for the {score}, which also counts what later layers do."
_LOSSES = (
    "Per prompt, random minus adversarial suffix: attention to the instruction, what the heads "
    "write, and the {score}."
)
_MAP = (
    "Projection of the residual stream on the unit direction, by token and layer, for the first "
    "prompt; tokens coloured by region (instruction, suffix, template). The instruction's part is "
    "the same in all conditions, since nothing later can change it."
)
_CONTRIBUTIONS = "What each source token adds to each head's contribution at the last token."
