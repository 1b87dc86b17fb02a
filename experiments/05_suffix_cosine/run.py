"""The paper's Fig. 5 for any model: cosine with r by layer, with and without a suffix.

    python experiments/05_suffix_cosine/run.py
    python experiments/05_suffix_cosine/run.py --model Qwen/Qwen1.5-1.8B-Chat \
        --harmful harmful.txt --harmless harmless.txt --suffix-file suffix.txt

Finds the direction (the main job, in runs/<model>), adds the suffix study to that run, and draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from refusal_lens.pipeline import LoadOptions, RunConfig, run_pipeline
from refusal_lens.pipeline.suffix_job import SuffixConfig, run_suffix_study
from refusal_lens.plotting.suffix import suffix_cosine
from refusal_lens.runs import read_csv, write_csv, write_json, write_text
from refusal_lens.studies.suffix import read_suffix

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parents[1] / "figures" / HERE.name


def main() -> None:
    """Run, study, draw; prints the mean cosines from l* on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organism")
    parser.add_argument("--harmful", default=None)
    parser.add_argument("--harmless", default=None)
    parser.add_argument("--suffix-file", type=Path, default=None)
    parser.add_argument("--n-test", type=int, default=100)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--out", type=Path, default=FIGURES)
    parser.add_argument("--png", action="store_true", help="PNG too: needs the extra `figures`")
    asked = parser.parse_args()
    name = asked.model.rstrip("/").split("/")[-1]
    run = Path("runs") / name
    config = RunConfig(
        model=asked.model,
        positive=asked.harmful,
        negative=asked.harmless,
        n_test=asked.n_test,
        device=asked.device,
        dtype=asked.dtype,
    )
    run_pipeline(config, run)
    suffix = None if asked.suffix_file is None else read_suffix(asked.suffix_file)
    options = LoadOptions(asked.dtype, asked.device)
    summary = run_suffix_study(run, SuffixConfig(suffix), options=options)
    values = read_csv(run / "suffix" / "values.csv", text=("region",))
    values = values[values["quantity"] == "cosine"]
    figure = suffix_cosine(values, selected_layer=summary["layer"])
    grouped = values.groupby(["condition", "layer"], sort=False)["value"]
    table = grouped.agg(mean="mean", sd=lambda v: v.std(ddof=0), n="size").reset_index()
    write_csv(asked.out / f"{name}.csv", table)
    write_json(asked.out / f"{name}.json", summary)
    write_text(asked.out / f"{name}.html", figure.to_html(include_plotlyjs="cdn"))
    if asked.png:
        figure.write_image(asked.out / f"{name}.png", scale=2)
    wide = table.pivot(index="layer", columns="condition", values="mean")
    print(wide[list(dict.fromkeys(table["condition"]))].round(3).to_string())
    print(f"written to {asked.out}")


if __name__ == "__main__":
    main()
