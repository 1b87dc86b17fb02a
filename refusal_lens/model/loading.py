"""From a name or folder to a TransformerBridge, with what the plain model says on a probe."""

from __future__ import annotations

import copy
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from .. import organism
from ..display import shown
from ..errors import InputError
from .check import Probe, ask

log = logging.getLogger(__name__)

ENDS = 1 << 20
DTYPES = ("float32", "float16", "bfloat16", "float64")


@shown()
@dataclass(frozen=True)
class Loaded:
    """A bridge, its tokenizer, and what the plain model computed on a probe."""

    bridge: Any
    tokenizer: Any
    revision: str | None
    probe: Probe


def load_pretrained(
    name: str,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    revision: str | None,
    device_map: str | dict[str, Any] | None,
    trust_remote_code: bool,
) -> Loaded:
    """Load weights and tokenizer with transformers, ask the plain model, then wrap it.

    Attention is loaded as "eager" so that patterns can be hooked, and raw weights are kept: folding norms
    would move the residual basis. Raises InputError for anything that cannot be found or opened.
    """
    if device is not None and device_map is not None:
        raise InputError("device and device_map: got both, need one of them")
    source = str(organism.folder("chat")) if name == "organism" else name
    where = None if device_map is not None else resolve_device(device)
    kept = resolve_dtype(dtype, where)
    shared = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(source, **shared)
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **shared)
        hf = AutoModelForCausalLM.from_pretrained(
            source, dtype=kept, attn_implementation="eager", device_map=device_map, **shared
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(_cannot_load(name, error)) from error
    if where is not None:
        hf = hf.to(where)  # type: ignore[arg-type]
    hf = hf.eval()
    probe = ask(hf, tokenizer)
    return Loaded(
        bridge=bridge_of(hf, tokenizer, source=source),
        tokenizer=tokenizer,
        revision=getattr(config, "_commit_hash", None) or revision,
        probe=probe,
    )


def bridge_of(hf: Any, tokenizer: Any, *, source: str) -> Any:
    """A TransformerBridge over a Hugging Face model, in place. InputError where there is none for it."""
    from transformer_lens.model_bridge import TransformerBridge

    real = next(p.dtype for p in hf.parameters() if p.is_floating_point())
    try:
        return TransformerBridge.boot_transformers(
            source, hf_model=hf, tokenizer=copy.deepcopy(tokenizer), dtype=real
        )
    except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
        raise InputError(
            f"architecture {type(hf).__name__} of {source}: TransformerLens cannot wrap it "
            f"({_first_line(error)}); try a newer transformer_lens"
        ) from error


def fingerprint(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> dict[str, Any]:
    """What identifies the weights without loading them.

    For a folder: the hash of its small files, and of the size, first and last MiB of each weight file. For a
    hub name: the commit that the name resolves to. Raises InputError for what is neither.
    """
    folder = organism.folder("chat") if name == "organism" else Path(name)
    if not folder.is_dir():
        try:
            config = AutoConfig.from_pretrained(
                name, revision=revision, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(_cannot_load(name, error)) from error
        return {"name": name, "commit": getattr(config, "_commit_hash", None) or revision}
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as opened:
            digest.update(opened.read(ENDS))
            if size > ENDS:
                opened.seek(max(ENDS, size - ENDS))
                digest.update(opened.read())
    return {"name": folder.name if name != "organism" else name, "sha256": digest.hexdigest()}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The named device, or CUDA, then MPS, then CPU. Raises InputError when it is not there."""
    if device is None:
        found = "cuda" if torch.cuda.is_available() else "cpu"
        if found == "cpu" and torch.backends.mps.is_available():
            found = "mps"
        return torch.device(found)
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {str(device)!r}: not usable here ({_first_line(error)}); try cpu, cuda or mps"
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
    text = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}.get(text, text)
    if text not in DTYPES:
        raise InputError(f"dtype: got {dtype!r}, need one of {', '.join(DTYPES)}")
    return getattr(torch, text)


def _cannot_load(name: str, error: Exception) -> str:
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").exists():
        return f"model folder {name}: no config.json, need a Hugging Face model folder"
    hint = "try a Hugging Face name, a model folder, or organism"
    if "trust_remote_code" in str(error):
        hint = "the repository asks to run its own code; read it, then try trust_remote_code"
    return f"model {name!r}: cannot be loaded ({_first_line(error)}); {hint}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".:")
