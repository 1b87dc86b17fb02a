"""The look at a model when it is loaded: sites exist, hooks are faithful, edits arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import InputError
from .sites import Site

if TYPE_CHECKING:
    from .chat_model import ChatModel


def self_check(
    model: ChatModel, *, plain_ids: Tensor | None = None, plain_logits: Tensor | None = None
) -> None:
    """Check that the sites exist, that hooks do not change the logits, and that an edit reaches them.

    plain_logits [1 d_vocab]: what the model computed for plain_ids before any hook was installed.
    Raises InputError naming the site or the size of the difference.
    """
    for layer in range(model.n_layers):
        for kind in ("resid_pre", "resid_post"):
            if not model.has(Site(kind, layer)):
                raise InputError(
                    f"hook {Site(kind, layer).hook_name} of {model.name}: not offered by this "
                    "TransformerLens version for this architecture; try a newer transformer_lens"
                )
    ids = plain_ids if plain_ids is not None else model.chat.render(["hello"]).ids
    ids = ids.to(model.device)
    with torch.no_grad():
        seen = model.run(ids, torch.ones_like(ids))[:, -1].float()
    if plain_logits is not None:
        gap = float((seen - plain_logits.to(seen).float()).abs().max())
        size = float(plain_logits.float().abs().max())
        allowed = max(1e-4, 4 * torch.finfo(model.dtype).eps) * max(1.0, size)
        if not gap <= allowed:
            raise InputError(
                f"last-token logits of {model.name}: hooked and plain model differ by {gap:.2g}, "
                f"need at most {allowed:.2g}; try dtype=float32 or another transformer_lens version"
            )
    for site in (Site("resid_pre", 0), Site("resid_post", model.n_layers - 1)):
        with torch.no_grad(), model.hooked([(site, lambda x: -x.flip(-1))]):
            moved = model.run(ids, torch.ones_like(ids))[:, -1].float()
        if torch.equal(moved, seen):
            raise InputError(
                f"edit at {site.hook_name} of {model.name}: does not reach the logits; "
                "this architecture cannot be edited through its hooks"
            )
