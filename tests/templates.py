"""Chat formats in the style of well-known families: a small tokenizer and a template for each.

The tokenizers are trained here on a few lines; what matters is their kind (byte-level or
metaspace BPE, byte fallback, BOS, added tokens that strip white space) and not their size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from refusal_lens.chat import ChatFormat

LINES = [
    "Write a short poem about the sea and the river.",
    "How do I make a cup of tea? Tell me how to do it step by step.",
    "Sure, here is a list of ten ideas: first, boil the water.\n\nThen wait.\n",
    "I cannot help with that. I'm sorry, but I can't do it!\n",
    "user\nassistant\nsystem\nmodel\n### User:\nhello\n\n### Assistant:\nhi",
    "You are a helpful assistant. Explain (in 3 words) what is 12 + 30.",
    "[INST] x [/INST] y <<SYS>> z <</SYS>> [INST] [INST] [/INST]",
    "写一首关于大海的诗。",
    "model model  two   three    four",
]


def _bpe(learnt: Tokenizer, **options: Any) -> models.BPE:
    learnt.train_from_iterator(
        LINES * 4,
        trainers.BpeTrainer(
            vocab_size=700,
            show_progress=False,
            initial_alphabet=options.pop("alphabet", []),
        ),
    )
    model = json.loads(learnt.to_str())["model"]
    extra: Sequence[str] = options.pop("first", [])
    vocab = {piece: i for i, piece in enumerate([*extra, *model["vocab"]])}
    return models.BPE(vocab=vocab, merges=[tuple(m) for m in model["merges"]], **options)


WORDS = Regex(
    r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # words, digits, marks with the line end after them, line ends, other space


@cache
def _byte_level_model() -> models.BPE:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = _byte_level_splits()
    return _bpe(learner, alphabet=pre_tokenizers.ByteLevel.alphabet())


def _byte_level_splits() -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def byte_level(*, normalizer: Any = None) -> Tokenizer:
    """Byte-level BPE, as in Llama-3, Qwen, DeepSeek."""
    made = Tokenizer(_byte_level_model())
    made.pre_tokenizer = _byte_level_splits()
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    return made


@cache
def _metaspace_model() -> models.BPE:
    learner = Tokenizer(models.BPE())
    pieces = Regex(r"▁?\p{L}+|▁?[^\p{L}▁]|▁+")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split(pieces, behavior="isolated")]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    return _bpe(
        learner,
        first=["<unk>", "<s>", "</s>", *bytes_],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )


_SPACES = normalizers.Replace(" ", "▁")


def metaspace(*, style: str) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback.

    style "legacy" puts a space before each stretch of text (Llama-2, Mistral, Phi-3), "first"
    before the first only, "none" nowhere (Gemma).
    """
    made = Tokenizer(_metaspace_model())
    if style == "legacy":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), _SPACES])
    elif style == "first":
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = _SPACES
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [] if style == "none" else [decoders.Strip(content=" ", left=1)]
    made.decoder = decoders.Sequence([*parts, *strip])
    return made


def unigram() -> Tokenizer:
    """A unigram model whose vocabulary holds its control tokens as ordinary pieces."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|user|>", 0.0)]
    pieces += [("▁", -3.0), ("hello", -4.0), ("▁hello", -4.0), ("▁world", -4.5), ("\n", -3.0)]
    pieces += [(chr(c), -6.0) for c in range(33, 127)]
    pieces += [(f"<0x{i:02X}>", -9.0) for i in range(256)]
    made = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    return made


def words() -> Tokenizer:
    """A word-level toy whose vocabulary holds its control tokens as words."""
    listed = ["<unk>", "<|user|>", "<|end|>", "<|bot|>", "name", "a", "river", "list", "hello"]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(listed)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


@dataclass(frozen=True)
class Style:
    """A family: how to make its tokenizer, its template, and what must come out of it."""

    make: Callable[[], Tokenizer]
    template: str | None
    special: Sequence[str | AddedToken] = ()
    added: Sequence[str | AddedToken] = ()
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    adds_bos: bool = False
    positions: tuple[str, ...] = ()
    end_of_turn: str | None = None
    trims: bool = False
    system: bool = True
    extra: dict[str, Any] = field(default_factory=dict)


def tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of a family, with its template."""
    style = STYLES[name]
    inner = style.make()
    inner.add_special_tokens(list(style.special))
    inner.add_tokens(list(style.added))
    if style.adds_bos and style.bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A",
            pair=f"{style.bos} $A {style.bos} $B",
            special_tokens=[(style.bos, inner.token_to_id(style.bos))],
        )
    unk = "<unk>" if inner.token_to_id("<unk>") is not None else None
    named = {
        "bos_token": style.bos,
        "eos_token": style.eos,
        "pad_token": style.pad,
        "unk_token": unk,
    }
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, **{k: v for k, v in named.items() if v is not None}
    )
    made.chat_template = style.template
    return made


