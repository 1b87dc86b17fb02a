"""Which software and which machine a result comes from, read without importing any of it."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

from refusal_lens import __version__

PACKAGES = (
    "torch",
    "transformers",
    "transformer_lens",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "pandas",
)


@cache
def versions() -> dict[str, str]:
    """Versions of this package, of Python and of the packages that results depend on."""
    versions = {"refusal_lens": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def machine() -> dict[str, str]:
    """The operating system and the processor, without the machine's name."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
    }
