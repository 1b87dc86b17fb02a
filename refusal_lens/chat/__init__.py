"""Chat templates: prompts in, token ids with spans out.

`ChatFormat` is derived from a tokenizer, `Rendered` is what it makes of a list of prompts, and a `Place` says where
in one something is read.
"""

from __future__ import annotations

from .format import ChatFormat
from .places import Place
from .rendered import Rendered

__all__ = ["ChatFormat", "Place", "Rendered"]
