"""The suffix study: why an adversarial suffix works. Model text here is untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from refusal_lens.errors import InputError
from refusal_lens.plotting.heads import (
    head_attention,
    head_attribution,
    head_effects,
    head_sources,
)
from refusal_lens.plotting.suffix import suffix_cosine, suffix_losses, suffix_refusal
from refusal_lens.plotting.theme import visible
from refusal_lens.plotting.tokens import contribution_map, projection_map
from refusal_lens.report.facts import change, signed
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

HARMFUL, RANDOM, ADVERSARIAL = (
    "harmful",
    "harmful + random suffix",
    "harmful + adversarial suffix",
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
    stories = [story for story in _contents(run, "stories.json") if story["prompt"] == 0]
    layer = int(summary["layer"])
    parts: list[Html | Plot] = [
        paragraph(headline(summary)),
        paragraph(f"The suffix, as it stands: {visible(summary['suffix'])}", css="metric"),
        *(paragraph(sentence) for sentence in _evidence(summary)),
        *_figures(summary, values, lost, effects),
        _correlations(summary["correlations"]),
        Plot("suffix_projection_map", projection_map(stories, selected_layer=layer), _MAP),
        Plot("suffix_contribution_map", contribution_map(stories), _CONTRIBUTIONS),
        _views(run),
        *_replies(_contents(run, "completions.jsonl")),
    ]
    return Section("suffix", title(summary, values), tuple(parts))


def title(summary: Mapping[str, Any], values: pd.DataFrame) -> str:
    """What the suffix does to refusal, plain and beside random suffixes: judge first, then metric."""
    names = (HARMFUL, RANDOM, ADVERSARIAL)
    judged: list[Rate] = [summary["conditions"][name]["refusal_rate"] for name in names]
    for rates in (judged, _above_zero(values, names)):
        plain_, random, adversarial = rates
        effect = change(plain_, adversarial), change(random, adversarial)
        if effect != ("none", "none"):
            break
    else:
        return "A suffix that does nothing measurable to refusal"
    where = "" if rates is judged else "\u2019s metric, not the replies"
    if effect == ("lowers", "lowers"):
        return f"A suffix that lowers refusal{where}" if where else "Why the suffix works"
    if "raises" in effect:
        return f"A suffix that raises refusal{where}"
    if effect[0] == "lowers":
        return f"A suffix that lowers refusal{where}, no more than random suffixes do"
    return f"A suffix that lowers refusal{where} only beside random suffixes"


def _above_zero(values: pd.DataFrame, names: Sequence[str]) -> list[Rate]:
    """Per condition the share of prompts whose refusal metric is above zero."""
    metric = values[values["quantity"] == "metric"].groupby("condition")["value"]
    return [
        {"rate": float((own > 0).mean()), "n": float(len(own))}
        for own in (metric.get_group(name) for name in names)
    ]


def headline(summary: Mapping[str, Any]) -> str:
    """The study in a sentence with its numbers, whatever they say."""
    found = summary["conditions"]
    plain_, random, adversarial = (found[name] for name in (HARMFUL, RANDOM, ADVERSARIAL))
    rates = [percent(c["refusal_rate"]["rate"]) for c in (plain_, random, adversarial)]
    metrics = [signed(c["metric"]) for c in (plain_, random, adversarial)]
    looks = [c["attention"]["instruction"] for c in (random, adversarial)]
    writes = [c["dfa"] for c in (random, adversarial)]
    n = len(summary["heads"])
    heads = f"{n} head{'s' if n > 1 else ''}"
    return (
        f"Refusal of harmful instructions: {rates[0]} plain, {rates[1]} with random suffixes, "
        f"{rates[2]} with the adversarial one (mean refusal metric {', '.join(metrics)} nats). The "
        f"{heads} that write most of the direction give the instruction {_change(*looks)} of their "
        f"attention and write {_change(*writes)} along it."
    )


def _change(before: float, after: float) -> str:
    return f"{number(after, 2)} instead of {number(before, 2)}"


def _evidence(summary: Mapping[str, Any]) -> list[str]:
    level, checks = summary["layers_at_harmless_level"], summary["checks"]
    kept = summary["kept"]
    tokens = summary["n_suffix_tokens"]
    length = str(tokens[0]) if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
    merged = summary["merged_at_border"]
    border = (
        f" In {merged} of them a token straddles the border of instruction and suffix and counts "
        "as suffix."
        if merged
        else ""
    )
    return [
        f"{kept['harmful']['kept']} of {kept['harmful']['of']} harmful test instructions are "
        f"refused without a suffix and {kept['harmless']['kept']} of {kept['harmless']['of']} "
        f"harmless ones answered; these are studied. The suffix has {length} tokens, the random "
        f"ones as many, drawn afresh for every prompt.{border}",
        f"In {level['n']} of {level['of']} layers from layer {summary['layer']} on, the mean "
        "cosine with the suffix is at most one standard deviation above that of harmless "
        "instructions.",
        f"Checks: the residual streams of the instruction's tokens change by at most a share of "
        f"{checks['instruction_unchanged']:.1g} when the suffix follows (causal attention), and "
        f"contributions add up to the projection within {checks['attribution_error']:.1g}.",
    ]


def _figures(
    summary: Mapping[str, Any], values: pd.DataFrame, lost: pd.DataFrame, effects: pd.DataFrame
) -> list[Plot]:
    layer = int(summary["layer"])
    return [
        Plot("suffix_cosine", suffix_cosine(values, selected_layer=layer), _COSINE),
        Plot("suffix_refusal", suffix_refusal(values), _REFUSAL),
        Plot("suffix_heads", head_attribution(values), _HEADS.format(layer=layer)),
        Plot("suffix_attention", head_attention(values), _ATTENTION),
        Plot("suffix_sources", head_sources(values), _SOURCES),
        Plot("suffix_effects", head_effects(effects), _EFFECTS),
        Plot("suffix_effects_metric", head_effects(effects, quantity="metric"), _EFFECTS_METRIC),
        Plot("suffix_losses", suffix_losses(lost), _LOSSES),
    ]


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


def _replies(rows: Sequence[Mapping[str, Any]]) -> list[Html]:
    by_prompt: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(int(row["prompt"]), {})[row["condition"]] = row
    body = [
        (
            plain(f"{prompt}: {condition}"),
            plain(own[condition]["instruction"]),
            plain(own[condition]["response"]),
            numeric(own[condition]["metric"], 2),
        )
        for prompt, own in list(by_prompt.items())[:_REPLIES]
        for condition in (HARMFUL, RANDOM, ADVERSARIAL)
        if condition in own
    ]
    heads = ["prompt and condition", "user turn", "reply", "metric"]
    return [Html("<h3>First test instructions</h3>"), table(heads, body)]


_COSINE = (
    "Cosine with r at the last token, by layer: mean over prompts, bands one population standard "
    "deviation (paper, Fig. 5)."
)
_REFUSAL = (
    "Left: share of replies with a refusal phrase; bars are one standard error. Right: log-odds of "
    "a refusal at the first reply token, a dot per prompt."
)
_HEADS = (
    "What the top heads write along the unit direction into the residual stream entering layer "
    "{layer}, at the last token (paper, Fig. 6a). The heads were chosen once, on harmful "
    "instructions without a suffix, from the layers below."
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
    "harmful and harmless instructions, or to what they are under the other suffix on the same "
    "instruction. Dots: as many random other heads."
)
_EFFECTS_METRIC = "The same for the refusal metric, which also counts what later layers do."
_LOSSES = (
    "Per prompt, random minus adversarial suffix: attention to the instruction, what the heads "
    "write, and the refusal metric."
)
_MAP = (
    "Projection of the residual stream on the unit direction, by token and layer, for the first "
    "prompt; tokens coloured by region (instruction, suffix, template). The instruction's part is "
    "the same in all conditions, since nothing later can change it."
)
_CONTRIBUTIONS = "What each source token adds to each head's contribution at the last token."
