"""Tiny random chat models on disk: one Hugging Face folder per architecture, ChatML, byte tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

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
}

LATENT = SHARED | {
    **{"num_key_value_heads": HEADS, "q_lora_rank": 16, "kv_lora_rank": 16},
    **{"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 6},
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
}

MORE_CONFIGS: dict[str, Callable[[], Any]] = {
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
}
"""Further ways from the heads to the residual stream, for the tests of attribution."""


@lru_cache
def folder(architecture: str) -> Path:
    """The saved model of an architecture, made once: random weights, biases and norm scales."""
    torch.manual_seed(0)
    config = (CONFIGS | MORE_CONFIGS)[architecture]()
    config.pad_token_id, config.eos_token_id, config.bos_token_id = 258, 257, None
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else 0.08
            centre = 1.0 if parameter.ndim == 1 and "norm" in name and "bias" not in name else 0.0
            parameter.copy_(centre + scale * torch.randn_like(parameter))
    path = Path(mkdtemp(prefix=f"tiny-{architecture}-"))
    model.save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path
