"""The fastest road that gives what hooks give on this model and these prompts, checked before it is
used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import InputError
from ...model import ChatModel
from ...model.plain import PlainModel
from ..candidates import Candidates
from .batches import Batch, Load, Tokens, make_batches
from .roads import HookRoad, PlainRoad, Road

log = logging.getLogger(__name__)

UNFIT = (
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    NotImplementedError,
)
"""What a road may raise on an architecture that it does not fit; logged, and the next is tried."""
FREE = Load(2**62, 2.0**40)
"""Everything in one pass."""
EXACT = {torch.float64: 1e-8, torch.float32: 2e-5}
"""Largest difference from the hooks' logits, as a share of the largest logit."""
ROUGH = 0.2
"""Half precision: root mean square of the difference, as a share of the logits' spread.

Ablating or adding a mean stream, as the probe does, moves logits by about their spread.
"""


@contextmanager
def checked_road(
    model: ChatModel, candidates: Candidates, prompts: Sequence[Tokens], *, prefix: int
) -> Iterator[Road]:
    """Open the first road whose edited logits equal those of TransformerLens hooks.

    Tried in turn: plain passes with PyTorch's fused attention, the same with the model's own
    attention, the same with every site of `ChatModel.writes` edited, and hooks. prefix: how many
    leading tokens the prompts share and a road may compute once. Falling back to hooks is logged as
    a warning.
    """
    probe = _Probe(model, candidates, prompts)
    reasons: list[str] = []
    for road in _roads(model, prompts, prefix, reasons):
        try:
            with torch.no_grad(), road.opened():
                reason = probe.differs(road)
        except torch.OutOfMemoryError:
            raise
        except (*UNFIT, InputError) as error:
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            log.info("scores of %s through %s", model.name, road.name)
            with torch.no_grad(), road.opened():
                yield road
            return
        reasons.append(f"{road.name}: {str(reason).splitlines()[0]}")
        log.info("not through %s", reasons[-1])
    log.warning(
        "scores of %s: every candidate goes through TransformerLens hooks, which is slow, because "
        "plain passes do not give the same (%s)",
        model.name,
        "; ".join(reasons),
    )
    with torch.no_grad():
        yield HookRoad(model)


def _roads(
    model: ChatModel, prompts: Sequence[Tokens], prefix: int, reasons: list[str]
) -> Iterator[PlainRoad]:
    try:
        plain = PlainModel(model)
    except InputError as error:
        reasons.append(str(error))
        return
    shared = prompts[0][None, :prefix] if prefix else None
    exact = model.dtype in EXACT and plain.complete
    for ids in (shared, None) if prefix else (None,):
        for attention, every_block in (("sdpa", not exact), (None, not exact), (None, True)):
            yield PlainRoad(
                plain,
                device=model.device,
                dtype=model.dtype,
                prefix_ids=ids,
                attention=attention,
                every_block=every_block,
            )


class _Probe:
    """Two prompts under a strong edit of each kind, with the logits that hooks give."""

    def __init__(self, model: ChatModel, candidates: Candidates, prompts: Sequence[Tokens]) -> None:
        by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        self.prompts, self.pad_id = prompts, model.chat.pad_id
        self.rows = sorted({by_length[0], by_length[-1]})
        self.longest = by_length[-1]
        self.layer = candidates.n_layers // 2
        # A mean stream is sure to matter as a direction, where a difference of means may not.
        self.vectors = candidates.mean_positive[-1, [self.layer]].clone()
        self.exact = model.dtype in EXACT
        hooks = HookRoad(model)
        self.expected = self._edited(hooks, self._batches(hooks, self.rows))
        self.allowed = self._tolerance(model.dtype)

    def differs(self, road: Road) -> str:
        """Why the road is not to be used; "" when it gives what hooks give."""
        alone = self._batches(road, [self.longest])
        padded = self._batches(road, self.rows) if road.pads and len(self.rows) > 1 else []
        for batches in (alone, padded):
            for which, found in self._edited(road, batches).items():
                gap = self._gap(found - self.expected[which])
                if not gap <= self.allowed:
                    return f"{which[0]} logits are off by {gap:.2g}, at most {self.allowed:.2g} allowed"
        return ""

    def _gap(self, difference: Tensor) -> float:
        """The largest difference; in half precision, where single logits jump, the typical one."""
        return float(difference.abs().max() if self.exact else difference.square().mean().sqrt())

    def _tolerance(self, dtype: torch.dtype) -> float:
        logits = list(self.expected.values())
        if self.exact:
            return EXACT[dtype] * max(1.0, max(float(x.abs().max()) for x in logits))
        return ROUGH * min(float(x.std()) for x in logits)

    @torch.no_grad()
    def _edited(self, road: Road, batches: Sequence[Batch]) -> dict[tuple[str, int], Tensor]:
        """Logits of each prompt under ablation and under addition."""
        found: dict[tuple[str, int], Tensor] = {}
        for batch in batches:
            streams = road.streams(batch, [self.layer], {})
            ablated = road.ablation(self.vectors).logits(batch, [0], streams)[0]
            added = road.addition(self.vectors, self.layer).logits(batch, [0], streams)[0]
            for row, prompt in enumerate(batch.prompts):
                found["ablated", prompt] = ablated[row].float().cpu()
                found["added", prompt] = added[row].float().cpu()
        return found

    def _batches(self, road: Road, rows: Sequence[int]) -> list[Batch]:
        return make_batches(
            self.prompts, rows, FREE, members=1, skip=road.prefix, pad_id=self.pad_id
        )
