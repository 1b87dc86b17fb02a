"""Tiny random models of many architectures, saved to disk: the rows of the equivalence matrix.

A new architecture joins by a row: its model type and a small configuration. Weights, biases and norm
scales are all random, since values that start at zero or one hide mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from kit import save, shaken, temporary

WIDTH, LAYERS, VOCAB = 32, 3, 264
PLAIN = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
MOE = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "num_key_value_heads": 4,
    "head_dim": 4,
}
MAMBA = {
    "num_heads": 8,
    "head_dim": 8,
    "state_size": 8,
    "n_groups": 2,
    "expand": 2,
    "conv_kernel": 4,
}

EXACT, UNTIED, POST_NORM, NONE = (
    "exact",
    "exact with untied unembedding",
    "post-norm",
    "not editable",
)


@dataclass(frozen=True)
class Row:
    """One architecture and its expected class.

    mid: the modules of a block that read the stream midway; beside: the argument by which a block gets an
    earlier state of the stream; bridge: whether TransformerLens' bridge wraps it; lora: why peft takes none.
    """

    model_type: str
    exactness: str
    config: Mapping[str, Any]
    mid: tuple[str, ...] = ("post_attention_layernorm",)
    bridge: bool = True
    beside: str = ""
    lora: str = ""
    name: str = field(default="")

    @property
    def id(self) -> str:
        return self.name or self.model_type


PARALLEL = ()
NO_MAMBA = "peft refuses"
"""Fused Mamba kernels read the matrix past the layer that a LoRA wraps."""
ROWS = (
    Row("llama", EXACT, {**GROUPED, "attention_bias": True, "mlp_bias": True}),
    Row("llama", UNTIED, {**GROUPED, "tie_word_embeddings": True}, name="llama-tied"),
    Row("mistral", EXACT, {**HEADED, "sliding_window": None}),
    Row("qwen2", UNTIED, {**GROUPED, "tie_word_embeddings": True}),
    Row("qwen3", EXACT, {**HEADED, "attention_bias": True}),
    Row("gemma", UNTIED, HEADED),
    Row("gemma2", POST_NORM, HEADED, mid=("pre_feedforward_layernorm",)),
    Row("gemma3_text", POST_NORM, HEADED, mid=("pre_feedforward_layernorm",)),
    Row("phi3", EXACT, GROUPED),
    Row(
        "gpt2",
        UNTIED,
        {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": 1, "eos_token_id": 2},
        mid=("ln_2",),
    ),
    Row("gpt_neox", EXACT, PLAIN, mid=PARALLEL),
    Row("gpt_neox", EXACT, {**PLAIN, "use_parallel_residual": False}, name="gpt_neox-serial"),
    Row("falcon", UNTIED, {**PLAIN, "bias": True, "new_decoder_architecture": False}, mid=PARALLEL),
    Row("phi", EXACT, PLAIN, mid=PARALLEL),
    Row("olmo", EXACT, {**PLAIN, "attention_bias": True}),
    Row("olmo2", POST_NORM, PLAIN, mid=("mlp",)),
    Row("stablelm", EXACT, {**GROUPED, "use_qkv_bias": True}),
    Row(
        "stablelm",
        EXACT,
        {**GROUPED, "use_parallel_residual": True},
        PARALLEL,
        name="stablelm-parallel",
    ),
    Row("mixtral", EXACT, {**GROUPED, "num_local_experts": 4}),
    Row("qwen2_moe", EXACT, {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 40}),
    Row("qwen3_moe", EXACT, {**MOE, "head_dim": 8, "num_experts": 4}),
    Row("gpt_oss", EXACT, {**HEADED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    Row("deepseek_v2", EXACT, {**MOE, **MLA, "topk_method": "greedy"}),
    Row("deepseek_v3", EXACT, {**MOE, **MLA}),
    Row("cohere", UNTIED, GROUPED, mid=PARALLEL, bridge=False),
    Row("cohere2", UNTIED, {**GROUPED, "head_dim": 8}, mid=PARALLEL, bridge=False),
    Row(
        "granite",
        EXACT,
        {**GROUPED, "residual_multiplier": 0.22, "embedding_multiplier": 12.0}
        | {"attention_multiplier": 0.3, "logits_scaling": 2.0, "mlp_bias": True},
    ),
    Row("granitemoe", EXACT, {**GROUPED, "num_local_experts": 4, "residual_multiplier": 0.5}),
    Row(
        "opt",
        UNTIED,
        {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": WIDTH},
        mid=("final_layer_norm",),
    ),
    Row(
        "opt",
        EXACT,
        {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16},
        mid=("final_layer_norm",),
        name="opt-projected",
    ),
    Row("bloom", POST_NORM, {**PLAIN, "n_layer": LAYERS, "n_head": 4}),
    Row(
        "mpt",
        UNTIED,
        {
            "vocab_size": VOCAB,
            "d_model": WIDTH,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_seq_len": 64,
        },
        mid=("norm_2",),
    ),
    Row("starcoder2", UNTIED, {**GROUPED, "use_bias": True, "sliding_window": None}),
    Row(
        "gptj",
        EXACT,
        {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
        | {"n_positions": 64, "rotary_dim": 4, "tie_word_embeddings": False},
        mid=PARALLEL,
    ),
    Row(
        "gpt_neo",
        UNTIED,
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": LAYERS}
        | {
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global"], LAYERS]],
        },
        mid=("ln_2",),
    ),
    Row(
        "gpt_bigcode",
        UNTIED,
        {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
        | {"n_positions": 64},
        mid=("ln_2",),
    ),
    Row("glm", EXACT, {**GROUPED, "head_dim": 8}),
    Row("glm4", POST_NORM, {**GROUPED, "head_dim": 8}),
    Row("nanochat", POST_NORM, HEADED),
    Row("nemotron", EXACT, {**GROUPED, "head_dim": 8}),
    Row("olmoe", EXACT, {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    Row("phimoe", EXACT, {**GROUPED, "num_local_experts": 4, "sliding_window": None}, bridge=False),
    Row("llama4_text", EXACT, {**HEADED, "num_local_experts": 4, "intermediate_size_mlp": 40}),
    Row(
        "exaone4",
        POST_NORM,
        {**GROUPED, "sliding_window": 8, "sliding_window_pattern": 2},
        mid=("mlp",),
    ),
    Row("minicpm3", UNTIED, {**GROUPED, **MLA, "scale_depth": 1.4, "scale_emb": 12}, bridge=False),
    Row("smollm3", EXACT, {**GROUPED, "no_rope_layers": [1, 1, 0], "tie_word_embeddings": False}),
    Row(
        "qwen3_next",
        EXACT,
        {**MOE, "head_dim": 8, "num_experts": 4}
        | {"shared_expert_intermediate_size": 40, "linear_num_value_heads": 4}
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        | {"layer_types": ["linear_attention", "linear_attention", "full_attention"]},
        bridge=False,
    ),
    Row(
        "mamba",
        UNTIED,
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        | {"state_size": 8, "pad_token_id": 0, "use_bias": True},
        mid=PARALLEL,
        lora=NO_MAMBA,
    ),
    Row(
        "mamba2",
        EXACT,
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        | MAMBA
        | {"chunk_size": 8, "pad_token_id": 0, "use_bias": True},
        mid=PARALLEL,
        lora=NO_MAMBA,
    ),
    Row(
        "jamba",
        EXACT,
        {**GROUPED, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
        | {"expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8}
        | {"use_mamba_kernels": False},
        mid=("pre_ff_layernorm",),
    ),
    Row(
        "bamba",
        EXACT,
        {**GROUPED, "attn_layer_indices": [1], "mamba_n_heads": 8}
        | {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
        mid=("pre_ff_layernorm",),
    ),
    Row(
        "falcon_h1",
        EXACT,
        {**HEADED, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64}
        | {"mamba_d_state": 8, "mamba_n_groups": 1},
        mid=("pre_ff_layernorm",),
        lora=NO_MAMBA,
    ),
    Row(
        "lfm2",
        EXACT,
        {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]}
        | {"block_multiple_of": 8, "tie_word_embeddings": False},
        mid=("ffn_norm",),
    ),
    Row(
        "zamba2",
        UNTIED,
        {**PLAIN, "num_mem_blocks": 1, "hybrid_layer_ids": [1]}
        | {"layers_block_type": ["mamba", "hybrid", "mamba"], "mamba_d_state": 8}
        | {"n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "adapter_rank": 8},
        mid=PARALLEL,
        beside="original_hidden_states",
    ),
    Row(
        "recurrent_gemma",
        UNTIED,
        {**GROUPED, "head_dim": 8, "lru_width": WIDTH}
        | {"block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 16},
        mid=("channel_pre_norm",),
    ),
)
"""Architectures whose writers are all linear, or linear but for a norm behind them."""

REFUSED = (
    Row("minimax", NONE, {**GROUPED, "num_local_experts": 4, "head_dim": 8}),
    Row("openai-gpt", NONE, {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}),
    Row(
        "opt",
        NONE,
        {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": WIDTH} | {"do_layer_norm_before": False},
        name="opt-post-norm-stream",
    ),
    Row("rwkv", NONE, {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS}),
    Row(
        "bloom",
        NONE,
        {**PLAIN, "n_layer": LAYERS, "n_head": 4}
        | {"apply_residual_connection_post_layernorm": True},
        name="bloom-post-norm-stream",
    ),
    Row("doge", NONE, {**GROUPED, "num_experts": 4}),
    Row(
        "xglm",
        NONE,
        {"vocab_size": VOCAB, "d_model": WIDTH, "num_layers": LAYERS}
        | {"attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 64},
    ),
)
"""Architectures whose stream is rescaled or gated on its way, or is given something that is no parameter
(sinusoidal positions): no edit of weights equals the hooks."""

BESIDE = (
    Row(
        "gemma4_text",
        POST_NORM,
        {**HEADED, "head_dim": 12, "global_head_dim": 12, "num_kv_shared_layers": 0}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
        | {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    Row(
        "lfm2_moe",
        EXACT,
        {**MOE, "num_experts": 4, "num_dense_layers": 1}
        | {"layer_types": ["conv", "full_attention", "conv"]},
    ),
    Row(
        "dbrx",
        EXACT,
        {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64}
        | {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": WIDTH}}
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    Row(
        "laguna",
        EXACT,
        {**MOE, "num_experts": 4, "shared_expert_intermediate_size": 20},
        lora="peft loads this architecture's adapters under other names",
    ),
)
"""Architectures with writes or readers of the stream beside what TransformerLens has hooks for."""


def make(row: Row, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """The model in memory, every parameter moved away from where its initialisation left it."""
    torch.manual_seed(seed)
    config = hf.AutoConfig.for_model(row.model_type, **dict(row.config))
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return shaken(model).to(dtype).eval()


@cache
def folder(row_id: str) -> Path:
    """The saved model of a row, made once."""
    return save(make(by_id(row_id)), temporary(f"row-{row_id}"))


def by_id(row_id: str) -> Row:
    """A row by its name."""
    return next(row for row in (*ROWS, *REFUSED, *BESIDE) if row.id == row_id)
