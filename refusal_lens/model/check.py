"""The look at a model when it is loaded: sites exist, hooks are faithful, edits arrive, caches are kept."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..display import shown
from ..errors import InputError
from ..shapes import LastLogits, TokenIds
from .room import max_positions
from .sites import Site
from .threads import Users

if TYPE_CHECKING:
    from .chat_model import ChatModel

log = logging.getLogger(__name__)

PROBE = "The quick brown fox jumps over the lazy dog."
LENGTH = 32
"""Tokens of the probe at most."""
STEPS = 2
"""Tokens that are fed one by one to a cache; the ALiBi of a bridge is wrong from the first on."""


@shown()
@dataclass(frozen=True, eq=False)
class Probe:
    """What a Hugging Face model computes for a few tokens, taken before it is wrapped.

    logits: at the last token. steps: [step 2 d_vocab] logits while the last tokens are generated with a
    key-value cache, for two rows of which one is padded; None where the model cannot generate.
    """

    ids: TokenIds
    logits: LastLogits
    steps: Tensor | None


@torch.no_grad()
def take_probe(hf: Any, tokenizer: Any) -> Probe:
    """Ask a plain Hugging Face model, on the device of its embedding."""
    room = max_positions(hf.config) or LENGTH
    ids = torch.tensor([tokenizer.encode(PROBE, add_special_tokens=True)[: min(LENGTH, room)]])
    ids = ids.to(next(hf.parameters()).device)
    logits = hf(input_ids=ids, use_cache=False).logits[:, -1].cpu()
    return Probe(ids, logits, generated(hf, ids, use_cache=True) if hf.can_generate() else None)


@torch.no_grad()
def generated(hf: Any, ids: TokenIds, *, use_cache: bool) -> Tensor | None:
    """Logits [step 2 d_vocab] while a model writes the last tokens of ids [1 pos], on the CPU.

    The same tokens whatever the logits are, through ``generate`` itself, so that positions, masks and caches
    are those of every reply. The second row begins later, behind padding. None for fewer than five tokens.
    """
    from transformers import GenerationConfig

    start = ids.shape[1] - STEPS
    if start < 3:
        return None

    def forced(so_far: Tensor, scores: Tensor) -> Tensor:
        wanted = ids[0, min(so_far.shape[1], ids.shape[1] - 1)]
        return torch.full_like(scores, -torch.inf).index_fill(1, wanted, 0.0)

    config = GenerationConfig(
        max_new_tokens=STEPS + 1,
        do_sample=False,
        use_cache=use_cache,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    mask = torch.ones_like(ids[:, :start].repeat(2, 1))
    mask[1, :2] = 0
    with Users.of(hf).settings_aside(hf, GenerationConfig()):
        out = hf.generate(
            input_ids=ids[:, :start].repeat(2, 1) * mask,
            attention_mask=mask,
            generation_config=config,
            logits_processor=[forced],
        )
    return torch.stack(out.logits).float().cpu()


def self_check(model: ChatModel, probe: Probe | None) -> None:
    """Check that the sites exist, that hooks do not change the logits, and that an edit reaches them.

    probe: what the plain model computed before any hook was installed, where that is known.
    Raises InputError naming the site or the size of the difference.
    """
    for layer in range(model.n_layers):
        for kind in ("resid_pre", "resid_post"):
            if not model.has(Site(kind, layer)):
                raise InputError(
                    f"hook {Site(kind, layer).hook_name} of {model.name}: not offered by this "
                    "TransformerLens version for this architecture; try a newer transformer_lens"
                )
    ids = probe.ids if probe is not None else model.chat.render(["hello"]).ids
    ids = ids.to(model.device)
    with torch.no_grad():
        seen = model.run(ids, torch.ones_like(ids))[:, -1].float()
    if probe is not None:
        _require_equal(model, seen.cpu(), probe.logits.float(), "last-token logits")
    for site in (Site("resid_pre", 0), Site("resid_post", model.n_layers - 1)):
        with torch.no_grad(), model.hooked([(site, lambda x: -x.flip(-1))]):
            moved = model.run(ids, torch.ones_like(ids))[:, -1].float()
        if torch.equal(moved, seen):
            raise InputError(
                f"edit at {site.hook_name} of {model.name}: does not reach the logits; "
                "this architecture cannot be edited through its hooks"
            )


def check_cache(model: ChatModel, probe: Probe | None) -> bool:
    """Whether generation with a key-value cache gives the plain model's logits.

    Without a probe of the plain model, those of generation without a cache. A False is logged. Raises
    InputError when padded rows differ even before the cache is read.
    """
    if model.hf is None:
        return True
    if probe is None:
        ids = model.chat.render([PROBE]).ids.to(model.device)
        ids = ids[:, : min(LENGTH, model.max_positions or LENGTH)]
        wanted = generated(model.hf, ids, use_cache=False)
    else:
        ids, wanted = probe.ids, probe.steps
    logits = None if wanted is None else generated(model.hf, ids, use_cache=True)
    if wanted is None or logits is None:
        return True
    _require_equal(model, logits[0], wanted[0], "logits of padded rows")
    # Rounding in the cached steps may be a few times that of the first pass.
    rounding = max(_allowed(model, wanted), 4 * _gap(logits[0], wanted[0]))
    gap = _gap(logits[1:], wanted[1:])
    if gap <= rounding:
        return True
    log.warning(
        "%s: its bridge computes other logits with a key-value cache (they differ by %.2g), so replies are "
        "generated without one, which takes longer",
        model.name,
        gap,
    )
    return False


def _require_equal(model: ChatModel, logits: Tensor, wanted: Tensor, what: str) -> None:
    gap, allowed = _gap(logits, wanted), _allowed(model, wanted)
    if not gap <= allowed:
        raise InputError(
            f"{what} of {model.name}: hooked and plain model differ by {gap:.2g}, "
            f"need at most {allowed:.2g}; try dtype=float32 or another transformer_lens version"
        )


def _allowed(model: ChatModel, wanted: Tensor) -> float:
    return max(1e-4, 4 * torch.finfo(model.dtype).eps) * max(1.0, float(wanted.abs().max()))


def _gap(logits: Tensor, wanted: Tensor) -> float:
    # Where both are the same infinity, the difference would be NaN.
    return float(torch.where(logits == wanted, 0.0, logits - wanted).abs().max())
