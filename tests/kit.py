"""What several test files share: tiny models, their plain PyTorch twins, runs, commands, a browser."""

from __future__ import annotations

import atexit
import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from refusal_lens.behaviours import FirstTokens
from refusal_lens.chat import ChatFormat, Place, Rendered
from refusal_lens.directions import Candidates, Direction
from refusal_lens.metrics import first_token_log_odds
from refusal_lens.model import ChatModel
from refusal_lens.pipeline.summary import behaviour_summary
from refusal_lens.runs import Run

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT.parent / "shared" / "published-runs"
"""The runs that the paper's authors published, on the machines that have them beside the checkout."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|pad|>")
LAYERS, WIDTH, HEADS = 3, 32, 4


def byte_tokenizer() -> Any:
    """A ChatML tokenizer with one token per byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIALS))
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="left"
    )
    wrapped.chat_template = CHATML
    return wrapped


SHARED = {
    "vocab_size": 256 + len(SPECIALS),
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 256,
}
GROUPED = SHARED | {"num_key_value_heads": 2}

LATENT = SHARED | {
    **{"num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**GROUPED, attention_bias=True),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=None),
    "gemma": lambda: hf.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
    ),
    "neox": lambda: hf.GPTNeoXConfig(**SHARED),
    "phi3": lambda: hf.Phi3Config(**GROUPED, pad_token_id=258, eos_token_id=257, bos_token_id=None),
    "gpt2": lambda: hf.GPT2Config(
        vocab_size=SHARED["vocab_size"], n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=256
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=16, query_pre_attn_scalar=8
    ),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED, attention_bias=True),
    "granite": lambda: hf.GraniteConfig(**GROUPED, residual_multiplier=0.5),
    "deepseek_v2": lambda: hf.DeepseekV2Config(**LATENT, topk_method="greedy"),
    "deepseek_v3": lambda: hf.DeepseekV3Config(**LATENT),
    "glm4_moe_lite": lambda: hf.Glm4MoeLiteConfig(**LATENT),
    "mixtral": lambda: hf.MixtralConfig(
        **GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=None
    ),
    "qwen2_moe": lambda: hf.Qwen2MoeConfig(
        **GROUPED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
}
"""Those that TransformerLens has a bridge for, every way from the heads to the stream among them."""


def temporary(name: str) -> Path:
    """A new folder that goes when the process ends."""
    path = Path(mkdtemp(prefix=f"{name}-"))
    atexit.register(rmtree, path, ignore_errors=True)
    return path


def shaken(model: Any, by: float = 0.15) -> Any:
    """The model with every parameter moved: what starts at zero or one hides mistakes."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return model


def save(model: Any, path: Path) -> Path:
    """Write a model with the byte tokenizer."""
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@lru_cache
def folder(architecture: str) -> Path:
    """The saved model of an architecture, made once: random weights, biases and norm scales."""
    torch.manual_seed(0)
    config = CONFIGS[architecture]()
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 258, 257, None
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.08
            centre = 1.0 if parameter.ndim == 1 and "norm" in name and "bias" not in name else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    return save(model, temporary(f"tiny-{architecture}"))


@lru_cache
def load(architecture: str) -> ChatModel:
    """The tiny model of an architecture, or the bundled one for "organism"; loaded once."""
    source = architecture if architecture == "organism" else str(folder(architecture))
    return ChatModel.load(source, device="cpu")


def plain(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The Hugging Face model of a folder, without TransformerLens."""
    return hf.AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="eager"
    ).eval()


def hooked_qwen2() -> Any:
    """The tiny Qwen2 as a HookedTransformer, converted by TransformerLens itself."""
    lens = pytest.importorskip("transformer_lens")
    conversions = pytest.importorskip("transformer_lens.pretrained.weight_conversions.qwen2")
    model = plain(folder("qwen2"))
    config = lens.HookedTransformerConfig(
        n_layers=LAYERS,
        d_model=WIDTH,
        d_head=WIDTH // HEADS,
        n_heads=HEADS,
        n_key_value_heads=model.config.num_key_value_heads,
        d_mlp=model.config.intermediate_size,
        n_ctx=256,
        eps=model.config.rms_norm_eps,
        d_vocab=model.config.vocab_size,
        act_fn="silu",
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_base=10000,
        rotary_dim=WIDTH // HEADS,
        rotary_adjacent_pairs=False,
        final_rms=True,
        gated_mlp=True,
        default_prepend_bos=False,
        device="cpu",
    )
    hooked = lens.HookedTransformer(config, load("qwen2").tokenizer)
    hooked.load_state_dict(conversions.convert_qwen2_weights(model, config), strict=False)
    return hooked.eval()


