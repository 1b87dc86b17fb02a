"""Chat templates: instructions in, token ids with spans out.

`ChatFormat` is derived from a tokenizer, `Rendered` is what it makes of a list of instructions.
"""

from __future__ import annotations

from .format import ChatFormat
from .rendered import Rendered

__all__ = ["ChatFormat", "Rendered"]
