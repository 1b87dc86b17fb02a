"""From a name or folder to a TransformerBridge, with what the plain model says on a probe."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from ..display import shown
from ..errors import InputError
from .adapters import Adapter, merged
from .boundary import loading, what
from .check import PROBE, Probe, take_probe
from .fingerprint import fingerprint
from .gguf import fresh, load_gguf
from .source import ADAPTER, Source, find_source, read_object
from .stored import first_of, quantisation, require_fitting, require_whole

__all__ = [
    "Loaded",
    "Plain",
    "bridge_of",
    "fingerprint",
    "load_plain",
    "load_pretrained",
    "loading",
    "resolve_device",
    "resolve_dtype",
]

log = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16", "float64")


@shown()
@dataclass(frozen=True)
class Loaded:
    """A bridge, its tokenizer, and what the plain model computed on a probe.

    unread: tensors of the checkpoint that no parameter took; adapter: the PEFT adapter that was merged.
    """

    bridge: Any
    tokenizer: Any
    revision: str | None
    probe: Probe
    unread: tuple[str, ...] = ()
    adapter: Adapter | None = None


def load_pretrained(
    name: str,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    revision: str | None,
    device_map: str | dict[str, Any] | None,
    trust_remote_code: bool,
    adapter: str | Path | None = None,
) -> Loaded:
    """Load weights and tokenizer with transformers, probe the plain model, then wrap it.

    Attention is loaded as "eager" so that patterns can be hooked, and raw weights are kept: folding norms
    would move the residual basis. Raises InputError for whatever cannot be found, opened or wrapped, for
    parameters that the checkpoint lacks, and for quantised weights that nobody would scale.
    """
    with loading(str(name)):
        plain = load_plain(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
        )
        _require_words(str(name), plain.tokenizer)
        probe = take_probe(plain.model, plain.tokenizer)
        bridge = bridge_of(plain.model, plain.tokenizer, name=str(name))
    return Loaded(
        bridge=bridge,
        tokenizer=plain.tokenizer,
        revision=plain.revision,
        probe=probe,
        unread=plain.unread,
        adapter=plain.adapter,
    )


@shown()
@dataclass(frozen=True, eq=False)
class Plain:
    """A Hugging Face model and its tokenizer before anything is wrapped; can be saved as a folder."""

    model: Any
    tokenizer: Any
    revision: str | None
    unread: tuple[str, ...] = ()
    adapter: Adapter | None = None


def load_plain(
    name: str,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
) -> Plain:
    """The whole model as plain PyTorch: folders, hub names, GGUF files dequantised, adapters merged.

    Its `save_pretrained` makes a folder of what is none, such as a GGUF file; a bridge changes the modules of
    the model that it wraps, which can then not be saved. Raises InputError as `load_pretrained` does.
    """
    if device is not None and device_map is not None:
        raise InputError("device and device_map: got both, need one of them")
    where = None if device_map is not None else resolve_device(device)
    kept = resolve_dtype(dtype, where)
    commit: str | None = None
    unread: tuple[str, ...] = ()
    put_on: Adapter | None = None
    with loading(str(name)):
        source = find_source(name, revision, adapter=adapter)
        if source.gguf is not None:
            if device_map is not None:
                raise InputError(f"model {name!r}: device_map is not for GGUF files; try device")
            hf, tokenizer = load_gguf(source.gguf, source.name, dtype=kept)
        else:
            shared = {"revision": source.revision, "trust_remote_code": trust_remote_code}
            hf, tokenizer, commit, unread = _open(source, kept, device_map, shared)
        if source.adapter is not None:
            settings = read_object(source.adapter / ADAPTER)
            hf, put_on = merged(hf, source.adapter, source.at, settings)
            tokenizer = _adapter_tokenizer(source.adapter) or tokenizer
        if where is not None and not getattr(hf, "is_quantized", False):
            hf = hf.to(where)
    return Plain(hf.eval(), tokenizer, commit or source.revision, unread, put_on)


def _open(
    source: Source, dtype: Any, device_map: Any, shared: Mapping[str, Any]
) -> tuple[Any, Any, str | None, tuple[str, ...]]:
    """Model, tokenizer, commit and unread tensors of a folder or a name on the hub."""
    config = AutoConfig.from_pretrained(source.at, **shared)
    quantised = quantisation(config, source.at) is not None
    if source.folder is not None:
        require_fitting(source.folder, config, _kind(config))
    tokenizer = AutoTokenizer.from_pretrained(source.at, padding_side="left", **shared)
    # transformers would put an adapter that lies beside the weights into the model as well.
    aside = {"adapter_kwargs": {"subfolder": "none"}} if source.adapter is not None else {}
    hf, report = _kind(config).from_pretrained(
        source.at,
        dtype=dtype,
        attn_implementation="eager",
        device_map=device_map,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        weights_only=True,
        **shared,
        **aside,
    )
    unread = require_whole(source.name, report, quantised=quantised)
    if unread:
        log.warning(
            "%d tensors of %s are in no parameter: %s", len(unread), source.name, first_of(unread)
        )
    if source.folder is None:
        _require_fitting_on_hub(source, config)
    if not quantised and device_map is None:
        hf = _text_part(hf, source.name)
    return hf, tokenizer, getattr(config, "_commit_hash", None), unread


def _kind(config: Any) -> Any:
    """The auto class of a configuration: a causal language model, or one with pictures beside the text."""
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) in AutoModelForCausalLM._model_mapping or own_code:
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    raise InputError(
        f"model type {config.model_type}: transformers has no causal language model for it; need a model that "
        "generates text"
    )


def _text_part(hf: Any, name: str) -> Any:
    """The language model inside a model that also takes pictures or sound, as a model of its own."""
    config = hf.config.get_text_config()
    if config is hf.config or type(config) not in AutoModelForCausalLM._model_mapping:
        return hf
    kind: Any = AutoModelForCausalLM._model_mapping[type(config)]
    inner, head = hf.get_decoder(), hf.get_output_embeddings()
    if isinstance(kind, tuple) or kind is type(hf) or head is None or inner is hf:
        return hf
    state = {f"{kind.base_model_prefix}.{key}": value for key, value in inner.state_dict().items()}
    state |= {f"lm_head.{key}": value for key, value in head.state_dict().items()}
    log.info("%s: the language model inside %s", name, type(hf).__name__)
    return fresh(hf, name, config=config, kind=kind, state=state)


def _require_fitting_on_hub(source: Source, config: Any) -> None:
    """The same look at headers as before a folder is loaded, at what was downloaded."""
    from huggingface_hub import try_to_load_from_cache

    commit = getattr(config, "_commit_hash", None) or source.revision
    cached = try_to_load_from_cache(source.at, "config.json", revision=commit)
    if isinstance(cached, str):
        require_fitting(Path(cached).parent, config, _kind(config))


def _adapter_tokenizer(folder: Path) -> Any:
    """The tokenizer that was saved with an adapter, if one was."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)


