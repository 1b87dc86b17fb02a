"""Generation: caches, ids, room for replies, threads, and models that somebody else loaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import kit
import pytest
import torch
import transformers as hf

from refusal_lens.activations import map_last_logits, mean_residuals
from refusal_lens.behaviours import FirstTokens
from refusal_lens.chat import ChatFormat
from refusal_lens.errors import InputError
from refusal_lens.evaluation import complete, reply_loss
from refusal_lens.interventions import Ablate, Add, applied
from refusal_lens.model import ChatModel, Reply, Site
from refusal_lens.model.room import max_positions

PROMPTS = ["Name a river", "Go", "How does one bake bread?"]
BEHAVIOUR = FirstTokens((5,))
R = torch.randn(kit.WIDTH, generator=torch.Generator().manual_seed(5))
SIZES = {"vocab_size": 259, "pad_token_id": 258, "eos_token_id": 257}
ALIBI = {
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128},
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}
    | {"bias": False, "multi_query": False, "parallel_attn": False},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
}
FEW = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}


@cache
def folder(model_type: str, **settings: Any) -> Path:
    torch.manual_seed(0)
    config = hf.AutoConfig.for_model(model_type, **SIZES, **settings)
    model = kit.shaken(hf.AutoModelForCausalLM.from_config(config))
    return kit.save(model, kit.temporary(f"generation-{model_type}"))


@lru_cache
def few() -> ChatModel:
    """Learned positions, 64 of them, which sit behind two others in the table."""
    path = folder("opt", **FEW, num_attention_heads=4, max_position_embeddings=64)
    return ChatModel.load(str(path), device="cpu")


# ---- caches


@torch.no_grad()
def second_step(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits after one more token, fed to the cache of the first pass."""
    first = model(input_ids=ids, use_cache=True)
    more = torch.tensor([[65]])
    return model(input_ids=more, past_key_values=first.past_key_values, use_cache=True).logits


