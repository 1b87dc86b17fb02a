"""Sites: the places in a model that hooks can read and change.

The only file that spells a hook name of TransformerLens. Layers are 0-based, and layer l means the
residual stream entering block l (``resid_pre``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..door import checked

HOOK_NAMES = {
    "embed": "hook_embed",
    "pos_embed": "hook_pos_embed",
    "resid_pre": "blocks.{layer}.hook_resid_pre",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_post": "blocks.{layer}.hook_resid_post",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "z": "blocks.{layer}.attn.hook_z",
    "v": "blocks.{layer}.attn.hook_v",
    "pattern": "blocks.{layer}.attn.hook_pattern",
}
READ_ONLY = frozenset({"resid_mid"})
"""A bridge shows resid_mid as the second norm's input: a change there would miss the skip path."""

Hook = Callable[[Tensor], "Tensor | None"]
"""What sits at a site: it gets the activation and returns a new one, or None to leave it."""


@checked
@dataclass(frozen=True, order=True)
class Site:
    """A kind of activation at a layer, such as ``Site("resid_pre", 5)``.

    Kinds: ``embed``, ``pos_embed``, ``resid_pre``, ``resid_mid`` (read only), ``resid_post``, ``attn_out``, ``mlp_out``
    (all [batch pos d_model]; outputs as they are added to the stream, after post-norms), ``z`` and ``v``
    [batch pos head d_head], ``pattern`` [batch head query key].
    """

    kind: str
    layer: int = 0

    def __post_init__(self) -> None:
        if self.kind not in HOOK_NAMES:
            raise ValueError(f"Site kind: got {self.kind!r}, need one of {', '.join(HOOK_NAMES)}")

    @property
    def hook_name(self) -> str:
        """TransformerLens' name for the site."""
        return HOOK_NAMES[self.kind].format(layer=self.layer)


def as_transformer_lens_hook(fn: Hook) -> Callable[..., Tensor | None]:
    """A hook as TransformerLens calls it, with the hook point as a second argument."""

    def hook(activation: Tensor, hook: Any) -> Tensor | None:
        return fn(activation)

    return hook
