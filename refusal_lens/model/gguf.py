"""GGUF files as models: dequantised into an ordinary model in memory, with the file's own tokenizer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from .stored import first_of, require_whole

ROTARY = "rope_"
"""Start of the names of tensors that scale rotary frequencies; transformers reads none of them."""


def load_gguf(path: Path, name: str, *, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """The model and the tokenizer of a GGUF file, for every architecture that transformers reads from one.

    The model has a configuration of its own without quantisation, so that it can be saved. Raises InputError
    for files that are damaged, hold tensors that no parameter takes, or lack some, and for tokenizers that
    give other tokens than the file lists. Source: ggml's GGUF specification.
    """
    import transformers as hf

    reader = _reader(path)
    told = {"gguf_file": path.name}
    settings = getattr(hf, "GgufConfig", None)
    more = {"quantization_config": settings(dequantize=True)} if settings else {}
    auto: Any = hf.AutoModelForCausalLM
    read, report = auto.from_pretrained(
        path.parent,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **told,
        **more,
    )
    unread = require_whole(name, report, quantised=True)
    _require_all_read(path, reader, read, unread)
    tokenizer = hf.AutoTokenizer.from_pretrained(path.parent, padding_side="left", **told)
    _check_tokenizer(path, reader, tokenizer)
    return fresh(read, name), tokenizer


def fresh(model: Any, name: str, *, config: Any = None, kind: Any = None, state: Any = None) -> Any:
    """An ordinary model with these weights: its configuration says nothing of quantisation or files.

    config, kind and state: those of a part of the model, where only that part is wanted.
    """
    config = copy.deepcopy(model.config if config is None else config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    kind = type(model) if kind is None else kind
    config.architectures = [kind.__name__]
    made, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(model.state_dict() if state is None else state),
        dtype=model.dtype,
        attn_implementation="eager",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    require_whole(name, report, quantised=False)
    made.generation_config = model.generation_config
    return made


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            f"{path}: GGUF files need the package gguf; try pip install 'refusal-lens[export]'"
        ) from error
    return gguf.GGUFReader(path)


def _require_all_read(path: Path, reader: Any, model: Any, unread: tuple[str, ...]) -> None:
    """Raise InputError unless every number of the file is in the model."""
    names = [str(tensor.name) for tensor in reader.tensors]
    rotary = [name for name in names if ROTARY in name]
    if rotary:
        raise InputError(
            f"{path}: holds {rotary[0]}, a scaling of rotary frequencies that transformers does not read from "
            "GGUF; try the original model folder"
        )
    in_file = sum(int(tensor.n_elements) for tensor in reader.tensors)
    tied = model.get_output_embeddings()
    if (
        tied is not None
        and tied.weight is model.get_input_embeddings().weight
        and "output.weight" in names
    ):
        in_file -= tied.weight.numel()
    in_model = sum(parameter.numel() for parameter in model.parameters())
    if unread or in_file > in_model:
        told = f"{len(unread)} tensors ({first_of(unread)})" if unread else f"{in_file - in_model:,} numbers"
        raise InputError(
            f"{path}: transformers' reader for {model.config.model_type} leaves out {told}; try the original "
            "model folder"
        )


def _check_tokenizer(path: Path, reader: Any, tokenizer: Any) -> None:
    """Raise InputError unless the tokenizer has the file's tokens, under the file's ids."""
    listed = reader.get_field("tokenizer.ggml.tokens")
    if listed is None:
        raise InputError(f"{path}: holds no tokenizer; try the original model folder")
    tokens = listed.contents()
    ours = tokenizer.convert_ids_to_tokens(range(len(tokens)))
    odd = [i for i, (mine, theirs) in enumerate(zip(ours, tokens, strict=True)) if mine != theirs]
    if odd:
        raise InputError(
            f"{path}: transformers gives {len(odd)} of its {len(tokens)} tokens another id or text (the first is "
            f"{odd[0]}: {ours[odd[0]]!r}, in the file {tokens[odd[0]]!r}); try the original model folder"
        )
    for kind in ("bos", "eos"):
        field = reader.get_field(f"tokenizer.ggml.{kind}_token_id")
        mine = getattr(tokenizer, f"{kind}_token_id")
        if field is not None and mine is not None and int(field.contents()) != mine:
            raise InputError(
                f"{path}: {kind} token: transformers has {mine}, the file {int(field.contents())}; try the "
                "original model folder"
            )
    template = reader.get_field("tokenizer.chat_template")
    if template is not None and not tokenizer.chat_template:
        tokenizer.chat_template = str(template.contents())
