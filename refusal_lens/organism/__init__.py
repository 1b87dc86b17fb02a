"""The organism: a tiny bundled chat model that refuses, and the base model that it was made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path


def folder(which: str) -> Path:
    """The Hugging Face folder of the "chat" or the "base" model."""
    if which not in ("chat", "base"):
        raise ValueError(f'organism folder: got {which!r}, need "chat" or "base"')
    return Path(__file__).parent / "data" / which


def is_its_vocabulary(vocabulary: Mapping[str, int]) -> bool:
    """Whether a tokenizer's vocabulary is the organism's: so is that of whatever was tuned from it."""
    return dict(vocabulary) == _vocabulary()


@cache
def _vocabulary() -> dict[str, int]:
    """Every token of the organism with its id, added ones too."""
    facts = json.loads((folder("chat") / "tokenizer.json").read_text("utf-8"))
    added = {token["content"]: token["id"] for token in facts["added_tokens"]}
    return {**facts["model"]["vocab"], **added}
