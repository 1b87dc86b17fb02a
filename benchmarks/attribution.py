"""Head attribution against TransformerLens' stack_head_results: time and peak memory.

    python benchmarks/attribution.py [--device cuda] [--heads 32] [--layers 8] [--width 1024]

Both routes answer the same question on the same random Llama and the same prompts: what every head
below the last layer writes along one unit direction at the last token. Each runs in a process of
its own; memory is what the process needs at its peak beyond the loaded model and its inputs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROUTES = ("refusal_lens", "stack_head_results", "stack_head_results, last position cached")


def main() -> None:
    """Measure every route, check that they agree, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    asked = parser.parse_args()
    found = {route: _apart(route, asked) for route in ROUTES}
    mine = found[ROUTES[0]]
    print(f"{'route':<42}{'seconds':>9}{'peak MB':>10}{'memory':>9}{'time':>7}")
    for route, one in found.items():
        print(
            f"{route:<42}{one['seconds']:>9.3f}{one['megabytes']:>10.1f}"
            f"{one['megabytes'] / mine['megabytes']:>8.1f}x"
            f"{one['seconds'] / mine['seconds']:>6.2f}x"
        )
        gap = max(abs(a - b) for a, b in zip(one["dfa"], mine["dfa"], strict=True))
        assert gap < 1e-4 * max(map(abs, mine["dfa"])), f"{route} disagrees by {gap}"
    if asked.json is not None:
        rows = {route: {k: v for k, v in one.items() if k != "dfa"} for route, one in found.items()}
        settings = {k: v for k, v in vars(asked).items() if k != "json"}
        asked.json.write_text(json.dumps({"settings": settings, "routes": rows}, indent=2) + "\n")


def _apart(route: str, asked: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, route, asked).result()


def _measure(route: str, asked: argparse.Namespace) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(asked.threads)
    model, rendered, direction = _setting(asked)
    answers: dict[str, Callable[[], torch.Tensor]] = {
        ROUTES[0]: partial(_ours, model, rendered, direction),
        ROUTES[1]: partial(_theirs, model, rendered, direction, last=False),
        ROUTES[2]: partial(_theirs, model, rendered, direction, last=True),
    }
    ask, peaks, seconds, dfa = answers[route], [], [], None
    with torch.no_grad():
        model.run(rendered.ids, rendered.mask)
        for _ in range(asked.repeats):
            before = _reset_peak(model.device)
            # On a CPU that others use too, processor time is what repeats.
            clock = time.process_time if model.device.type == "cpu" else time.perf_counter
            began = clock()
            dfa = ask()
            _wait(model.device)
            seconds.append(clock() - began)
            peaks.append(_peak(model.device) - before)
    return {"seconds": min(seconds), "megabytes": min(peaks) / 2**20, "dfa": dfa.flatten().tolist()}


def _setting(asked: argparse.Namespace) -> tuple[Any, Any, Any]:
    """A random Llama behind a bridge, prompts of equal length, and a direction."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import LlamaConfig, LlamaForCausalLM

    from refusal_lens.chat import Place, Rendered
    from refusal_lens.directions import Direction
    from refusal_lens.model import ChatModel

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=asked.width,
        intermediate_size=2 * asked.width,
        num_hidden_layers=asked.layers,
        num_attention_heads=asked.heads,
        attn_implementation="eager",
    )
    hf = LlamaForCausalLM(config).to(asked.device).eval()
    folder, tokenizer = _tokenizer()
    hf.config._name_or_path = folder
    config.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=hf, tokenizer=tokenizer, dtype=torch.float32
    )
    model = ChatModel(bridge, _NoChat(), name="random", revision=None)
    n, length = asked.batch, asked.tokens
    ids = torch.randint(0, 512, (n, length), device=model.device)
    span = torch.tensor([[1, length]]).expand(n, -1).to(model.device)
    end = torch.full((n, 2), length, device=model.device)
    rendered = Rendered(ids, torch.ones_like(ids), span, span, end, ("end",), ("",) * n)
    return model, rendered, Direction(torch.randn(asked.width), asked.layers - 1, Place.post(-1))


class _NoChat:
    template_sha256 = ""


def _tokenizer() -> tuple[str, Any]:
    from tempfile import mkdtemp

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = mkdtemp()
    bare = Tokenizer(models.WordLevel({str(i): i for i in range(512)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="0", pad_token="0")
    tokenizer.save_pretrained(folder)
    tokenizer.name_or_path = folder
    return folder, tokenizer


def _ours(model: Any, rendered: Any, direction: Any) -> Any:
    from refusal_lens.attribution import attribute

    found = attribute(model, rendered, direction, batch_size=len(rendered))
    return found.heads[:, 0]


def _theirs(model: Any, rendered: Any, direction: Any, *, last: bool) -> Any:
    """The documented route: cache z, stack every head's result, project."""
    options = {"pos_slice": -1} if last else {}
    _, cache = model.bridge.run_with_cache(
        rendered.ids,
        names_filter=[f"blocks.{i}.attn.hook_z" for i in range(model.n_layers)],
        return_type=None,
        **options,
    )
    stack = cache.stack_head_results(layer=direction.layer, pos_slice=None if last else -1)
    along = stack.double() @ direction.unit.to(stack.device)
    rows = along.reshape(direction.layer, model.n_heads, len(rendered))
    return rows.permute(2, 0, 1)


def _wait(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def _reset_peak(device: Any) -> int:
    """Forget the peak so far; return the memory in use."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(name)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