@pytest.mark.parametrize("name", ALIBI)
def test_cached_replies_are_those_of_hugging_face(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(name, **ALIBI[name])
    with caplog.at_level(logging.WARNING, logger="refusal_lens"):
        model = ChatModel.load(str(path), device="cpu")
    rendered = model.chat.render(PROMPTS)
    out = kit.plain(path).generate(
        rendered.ids,
        attention_mask=rendered.mask,
        max_new_tokens=10,
        do_sample=False,
        pad_token_id=258,
        eos_token_id=list(model.stop_ids),
    )[:, rendered.ids.shape[1] :]
    for use_cache in (True, False):
        replies = model.replies(rendered, max_new_tokens=10, use_cache=use_cache)
        for row, reply in zip(out.tolist(), replies, strict=True):
            assert row[: len(reply.ids)] == list(reply.ids)
            assert len(reply.ids) == 10 or row[len(reply.ids)] in model.stop_ids
    # Where the bridge forgets its cache (which depends on its version), that is said and kept.
    second = [second_step(each, rendered.ids[:1]) for each in (model.hf, kit.plain(path))]
    assert model.uses_cache == torch.allclose(*second, rtol=0, atol=1e-2)
    assert f"uses_cache={model.uses_cache}" in repr(model)
    assert any("without one" in message for message in caplog.messages) == (not model.uses_cache)


def test_a_wrapped_bridge_is_checked_against_itself() -> None:
    model = ChatModel.load(str(folder("mpt", **ALIBI["mpt"])), device="cpu")
    wrapped = ChatModel.wrap(model.bridge)
    assert wrapped.uses_cache == model.uses_cache
    assert ChatModel.wrap(kit.load("qwen2").bridge).uses_cache


# ---- ids


def test_replies_carry_what_was_generated() -> None:
    model = kit.load("organism")
    prompts = ["Tell me how to bake the bread.", "Tell me how to wake the dragon."]
    replies = model.replies(prompts, max_new_tokens=16)
    assert [reply.text for reply in replies] == model.generate(prompts, max_new_tokens=16)
    for prompt, reply in zip(prompts, replies, strict=True):
        [alone] = model.replies([prompt], max_new_tokens=16)
        assert alone == reply
        assert model.chat.decode(reply.ids) == reply.text
        assert not set(reply.ids) & {*model.stop_ids, model.chat.pad_id}
    [one] = complete(model, prompts[:1], behaviour=BEHAVIOUR, max_new_tokens=16)
    assert (one.response, one.reply_ids) == (replies[0].text, replies[0].ids)
    assert isinstance(replies[0], Reply)


def test_the_loss_is_that_of_the_ids() -> None:
    """Random byte models write halves of characters and special tokens: text cannot bring them back."""
    model = kit.load("qwen2")
    replies = model.replies(PROMPTS, max_new_tokens=12, stop=False, do_sample=True, temperature=2.0)
    total, n = 0.0, 0
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        ids = torch.cat([model.chat.render([prompt]).ids[0], torch.tensor(reply.ids)])
        with torch.no_grad():
            logp = model.hf(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        start = len(ids) - len(reply.ids)
        total -= sum(float(logp[start + i - 1, token]) for i, token in enumerate(reply.ids))
        n += len(reply.ids)
    found = reply_loss(model, PROMPTS, [reply.ids for reply in replies])
    assert (found.n_tokens, round(found.ce, 4)) == (n, round(total / n, 4))
    special = {256, 257, 258}
    assert any(special & set(reply.ids) or "\ufffd" in reply.text for reply in replies)
    none = reply_loss(model, PROMPTS, [(), (), replies[2].ids])
    assert none.n_tokens == len(replies[2].ids)


def test_a_prefill_is_context_and_not_scored() -> None:
    plain_model = kit.load("organism")
    chat = ChatFormat.from_tokenizer(plain_model.tokenizer, prefill="Of course")
    model = plain_model.with_chat(chat)
    prompts = ["Tell me how to bake the bread."]
    [reply] = model.replies(prompts, max_new_tokens=8)
    found = reply_loss(model, prompts, [reply.ids])
    assert found.n_tokens == len(reply.ids)
    rendered = chat.render(prompts).followed_by([reply.ids], pad_id=chat.pad_id)
    assert rendered.ids[0].tolist() == [*chat.render(prompts).ids[0].tolist(), *reply.ids]
    assert int(rendered.reply_mask.sum()) > len(reply.ids)
    with pytest.raises(InputError, match="have replies already"):
        chat.render(prompts, replies=["x"]).followed_by([[1]], pad_id=0)


def test_texts_have_no_loss() -> None:
    with pytest.raises(InputError, match="need one for each"):
        reply_loss(kit.load("qwen2"), PROMPTS, [[1]])
    with pytest.raises(InputError, match="need a list of lists of whole numbers"):
        reply_loss(kit.load("qwen2"), ["a"], ["b"])  # type: ignore[list-item]


def test_one_string_is_one_prompt_to_generate_and_no_list_elsewhere() -> None:
    model = kit.load("qwen2")
    texts = model.generate(["Name a river"], max_new_tokens=4)
    assert isinstance(texts, list)
    assert model.generate("Name a river", max_new_tokens=4) == texts[0]
    for call in (model.replies, model.logits, partial(map_last_logits, model)):
        with pytest.raises(InputError, match="got 'Name a river', need a list of texts"):
            call("Name a river")


def test_logits_of_texts_are_those_of_the_rendered() -> None:
    model = kit.load("qwen2")
    assert torch.equal(model.logits(PROMPTS), model.logits(model.chat.render(PROMPTS)))
    site = Site("resid_pre", 1)
    assert torch.equal(model.read(PROMPTS, [site])[site], model.read(model.chat.render(PROMPTS), [site])[site])


# ---- room


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        (hf.LlamaConfig(max_position_embeddings=77), 77),
        (hf.GPT2Config(n_positions=33), 33),
        (hf.OPTConfig(max_position_embeddings=64), 64),
        (hf.MptConfig(max_seq_len=44), 44),
        (hf.BloomConfig(), None),
        (hf.FalconConfig(alibi=True), None),
        (hf.FalconConfig(max_position_embeddings=55), 55),
        (hf.MambaConfig(), None),
        (hf.Gemma3Config(text_config={"max_position_embeddings": 99}), 99),
    ],
)
def test_positions_are_those_of_the_config(settings: Any, limit: int | None) -> None:
    assert max_positions(settings) == limit


