"""Losses: what each edit costs on the plain model's own replies to the negative prompts (paper, Table 9)."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any

import pandas as pd
from msgspec import Struct

from ...conversations import prompt_of_row
from ...evaluation import reply_loss
from ...evaluation.conditions import condition_text
from ...report.entry import Entry
from ...report.folder import RunFolder
from ...report.markup import Section, numeric, paragraph, plain, table
from ...runs import OpenStep, Table
from ...runs.schema import Number
from ..job import Job
from ..step import Step

log = logging.getLogger(__name__)

COLUMNS = ("ce", "perplexity", "n_tokens")


class Loss(Struct):
    """Cross-entropy of one condition."""

    ce: Number = None
    perplexity: Number = None
    n_tokens: Number = None


def work(job: Job, step: OpenStep) -> None:
    """On-distribution CE of the plain model's own replies under each edit."""
    rows = job.completions(1, "baseline")
    replies = [row["reply_ids"] for row in rows]
    if not any(replies):
        log.warning("losses: left empty, since every reply of the unedited model is")
    prompts = [prompt_of_row(row) for row in rows]
    losses = []
    for condition in ("baseline", "ablation", "addition", "subtraction"):
        loss = reply_loss(
            job.model,
            prompts,
            replies,
            edit=job.edit(condition),
            on_progress=job.progress(f"losses, {condition}"),
        )
        losses.append({"condition": condition, **asdict(loss), "perplexity": loss.perplexity})
    step.write_csv("losses.csv", pd.DataFrame(losses)[["condition", *COLUMNS]])


def summary(job: Job) -> dict[str, Any]:
    """Cross-entropy, perplexity and tokens of each condition."""
    rows = job.read("losses.csv").to_dict("records")
    return {"losses": {row["condition"]: {name: row[name] for name in COLUMNS} for row in rows}}


_TEXT = (
    "Cross-entropy per token in nats, perplexity its exponential. On-distribution: the unedited "
    "model\u2019s own completions of {prompts}, completion tokens only."
)
_DATASETS = {"on_distribution": "on-distribution", "pile": "The Pile", "alpaca": "Alpaca"}
_HEAD = ("data", "condition", "CE loss", "against unedited", "perplexity", "tokens")


def render(run: RunFolder) -> Section | None:
    """A row per data set and condition, with the difference from the unedited model."""
    losses = run.table("losses.csv")
    if losses is None:
        return None
    if "dataset" not in losses:
        losses["dataset"] = "on_distribution"
    plain_model = losses[losses["condition"] == "baseline"].set_index("dataset")["ce"].to_dict()
    rows = [
        [
            plain(_DATASETS.get(row["dataset"], row["dataset"])),
            plain(condition_text(row["condition"])),
            numeric(row["ce"]),
            numeric(row["ce"] - plain_model.get(row["dataset"], float("nan"))),
            numeric(row["perplexity"]),
            numeric(row["n_tokens"], 0),
        ]
        for row in losses.to_dict("records")
    ]
    text = _TEXT.format(prompts=run.labels.prompts(1))
    return Section("losses", "Losses", (paragraph(text), table(_HEAD, rows, css="data")))


STEPS = (
    Step(
        "losses",
        work,
        ("selection", "completions_{negative}_baseline"),
        files={"losses.csv": Table({}, COLUMNS, ("condition",), more_words=("dataset",))},
        summary=summary,
        summary_forms={"losses": dict[str, Loss]},
        absent={"losses": {}},
        sections=(Entry(120, "losses", "losses.csv", render, of_a_direction=True),),
    ),
)
