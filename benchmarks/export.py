"""Streamed export of edited weights against a plain copy of the same folder: time and peak memory.

    python benchmarks/export.py [--layers 5] [--repeats 5] [--folder /tmp/export-benchmark]
    python benchmarks/export.py --estimate

A checkpoint with the shapes of Llama-3 8B but fewer layers (5: 4.3 GB in bf16, shards of about 1 GB)
is made of random numbers. `cp -r` and the export take turns; each export runs in a process of its
own, timed from the headers to the rename, without the start of Python. Memory is the highest resident
set of that process, and what it was after the imports. --estimate prints what large models need, from
their shapes alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, INNER, VOCAB, KV = 4096, 14336, 128256, 1024
SHARD = 1 << 30
LARGE = {
    "Llama-3 70B": {
        "model_type": "llama",
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
    "Gemma-2 27B": {
        "model_type": "gemma2",
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_hidden_layers": 46,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "vocab_size": 256000,
    },
    "DeepSeek-V3 671B": {"model_type": "deepseek_v3"},
}


def main() -> None:
    """Make the checkpoint, time both in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--estimate", action="store_true")
    parser.add_argument("--export", nargs=2, type=Path, default=None, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.estimate:
        estimate()
    elif asked.export is not None:
        export(*asked.export, threads=asked.threads)
    else:
        folder = asked.folder or Path(tempfile.mkdtemp(prefix="export-benchmark-"))
        try:
            compare(folder, asked)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def compare(folder: Path, asked: argparse.Namespace) -> None:
    """Copies and exports in turn; the first pair only warms the page cache."""
    source = folder / "source"
    checkpoint(source, asked.layers)
    pairs = []
    for index in range(asked.repeats + 1):
        pair = {"copy": copied(source, folder / "copy"), **exported(source, folder / "out", asked.threads)}
        if index:
            pairs.append(pair)
            ratio = pair["export"] / pair["copy"]
            print(f"copy {pair['copy']:.2f} s, export {pair['export']:.2f} s, {ratio:.2f}x", flush=True)
    size = sum(p.stat().st_size for p in source.iterdir())
    ratios = sorted(pair["export"] / pair["copy"] for pair in pairs)
    found = {
        "gigabytes": size / 1e9,
        "copy_seconds": statistics.median(pair["copy"] for pair in pairs),
        "export_seconds": statistics.median(pair["export"] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "largest_edited_mb": pairs[0]["largest"] / 1e6,
        "edited_gigabytes": pairs[0]["edited"] / 1e9,
        "base_mb": max(pair["base"] for pair in pairs),
        "peak_mb": max(pair["peak"] for pair in pairs),
    }
    found["above_base"] = (found["peak_mb"] - found["base_mb"]) / found["largest_edited_mb"]
    print(
        f"{found['gigabytes']:.2f} GB, {found['edited_gigabytes']:.2f} GB edited: "
        f"cp -r {found['copy_seconds']:.2f} s, export {found['export_seconds']:.2f} s, "
        f"{found['ratio']:.2f}x (pairs {ratios[0]:.2f} to {ratios[-1]:.2f})\n"
        f"peak {found['peak_mb']:.0f} MB, of which {found['base_mb']:.0f} MB after the imports: "
        f"{found['peak_mb'] - found['base_mb']:.0f} MB above it, {found['above_base']:.2f}x the largest "
        f"edited tensor ({found['largest_edited_mb']:.0f} MB)"
    )
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def copied(source: Path, target: Path) -> float:
    """Seconds of ``cp -r``."""
    os.sync()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def exported(source: Path, out: Path, threads: int) -> dict[str, float]:
    """Seconds and megabytes of an export in a process of its own."""
    os.sync()
    command = [sys.executable, __file__, "--threads", str(threads), "--export", str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    shutil.rmtree(out)
    return json.loads(done.stdout.splitlines()[-1])


def export(source: Path, out: Path, *, threads: int) -> None:
    """One export, measured; printed as JSON."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    from refusal_lens.weights import orthogonalise, prepare, write_checkpoint

    torch.set_num_threads(threads)
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prepare(tiny(), orthogonalise(vector[:16]))  # what transformers imports on first use
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start = time.perf_counter()
    job = prepare(source, orthogonalise(vector))
    write_checkpoint(job, out, provenance={})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        json.dumps(
            {
                "export": seconds,
                "base": base,
                "peak": peak,
                "largest": job.largest_edited,
                "edited": job.edited_bytes,
            }
        )
    )


def tiny() -> Path:
    """A model of a few kilobytes, to do the imports with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(tempfile.mkdtemp())
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            vocab_size=16,
        )
    ).save_pretrained(folder)
    return folder


def checkpoint(folder: Path, layers: int) -> None:
    """A sharded bf16 Llama of random numbers, without ever holding more than a shard."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    folder.mkdir(parents=True)
    LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=VOCAB,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    ).save_pretrained(folder)
    noise = (0.02 * torch.randn(1 << 24, generator=torch.Generator().manual_seed(1))).bfloat16()
    names: list[dict[str, tuple[int, ...]]] = [{}]
    held = 0
    for name, shape in shapes(layers).items():
        size = 2 * torch.Size(shape).numel()
        if held and held + size > SHARD:
            names.append({})
            held = 0
        names[-1][name] = shape
        held += size
    weight_map = {}
    for number, shard in enumerate(names, start=1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        made = {}
        for name, shape in shard.items():
            count = torch.Size(shape).numel()
            made[name] = noise.repeat(count // len(noise) + 1)[:count].view(shape).clone()
        save_file(made, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        found |= {
            f"{block}.self_attn.q_proj.weight": (WIDTH, WIDTH),
            f"{block}.self_attn.k_proj.weight": (KV, WIDTH),
            f"{block}.self_attn.v_proj.weight": (KV, WIDTH),
            f"{block}.self_attn.o_proj.weight": (WIDTH, WIDTH),
            f"{block}.mlp.gate_proj.weight": (INNER, WIDTH),
            f"{block}.mlp.up_proj.weight": (INNER, WIDTH),
            f"{block}.mlp.down_proj.weight": (WIDTH, INNER),
            f"{block}.input_layernorm.weight": (WIDTH,),
            f"{block}.post_attention_layernorm.weight": (WIDTH,),
        }
    return found | {"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCAB, WIDTH)}


def estimate() -> None:
    """What models too large for this machine need, from their shapes."""
    from transformers import AutoConfig

    from refusal_lens.weights.estimate import estimate as of_shapes

    for name, fields in LARGE.items():
        print(name)
        for line in of_shapes(AutoConfig.for_model(**fields)).lines:
            print(f"  {line}")


if __name__ == "__main__":
    main()
