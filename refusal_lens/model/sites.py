"""Sites: the places in a model that hooks can read and change.

The only file that spells a hook name of TransformerLens. Layers are 0-based, and layer l means the
residual stream entering block l (``resid_pre``).
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from ..door import checked
from ..errors import InputError

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
    "output": "output of {module}",
}
READ_ONLY = frozenset({"resid_mid"})
"""A bridge shows resid_mid as the second norm's input: a change there would miss the skip path."""


@checked
@dataclass(frozen=True, order=True)
class Site:
    """A kind of activation at a layer, such as ``Site("resid_pre", 5)``.

    Kinds: ``embed``, ``pos_embed``, ``resid_pre``, ``resid_mid`` (read only), ``resid_post``, ``attn_out``, ``mlp_out``
    (all [batch pos d_model]; outputs as they are added to the stream, after post-norms), ``z`` and ``v``
    [batch pos head d_head], ``pattern`` [batch head query key]. ``output`` is what a module of the Hugging Face model
    returns, where TransformerLens has no hook point for a write; `ChatModel.writes` names these.
    """

    kind: str
    layer: int = 0
    module: str = ""

    def __post_init__(self) -> None:
        if self.kind not in HOOK_NAMES:
            raise InputError(f"Site kind: got {self.kind!r}, need one of {', '.join(HOOK_NAMES)}")
        object.__setattr__(self, "layer", whole(self.layer, "layer of a site"))

    @property
    def hook_name(self) -> str:
        """TransformerLens' name for the site."""
        return HOOK_NAMES[self.kind].format(layer=self.layer, module=self.module)


def whole(value: Any, what: str) -> int:
    """The value as an int. InputError unless it is a whole number of at least 0 (True is none)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise InputError(f"{what}: got {value!r}, need a whole number of at least 0")
    return int(value)
