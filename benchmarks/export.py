"""Streamed export of edited weights against a plain copy of the same folder: time and peak memory.

    python benchmarks/export.py [--layers 5] [--repeats 5] [--folder /tmp/export-benchmark]
    python benchmarks/export.py --estimate

A checkpoint with the shapes of Llama-3 8B but fewer layers (5: 4.3 GB in bf16, shards of about 1 GB)
is made of random numbers. `cp -r` and the export take turns, and which goes first; each export runs in a
process of its own, timed from the headers to the rename, without the start of Python. Two ratios are
told: of the time on the clock, and of the processor's time (user and system). Before each, as much free
memory as the copy will fill is touched, since on a virtual machine the first touch of a page costs more
than copying to it. Memory is the highest resident set of the export's process, and what it was after the
imports. --estimate prints what large models need, from their shapes alone.
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
from typing import Any

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
        copy_first = index % 2 == 0
        pair = copied(source, folder / "copy") if copy_first else {}
        pair |= exported(source, folder / "out", asked.threads)
        pair |= {} if copy_first else copied(source, folder / "copy")
        if index:
            pairs.append(pair)
            print(
                f"cp -r {pair['copy']:.2f} s (processor {pair['copy_cpu']:.2f} s), "
                f"export {pair['export']:.2f} s ({pair['export_cpu']:.2f} s), "
                f"{pair['export'] / pair['copy']:.2f}x ({pair['export_cpu'] / pair['copy_cpu']:.2f}x)",
                flush=True,
            )
    found = summary(pairs) | {"gigabytes": sum(p.stat().st_size for p in source.iterdir()) / 1e9}
    print(
        f"{found['gigabytes']:.2f} GB, {found['edited_gigabytes']:.2f} GB edited; medians of "
        f"{len(pairs)}: cp -r {found['copy']:.2f} s, export {found['export']:.2f} s, "
        f"{found['ratio']:.2f}x (pairs {min(found['ratios']):.2f} to {max(found['ratios']):.2f}); "
        f"processor {found['copy_cpu']:.2f} s, {found['export_cpu']:.2f} s, {found['ratio_cpu']:.2f}x\n"
        f"peak {found['peak_mb']:.0f} MB, of which {found['base_mb']:.0f} MB after the imports: "
        f"{found['peak_mb'] - found['base_mb']:.0f} MB above it, {found['above_base']:.2f}x the largest "
        f"edited tensor ({found['largest_edited_mb']:.0f} MB)"
    )
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def summary(pairs: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the pairs; the highest of memory."""
    names = ("copy", "copy_cpu", "export", "export_cpu")
    ratios = [pair["export"] / pair["copy"] for pair in pairs]
    base, peak = (max(pair[name] for pair in pairs) / 1e6 for name in ("base", "peak"))
    largest = pairs[0]["largest"] / 1e6
    return {
        **{name: statistics.median(pair[name] for pair in pairs) for name in names},
        "ratio": statistics.median(ratios),
        "ratio_cpu": statistics.median(p["export_cpu"] / p["copy_cpu"] for p in pairs),
        "ratios": ratios,
        "edited_gigabytes": pairs[0]["edited"] / 1e9,
        "largest_edited_mb": largest,
        "base_mb": base,
        "peak_mb": peak,
        "above_base": (peak - base) / largest,
    }


def settle(source: Path) -> None:
    """Wait for the disk, and touch free memory for one more copy of the source."""
    os.sync()
    size = sum(path.stat().st_size for path in source.iterdir())
    touch = f"import mmap; m = mmap.mmap(-1, {size})\nfor at in range(0, {size}, 4096): m[at] = 1"
    subprocess.run([sys.executable, "-c", touch], check=True)


def copied(source: Path, target: Path) -> dict[str, float]:
    """Seconds of ``cp -r``, on the clock and of the processor."""
    settle(source)
    before, start = os.times(), time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    seconds, after = time.perf_counter() - start, os.times()
    shutil.rmtree(target)
    used = after.children_user + after.children_system
    return {
        "copy": seconds,
        "copy_cpu": used - before.children_user - before.children_system,
    }


def exported(source: Path, out: Path, threads: int) -> dict[str, float]:
    """Seconds and bytes of an export in a process of its own."""
    settle(source)
    command = [
        sys.executable,
        __file__,
        "--threads",
        str(threads),
        "--export",
        str(source),
        str(out),
    ]
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
    base, start, used = highest_resident(), time.perf_counter(), time.process_time()
    job = prepare(source, orthogonalise(vector))
    write_checkpoint(job, out, provenance={})
    found = {
        "export": time.perf_counter() - start,
        "export_cpu": time.process_time() - used,
        "base": base,
        "peak": highest_resident(),
        "largest": job.largest_edited,
        "edited": job.edited_bytes,
    }
    print(json.dumps(found))


def highest_resident() -> int:
    """Most bytes that this process has had resident.

    Where /proc tells it; ru_maxrss counts what the parent had, too, and is in bytes on a Mac only.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


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
