"""TransformerLens hooks against plain PyTorch on the Hugging Face model, for each architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import kit
import pytest
import torch
from torch import Tensor

from refusal_lens.activations import (
    cache_residuals,
    map_last_logits,
    mean_next_token_probabilities,
    mean_residuals,
)
from refusal_lens.errors import InputError
from refusal_lens.interventions import Ablate, Add, NormMatchedMove, applied, unit
from refusal_lens.model import ChatModel, Site
from refusal_lens.weights import edited, orthogonalise

ARCHITECTURES = ("llama", "qwen2", "mistral", "gemma", "gemma2", "neox", "phi3")
PROMPTS = ["Paint the door.", "Wake!", "How does one bake bread without an oven, please?", "Ok then"]
DIRECTION = torch.randn(kit.WIDTH, generator=torch.Generator().manual_seed(5))


@lru_cache
def plain(architecture: str) -> Any:
    return kit.plain(kit.folder(architecture))


def decoder(hf: Any) -> Any:
    """The module that holds embeddings and layers, by either of its two names."""
    return hf.gpt_neox if hasattr(hf, "gpt_neox") else hf.model


def writers(layer: Any) -> list[Any]:
    """The modules of a layer whose outputs are added to the residual stream."""
    if hasattr(layer, "post_feedforward_layernorm"):
        return [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
    return [layer.attention if hasattr(layer, "attention") else layer.self_attn, layer.mlp]


@contextmanager
def plain_hooks(hf: Any, edits: dict[str, Any], layer: int | None = None) -> Iterator[list[Tensor]]:
    """The paper's edits as ordinary PyTorch hooks; yields the resid_pre of every layer it saw."""
    seen: list[Tensor] = []

    def before(index: int, _m: Any, args: tuple, kwargs: dict) -> Any:
        x = args[0] if args else kwargs["hidden_states"]
        if "ablate" in edits:
            x = edits["ablate"](x)
        if "add" in edits and index == layer:
            x = edits["add"](x)
        seen.append(x)
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    def after(_m: Any, _a: Any, out: Any) -> Any:
        if "ablate" not in edits:
            return None
        is_tuple = isinstance(out, tuple)
        first = edits["ablate"](out[0] if is_tuple else out)
        return (first, *out[1:]) if is_tuple else first

    handles = []
    for index, block in enumerate(decoder(hf).layers):
        handles.append(block.register_forward_pre_hook(partial(before, index), with_kwargs=True))
        handles += [module.register_forward_hook(after) for module in writers(block)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def plain_logits(architecture: str, prompt: str, edits: dict, layer: int | None = None) -> Any:
    """Last-token logits and resid_pre [layer pos d_model] of one prompt, no padding, no bridge."""
    ids = kit.load(architecture).chat.render([prompt]).ids
    with torch.no_grad(), plain_hooks(plain(architecture), edits, layer) as seen:
        logits = plain(architecture)(input_ids=ids).logits[0, -1]
    return logits, torch.stack([x[0] for x in seen])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_and_means_equal_plain_pytorch(architecture: str) -> None:
    model = kit.load(architecture)
    logits = map_last_logits(model, PROMPTS, batch_size=4)
    means = mean_residuals(model, PROMPTS, batch_size=3)
    expected_mean = torch.zeros_like(means.mean)
    for prompt, mine in zip(PROMPTS, logits, strict=True):
        theirs, streams = plain_logits(architecture, prompt, {})
        assert torch.allclose(mine, theirs, rtol=0, atol=2e-4)
        n = len(means.places)
        expected_mean += streams[:, -n:].double().transpose(0, 1) / len(PROMPTS)
    assert torch.allclose(means.mean, expected_mean, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablation_equals_plain_pytorch(architecture: str) -> None:
    model, r = kit.load(architecture), unit(DIRECTION).float()
    with applied(model, Ablate(DIRECTION)):
        mine = map_last_logits(model, PROMPTS, batch_size=4)
        streams = cache_residuals(model, PROMPTS)
    for prompt, row in zip(PROMPTS, mine, strict=True):
        theirs, _ = plain_logits(
            architecture, prompt, {"ablate": lambda x: x - (x @ r)[..., None] * r}
        )
        assert torch.allclose(row, theirs, rtol=0, atol=2e-4)
    assert (streams @ r).abs().max() < 1e-4 * streams.norm(dim=-1).max()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_addition_equals_plain_pytorch(architecture: str) -> None:
    model = kit.load(architecture)
    with applied(model, Add(DIRECTION, 1, -0.5)):
        mine = map_last_logits(model, PROMPTS, batch_size=4)
    for prompt, row in zip(PROMPTS, mine, strict=True):
        theirs, _ = plain_logits(architecture, prompt, {"add": lambda x: x - 0.5 * DIRECTION}, 1)
        assert torch.allclose(row, theirs, rtol=0, atol=2e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("edit", [None, Ablate(DIRECTION), Add(3 * DIRECTION, 1)])
def test_generation_is_the_same_cached_uncached_batched_single(
    architecture: str, edit: Any
) -> None:
    model = kit.load(architecture)
    with applied(model, [] if edit is None else edit):
        batched = model.generate(PROMPTS, max_new_tokens=6)
        uncached = model.generate(PROMPTS, max_new_tokens=6, use_cache=False)
        single = [model.generate([p], max_new_tokens=6)[0] for p in PROMPTS]
        small = model.generate(PROMPTS, max_new_tokens=6, batch_size=2)
    assert batched == uncached == single == small
    assert any(batched)


@pytest.mark.parametrize("architecture", ["qwen2", "neox"])
def test_plain_generation_equals_hugging_face(architecture: str) -> None:
    model = kit.load(architecture)
    for prompt in PROMPTS:
        ids = model.chat.render([prompt]).ids
        out = plain(architecture).generate(
            input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=258
        )
        expected = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        assert model.generate([prompt], max_new_tokens=8) == [expected]


@pytest.mark.parametrize("use_cache", [True, False])
def test_when_splits_prompt_from_reply(use_cache: bool) -> None:
    model, edit = kit.load("llama"), Add(20 * DIRECTION, 1)
    generate = partial(model.generate, PROMPTS, max_new_tokens=8, use_cache=use_cache)
    replies = {None: generate()}
    for when in ("prompt", "reply", "all"):
        with applied(model, edit, when=when):
            replies[when] = generate()
    with applied(model, edit, when="prompt"), applied(model, edit, when="reply"):
        both = generate()
    assert both == replies["all"]
    assert len({tuple(r) for r in replies.values()}) == 4
    firsts = [[r[:1] for r in replies[k]] for k in (None, "reply")]
    assert firsts[0] == firsts[1], "the first new token is predicted from the prompt alone"


def test_when_reply_edits_teacher_forced_answers_only() -> None:
    model, edit = kit.load("qwen2"), Add(20 * DIRECTION, 0)
    rendered = model.chat.render(PROMPTS, replies=["one", "and two", "three it is", "4"])
    site = Site("resid_pre", 1)
    before = model.read(rendered, [site])[site]
    with applied(model, edit, when="reply"):
        after = model.read(rendered, [site])[site]
    moved = (after - before).abs().amax(-1) > 1e-6
    assert torch.equal(moved & rendered.reply_mask, rendered.reply_mask)
    first = rendered.answer[:, :1]
    earlier = torch.arange(moved.shape[1])[None] < first
    assert not (moved & earlier & rendered.mask.bool()).any()


def test_hooks_leave_nothing_behind_after_an_exception() -> None:
    model = kit.load("qwen2")
    before = map_last_logits(model, PROMPTS)
    with pytest.raises(RuntimeError, match="stop"), applied(model, Add(DIRECTION, 0)):
        raise RuntimeError("stop")
    assert torch.equal(map_last_logits(model, PROMPTS), before)
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())


@pytest.mark.parametrize("architecture", ["qwen2", "neox", "gemma2"])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_share_of_every_write_by_hooks_and_by_weights(architecture: str, strength: float) -> None:
    model = ChatModel.load(str(kit.folder(architecture)), device="cpu")
    with applied(model, Ablate(DIRECTION, strength)):
        wanted = map_last_logits(model, PROMPTS)
    with edited(model, orthogonalise(DIRECTION, strength=strength), post_norm="hook"):
        assert torch.allclose(map_last_logits(model, PROMPTS), wanted, rtol=0, atol=1e-4)
    assert not torch.allclose(map_last_logits(model, PROMPTS), wanted, rtol=0, atol=1e-2)


@pytest.mark.parametrize("architecture", ["qwen2", "neox", "gemma2"])
def test_a_norm_matched_move_shifts_the_stream_by_its_component_along_r(architecture: str) -> None:
    model = kit.load(architecture)
    r_hat = unit(DIRECTION)
    other = torch.randn(kit.WIDTH, generator=torch.Generator().manual_seed(6)).double()
    edit = NormMatchedMove(DIRECTION, other - (other @ r_hat) * r_hat)
    moved = [torch.zeros(())]

    def note(x: Tensor) -> Tensor:
        after = edit(x)
        moved.append(moved[-1] + (after - x))
        return after

    rendered = model.chat.render(PROMPTS[:1])
    last = Site("resid_post", kit.LAYERS - 1)
    streams: list[Tensor] = []
    with model.hooked([*((site, note) for site in edit.sites(model)), (last, streams.append)]):
        model.logits(rendered)
    along = (streams[0].double() @ r_hat).abs()
    assert torch.allclose(moved[-1].double().norm(dim=-1), along, rtol=1e-4, atol=1e-4)


def test_greedy_replies_do_not_follow_the_models_sampling_settings() -> None:
    model = ChatModel.load(str(kit.folder("qwen2")), device="cpu")
    expected = model.generate(PROMPTS, max_new_tokens=8)
    own = model.hf.generation_config
    own.repetition_penalty, own.no_repeat_ngram_size, own.num_beams = 5.0, 1, 3
    own.suppress_tokens = map_last_logits(model, PROMPTS).argmax(-1).tolist()
    assert model.generate(PROMPTS, max_new_tokens=8) == expected
    assert model.hf.generation_config is own


def test_replies_run_on_past_stop_tokens_when_asked() -> None:
    model = ChatModel.load("organism", device="cpu")
    rendered = model.chat.render(["Tell me how to bake the bread."])
    ended = model._generate(rendered, 60, stop=True, use_cache=True)
    assert ended.shape[1] < 60
    on = model._generate(rendered, 60, stop=False, use_cache=True)
    assert on.shape[1] == 60
    after = on[0, ended.shape[1] :]
    assert len(set(after.tolist()) - {model.chat.pad_id}) > 0


def test_cache_holds_what_the_means_average() -> None:
    model = kit.load("qwen2")
    streams, means = cache_residuals(model, PROMPTS, batch_size=2), mean_residuals(model, PROMPTS)
    assert torch.allclose(streams.double().mean(0), means.mean, rtol=0, atol=1e-6)
    assert torch.equal(cache_residuals(model, PROMPTS, places=["post[-1]"]), streams[:, -1:])


def test_mean_probabilities_are_a_distribution() -> None:
    model = kit.load("qwen2")
    p = mean_next_token_probabilities(model, PROMPTS, batch_size=3)
    rows = map_last_logits(model, PROMPTS).double().softmax(-1)
    assert torch.allclose(p, rows.mean(0), rtol=0, atol=1e-6)
    assert float(p.sum()) == pytest.approx(1)


def test_writes_reach_every_sublayer() -> None:
    model = kit.load("gemma2")
    kinds = {(site.kind, site.layer) for site in model.writes()}
    for layer in range(kit.LAYERS):
        assert {("resid_pre", layer), ("attn_out", layer), ("mlp_out", layer)} <= kinds
    assert len(model.writes([1])) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "no/such-model-here"}, "cannot be loaded"),
        ({"dtype": "float31"}, "dtype: got 'float31'"),
        ({"device": "cuda:7"}, "device 'cuda:7': not usable here"),
        ({"device": "toaster"}, "device 'toaster': not usable here"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map"),
    ],
)
def test_what_cannot_be_loaded_gets_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as failed:
        ChatModel.load(**({"name": str(kit.folder("qwen2"))} | arguments))
    assert "\n" not in str(failed.value)