CHATML = (
    "{%- for m in messages -%}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
)
QWEN = (
    "{%- if messages[0].role != 'system' -%}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif -%}" + CHATML
)
QWEN3 = (
    "{%- for m in messages -%}"
    "{%- set text = m.content -%}"
    "{%- if m.role == 'assistant' -%}"
    "{%- set thought = '' -%}"
    "{%- if '</think>' in text -%}"
    "{%- set thought = text.split('</think>')[0].split('<think>')[-1].strip('\n') -%}"
    "{%- set text = text.split('</think>')[-1].lstrip('\n') -%}"
    "{%- endif -%}"
    "{%- if loop.last or thought -%}"
    "{%- set text = '<think>\n' + thought + '\n</think>\n\n' + text -%}"
    "{%- endif -%}"
    "{%- endif -%}"
    "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '<think>\n\n</think>\n\n' }}"
    "{%- endif -%}"
    "{%- endif -%}"
)
GEMMA = (
    "{{ bos_token }}"
    "{%- if messages[0].role == 'system' -%}"
    "{{ raise_exception('no system role here') }}"
    "{%- endif -%}"
    "{%- for m in messages -%}"
    "{%- set who = 'model' if m.role == 'assistant' else m.role -%}"
    "{{ '<start_of_turn>' + who + '\n' + m.content.strip() + '<end_of_turn>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif -%}"
)
LLAMA2 = (
    "{%- set lead = namespace(text='') -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'system' -%}"
    "{%- set lead.text = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' -%}"
    "{%- elif m.role == 'user' -%}"
    "{{ bos_token + '[INST] ' + (lead.text + m.content).strip() + ' [/INST]' }}"
    "{%- set lead.text = '' -%}"
    "{%- else -%}"
    "{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
LLAMA3 = (
    "{%- for m in messages -%}"
    "{%- set turn = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' "
    "+ m.content | trim + '<|eot_id|>' -%}"
    "{%- if loop.first %}{% set turn = bos_token + turn %}{% endif -%}"
    "{{ turn }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{%- endif -%}"
)
MISTRAL = (
    "{{ bos_token }}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' -%}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{%- elif m.role == 'assistant' -%}"
    "{{ ' ' + m.content.strip() + eos_token }}"
    "{%- else -%}"
    "{{ raise_exception('only user and assistant turns') }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
MISTRAL3 = MISTRAL.replace("' [/INST]'", "'[/INST]'")
PHI3 = (
    "{%- for m in messages -%}"
    "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
    "{%- endfor -%}"
    "{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}"
)
R1 = (
    "{{ bos_token }}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'system' %}{{ m.content }}"
    "{%- else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif -%}"
)
ZEPHYR = (
    "{%- for m in messages -%}"
    "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}"
)
HEADINGS = (
    "{%- for m in messages -%}"
    "{{ '### ' + m.role | capitalize + ':\n' + m.content + '\n\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif -%}"
)
TOY = (
    "{%- for m in messages -%}"
    "{{ ('<|user|> ' if m.role == 'user' else '<|bot|> ') + m.content + ' <|end|> ' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|bot|>' }}{% endif -%}"
)
PLAIN_USER = "{%- for m in messages %}{{ '<|user|>' + m.content + '</s>' }}{% endfor -%}"

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_THINK = tuple(
    AddedToken(t, special=False, normalized=False)
    for t in ("<think>", "</think>", "<tool_call>", "</tool_call>")
)
_ASSISTANT = ("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n")
_PHI3_TOKENS = tuple(
    AddedToken(t, rstrip=True, normalized=False, special=True)
    for t in ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
)

STYLES: dict[str, Style] = {
    "llama-2": Style(
        lambda: metaspace(style="legacy"),
        LLAMA2,
        special=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        positions=("[", "/", "INST", "]"),
        end_of_turn="</s>",
        trims=True,
    ),
    "llama-3": Style(
        byte_level,
        LLAMA3,
        special=(*_LLAMA3_TOKENS, "<|end_of_text|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        adds_bos=True,
        positions=("<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
        end_of_turn="<|eot_id|>",
        trims=True,
    ),
    "gemma": Style(
        lambda: metaspace(style="none"),
        GEMMA,
        special=("<unk>", "<pad>", "<bos>", "<eos>"),
        added=[
            AddedToken(t, special=False, normalized=False)
            for t in ("<start_of_turn>", "<end_of_turn>", "<h1>", "\n\n", "\n\n\n", "▁▁", "▁▁▁")
        ],
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        adds_bos=True,
        positions=("<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"),
        end_of_turn="<end_of_turn>",
        trims=True,
        system=False,
    ),
    "qwen": Style(
        lambda: byte_level(normalizer=normalizers.NFC()),
        QWEN,
        special=("<|endoftext|>", *_CHATML_TOKENS),
        eos="<|im_end|>",
        pad="<|endoftext|>",
        positions=_ASSISTANT,
        end_of_turn="<|im_end|>",
    ),
    "yi": Style(
        lambda: metaspace(style="none"),
        CHATML,
        special=("<unk>", "<s>", "</s>", *_CHATML_TOKENS),
        bos="<s>",
        eos="</s>",
        positions=("<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"),
        end_of_turn="<|im_end|>",
    ),
    "mistral": Style(
        lambda: metaspace(style="legacy"),
        MISTRAL,
        special=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        positions=("[", "/", "INST", "]"),
        end_of_turn="</s>",
        system=False,
    ),
    "mistral-v3": Style(
        lambda: metaspace(style="first"),
        MISTRAL3,
        special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        positions=("[/INST]",),
        end_of_turn="</s>",
        system=False,
    ),
    "phi-3": Style(
        lambda: metaspace(style="legacy"),
        PHI3,
        special=("<unk>", "<s>", "</s>", "<|endoftext|>", *_PHI3_TOKENS),
        bos="<s>",
        eos="<|endoftext|>",
        positions=("<|end|>", "<|assistant|>"),
        end_of_turn="<|end|>",
    ),
    "r1": Style(
        byte_level,
        R1,
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        added=[
            AddedToken(t, special=False, normalized=False)
            for t in ("<｜User｜>", "<｜Assistant｜>")
        ]
        + list(_THINK),
        bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        adds_bos=True,
        positions=("<｜Assistant｜>", "<think>", "\n"),
        end_of_turn="<｜end▁of▁sentence｜>",
    ),
    "qwen3": Style(
        lambda: byte_level(normalizer=normalizers.NFC()),
        QWEN3,
        special=("<|endoftext|>", *_CHATML_TOKENS),
        added=_THINK,
        eos="<|im_end|>",
        pad="<|endoftext|>",
        positions=_ASSISTANT,
        end_of_turn="<|im_end|>",
    ),
    "headings": Style(
        byte_level,
        HEADINGS,
        special=("<|endoftext|>",),
        eos="<|endoftext|>",
        positions=("###", " Assistant", ":\n"),
    ),
    "zephyr": Style(
        lambda: metaspace(style="legacy"),
        ZEPHYR,
        special=("<unk>", "<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        adds_bos=True,
        end_of_turn="</s>",
    ),
    "words": Style(
        words,
        TOY,
        special=("<unk>", "<|user|>", "<|end|>", "<|bot|>"),
        eos="<|end|>",
        positions=("<|end|>", "<|bot|>"),
        end_of_turn="<|end|>",
    ),
    "unigram": Style(
        unigram,
        PLAIN_USER,
        special=("<unk>", "<s>", "</s>", "<|user|>"),
        bos="<s>",
        eos="</s>",
        positions=("</s>",),
        end_of_turn="</s>",
    ),
}
FAMILIES = (
    "llama-2",
    "llama-3",
    "gemma",
    "qwen",
    "yi",
    "mistral",
    "mistral-v3",
    "phi-3",
    "r1",
    "qwen3",
)
"""The styles of real families; the rest of `STYLES` is there for one trait each."""


def chat_of(name: str, **options: Any) -> ChatFormat:
    """The chat format of a style."""
    return ChatFormat.from_tokenizer(tokenizer(name), **options)
