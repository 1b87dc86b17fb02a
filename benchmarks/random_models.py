"""Random Qwen2-shaped chat models and prompts of chosen lengths, for measuring speed."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from tempfile import mkdtemp
from typing import Any

import torch
import transformers as hf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge

from refusal_lens.chat import ChatFormat
from refusal_lens.model import ChatModel

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ("<|pad|>", "<|im_start|>", "<|im_end|>")
WORDS = ("\n", "user", "assistant", "system")
LENGTHS = (8, 32)
"""Tokens of an instruction, drawn evenly between these; the template adds 8."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Qwen2-shaped model."""

    d_model: int
    n_layers: int
    d_mlp: int
    n_heads: int
    d_vocab: int


SHAPES = {
    "small": Shape(384, 12, 1024, 6, 16_000),
    "1.8b": Shape(2048, 24, 5504, 16, 151_936),
    "7b": Shape(4096, 32, 11008, 32, 151_936),
}


def tokenizer(d_vocab: int) -> Any:
    """A ChatML tokenizer with one token per word, w0 w1 ...; <|pad|> and the template's own
    besides."""
    names = [*SPECIALS, *WORDS]
    names += [f"w{i}" for i in range(d_vocab - len(names))]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split(Regex("\n"), "isolated")]
    )
    inner.add_special_tokens(list(SPECIALS))
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="left"
    )
    wrapped.chat_template = CHATML
    return wrapped


def model(
    shape: Shape, *, system_tokens: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ChatModel:
    """A random model behind a bridge; system_tokens: length of its system prompt in tokens."""
    torch.manual_seed(0)
    config = hf.Qwen2Config(
        vocab_size=shape.d_vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        attn_implementation="eager",
        dtype=dtype,
    )
    with torch.device(device):
        inner = hf.Qwen2ForCausalLM(config).to(dtype).eval()
    own = tokenizer(shape.d_vocab)
    folder = mkdtemp()
    config.save_pretrained(folder)
    own.save_pretrained(folder)
    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=inner, tokenizer=copy.deepcopy(own), dtype=dtype
    )
    # <|im_start|>system\n ... <|im_end|>\n take five tokens.
    system = " ".join(f"w{i}" for i in range(system_tokens - 5)) if system_tokens else None
    chat = ChatFormat.from_tokenizer(own, system=system)
    return ChatModel.wrap(bridge, chat=chat, name="random")


def prompts(n: int, *, d_vocab: int, seed: int) -> list[str]:
    """Instructions of random words, all different in length as real ones are."""
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randrange(d_vocab - 100)}" for _ in range(draw.randint(*LENGTHS)))
        for _ in range(n)
    ]
