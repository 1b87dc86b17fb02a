"""The suffix study as one more step of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..behaviours import FirstTokens
from ..conversations import row_of_prompt
from ..directions import Direction
from ..door import checked
from ..errors import InputError
from ..model import ChatModel
from ..plotting.tokens import attention_view, contribution_view
from ..progress import Progress
from ..report import write_report
from ..runs import Run, Step, read_json, read_jsonl
from ..studies.suffix import SuffixStudy, organism_suffix, study_suffix
from ..studies.suffix.suffixes import checked_suffix
from .config import chat_options
from .steps import settled_dtype

STEP = "suffix"


@checked
def run_suffix_study(
    folder: str | Path,
    *,
    suffix: str | None = None,
    n_heads: int | None = None,
    n_random_sets: int = 8,
    seed: int = 0,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    dtype: str | None = None,
    on_progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Add the suffix study to a run folder and its page; returns what suffix/summary.json holds.

    The model, direction, refusal tokens and test prompts are the run's own. suffix None is the
    bundled one, for runs on the organism. options go to `ChatModel.load` (device, device_map,
    trust_remote_code). Raises InputError for an unfinished run or a suffix that cannot be used; an
    earlier study stays as it is until the new one is whole.
    """
    path = Path(folder)
    config = Run.read(path).whole()["config"]
    if suffix is None:
        if config["model"] != "organism":
            raise InputError(
                f"suffix for {config['model']}: none given, and the bundled one is the organism's; "
                "name --suffix or --suffix-file"
            )
        suffix = organism_suffix()
    checked_suffix(suffix)
    where = {name: options.get(name) for name in ("device", "device_map")}
    asked = {
        "suffix": suffix,
        "n_heads": n_heads,
        "n_random_sets": n_random_sets,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "dtype": settled_dtype(dtype or config["dtype"], **where),
    }
    with (
        Run.open(path) as run,
        run.addition(STEP, inputs=asked, after=["behaviour", "selection"]) as step,
    ):
        if step.needed:
            _write(step, _study(run, config, asked, options, batch_size, on_progress))
    write_report(path)
    found: dict[str, Any] = read_json(path / "suffix" / "summary.json")
    return found


def _study(
    run: Run,
    config: Mapping[str, Any],
    asked: Mapping[str, Any],
    options: Mapping[str, Any],
    batch_size: int,
    on_progress: Progress | None,
) -> SuffixStudy:
    model = ChatModel.load(
        config["model"],
        revision=config["revision"],
        **chat_options(config),
        dtype=None if asked["dtype"] == "auto" else asked["dtype"],
        **options,
    )
    test = [row for row in read_jsonl(run.output("prompts.jsonl")) if row["split"] == "test"]
    kinds = list(dict.fromkeys(row["kind"] for row in test))
    tokens = read_json(run.output("behaviour.json"))["refusal_tokens"]["ids"]
    return study_suffix(
        model,
        Direction.load(run.output("direction.safetensors"), model),
        prompts={
            kind: [row["instruction"] for row in test if row["kind"] == kind] for kind in kinds
        },
        behaviour=FirstTokens(tuple(tokens)),
        batch_size=batch_size,
        on_progress=on_progress,
        **{name: value for name, value in asked.items() if name != "dtype"},
    )


def _write(step: Step, study: SuffixStudy) -> None:
    step.write_json("suffix/summary.json", study.summary())
    step.write_csv("suffix/values.csv", study.frame())
    step.write_csv("suffix/effects.csv", study.effects)
    step.write_csv("suffix/lost.csv", study.lost())
    step.write_jsonl(
        "suffix/completions.jsonl",
        [
            {
                "condition": name,
                "prompt": i,
                **row_of_prompt(completion.prompt),
                "response": completion.response,
                "refusal": completion.shows,
                "metric": completion.score,
            }
            for name, measured in study.conditions.items()
            for i, completion in enumerate(measured.completions)
        ],
    )
    stories = study.by_token()
    plain = [{k: v for k, v in story.items() if k != "pattern"} for story in stories]
    step.write_json("suffix/stories.json", plain)
    for story in stories:
        if story["prompt"] == 0:
            name = story["condition"].replace(" + ", "_").replace(" ", "_")
            step.write_text(f"suffix/attention_{name}.html", attention_view(story))
            step.write_text(f"suffix/tokens_{name}.html", contribution_view(story))

