"""The paper's Fig. 6 for any model: what the top heads write and where they look, under a suffix.

    python experiments/06_suffix_attribution/run.py
    python experiments/06_suffix_attribution/run.py --run runs/Qwen1.5-1.8B-Chat

Draws from a run that has the suffix study (experiments/05_suffix_cosine makes one); without --run
it makes the one of the organism.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from refusal_lens.pipeline import RunConfig, run_pipeline
from refusal_lens.pipeline.page import open_folder
from refusal_lens.pipeline.suffix_job import run_suffix_study
from refusal_lens.plotting.heads import (
    head_attention,
    head_attribution,
    head_effects,
    head_sources,
)
from refusal_lens.plotting.suffix import suffix_behaviour, suffix_losses
from refusal_lens.plotting.tokens import contribution_map, projection_map
from refusal_lens.report.sections.suffix import headline
from refusal_lens.runs import read_csv, read_json, write_csv, write_json, write_text

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "figures" / HERE.name


def main() -> None:
    """Draw every figure of the study; prints the heads' numbers per condition."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--png", action="store_true", help="PNG too: needs the extra `figures`")
    asked = parser.parse_args()
    run = asked.run or Path("runs") / "organism"
    if asked.run is None:
        run_pipeline(RunConfig(), run)
        run_suffix_study(run)
    folder = run / "suffix"
    summary, values = (
        read_json(folder / "summary.json"),
        read_csv(folder / "values.csv", text=("region",)),
    )
    effects, lost = read_csv(folder / "effects.csv"), read_csv(folder / "lost.csv")
    by_token = [s for s in read_json(folder / "tokens.json") if s["prompt"] == 0]
    labels = open_folder(run).labels
    figures = {
        "heads": head_attribution(values, labels=labels),
        "attention": head_attention(values),
        "sources": head_sources(values, labels=labels),
        "effects": head_effects(effects, labels=labels),
        "effects_score": head_effects(effects, labels=labels, quantity="score"),
        "losses": suffix_losses(lost),
        "behaviour": suffix_behaviour(values, labels=labels),
        "projection_map": projection_map(by_token, selected_layer=summary["layer"]),
        "contribution_map": contribution_map(by_token),
    }
    heads = values[values["quantity"].isin(["dfa", "attention", "source dfa"])]
    grouped = heads.groupby(
        ["quantity", "condition", "layer", "head", "region"], sort=False, dropna=False
    )["value"]
    table = grouped.agg(mean="mean", sd=lambda v: v.std(ddof=0), n="size").reset_index()
    write_csv(asked.out / f"{run.name}.csv", table)
    write_json(asked.out / f"{run.name}.json", summary)
    for name, figure in figures.items():
        source = figure.to_html(include_plotlyjs="cdn")
        write_text(asked.out / f"{run.name}_{name}.html", source)
        if asked.png:
            figure.write_image(asked.out / f"{run.name}_{name}.png", scale=2)
    print(headline(summary, labels))
    for name, found in summary["conditions"].items():
        looks = ", ".join(f"{region} {a:.2f}" for region, a in found["attention"].items())
        print(f"{name}: heads write {found['dfa']:.2f}; attention to {looks}")
    for row in summary["causal"]:
        print(
            f"{row['edit']} in {row['condition']}, {row['quantity']}: {row['before']:.2f} "
            f"{row['top']:+.2f} by the top heads, {row['random_mean']:+.2f} "
            f"({row['random_min']:+.2f} to {row['random_max']:+.2f}) by {row['n_random']} random sets"
        )
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
