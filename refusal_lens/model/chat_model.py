"""Chat models behind TransformerLens hooks.

`ChatModel` reads sites, changes what they hold, and generates, over a TransformerBridge (TransformerLens
3.9 and 4.x) or a HookedTransformer (3.9).
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..chat import ChatFormat, Rendered
from ..conversations import Conversation, Prompt, unanswered
from ..display import shown
from ..door import at_least, checked
from ..errors import InputError
from ..progress import Progress
from ..shapes import LastLogits, Logits, ReadLogits, TokenMask
from .adapters import Adapter
from .check import Probe, check_cache, self_check, take_probe
from .fingerprint import weights_sha256
from .generation import Reply, first_logits, generate_by_bridge, generate_by_hf, until_stop
from .hooks import Hook, installed, unwrapped
from .loading import bridge_of, load_pretrained, loading, require_embedded
from .room import max_positions, reply_length, require_room
from .sites import Site, whole
from .stream.coverage import Coverage, coverage
from .stream.writers import Writers
from .threads import Users

log = logging.getLogger(__name__)

HOOKS_FAIL = "TransformerLens cannot run this architecture with hooks; try a newer transformer_lens"


@shown("name", "n_layers", "d_model", "n_heads", "dtype", "device", "uses_cache")
class ChatModel:
    """A chat model with its template: renders, reads, edits and generates.

    Make one with `ChatModel.load` or `ChatModel.wrap`; both check that hooks see and change what the
    plain model computes.

    One thread at a time: hooks sit on the model, so that using it while another thread's hooks are on it
    (or hooking it while another thread runs it) is an InputError, for every ChatModel over the same
    weights. Load a model for each thread that edits.

    Attributes:
        bridge: the TransformerBridge or HookedTransformer.
        hf: the Hugging Face model under a bridge, else None.
        chat: the chat format.
        uses_cache: whether replies are generated with a key-value cache; False where the bridge computes
            other logits with one, so that replies take longer but are right.
        max_positions: tokens that the model was made for, None where nothing bounds them.
        unread: tensors of the checkpoint that are in no parameter of the model.
        adapter: the PEFT adapter that was merged when the model was loaded.
        weights_sha256: what tells these weights from others, whatever they are called; "" where it cannot be told.
    """

    unread: tuple[str, ...] = ()
    adapter: Adapter | None = None
    weights_sha256: str = ""

    def __init__(self, bridge: Any, chat: ChatFormat, *, name: str, revision: str | None) -> None:
        self.bridge = bridge
        self.chat = chat
        self.name = name
        self.revision = revision
        self.hf: Any = getattr(bridge, "original_model", None)
        self.n_layers = int(bridge.cfg.n_layers)
        self.n_heads = int(bridge.cfg.n_heads)
        self.d_model = int(bridge.cfg.d_model)
        self.uses_cache = True
        self.max_positions = max_positions(bridge.cfg if self.hf is None else self.hf.config)
        self._points = dict(bridge.hook_dict)

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

    @property
    def _users(self) -> Users:
        return Users.of(self.bridge if self.hf is None else self.hf)

    @checked
    def with_chat(self, chat: ChatFormat) -> ChatModel:
        """The same model, weights and installed edits with another chat format; nothing is loaded."""
        other = copy.copy(self)
        other.chat = chat
        return other

    @checked
    def require_room(self, rendered: Rendered, max_new_tokens: int | None = None) -> None:
        """Raise InputError, naming a prompt, unless all fit into the model's positions with replies.

        max_new_tokens as in `replies`: by default there is always room for a reply beside a prompt.
        """
        wanted = 1 if max_new_tokens is None else max_new_tokens
        require_room(self.name, self.max_positions, rendered, wanted)

    @checked
    def reply_room(self, rendered: Rendered, wanted: int) -> int:
        """Tokens for a reply where nobody asked for a number: wanted, or what the positions leave."""
        return reply_length(self.max_positions, rendered, None, wanted)

    def _parameters(self) -> Iterator[torch.nn.Parameter]:
        return (self.hf if self.hf is not None else self.bridge).parameters()

    @checked
    def has(self, site: Site) -> bool:
        """Whether the model has this site (parallel blocks, for one, have no resid_mid)."""
        return site.layer < self.n_layers and site.hook_name in self._points

    @checked
    def writes(self, layers: Sequence[int] | None = None, *, once: bool = False) -> tuple[Site, ...]:
        """The sites where something enters the residual stream at these layers (default: all).

        The stream at the start of every block, each attention output and each MLP output after its
        post-norm, and the final stream: the places of equation 4 of the paper, written on outputs as the
        reference implementation does. Then the outputs of modules that write beside these and are read before
        the next block, such as a hybrid's mixer. `missed_writes` says what remains.
        once: of these, or of other modules' outputs, those that see each write exactly once (the stream at
        block 0 alone, for most models), so that what is done there adds up as in an edit of weights.
        Raises InputError for a layer that is not there, or a model without sites that see each write once.
        """
        sites = self._coverage.once if once else self._coverage.every
        if sites is None:
            raise InputError(
                f"writes of {self.name}: no hooks see each of them once, so only a full ablation can be done by "
                "hooks; try edited weights"
            )
        if layers is None:
            return sites
        wanted = {self._layer(layer) for layer in layers}
        return tuple(s for s in sites if s.layer in wanted and s.kind != "resid_post")

    def _layer(self, layer: Any) -> int:
        if whole(layer, f"layer of {self.name}") >= self.n_layers:
            raise InputError(f"layer of {self.name}: got {layer}, need 0 to {self.n_layers - 1}")
        return int(layer)

    def module_of(self, site: Site) -> torch.nn.Module:
        """The Hugging Face module whose output a site of `writes` shows, without TransformerLens' wrapper.

        A constant factor may lie between. Raises InputError where no module makes it.
        """
        maker = site.module or self._coverage.makers.get(site, "")
        if self.hf is None or not maker:
            raise InputError(f"plain passes of {self.name}: {site.hook_name} is no module's output")
        return unwrapped(self.hf.get_submodule(maker))

    @property
    def writers(self) -> Writers | None:
        """The map of all parameters that write to the residual stream; None where it cannot be followed."""
        return self._coverage.writers

    def require_writes_reached(self, *, allow_partial: bool) -> None:
        """Raise InputError when hooks leave out something that writes to the residual stream."""
        if self.missed_writes and not allow_partial:
            more = f" (and {len(self.missed_writes) - 1} more)" if len(self.missed_writes) > 1 else ""
            raise InputError(
                f"hooks on {self.name}: {self.missed_writes[0]}{more}; so ablation would be partial, pass "
                "--allow-partial to leave that in the stream"
            )

    @property
    def missed_writes(self) -> tuple[str, ...]:
        """One line for each write that an edit at `writes` leaves out, or why that cannot be told.

        Empty for most models. The first call runs the model on a few tokens and follows the stream back.
        """
        return self._coverage.missed

    @cached_property
    def _coverage(self) -> Coverage:
        """The sites of the stream, worked out when the first edit needs them."""
        kinds = ("resid_pre", "attn_out", "mlp_out")
        sites = [Site(kind, layer) for layer in range(self.n_layers) for kind in kinds]
        sites.append(Site("resid_post", self.n_layers - 1))
        covered = coverage(self.hf, {s: self._points[s.hook_name] for s in sites if self.has(s)}, self.n_layers)
        self._points |= {f"output of {name}": output for name, output in covered.outputs.items()}
        if covered.missed:
            more = f" and {len(covered.missed) - 1} more" if len(covered.missed) > 1 else ""
            log.warning(
                "hooks on %s may leave writes to the residual stream unedited (%s%s): figures under ablation are "
                "not those of edited weights",
                self.name,
                covered.missed[0],
                more,
            )
        return covered

    # ---------------------------------------------------------------- hooks

    @checked
    @contextmanager
    def hooked(self, hooks: Sequence[tuple[Site, Hook]]) -> Iterator[ChatModel]:
        """Install hooks for the length of the context; later ones see what earlier ones made.

        Raises InputError for a site that the model lacks, or while another thread uses the model. Nothing
        stays behind, after an exception either.
        """
        for site, _ in hooks:
            if not self.has(site):
                raise InputError(
                    f"hook site {site.hook_name} of {self.name}: not there; the model has "
                    f"{self.n_layers} layers and {'no' if site.layer < self.n_layers else 'fewer'} "
                    f"such {'site in this block' if site.layer < self.n_layers else 'layers'}"
                )
        places = [(self._points[site.hook_name], hook) for site, hook in hooks]
        with self._users.hooking(self.name) if hooks else nullcontext(), installed(places):
            yield self

    @property
    def reply_mask(self) -> TokenMask:
        """During a forward pass: which of the positions that hooks see now belong to the reply."""
        mask = self._users.reply_mask
        if mask is None:
            raise InputError(
                'an edit with when="prompt" or when="reply" needs to know where the reply starts; '
                "call ChatModel.logits or ChatModel.generate rather than the bridge itself"
            )
        return mask

    @contextmanager
    def reply_at(self, mask: TokenMask) -> Iterator[None]:
        """Say which positions of the passes inside the context belong to the reply."""
        users = self._users
        before, users.reply_mask = users.reply_mask, mask
        try:
            yield
        finally:
            users.reply_mask = before

    # ---------------------------------------------------------------- forward passes

    @checked
    @torch.no_grad()
    def logits(
        self,
        prompts: Sequence[Prompt] | Rendered,
        *,
        all_positions: bool = False,
        last: int | None = None,
    ) -> LastLogits | ReadLogits | Logits:
        """Next-token logits: [batch d_vocab] at the last position, or [batch pos d_vocab] at all.

        last=k gives [batch k d_vocab] at the last k positions. A conversation with its reply is read whole. Rows are
        padded on the left. Only the positions asked for are unembedded. Raises InputError for a row that is longer
        than the model's positions, or when a logit is NaN or infinite.
        """
        rendered = self._rendered(prompts)
        require_room(self.name, self.max_positions, rendered, 0)
        at_least(1, last=last)
        rendered = rendered.to(self.device)
        with self.reply_at(rendered.reply_mask):
            logits = self.run(
                rendered.ids, rendered.mask, all_positions=all_positions, last=last or 1
            )
        several = all_positions or last is not None
        kept = logits if several else logits[:, -1]
        real = kept[rendered.mask[:, -kept.shape[1] :].bool()] if several else kept
        if bool(torch.isnan(real).any()) or bool(torch.isposinf(real).any()):
            raise InputError(
                f"logits of {self.name}: got NaN or infinity in {str(self.dtype).removeprefix('torch.')}; "
                "try another dtype (bfloat16 or float32)"
            )
        return kept

    def run(
        self, ids: Tensor, mask: Tensor, *, all_positions: bool = False, last: int = 1
    ) -> Tensor:
        """The bare forward pass on token ids [batch pos]: logits at the last positions, or at all.

        No checks of numbers, and no knowledge of where replies start; `logits` is the one to call.
        """
        padded = mask if bool((mask == 0).any()) else None
        with self._users.running(self.name):
            if self.hf is None:
                logits = self.bridge(ids, attention_mask=padded, return_type="logits")
                return logits if all_positions else logits[:, -last:]
            keep = {} if all_positions or not self._keeps_logits else {"logits_to_keep": last}
            extra = {} if not self._has_cache_option else {"use_cache": False}
            logits = self.bridge(ids, attention_mask=padded, return_type="logits", **keep, **extra)
            return logits if all_positions else logits[:, -last:]

    @property
    def _keeps_logits(self) -> bool:
        return "logits_to_keep" in _forward_parameters(type(self.hf))  # type: ignore[arg-type]

    @property
    def _has_cache_option(self) -> bool:
        return "use_cache" in _forward_parameters(type(self.hf))  # type: ignore[arg-type]

    @checked
    @torch.no_grad()
    def read(self, prompts: Sequence[Prompt] | Rendered, sites: Sequence[Site]) -> dict[Site, Tensor]:
        """What the sites hold in one forward pass, e.g. [batch pos d_model] for resid_pre; as in `logits`."""
        activations: dict[Site, Tensor] = {}

        def keeper(site: Site) -> Hook:
            def keep(activation: Tensor) -> None:
                activations[site] = activation.detach()

            return keep

        with self.hooked([(site, keeper(site)) for site in sites]):
            self.logits(prompts)
        return activations

    # ---------------------------------------------------------------- generation

    @overload
    def generate(self, prompts: Prompt, **options: Any) -> str: ...

    @overload
    def generate(self, prompts: Sequence[Prompt] | Rendered, **options: Any) -> list[str]: ...

    @checked
    def generate(
        self, prompts: Prompt | Sequence[Prompt] | Rendered, **options: Any
    ) -> str | list[str]:
        """The text of the reply to one prompt, or the texts for a list of them, special tokens left out.

        options: those of `replies`.
        """
        if isinstance(prompts, str | Conversation):
            return self.replies([prompts], **options)[0].text
        return [reply.text for reply in self.replies(prompts, **options)]

    @checked
    @torch.no_grad()
    def replies(
        self,
        prompts: Sequence[Prompt] | Rendered,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        stop: bool = True,
        use_cache: bool = True,
        on_progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Reply]:
        """Replies with their ids, greedy unless ``do_sample=True, temperature=...`` say otherwise.

        The model does not see a reply that a conversation has already.
        A reply ends at the model's own stop tokens (its generation config, the tokenizer's eos and the
        template's end of turn), which are no part of it; ``stop=False`` runs on to max_new_tokens (default
        512, or what is left of the model's positions). Edits installed around the call act on the prompt and
        on every generated token. Prompts are batched by length; a batch_size of at least their number keeps
        their order, as edits with one vector per row need. use_cache is without effect where `uses_cache` is
        False. Raises InputError, before the first pass, for a prompt that does not fit with its reply.
        """
        rendered = self._rendered(prompts if isinstance(prompts, Rendered) else unanswered(prompts))
        length = reply_length(self.max_positions, rendered, max_new_tokens)
        self.require_room(rendered, length)
        replies: list[Reply] = [Reply("", ())] * len(rendered)
        one_batch = batch_size >= len(rendered)
        batches = [(range(len(rendered)), rendered)] if one_batch else rendered.batches(batch_size)
        done = 0
        for rows, batch in batches:
            new = self._generate(
                batch.to(self.device), length, stop=stop, use_cache=use_cache, **sampling
            )
            if len(new) != len(batch):
                raise InputError(
                    f"sampling options: got {len(new)} replies for {len(batch)} prompts, need one for "
                    "each; try the same prompt several times in the list"
                )
            for row, ids in zip(rows, new.tolist(), strict=True):
                kept = until_stop(ids, self.stop_ids if stop else ())
                replies[int(row)] = Reply(self.chat.decode(kept), tuple(kept))
            done += len(batch)
            if on_progress is not None:
                on_progress("replies", done, len(rendered))
        return replies

    @checked
    def reply(
        self, prompts: Sequence[Prompt] | Rendered, *, max_new_tokens: int
    ) -> tuple[list[str], LastLogits]:
        """Greedy replies of one batch, with the last-position logits [batch d_vocab] they began from."""
        batch = self._rendered(prompts if isinstance(prompts, Rendered) else unanswered(prompts))
        options = {"max_new_tokens": max_new_tokens, "batch_size": len(batch)}
        if self.hf is None:
            return self.generate(batch, **options), self.logits(batch)
        with first_logits(self.hf) as logits:
            texts = self.generate(batch, **options)
        return texts, logits[0]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the generation config's, the tokenizer's and the template's."""
        own = getattr(self._users.settings(self.hf), "eos_token_id", None)
        listed = [own] if isinstance(own, int) else list(own or [])
        return tuple(dict.fromkeys([*listed, *self.chat.stop_ids]))

    def _rendered(self, prompts: Sequence[Prompt] | Rendered) -> Rendered:
        return prompts if isinstance(prompts, Rendered) else self.chat.render(prompts)

    def _generate(
        self, batch: Rendered, max_new_tokens: int, *, stop: bool, use_cache: bool, **sampling: Any
    ) -> Tensor:
        """Ids [batch new] after the batch, up to and with the stop tokens, padding behind them."""
        generate = generate_by_hf if self.hf is not None else generate_by_bridge
        with self._users.running(self.name):
            return generate(
                self,
                batch,
                max_new_tokens,
                stops=self.stop_ids if stop else (),
                use_cache=use_cache and self.uses_cache,
                **sampling,
            )

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
        adapter: str | Path | None = None,
    ) -> ChatModel:
        """Load a chat model by Hugging Face name, folder, .gguf file, or "organism" (bundled, offline).

        A folder with a PEFT adapter is loaded as its base with the adapter merged: the weights beside it, else
        the model that adapter_config.json names; adapter is the folder of one to merge into `name`. GGUF files
        are dequantised.
        device: default CUDA, then MPS, then CPU; not together with device_map. dtype: default float32 on a
        CPU, the checkpoint's own elsewhere. system, prefill (what opens every answer) and thinking (False
        closes a thinking model's reasoning) are ChatFormat's. base=True renders instructions without a chat
        template, None only where there is none.
        Raises InputError, one line, for whatever keeps the model from being found, opened and wrapped, for
        weights that the checkpoint lacks, and when it fails the self-check.
        """
        loaded = load_pretrained(
            name,
            device=device,
            dtype=dtype,
            revision=revision,
            device_map=device_map,
            trust_remote_code=trust_remote_code,
            adapter=adapter,
        )
        with loading(name):
            plain = not loaded.tokenizer.chat_template if base is None else base
            chat = (
                ChatFormat.plain(loaded.tokenizer)
                if plain
                else ChatFormat.from_tokenizer(
                    loaded.tokenizer, system=system, prefill=prefill, thinking=thinking
                )
            )
            model = cls(loaded.bridge, chat, name=name, revision=loaded.revision)
            rows = model.hf.get_input_embeddings().weight.shape[0]
            require_embedded(name, chat.tokenizer, chat.render(["hello", "hello again"]).ids, rows)
        with loading(name, HOOKS_FAIL):
            self_check(model, loaded.probe)
            model.uses_cache = check_cache(model, loaded.probe)
        model.unread, model.adapter = loaded.unread, loaded.adapter
        model.weights_sha256 = weights_sha256(model.hf)
        return model

    @classmethod
    @checked
    def wrap(
        cls,
        model: Any,
        *,
        tokenizer: Any = None,
        chat: ChatFormat | None = None,
        name: str | None = None,
        revision: str | None = None,
    ) -> ChatModel:
        """Wrap a model that is already loaded: a Hugging Face one, or one of TransformerLens.

        A plain Hugging Face causal model needs its tokenizer (or a chat format); it is set to evaluate, and
        TransformerLens puts its hook points into the very object. A TransformerBridge or (TransformerLens
        3.9) HookedTransformer brings its own tokenizer, which TransformerLens loads so that it puts a BOS in
        front; where the model's template wants none, pass ``tokenizer=plain_tokenizer``. No tokenizer is
        changed.
        A HookedTransformer made by ``from_pretrained`` has folded norms and centred weights, so its
        residual stream, and any direction in it, is in another basis than the plain model's;
        ``from_pretrained_no_processing`` keeps the plain one.
        Raises InputError for anything else, or a model that fails the self-check.
        """
        if chat is not None and tokenizer is None:
            tokenizer = chat.tokenizer
        bridge, probe = model, None
        if isinstance(model, PreTrainedModel):
            bridge, probe = _bridged(model, tokenizer, name)
        if not hasattr(bridge, "hook_dict") or not hasattr(bridge, "cfg"):
            raise InputError(
                f"model to wrap: got {type(model).__name__}, need a TransformerBridge, "
                "a HookedTransformer or a Hugging Face causal model; try ChatModel.load"
            )
        if chat is None:
            own = copy.deepcopy(bridge.tokenizer) if tokenizer is None else tokenizer
            chat = ChatFormat.from_tokenizer(own)
        known = getattr(bridge.cfg, "tokenizer_name", None) or getattr(bridge.cfg, "model_name", None)
        wrapped = cls(bridge, chat, name=name or known or type(bridge).__name__, revision=revision)
        self_check(wrapped, probe)
        wrapped.uses_cache = check_cache(wrapped, probe)
        wrapped.weights_sha256 = weights_sha256(bridge if wrapped.hf is None else wrapped.hf)
        return wrapped