def _require_words(name: str, tokenizer: Any) -> None:
    """Raise InputError for a tokenizer that has no tokens for plain English."""
    listed = tokenizer.encode(PROBE, add_special_tokens=True)
    if not set(listed) - {*tokenizer.all_special_ids, tokenizer.unk_token_id}:
        raise InputError(
            f"model {name!r}: its tokenizer has no tokens for plain English; is tokenizer.json missing?"
        )


def require_embedded(name: str, tokenizer: Any, used: Tensor, rows: int) -> None:
    """Raise InputError for token ids that have no row in an embedding of `rows` rows.

    used: ids that the chat format writes. A special token that nothing writes may lie beyond the
    rows, as in Gemma 3 1B; it is logged.
    """
    added = tokenizer.added_tokens_decoder
    beyond = {i: text for text, i in tokenizer.get_vocab().items() if i >= rows}
    written = set(used.flatten().tolist())
    bad = sorted(i for i in beyond if i in written or not (i in added and added[i].special))
    if bad:
        raise InputError(
            f"model {name!r}: {len(bad)} tokens have no row in its embedding of {rows} rows (the first is {bad[0]}, "
            f"{beyond[bad[0]]!r}); is the tokenizer another model's?"
        )
    if beyond:
        log.warning(
            "%d special tokens of %s have no embedding and cannot be used", len(beyond), name
        )


def bridge_of(hf: Any, tokenizer: Any, *, name: str | None = None) -> Any:
    """A TransformerBridge over a Hugging Face model that is in memory, with a copy of the tokenizer.

    The model itself is wrapped, not copied. Raises InputError where TransformerLens cannot wrap it.
    """
    from transformer_lens.model_bridge import TransformerBridge

    name = name or getattr(hf, "name_or_path", "") or type(hf).__name__
    real = next(p.dtype for p in hf.parameters() if p.is_floating_point())
    try:
        return TransformerBridge.boot_transformers(
            name, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), dtype=real
        )
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"architecture {type(hf).__name__} of {name}: TransformerLens cannot wrap it ({what(error)}); "
            "try a newer transformer_lens"
        ) from error


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The named device, or CUDA, then MPS, then CPU. Raises InputError when it is not there."""
    if device is None:
        best = "cuda" if torch.cuda.is_available() else "cpu"
        if best == "cpu" and torch.backends.mps.is_available():
            best = "mps"
        return torch.device(best)
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(device)!r}: not usable here ({what(error)}); try cpu, cuda or mps"
        ) from error
    if wanted.type == "meta":
        raise InputError("device 'meta': holds no numbers; try cpu, cuda or mps")
    return wanted


def resolve_dtype(
    dtype: str | torch.dtype | None, device: torch.device | None
) -> torch.dtype | str:
    """The named dtype; by default float32 on a CPU and the checkpoint's own elsewhere."""
    if dtype is None:
        chosen: torch.dtype | str = "auto"
        if device is not None and device.type == "cpu":
            chosen = torch.float32
        log.info("dtype %s, the default for %s", chosen, device or "a device map")
        return chosen
    if isinstance(dtype, torch.dtype):
        return dtype
    text = dtype.removeprefix("torch.")
    text = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}.get(
        text, text
    )
    if text not in DTYPES:
        raise InputError(f"dtype: got {dtype!r}, need one of {', '.join(DTYPES)}")
    return getattr(torch, text)
