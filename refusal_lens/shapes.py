"""The shapes that tensors have here, said once.

Axes carry TransformerLens' names: ``batch pos layer head d_model d_head d_vocab``; ``place`` is an
index over places of a conversation. Public functions compare what they are given with these at their
`door`; what happens inside is checked in the tests only.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

TokenIds = Int[Tensor, "batch pos"]
"""Left-padded token ids."""
TokenMask = Bool[Tensor, "batch pos"]
"""True where a position belongs to the named part of the row."""
Spans = Int[Tensor, "batch 2"]
"""A half-open token span (start, stop) per row."""
Activation = Float[Tensor, "batch pos d_model"]
"""What a residual-stream site holds in one forward pass."""
Vector = Float[Tensor, " d_model"]
"""A vector in the residual stream."""
Vectors = Float[Tensor, "*axes d_model"]
"""Vectors in the residual stream, one (or one per row of a batch)."""
LastLogits = Float[Tensor, "batch d_vocab"]
"""Next-token logits at the last position of each row."""
ReadLogits = Float[Tensor, "batch k d_vocab"]
"""Next-token logits at the last k positions of each row."""
Logits = Float[Tensor, "batch pos d_vocab"]
"""Next-token logits at every position."""
Probabilities = Float64[Tensor, " d_vocab"]
"""A distribution over the next token."""
PerPrompt = Float64[Tensor, " batch"]
"""One number per prompt."""
PlaceLayerVectors = Float64[Tensor, "place layer d_model"]
"""A vector per place and layer, in float64."""
PromptActivations = Float[Tensor, "batch place layer d_model"]
"""Residual stream of each prompt at some places, every layer."""


def as_float64(x: Tensor) -> Float64[Tensor, "*axes"]:
    """The same values in float64; on the CPU where the device has none (Apple's)."""
    return x.cpu().double() if x.device.type == "mps" else x.double()
