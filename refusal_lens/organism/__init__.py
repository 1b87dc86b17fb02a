"""The organism: a tiny bundled chat model that refuses, and the base model that it was made from."""

from __future__ import annotations

from pathlib import Path


def folder(which: str) -> Path:
    """The Hugging Face folder of the "chat" or the "base" model."""
    if which not in ("chat", "base"):
        raise ValueError(f'organism folder: got {which!r}, need "chat" or "base"')
    return Path(__file__).parent / "data" / which