def test_edits_that_do_not_fit_get_one_line() -> None:
    model = kit.load("qwen2")
    with pytest.raises(InputError, match="need d_model = 32"), applied(model, Ablate(torch.ones(7))):
        pass
    with pytest.raises(InputError, match="layer of the edit"), applied(model, Add(DIRECTION, 3)):
        pass
    with pytest.raises(InputError, match="resid_mid"), applied(
        model, Ablate(DIRECTION), at=[Site("resid_mid", 0)]
    ):
        pass
    with pytest.raises(InputError, match="hook site"), model.hooked(
        [(Site("resid_mid", 9), lambda x: x)]
    ):
        pass


def test_nan_logits_are_an_error() -> None:
    model = kit.load("qwen2")
    overflow = [(Site("resid_pre", 0), lambda x: x * torch.inf)]
    with pytest.raises(InputError, match="NaN or infinity"), model.hooked(overflow):
        map_last_logits(model, PROMPTS)


@pytest.mark.tl3
@pytest.mark.parametrize("edit", [[], Ablate(DIRECTION), Add(DIRECTION, 1)])
def test_a_hooked_transformer_gives_the_numbers_of_the_bridge(edit: Any) -> None:
    bridge = kit.load("qwen2")
    wrapped = ChatModel.wrap(kit.hooked_qwen2(), chat=bridge.chat)
    with applied(bridge, edit), applied(wrapped, edit):
        mine, theirs = (map_last_logits(m, PROMPTS, batch_size=4) for m in (wrapped, bridge))
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-3)
        expected = bridge.generate(PROMPTS, max_new_tokens=5)
        assert wrapped.generate(PROMPTS, max_new_tokens=5) == expected
        assert wrapped.generate(PROMPTS, max_new_tokens=5, use_cache=False) == expected
        for model in (bridge, wrapped):
            replies, logits = model.reply(model.chat.render(PROMPTS), max_new_tokens=5)
            assert replies == expected
            assert torch.allclose(logits.cpu(), theirs, rtol=0, atol=1e-3)


def test_a_bridge_that_is_already_loaded_can_be_wrapped() -> None:
    model = kit.load("qwen2")
    wrapped = ChatModel.wrap(model.bridge)
    assert torch.equal(map_last_logits(wrapped, PROMPTS), map_last_logits(model, PROMPTS))
    with pytest.raises(InputError, match="need a TransformerBridge"):
        ChatModel.wrap(torch.nn.Linear(2, 2))
