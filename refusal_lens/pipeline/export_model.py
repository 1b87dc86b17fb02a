"""The model folder whose weights an export edits: where it is, and whether the direction is its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from .. import organism
from ..chat import ChatFormat
from ..directions import Direction
from ..errors import InputError
from ..model.boundary import loading
from ..model.source import find_source
from ..weights.checkpoint import configuration
from .config import chat_options


def model_folder(name: str, revision: str | None = None) -> Path:
    """The local folder of a model, downloaded when it is a name on the hub.

    Raises InputError when there is neither, and for GGUF files and adapters, whose weights are not edited.
    """
    source = find_source(name, revision)
    if source.edits_refused:
        raise InputError(
            f"model {name!r}: got {source.edits_refused}, need a folder with whole weights to edit; save "
            "load_plain(name) of refusal_lens.model.loading, model and tokenizer, and run on that"
        )
    if source.folder is not None:
        return source.folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        wanted = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model {name!r}: neither a folder nor to be had from the hub ({first})"
        ) from error


def where(name: str) -> Path:
    """The folder or file that holds a model, or everything that would be downloaded of it; nothing is downloaded."""
    if name == "organism":
        return organism.folder("chat").parent
    if Path(name).exists():
        return Path(name)
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / "--".join(["models", *name.split("/")])


def check_belongs(
    direction: Direction, folder: Path, own: Mapping[str, Any], *, trust_remote_code: bool = False
) -> None:
    """Raise InputError unless width, layers and chat template of a model folder are the direction's.

    The folder may have another name than the model had: what counts is what is in it.
    """
    config = configuration(folder, trust_remote_code=trust_remote_code).get_text_config()
    if direction.d_model != config.hidden_size or direction.layer >= config.num_hidden_layers:
        raise InputError(
            f"direction of {direction.model}: got d_model {direction.d_model} and layer {direction.layer}, but "
            f"{folder} has d_model {config.hidden_size} and {config.num_hidden_layers} layers; is it another "
            "model?"
        )
    if not direction.template_sha256:
        return
    with loading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        chat = ChatFormat.from_tokenizer(tokenizer, **chat_options(own))
    if chat.template_sha256 != direction.template_sha256:
        raise InputError(
            f"direction of {direction.model}: found with another chat template than {folder} has; is it "
            "another model?"
        )
