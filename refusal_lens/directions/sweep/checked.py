"""The fastest path that gives what hooks give on this model and these prompts, checked before it is
used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ...errors import InputError
from ...model import ChatModel
from ...model.plain import PlainModel
from ..candidates import Candidates
from .batches import Batch, PassSize, Row, make_batches
from .paths import HookPath, PlainPath, ScoringPath

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
"""What a path may raise on an architecture that it does not fit; logged, and the next is tried."""
FREE = PassSize(2**62, 2.0**40)
"""Everything in one pass."""
EXACT = {torch.float64: 1e-8, torch.float32: 2e-5}
"""Largest difference from the hooks' logits, as a share of the largest logit."""
ROUGH = 0.2
"""Half precision: root mean square of the difference, as a share of the logits' spread.

Ablating or adding a mean stream, as the probe does, moves logits by about their spread.
"""


@contextmanager
def checked_path(
    model: ChatModel, candidates: Candidates, rows: Sequence[Row], *, prefix: int
) -> Iterator[ScoringPath]:
    """Open the first path whose edited logits equal those of TransformerLens hooks.

    Tried in turn: plain passes with PyTorch's fused attention, the same with the model's own
    attention, the same with every site of `ChatModel.writes` edited, and hooks. prefix: how many
    leading tokens the rows share and a path may compute once. Falling back to hooks is logged as
    a warning.
    """
    probe = _Probe(model, candidates, rows)
    reasons: list[str] = []
    for path in _plain_paths(model, rows, prefix, reasons):
        try:
            with torch.no_grad(), path.opened():
                reason = probe.differs(path)
        except torch.OutOfMemoryError:
            raise
        except (*UNFIT, InputError) as error:
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            log.info("scores of %s through %s", model.name, path.name)
            with torch.no_grad(), path.opened():
                yield path
            return
        reasons.append(f"{path.name}: {str(reason).splitlines()[0]}")
        log.info("not through %s", reasons[-1])
    log.warning(
        "scores of %s: every candidate goes through TransformerLens hooks, which is slow, because "
        "plain passes do not give the same (%s)",
        model.name,
        "; ".join(reasons),
    )
    with torch.no_grad():
        yield HookPath(model)


def _plain_paths(
    model: ChatModel, rows: Sequence[Row], prefix: int, reasons: list[str]
) -> Iterator[PlainPath]:
    try:
        plain = PlainModel(model)
    except InputError as error:
        reasons.append(str(error))
        return
    shared = rows[0].tokens[None, :prefix] if prefix else None
    exact = model.dtype in EXACT and plain.complete
    for ids in (shared, None) if prefix else (None,):
        for attention, every_block in (("sdpa", not exact), (None, not exact), (None, True)):
            yield PlainPath(
                plain,
                device=model.device,
                dtype=model.dtype,
                prefix_ids=ids,
                attention=attention,
                every_block=every_block,
            )


class _Probe:
    """Two or three rows under a strong edit of each kind, with the logits that hooks give.

    The shortest, the longest, and the one that is read at the most positions if that is more than one.
    """

    def __init__(self, model: ChatModel, candidates: Candidates, rows: Sequence[Row]) -> None:
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
        self.rows, self.pad_id = rows, model.chat.pad_id
        self.probed = {by_length[0], by_length[-1]}
        furthest = max(by_length, key=lambda i: rows[i].n_read)
        if rows[furthest].n_read > 1:
            self.probed.add(furthest)
        self.longest = by_length[-1]
        self.layer = candidates.n_layers // 2
        # A mean stream is sure to matter as a direction, where a difference of means may not.
        self.vectors = candidates.mean_positive[-1, [self.layer]].clone()
        self.exact = model.dtype in EXACT
        hooks = HookPath(model)
        self.expected = self._edited(hooks, self._batches(hooks, self.probed))
        self.allowed = self._tolerance(model.dtype)

    def differs(self, path: ScoringPath) -> str:
        """Why the path is not to be used; "" when it gives what hooks give."""
        alone = self._batches(path, [self.longest])
        padded = self._batches(path, self.probed) if path.pads and len(self.probed) > 1 else []
        for batches in (alone, padded):
            for which, logits in self._edited(path, batches).items():
                gap = self._gap(logits - self.expected[which])
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
    def _edited(
        self, path: ScoringPath, batches: Sequence[Batch]
    ) -> dict[tuple[str, int], Tensor]:
        """Logits of each row under ablation and under addition, at the positions that it is read at."""
        logits: dict[tuple[str, int], Tensor] = {}
        for batch in batches:
            streams = path.streams(batch, [self.layer], {})
            ablated = path.ablation(self.vectors).logits(batch, [0], streams)[0]
            added = path.addition(self.vectors, self.layer).logits(batch, [0], streams)[0]
            for place, row in enumerate(batch.rows):
                n_read = self.rows[row].n_read
                logits["ablated", row] = ablated[place, -n_read:].float().cpu()
                logits["added", row] = added[place, -n_read:].float().cpu()
        return logits

    def _batches(self, path: ScoringPath, chosen: Iterable[int]) -> list[Batch]:
        return make_batches(
            self.rows, sorted(chosen), FREE, members=1, skip=path.prefix, pad_id=self.pad_id
        )
