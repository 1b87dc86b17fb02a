"""The sections of the report, in reading order.

A section is a function from a run folder to a `Section`, or to None when the run lacks its data.
A new one is a module here and a line in `SECTIONS`; one that belongs to an optional study is
marked so, and is not missed where the study was not made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refusal_lens.report.folder import RunFolder
from refusal_lens.report.markup import Section
from refusal_lens.report.sections import (
    candidates,
    compared,
    completions,
    cosine,
    exports,
    losses,
    nulls,
    pca,
    provenance,
    rates,
    reference,
    scores,
    suffix,
    sweeps,
    tokens,
)


@dataclass(frozen=True)
class Entry:
    """A section's renderer, with what to say when it is missing: its name and the file it needs.

    of_a_direction: whether a run that selected no direction leaves it out.
    """

    title: str
    needs: str
    render: Callable[[RunFolder], Section | None]
    optional: bool = False
    of_a_direction: bool = False


SECTIONS: tuple[Entry, ...] = (
    Entry("agreement with the reference", "a reference run", reference.render, optional=True),
    Entry("rates", "rates in summary.json", rates.render),
    Entry("layer sweeps", "candidates.csv", sweeps.render, of_a_direction=True),
    Entry("cosine similarity by layer", "curves.csv", cosine.render, of_a_direction=True),
    Entry("scores of each prompt", "metrics.csv", scores.render),
    Entry("top next tokens", "top_tokens.csv", tokens.render),
    Entry("principal components", "pca.csv", pca.render),
    Entry("suffix study", "suffix/", suffix.render, optional=True),
    Entry("candidates", "candidates.csv", candidates.render, of_a_direction=True),
    Entry("completions", "completions/*.jsonl", completions.render),
    Entry("replies compared", "summary.json", compared.render, optional=True, of_a_direction=True),
    Entry("nulls", "nulls.csv", nulls.render, of_a_direction=True),
    Entry("losses", "losses.csv", losses.render, of_a_direction=True),
    Entry("exports", "exports/", exports.render, optional=True),
    Entry("provenance", "summary.json and manifest.json", provenance.render),
)

__all__ = ["SECTIONS", "Entry"]
