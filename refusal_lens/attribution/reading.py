"""One forward pass whose hooks keep projections on r^ and drop the activations themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from ..display import shown
from ..errors import InputError
from ..model import ChatModel, Hook, Site
from ..shapes import Vector, as_float64
from .heads import HeadWriter, by_head, scaled


@shown()
class StreamReading:
    """What every writer below l* adds along r^ at chosen columns of a batch.

    Each hook projects what it sees at once, so that nothing of the width of the model outlives it
    but z at the chosen columns, until its layer's attn_out has been seen.
    """

    def __init__(
        self,
        model: ChatModel,
        writers: Sequence[HeadWriter],
        r_hat: Vector,
        columns: Int[Tensor, "batch column"],
    ) -> None:
        self._model, self._writers = model, writers
        self._r_hat, self._columns = r_hat, columns
        self._heads: dict[int, Tensor] = {}
        self._bias: dict[int, Tensor] = {}
        self._along: dict[Site, Tensor] = {}
        self._length: dict[Site, float] = {}
        self._z: Tensor | None = None

    def hooks(self) -> list[tuple[Site, Hook]]:
        """The hooks to install for one forward pass."""
        hooks: list[tuple[Site, Hook]] = []
        for layer in range(len(self._writers)):
            hooks.append((Site("resid_pre", layer), self._note(Site("resid_pre", layer))))
            hooks.append((Site("z", layer), self._keep_z))
            hooks.append((Site("attn_out", layer), self._attention(layer)))
            hooks.append((Site("mlp_out", layer), self._note(Site("mlp_out", layer))))
        last = Site("resid_pre", len(self._writers))
        hooks.append((last, self._note(last)))
        if self._model.has(Site("pos_embed")):
            hooks.append((Site("pos_embed"), self._position_embedding))
        return hooks

    def _at(self, x: Tensor) -> Tensor:
        """The chosen columns of [batch pos ...], [batch column ...]."""
        columns = self._columns.to(x.device)
        return x[torch.arange(len(x), device=x.device)[:, None], columns]

    def _note(self, site: Site) -> Callable[[Tensor], None]:
        def take(x: Tensor) -> None:
            at = as_float64(self._at(x))
            self._along[site] = (at @ self._r_hat.to(at.device)).cpu()
            self._length[site] = float(at.norm(dim=-1).max())

        return take

    def _keep_z(self, z: Tensor) -> None:
        self._z = self._at(by_head(z, self._model.n_heads))

    def _attention(self, layer: int) -> Callable[[Tensor], None]:
        note = self._note(Site("attn_out", layer))

        def take(attn_out: Tensor) -> None:
            if self._z is None:
                raise InputError(
                    f"attribution in {self._model.name}: {Site('z', layer).hook_name} shows "
                    "nothing in this architecture, so its heads cannot be told apart; try another "
                    "transformer_lens version"
                )
            part, z, self._z = self._writers[layer], self._z, None
            scale = part.scale(z, self._at(attn_out))
            vectors = part.vectors
            heads = torch.einsum("bnhd,hd->bnh", as_float64(z), vectors.to(as_float64(z).device))
            self._heads[layer] = scaled(heads, scale).cpu()
            bias = scaled(torch.full(z.shape[:2], part.inside, dtype=torch.float64), scale)
            self._bias[layer] = bias.cpu() + part.shift
            note(attn_out)

        return take

    def _position_embedding(self, x: Tensor) -> None:
        # Rotary models name a hook so too; it does not hold anything that is added to the stream.
        if isinstance(x, Tensor) and x.ndim == 3 and x.shape[-1] == self._model.d_model:
            self._note(Site("pos_embed"))(x.expand(len(self._columns), -1, -1))

    def fields(self) -> dict[str, Tensor]:
        """The tensors of an Attribution for this batch."""
        n = len(self._writers)
        start = self._along[Site("resid_pre", 0)]
        positional = self._along.get(Site("pos_embed"), torch.zeros_like(start))
        none = start.new_zeros((*start.shape, 0))
        mlps = [self._along[Site("mlp_out", layer)] for layer in range(n)]
        no_heads = start.new_zeros((*start.shape, 0, self._model.n_heads))
        return {
            "heads": torch.stack(list(self._heads.values()), 2) if n else no_heads,
            "attention_bias": torch.stack(list(self._bias.values()), 2) if n else none,
            "mlps": torch.stack(mlps, 2) if n else none,
            "token_embedding": start - positional,
            "position_embedding": positional,
            "projection": self._along[Site("resid_pre", n)],
        }

    def check(self) -> None:
        """Add up every layer again. Raises InputError naming the first one that does not hold."""
        for layer in range(len(self._writers)):
            out, after = Site("attn_out", layer), Site("resid_pre", layer + 1)
            written = self._heads[layer].sum(-1) + self._bias[layer]
            self._compare(written, out, f"heads and biases of layer {layer}")
            before = self._along[Site("resid_pre", layer)]
            summed = before + self._along[out] + self._along[Site("mlp_out", layer)]
            self._compare(summed, after, f"what is known to be written up to layer {layer}")

    def _compare(self, summed: Tensor, site: Site, what: str) -> None:
        gap = float((summed - self._along[site]).abs().max())
        longest = max(self._length[site], self._length[Site("resid_pre", 0)])
        allowed = rounding(self._model.dtype) * longest
        if not gap <= allowed:
            raise InputError(
                f"attribution in {self._model.name}: {what} differs by {gap:.2g} along r from "
                f"{site.hook_name} (rounding explains {allowed:.1g}); something else writes to the "
                "residual stream there: a multiplier, another mixer, or an installed edit"
            )


def rounding(dtype: torch.dtype) -> float:
    """The share of an activation's length by which a sum in this dtype may be off."""
    return max(1e-5, 4 * torch.finfo(dtype).eps)
