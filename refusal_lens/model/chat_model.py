"""Chat models behind TransformerLens hooks.

`ChatModel` reads sites, changes what they hold, and generates, over a TransformerBridge (TransformerLens
3.9 and 4.x) or a HookedTransformer (3.9).
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from ..chat import ChatFormat, Rendered
from ..door import checked
from ..errors import InputError
from ..shapes import LastLogits, Logits, TokenMask
from .check import self_check
from .loading import load_pretrained
from .sites import Hook, Site, as_transformer_lens_hook

_levels = itertools.count(1_000_000)
"""A context level of its own for every set of hooks, so that each removes just what it added.

The bridge's own ``hooks()`` context does the same but rebuilds its table of aliases for every call, 0.1 s
for a small model.
"""


class ChatModel:
    """A chat model with its template: renders, reads, edits and generates.

    Make one with `ChatModel.load` or `ChatModel.wrap`; both check that hooks see and change what the
    plain model computes.
    """

    def __init__(self, bridge: Any, chat: ChatFormat, *, name: str, revision: str | None) -> None:
        self.bridge = bridge
        self.chat = chat
        self.name = name
        self.revision = revision
        self.hf: Any = getattr(bridge, "original_model", None)
        self.n_layers = int(bridge.cfg.n_layers)
        self.n_heads = int(bridge.cfg.n_heads)
        self.d_model = int(bridge.cfg.d_model)
        self._points = dict(bridge.hook_dict)
        self._reply_mask: TokenMask | None = None

    # ---------------------------------------------------------------- what it is

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.chat.tokenizer

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the embedding."""
        return next(iter(self._parameters())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point parameter."""
        return next(p.dtype for p in self._parameters() if p.is_floating_point())

    @property
    def d_vocab(self) -> int:
        """Number of logits."""
        return int(self.bridge.cfg.d_vocab)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (self.hf if self.hf is not None else self.bridge).parameters()

    @checked
    def has(self, site: Site) -> bool:
        """Whether the model has this site (parallel blocks, for one, have no resid_mid)."""
        return site.layer < self.n_layers and site.hook_name in self._points

    @checked
    def writes(self, layers: Sequence[int] | None = None) -> tuple[Site, ...]:
        """The sites where something enters the residual stream at these layers (default: all).

        The stream at the start of every block, each attention output and each MLP output after its
        post-norm, and the final stream: the places of equation 4 of the paper, written on outputs as the
        reference implementation does. Reading the stream itself at every block covers writers that have no
        site of their own, such as a mixer beside the attention.
        """
        for layer in layers or ():
            if not 0 <= layer < self.n_layers:
                raise InputError(f"layers: got {layer}, need 0 to {self.n_layers - 1}")
        every = range(self.n_layers) if layers is None else layers
        kinds = ("resid_pre", "attn_out", "mlp_out")
        sites = [Site(kind, layer) for layer in every for kind in kinds]
        if layers is None:
            sites.append(Site("resid_post", self.n_layers - 1))
        return tuple(site for site in sites if self.has(site))

    def writes_once(self) -> tuple[Site, ...]:
        """The sites that see each write to the residual stream exactly once.

        The stream entering block 0, each attention output and each MLP output. What is done here adds up over
        the writes, as an edit of weights does. Raises InputError for a model where a block's output has no site
        of its own.
        """
        sites = [Site("resid_pre", 0)]
        sites += [Site(k, layer) for layer in range(self.n_layers) for k in ("attn_out", "mlp_out")]
        for site in sites:
            if not self.has(site):
                raise InputError(
                    f"writes of {self.name}: block {site.layer} has no {site.kind} of its own to edit, so only "
                    "a full ablation can be done by hooks; try edited weights"
                )
        return tuple(sites)

    # ---------------------------------------------------------------- hooks

    @checked
    @contextmanager
    def hooked(self, hooks: Sequence[tuple[Site, Hook]]) -> Iterator[ChatModel]:
        """Install hooks for the length of the context; later ones see what earlier ones made.

        Raises InputError for a site that the model lacks. Nothing stays behind, after an exception either.
        """
        for site, _ in hooks:
            if not self.has(site):
                raise InputError(
                    f"hook site {site.hook_name} of {self.name}: not there; the model has "
                    f"{self.n_layers} layers and {'no' if site.layer < self.n_layers else 'fewer'} "
                    f"such {'site in this block' if site.layer < self.n_layers else 'layers'}"
                )
        level = next(_levels)
        points = [self._points[site.hook_name] for site, _ in hooks]
        try:
            for point, (_, fn) in zip(points, hooks, strict=True):
                point.add_hook(as_transformer_lens_hook(fn), level=level)
            yield self
        finally:
            for point in points:
                point.remove_hooks(dir="fwd", level=level)

    @property
    def reply_mask(self) -> TokenMask:
        """During a forward pass: which of the positions that hooks see now belong to the reply."""
        if self._reply_mask is None:
            raise InputError(
                'an edit with when="prompt" or when="reply" needs to know where the reply starts; '
                "call ChatModel.logits or ChatModel.generate rather than the bridge itself"
            )
        return self._reply_mask

    @contextmanager
    def _reply_at(self, mask: TokenMask) -> Iterator[None]:
        before, self._reply_mask = self._reply_mask, mask
        try:
            yield
        finally:
            self._reply_mask = before

    # ---------------------------------------------------------------- forward passes

    @checked
    @torch.no_grad()
    def logits(self, rendered: Rendered, *, all_positions: bool = False) -> LastLogits | Logits:
        """Next-token logits: [batch d_vocab] at the last position, or [batch pos d_vocab] at all.

        Only the positions asked for are unembedded. Raises InputError when a logit is NaN or infinite.
        """
        rendered = rendered.to(self.device)
        with self._reply_at(rendered.reply_mask):
            logits = self.run(rendered.ids, rendered.mask, all_positions=all_positions)
        kept = logits if all_positions else logits[:, -1]
        real = kept[rendered.mask.bool()] if all_positions else kept
        if bool(torch.isnan(real).any()) or bool(torch.isposinf(real).any()):
            raise InputError(
                f"logits of {self.name}: got NaN or infinity in {str(self.dtype).removeprefix('torch.')}; "
                "try another dtype (bfloat16 or float32)"
            )
        return kept

    def run(self, ids: Tensor, mask: Tensor, *, all_positions: bool = False) -> Tensor:
        """The bare forward pass on token ids [batch pos]: logits at the last position, or at all.

        No checks, and no knowledge of where replies start; `logits` is the one to call.
        """
        padded = mask if bool((mask == 0).any()) else None
        if self.hf is None:
            logits = self.bridge(ids, attention_mask=padded, return_type="logits")
            return logits if all_positions else logits[:, -1:]
        keep = {} if all_positions or not self._keeps_logits else {"logits_to_keep": 1}
        extra = {} if not self._has_cache_option else {"use_cache": False}
        return self.bridge(ids, attention_mask=padded, return_type="logits", **keep, **extra)

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in _forward_parameters(type(self.hf))  # type: ignore[arg-type]

    @property
    def _has_cache_option(self) -> bool:
        return "use_cache" in _forward_parameters(type(self.hf))  # type: ignore[arg-type]

    @checked
    @torch.no_grad()
    def read(self, rendered: Rendered, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """What the sites hold in one forward pass, e.g. [batch pos d_model] for resid_pre."""
        held: dict[Site, Tensor] = {}

        def keeper(site: Site) -> Hook:
            def keep(activation: Tensor) -> None:
                held[site] = activation.detach()

            return keep

        with self.hooked([(site, keeper(site)) for site in sites]):
            self.logits(rendered)
        return held

    # ---------------------------------------------------------------- generation

    @checked
    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str] | Rendered,
        *,
        max_new_tokens: int = 512,
        batch_size: int = 64,
        stop: bool = True,
        use_cache: bool = True,
        on_batch: Callable[[int, int], None] | None = None,
        **sampling: Any,
    ) -> list[str]:
        """Replies as text, greedy unless ``do_sample=True, temperature=...`` say otherwise.

        A reply ends at the model's own stop tokens (its generation config, the tokenizer's eos and the
        template's end of turn), which are not part of the text; ``stop=False`` runs on to max_new_tokens.
        Edits installed around the call act on the prompt and on every generated token. Prompts are batched by
        length; a batch_size of at least their number keeps their order, as edits with one vector per row need.
        """
        rendered = prompts if isinstance(prompts, Rendered) else self.chat.render(list(prompts))
        replies: list[str] = [""] * len(rendered)
        one_batch = batch_size >= len(rendered)
        batches = [(range(len(rendered)), rendered)] if one_batch else rendered.batches(batch_size)
        done = 0
        for rows, batch in batches:
            new = self._generate(
                batch.to(self.device), max_new_tokens, stop=stop, use_cache=use_cache, **sampling
            )
            for row, ids in zip(rows, new.tolist(), strict=True):
                replies[int(row)] = self.chat.decode(_until_stop(ids, self.stop_ids if stop else ()))
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(rendered))
        return replies

    @checked
    def reply(self, prompts: Rendered, *, max_new_tokens: int) -> tuple[list[str], LastLogits]:
        """Greedy replies of one batch, with the last-position logits [batch d_vocab] they began from."""
        found: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            if not found:
                found.append(output.logits[:, -1].detach().clone())

        generate = partial(
            self.generate, prompts, max_new_tokens=max_new_tokens, batch_size=len(prompts)
        )
        if self.hf is None:
            return generate(), self.logits(prompts)
        handle = self.hf.register_forward_hook(keep)
        try:
            replies = generate()
        finally:
            handle.remove()
        return replies, found[0]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the generation config's, the tokenizer's and the template's."""
        config = getattr(self.hf, "generation_config", None)
        own = getattr(config, "eos_token_id", None)
        listed = [own] if isinstance(own, int) else list(own or [])
        return tuple(dict.fromkeys([*listed, *self.chat.stop_ids]))

    def _generate(
        self, batch: Rendered, max_new_tokens: int, *, stop: bool, use_cache: bool, **sampling: Any
    ) -> Tensor:
        if self.hf is None:
            if sampling:
                raise InputError("sampling options: a HookedTransformer generates greedily only")
            return self._generate_hooked(batch, max_new_tokens, stop=stop, use_cache=use_cache)
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            **{"do_sample": False, **sampling},
            use_cache=use_cache,
            pad_token_id=self.chat.pad_id,
            eos_token_id=list(self.stop_ids) if stop else None,
            bos_token_id=self.chat.bos_id,
        )
        width = batch.ids.shape[1]
        with self._tracking_replies(batch), self._own_settings_aside():
            out = self.hf.generate(
                input_ids=batch.ids, attention_mask=batch.mask, generation_config=config
            )
        return out[:, width:]

    @contextmanager
    def _own_settings_aside(self) -> Iterator[None]:
        """Take the model's generation config away: what a call leaves out would be filled from it.

        A repetition penalty or suppressed tokens change greedy replies too.
        """
        from transformers import GenerationConfig

        before, self.hf.generation_config = self.hf.generation_config, GenerationConfig()
        try:
            yield
        finally:
            self.hf.generation_config = before

    @contextmanager
    def _tracking_replies(self, batch: Rendered) -> Iterator[None]:
        """Keep ``reply_mask`` right during generation, with or without a key-value cache."""
        width, starting = batch.ids.shape[1], batch.reply_mask

        def note(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            cache = kwargs.get("past_key_values")
            seen = 0 if cache is None else int(cache.get_seq_length())
            self._reply_mask = _reply_positions(starting, width, seen, ids.shape[1])

        before = self._reply_mask
        handle = self.hf.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._reply_mask = before

    def _generate_hooked(
        self, batch: Rendered, max_new_tokens: int, *, stop: bool, use_cache: bool
    ) -> Tensor:
        """Greedy decoding with a HookedTransformer's own key-value cache."""
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        rows, width = batch.ids.shape
        cache = (
            TransformerLensKeyValueCache.init_cache(self.bridge.cfg, self.device, rows)
            if use_cache
            else None
        )
        ids, mask, seen = batch.ids, batch.mask, 0
        stops = torch.tensor(self.stop_ids if stop else [], dtype=ids.dtype, device=ids.device)
        ended = torch.zeros(rows, dtype=torch.bool, device=ids.device)
        for _ in range(max_new_tokens):
            shown = slice(seen, None) if use_cache else slice(None)
            positions = _reply_positions(batch.reply_mask, width, seen if use_cache else 0, ids[:, shown].shape[1])
            with self._reply_at(positions):
                logits = self.bridge(
                    ids[:, shown],
                    attention_mask=mask[:, shown] if use_cache else mask,
                    past_kv_cache=cache,
                    return_type="logits",
                )
            chosen = logits[:, -1].argmax(-1)
            chosen = torch.where(ended, torch.full_like(chosen, self.chat.pad_id), chosen)
            seen = ids.shape[1]
            ids = torch.cat([ids, chosen[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            ended = ended | torch.isin(chosen, stops)
            if bool(ended.all()):
                break
        return ids[:, width:]

    # ---------------------------------------------------------------- making one

    @classmethod
    @checked
    def load(
        cls,
        name: str,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        system: str | None = None,
        prefill: str = "",
        thinking: bool | None = None,
        base: bool | None = False,
    ) -> ChatModel:
        """Load a chat model by Hugging Face name, local folder, or "organism" (bundled, offline).

        device: default CUDA, then MPS, then CPU; not together with device_map. dtype: default float32 on a
        CPU, the checkpoint's own elsewhere. system, prefill (what opens every answer) and thinking (False
        closes a thinking model's reasoning) are ChatFormat's. base=True renders instructions without a chat
        template, None only where there is none.
        Raises InputError when the model cannot be found or opened, or fails the self-check.
        """
        loaded = load_pretrained(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
        )
        plain = not loaded.tokenizer.chat_template if base is None else base
        chat = (
            ChatFormat.plain(loaded.tokenizer)
            if plain
            else ChatFormat.from_tokenizer(
                loaded.tokenizer, system=system, prefill=prefill, thinking=thinking
            )
        )
        model = cls(loaded.bridge, chat, name=name, revision=loaded.revision)
        self_check(model, plain_ids=loaded.probe_ids, plain_logits=loaded.probe_logits)
        return model

    @classmethod
    @checked
    def wrap(
        cls,
        bridge: Any,
        *,
        chat: ChatFormat | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> ChatModel:
        """Wrap a TransformerBridge or (TransformerLens 3.9) HookedTransformer that is already loaded.

        The caller's tokenizer is not changed. TransformerLens loads tokenizers so that they put a BOS in front;
        where the model's template wants none, pass ``chat=ChatFormat.from_tokenizer(plain_tokenizer)``.
        A HookedTransformer made by ``from_pretrained`` has folded norms and centred weights, so its
        residual stream, and any direction in it, is in another basis than the plain model's;
        ``from_pretrained_no_processing`` keeps the plain one.
        """
        if not hasattr(bridge, "hook_dict") or not hasattr(bridge, "cfg"):
            raise InputError(
                f"model to wrap: got {type(bridge).__name__}, need a TransformerBridge or a HookedTransformer; "
                "try ChatModel.load"
            )
        if chat is None:
            chat = ChatFormat.from_tokenizer(copy.deepcopy(bridge.tokenizer))
        known = getattr(bridge.cfg, "tokenizer_name", None) or getattr(bridge.cfg, "model_name", None)
        model = cls(bridge, chat, name=name or known or type(bridge).__name__, revision=revision)
        self_check(model)
        return model


@lru_cache
def _forward_parameters(kind: type[torch.nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def _reply_positions(starting: Tensor, width: int, seen: int, length: int) -> Tensor:
    """Which of the positions seen .. seen + length belong to the reply: prefilled or generated."""
    generated = torch.ones(
        starting.shape[0], max(0, seen + length - width), dtype=torch.bool, device=starting.device
    )
    return torch.cat([starting, generated], 1)[:, seen : seen + length]


def _until_stop(ids: Sequence[int], stop_ids: Sequence[int]) -> list[int]:
    ends = [i for i, token in enumerate(ids) if token in stop_ids]
    return list(ids[: ends[0]] if ends else ids)