@pytest.mark.parametrize("load", [few, partial(kit.load, "qwen2")], ids=["few", "many"])
def test_what_does_not_fit_is_refused_before_any_pass(load: Callable[[], ChatModel]) -> None:
    model = load()
    limit = model.max_positions
    assert limit is not None
    long = "a" * limit
    lengths = model.chat.render(PROMPTS).lengths
    rest = limit - int(lengths.max())
    passes: list[Any] = []
    handle = model.hf.register_forward_pre_hook(lambda *args: passes.append(args))
    try:
        for call in (
            lambda: model.replies(PROMPTS, max_new_tokens=rest + 1),
            lambda: complete(model, PROMPTS, behaviour=BEHAVIOUR, max_new_tokens=rest + 1),
        ):
            with pytest.raises(
                InputError, match=rf"prompt 2 .*'How does.*{limit}.*max_new_tokens={rest} "
            ):
                call()
        for call in (
            lambda: model.logits(model.chat.render(["x", long])),
            lambda: model.generate(["x", long], max_new_tokens=1),
            lambda: model.generate(["x", long]),
            lambda: model.read(model.chat.render(["x", long]), [Site("resid_pre", 0)]),
            lambda: map_last_logits(model, ["x", long], batch_size=1),
            lambda: mean_residuals(model, ["x", long], batch_size=1),
            lambda: model.require_room(model.chat.render(["x", long])),
        ):
            with pytest.raises(InputError, match=rf"prompt 1 .*'aaa.*at most {limit}"):
                call()
    finally:
        handle.remove()
    assert not passes
    assert all(len(r.ids) <= rest for r in model.replies(PROMPTS, max_new_tokens=rest))


def test_the_default_reply_is_as_long_as_fits() -> None:
    model = few()
    rendered = model.chat.render(["Name a river"])
    rest = 64 - rendered.ids.shape[1]
    [reply] = model.replies(rendered, stop=False)
    assert len(reply.ids) == rest
    for wrong in (0, -1, True):
        with pytest.raises(InputError, match=r"max_new_tokens.*: got"):
            model.replies(rendered, max_new_tokens=wrong)


# ---- threads


