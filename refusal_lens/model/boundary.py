"""The one place where what libraries raise while a model is loaded becomes one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..errors import InputError

LONGEST = 160
"""Characters of a library's own message that are passed on."""


@contextmanager
def loading(name: str | Path, hint: str = "") -> Iterator[None]:
    """Turn whatever is raised inside into an InputError of one line that names the model.

    transformers, tokenizers, peft, gguf and TransformerLens raise dozens of kinds of errors for damaged
    folders. Running out of memory and interrupts keep their own ways out; the cause stays attached.
    hint: what to try, in the place of the usual advice.
    """
    try:
        yield
    except (InputError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise InputError(_line(name, error, hint)) from error
    except BaseException as error:
        # tokenizers is written in Rust; its panics come as a class outside Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(_line(name, error, hint)) from error


def what(error: BaseException) -> str:
    """What an error says, on one line of readable length.

    >>> what(RuntimeError("  sizes differ: 3 and 4."))
    'sizes differ: 3 and 4'
    """
    text = " ".join(str(error).split()).rstrip(".:")
    if isinstance(error, KeyError):
        text = f"no {text}"
    elif not text or isinstance(error, (AttributeError, IndexError, TypeError)):
        text = f"{type(error).__name__}: {text}".rstrip(": ")
    return text if len(text) <= LONGEST else text[: LONGEST - 3].rstrip() + "..."


def _line(name: str | Path, error: BaseException, hint: str) -> str:
    if isinstance(name, Path):
        return f"model folder {name}: cannot be used ({what(error)}); is it whole?"
    if "trust_remote_code" in str(error):
        hint = "the repository asks to run its own code; read it, then try trust_remote_code"
    elif isinstance(error, ImportError):
        hint = "install what it names"
    usual = "need a whole model folder, a Hugging Face name, a .gguf file or organism"
    return f"model {name!r}: cannot be loaded ({what(error)}); {hint or usual}"
