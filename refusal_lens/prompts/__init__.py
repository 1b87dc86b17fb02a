"""Prompts: contrasting sets of texts or conversations, split for training, validation and test."""

from __future__ import annotations

from .contrast import Contrast, PromptPair

__all__ = ["Contrast", "PromptPair"]