def in_thread(work: Callable[[], Any]) -> Any:
    """What work returns or raises in a thread of its own."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except InputError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert found, "it must not wait"
    return found[0]


USES: dict[str, Callable[[ChatModel], Any]] = {
    "logits": lambda model: map_last_logits(model, PROMPTS),
    "generate": lambda model: model.generate(PROMPTS, max_new_tokens=2),
    "run": lambda model: model.run(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.long)),
    "read": lambda model: model.read(model.chat.render(PROMPTS), [Site("resid_pre", 0)]),
    "applied": lambda model: applied(model, Add(R, 1)).__enter__(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("other", [False, True])
def test_hooks_of_one_thread_keep_others_out(use: str, other: bool) -> None:
    model = kit.load("qwen2")
    theirs = ChatModel.wrap(model.bridge) if other else model
    with applied(model, Ablate(R)):
        error = in_thread(lambda: USES[use](theirs))
        assert isinstance(error, InputError)
        assert "has hooks on the same model" in str(error)
        USES["logits"](theirs)
    if use != "applied":
        assert not isinstance(in_thread(lambda: USES[use](theirs)), InputError)


def test_nobody_hooks_a_model_that_runs() -> None:
    model, started, ended = kit.load("qwen2"), threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        started.set()
        ended.wait(60)

    handle = model.hf.register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: map_last_logits(model, PROMPTS))
    thread.start()
    try:
        assert started.wait(60)
        with pytest.raises(InputError, match="runs the same model"), applied(model, Ablate(R)):
            pass
    finally:
        ended.set()
        thread.join(60)
        handle.remove()
    with applied(model, Ablate(R)):
        pass


def test_threads_without_hooks_run_side_by_side() -> None:
    model = kit.load("qwen2")
    own = model.hf.generation_config
    expected = model.generate(PROMPTS, max_new_tokens=6)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate(PROMPTS, max_new_tokens=6)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 4
    assert model.hf.generation_config is own


def test_one_thread_nests_and_interleaves() -> None:
    model = kit.load("qwen2")

    def steps() -> Any:
        with applied(model, Add(R, 1)):
            yield map_last_logits(model, PROMPTS)
            yield map_last_logits(model, PROMPTS)

    first, second = steps(), steps()
    once = next(first)
    twice = next(second)
    assert not torch.equal(once, twice)
    next(first)
    # Closed by another thread, as the garbage collector may: what it installed goes all the same.
    in_thread(first.close)
    in_thread(second.close)
    assert not isinstance(in_thread(lambda: map_last_logits(model, PROMPTS)), InputError)


# ---- other people's models


def test_a_plain_hugging_face_model_can_be_wrapped() -> None:
    path = kit.folder("llama")
    mine = kit.plain(path)
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    with pytest.raises(InputError, match="without tokenizer"):
        ChatModel.wrap(mine)
    with pytest.raises(InputError, match="got str, need a Hugging Face tokenizer"):
        ChatModel.wrap(mine, tokenizer="gpt2")
    with pytest.raises(InputError, match="need a causal language model"):
        ChatModel.wrap(mine.model, tokenizer=tokenizer)
    model = ChatModel.wrap(mine, tokenizer=tokenizer, name="mine")
    loaded = ChatModel.load(str(path), device="cpu")
    for edit in ([], Ablate(R)):
        with applied(model, edit), applied(loaded, edit):
            assert torch.equal(map_last_logits(model, PROMPTS), map_last_logits(loaded, PROMPTS))
    assert model.generate(PROMPTS, max_new_tokens=5) == loaded.generate(PROMPTS, max_new_tokens=5)
    assert model.name == "mine"
    with pytest.raises(InputError, match="wrapped already"):
        ChatModel.wrap(mine, tokenizer=tokenizer)


def test_a_wrapped_alibi_model_replies_like_the_loaded_one() -> None:
    path = folder("falcon", **ALIBI["falcon"])
    tokenizer = hf.AutoTokenizer.from_pretrained(path)
    model = ChatModel.wrap(kit.plain(path), chat=ChatFormat.from_tokenizer(tokenizer))
    loaded = ChatModel.load(str(path), device="cpu")
    assert model.uses_cache == loaded.uses_cache
    assert model.generate(PROMPTS, max_new_tokens=6) == loaded.generate(PROMPTS, max_new_tokens=6)


def test_another_chat_format_shares_weights_and_edits() -> None:
    model = kit.load("organism")
    later = model.with_chat(ChatFormat.plain(model.tokenizer))
    assert later.hf is model.hf
    assert later.chat is not model.chat
    prompts = ["Tell me how to bake the bread."]
    edit = Add(torch.randn(model.d_model, generator=torch.Generator().manual_seed(1)), 1)
    bare = map_last_logits(later, prompts)
    with applied(model, edit, when="reply"):
        assert torch.equal(map_last_logits(later, prompts), bare)
        later.generate(prompts, max_new_tokens=3)
    with applied(model, edit):
        assert not torch.equal(map_last_logits(later, prompts), bare)