def direction(layer: int = 2, *, seed: int = 1, width: int = WIDTH, **facts: Any) -> Direction:
    """A random direction."""
    generator = torch.Generator().manual_seed(seed)
    vector = 3 * torch.randn(width, generator=generator).double()
    return Direction(vector, layer, Place.post(-1), **facts)


WIRING = ("transformer_lens.model_bridge", "transformers.models")
"""Where the hooks are written that a model has from the start."""


@contextmanager
def no_hook_left() -> Iterator[None]:
    """Fail if a hook that is registered within, on whatever module, is still there at the end."""
    handles: list[RemovableHandle] = []
    register = RemovableHandle.__init__

    def noted(handle: RemovableHandle, hooks: Any, **more: Any) -> None:
        register(handle, hooks, **more)
        handles.append(handle)

    RemovableHandle.__init__ = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        RemovableHandle.__init__ = register  # type: ignore[method-assign]
    if any(hooks_that_stay(handles)):
        # A module that nobody holds any more may wait for the collector.
        gc.collect()
    left = [getattr(hook, "__qualname__", repr(hook)) for hook in hooks_that_stay(handles)]
    assert not left, f"hooks left behind: {', '.join(left)}"


def hooks_that_stay(handles: Iterable[RemovableHandle]) -> Iterator[Any]:
    """The functions of handles that nobody removed, on modules that are still there.

    Those with which TransformerLens wires a bridge and transformers a model (to load old names of its weights) as it
    is made are part of the model.
    """
    for handle in handles:
        hook = (handle.hooks_dict_ref() or {}).get(handle.id)
        if hook and not getattr(_within(hook), "__module__", "").startswith(WIRING):
            yield hook


def _within(hook: Any) -> Any:
    """The function that a hook point's own wrapper calls, or the hook itself."""
    code, cells = getattr(hook, "__code__", None), getattr(hook, "__closure__", None)
    enclosed = dict(zip(code.co_freevars, cells or (), strict=True)) if code else {}
    return enclosed["hook"].cell_contents if "hook" in enclosed else hook


# ---------------------------------------------------------------- edits, by plain PyTorch

CLOSE = 1e-4
"""Largest difference of two logits in float32."""


