"""Generating token by token: through Hugging Face's own loop, or a HookedTransformer's cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..chat import Rendered
from ..errors import InputError
from .threads import Users

if TYPE_CHECKING:
    from .chat_model import ChatModel


@dataclass(frozen=True)
class Reply:
    """What a model wrote: the text for people, special tokens left out, and the ids as generated.

    The ids are without the stop token and without padding. They cannot be won back from the text.
    """

    text: str
    ids: tuple[int, ...]


def generate_by_hf(
    model: ChatModel,
    batch: Rendered,
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    use_cache: bool,
    **sampling: Any,
) -> Tensor:
    """Ids [batch new] by ``generate`` of the Hugging Face model under the bridge."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        **{"do_sample": False, **sampling},
        use_cache=use_cache,
        pad_token_id=model.chat.pad_id,
        eos_token_id=list(stops) or None,
        bos_token_id=model.chat.bos_id,
    )
    users, width = Users.of(model.hf), batch.ids.shape[1]
    aside = users.settings_aside(model.hf, GenerationConfig())
    with _tracking_replies(model.hf, users, batch), aside:
        out = model.hf.generate(
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
        )
    return out[:, width:]


@contextmanager
def _tracking_replies(hf: Any, users: Users, batch: Rendered) -> Iterator[None]:
    """Keep ``reply_mask`` right during generation, with or without a key-value cache."""
    width, starting, mine = batch.ids.shape[1], batch.reply_mask, threading.get_ident()

    def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if threading.get_ident() != mine:
            return
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        users.reply_mask = _reply_positions(starting, width, seen, ids.shape[1])

    before = users.reply_mask
    handle = hf.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        users.reply_mask = before


@contextmanager
def first_logits(hf: Any) -> Iterator[list[Tensor]]:
    """Collect the last-position logits [batch d_vocab] of this thread's first pass."""
    collected: list[Tensor] = []
    mine = threading.get_ident()

    def keep(_module: Any, _args: Any, output: Any) -> None:
        if not collected and threading.get_ident() == mine:
            collected.append(output.logits[:, -1].detach().clone())

    handle = hf.register_forward_hook(keep)
    try:
        yield collected
    finally:
        handle.remove()


def generate_by_bridge(
    model: ChatModel,
    batch: Rendered,
    max_new_tokens: int,
    *,
    stops: Sequence[int],
    use_cache: bool,
    **sampling: Any,
) -> Tensor:
    """Ids [batch new], greedy, with a HookedTransformer's own key-value cache."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    if sampling:
        raise InputError("sampling options: a HookedTransformer generates greedily only")
    rows, width = batch.ids.shape
    cache = (
        TransformerLensKeyValueCache.init_cache(model.bridge.cfg, model.device, rows)
        if use_cache
        else None
    )
    ids, mask, seen = batch.ids, batch.mask, 0
    ends = torch.tensor(stops, dtype=ids.dtype, device=ids.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        shown = slice(seen, None) if use_cache else slice(None)
        positions = _reply_positions(
            batch.reply_mask, width, seen if use_cache else 0, ids[:, shown].shape[1]
        )
        with model.reply_at(positions):
            logits = model.bridge(
                ids[:, shown],
                attention_mask=mask[:, shown] if use_cache else mask,
                past_kv_cache=cache,
                return_type="logits",
            )
        chosen = logits[:, -1].argmax(-1)
        chosen = torch.where(ended, torch.full_like(chosen, model.chat.pad_id), chosen)
        seen = ids.shape[1]
        ids = torch.cat([ids, chosen[:, None]], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        ended = ended | torch.isin(chosen, ends)
        if bool(ended.all()):
            break
    return ids[:, width:]


def until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    """The ids before the first stop token."""
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return list(ids[: ends[0]] if ends else ids)


def _reply_positions(starting: Tensor, width: int, seen: int, length: int) -> Tensor:
    """Which of the positions seen .. seen + length belong to the reply: prefilled or generated."""
    generated = torch.ones(
        starting.shape[0], max(0, seen + length - width), dtype=torch.bool, device=starting.device
    )
    return torch.cat([starting, generated], 1)[:, seen : seen + length]
