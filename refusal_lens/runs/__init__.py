"""A run folder: results written step by step, trusted only when their manifest exists."""

from __future__ import annotations

from refusal_lens.runs.files import (
    plain,
    read_csv,
    read_json,
    read_jsonl,
    sha256_of,
    write_csv,
    write_json,
    write_jsonl,
    write_text,
    writing,
)
from refusal_lens.runs.forms import Forms
from refusal_lens.runs.open_step import Manifest, OpenStep
from refusal_lens.runs.run import Run
from refusal_lens.runs.tables import Table
from refusal_lens.runs.tensors import Tensors, read_safetensors, write_safetensors

__all__ = [
    "Forms",
    "Manifest",
    "OpenStep",
    "Run",
    "Table",
    "Tensors",
    "plain",
    "read_csv",
    "read_json",
    "read_jsonl",
    "read_safetensors",
    "sha256_of",
    "write_csv",
    "write_json",
    "write_jsonl",
    "write_safetensors",
    "write_text",
    "writing",
]