def _bridged(model: PreTrainedModel, tokenizer: Any, name: str | None) -> tuple[Any, Probe]:
    """A bridge over a plain Hugging Face model, and what the model computed before."""
    if tokenizer is None:
        raise InputError(
            f"model to wrap: got a plain {type(model).__name__} without tokenizer; try "
            "ChatModel.wrap(model, tokenizer=AutoTokenizer.from_pretrained(...))"
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"tokenizer of the model to wrap: got {type(tokenizer).__name__}, need a Hugging Face tokenizer; "
            "try AutoTokenizer.from_pretrained(...)"
        )
    if model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        raise InputError(
            f"model to wrap: got {type(model).__name__}, need a causal language model with its unembedding; "
            "try AutoModelForCausalLM"
        )
    if any("_original_component" in each._modules for each in model.modules()):
        raise InputError(
            f"model to wrap: this {type(model).__name__} is wrapped already, and a second wrapper would "
            "hook the first; try ChatModel.wrap(its bridge), or the ChatModel that holds it"
        )
    model.eval()
    name = name or model.config.name_or_path or type(model).__name__
    with loading(name):
        probe = take_probe(model, tokenizer)
    return bridge_of(model, tokenizer, name=name), probe


@lru_cache
def _forward_parameters(kind: type[torch.nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)