def tokens(seed: int = 2) -> Tensor:
    return torch.randint(3, 250, (4, 9), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Logits of the tokens at every position, from a plain model."""
    return model(input_ids=tokens(), use_cache=False).logits


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@contextmanager
def readers_see_no(vector: Tensor, model: nn.Module, row: Any) -> Iterator[None]:
    """Project everything that reads the residual stream, with plain PyTorch hooks."""
    unit = (vector / vector.norm()).float()

    def without(x: Tensor) -> Tensor:
        return x - (x @ unit)[..., None] * unit

    def enter(_module: nn.Module, args: tuple, kwargs: dict) -> tuple:
        if row.beside and len(args) > 1:
            return (without(args[0]), without(args[1]), *args[2:]), kwargs
        if args:
            return (without(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": without(kwargs["hidden_states"])}

    def leave(_module: nn.Module, _args: tuple, output: object) -> object:
        return without(output) if isinstance(output, Tensor) else (without(output[0]), *output[1:])

    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS]
    blocks = lists[0]
    readers = [*blocks, *(block.get_submodule(name) for block in blocks for name in row.mid)]
    with ExitStack() as hooks:
        for reader in readers:
            hooks.callback(reader.register_forward_pre_hook(enter, with_kwargs=True).remove)
        hooks.callback(blocks[-1].register_forward_hook(leave).remove)
        yield


def hooked_logits(model: nn.Module, row: Any) -> Tensor:
    """Logits when no reader of the stream sees the direction."""
    with readers_see_no(direction().vector, model, row):
        return logits(model)


# ---------------------------------------------------------------- what a chat format renders


def ids_of(rendered: Rendered, i: int = 0) -> list[int]:
    """The tokens of a row without its padding."""
    return rendered.ids[i][rendered.mask[i].bool()].tolist()


def part(rendered: Rendered, region: str, i: int = 0) -> list[int]:
    return rendered.ids[i, slice(*getattr(rendered, region)[i].tolist())].tolist()


def shown(chat: ChatFormat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def controls(chat: ChatFormat) -> dict[int, str]:
    """Control tokens by id; of words alone the unknown token may stand for any."""
    words = isinstance(chat.tokenizer.backend_tokenizer.model, models.WordLevel)
    return {
        i: t.content
        for i, t in chat.tokenizer.added_tokens_decoder.items()
        if t.content.strip("\n ▁") and not (words and t.content == "<unk>")
    }


# ---------------------------------------------------------------- runs and commands

TOKENS = [40, 41]
PROMPTS = {
    "harmful": ["break the vase", "poison the well", "steal a car"],
    "harmless": ["water the plants", "bake some bread", "draw a map"],
}


def finished_run(path: Path, model_folder: Path) -> Path:
    """A finished run with a random direction of a model, and what that model says to the prompts."""
    model = ChatModel.load(str(model_folder))
    n = model.chat.n_positions
    generator = torch.Generator().manual_seed(0)
    means = [torch.randn(n, 3, 32, generator=generator, dtype=torch.float64) for _ in range(2)]
    facts = {"template_sha256": model.chat.template_sha256, "model": str(model_folder)}
    candidates = Candidates(means[0], means[1], Place.posts(n), model.chat.positions, facts)
    rows = [
        {"split": "test", "kind": kind, "instruction": text, "kept": True}
        for kind, texts in PROMPTS.items()
        for text in texts
    ]
    metrics = [
        {"kind": kind, "condition": "baseline", "index": i, "score": float(value)}
        for kind, texts in PROMPTS.items()
        for i, value in enumerate(first_token_log_odds(model.logits(model.chat.render(texts)), TOKENS))
    ]
    with Run.open(path) as run:
        with run.step("selection", inputs={}) as step:
            step.write_jsonl("prompts.jsonl", rows)
            step.write_csv("metrics.csv", pd.DataFrame(metrics))
            step.write_json("summary.json", {"behaviour": about(TOKENS), "model": str(model_folder)})
            with step.writing("direction.safetensors") as file:
                candidates.direction("post[-1]", 2).save(file)
            with step.writing("candidates.safetensors") as file:
                candidates.save(file)
        config = {"model": str(model_folder), "revision": None, "system": None, "dtype": None}
        run.finish(config=config, model=str(model_folder), prompts={}, data_sha256="")
    return path


def about(ids: list[int]) -> dict[str, Any]:
    """What a summary says of the refusal metric of these tokens."""
    return behaviour_summary(FirstTokens(tuple(ids)))


def step_times(run: Path) -> dict[str, int]:
    """When the manifest of each step of a run was written, in nanoseconds."""
    return {path.stem: path.stat().st_mtime_ns for path in (run / "steps").glob("*.json")}


def without_scripts(page: str) -> str:
    """The HTML that a reader sees."""
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def body(run: Path) -> str:
    """The page of a run, without its scripts."""
    return without_scripts((run / "report.html").read_text(encoding="utf-8"))


HEAVY = ("torch", "transformers", "transformer_lens", "numpy", "pandas", "plotly", "datasets")
"""What quick commands and `import refusal_lens` may not load: each takes longer than the help itself."""


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    code += "\nimport sys; print('\\n', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: Any
    out: str
    err: str


# ---------------------------------------------------------------- in the browser

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--virtual-time-budget=30000",
    "--window-size=1300,2000",
)


def visit(chromium: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """The document after its scripts ran, and everything that the page wrote to the console."""
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", page.as_uri()]
    environment = {**os.environ, "HOME": str(profile)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
