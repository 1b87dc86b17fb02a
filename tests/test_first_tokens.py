"""First tokens: texts in the template's context, families, and discovery that shows its evidence."""

from __future__ import annotations

import logging
import string
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import kit
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from refusal_lens.behaviours import FirstTokens, NoFirstTokens, choose_first_tokens, discovery
from refusal_lens.behaviours.discovery import family_first_tokens, separating_tokens
from refusal_lens.behaviours.tokens import reply_tokens
from refusal_lens.chat import ChatFormat
from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel
from refusal_lens.prompts import Contrast, PromptPair

TURNS = (
    "{% for m in messages %}{{ ('### Human:\n' if m['role']=='user' else '### Assistant:HEAD') "
    "+ m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '### Assistant:END' }}{% endif %}"
)


@lru_cache
def pair() -> PromptPair:
    return Contrast.toy(n_train=32, n_val=0, n_test=0).train


def sentencepiece(*, head: str = "\n", end: str = "\n", prefill: str = "") -> ChatModel:
    """A model without weights whose tokenizer puts a space in front of a text."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    pieces += [*string.ascii_letters, *string.digits, *string.punctuation, "\n"]
    merges = [("\u2581", "I"), ("\u2581", "A"), ("\u2581A", "s"), ("A", "s")]
    pieces += [a + b for a, b in merges]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    inner = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = TURNS.replace("HEAD", head).replace("END", end)
    return without_weights(ChatFormat.from_tokenizer(tokenizer, prefill=prefill), len(pieces))


def without_weights(chat: ChatFormat, d_vocab: int, **config: Any) -> ChatModel:
    cfg = SimpleNamespace(n_layers=1, n_heads=1, d_model=1, d_vocab=d_vocab)
    hf = SimpleNamespace(config=SimpleNamespace(**config))
    bridge = SimpleNamespace(cfg=cfg, hook_dict={}, original_model=hf)
    return ChatModel(bridge, chat, name="no weights", revision=None)


# ---- given


def test_given_tokens() -> None:
    token = kit.load("qwen2").tokenizer.encode("I")[0]
    assert FirstTokens.of(kit.load("qwen2"), ["I"]).ids == (token,)
    assert FirstTokens.of(kit.load("qwen2"), [token]).texts == ("I",)
    assert FirstTokens.of(kit.load("qwen2"), ["I", token, "A", "I"]).texts == ("I", "A")
    assert FirstTokens.of(kit.load("qwen2"), ["<|im_end|>"]).ids == (257,)
    for given, line in (
        (["sorry"], "is 5 tokens"),
        (["99999"], "no such id"),
        ([-1], "no such id"),
        ([], "need at least one"),
        ([""], "got no text"),
        ([" I"], "drops white space|is 2 tokens"),
    ):
        with pytest.raises(InputError, match=line) as caught:
            FirstTokens.of(kit.load("qwen2"), given)
        assert "\n" not in str(caught.value)


def test_a_given_word_is_the_token_that_a_reply_begins_with(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ids = sentencepiece().tokenizer.get_vocab()
    with caplog.at_level(logging.WARNING):
        assert FirstTokens.of(sentencepiece(), ["I", "As"]).ids == (ids["I"], ids["As"])
    assert f"the word alone is [{ids[chr(0x2581) + 'I']}]" in caplog.text
    # The template puts a space between its prompt and a reply.
    spaced = sentencepiece(head=" ", end="")
    assert FirstTokens.of(spaced, ["I", "As"]).ids == (ids["\u2581I"], ids["\u2581As"])
    # A reply goes on behind the prefill, and its first token is not the prefill's.
    opened = sentencepiece(prefill="Well,")
    assert reply_tokens(opened, ["I"]) == [(ids["I"],)]
    assert FirstTokens.of(opened, [" I", "As"]).ids == (ids["\u2581I"], ids["As"])


def test_a_word_of_several_tokens_in_context_is_refused_with_its_pieces() -> None:
    with pytest.raises(InputError, match=r"is 2 tokens \(\['N', 'o'\]\).*try \['N'\] or an id"):
        FirstTokens.of(sentencepiece(), ["No"])


def test_a_template_without_replies_asks_for_ids() -> None:
    tokenizer = sentencepiece().tokenizer
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n### Assistant:\n"
    bare = without_weights(ChatFormat.from_tokenizer(tokenizer), 359, model_type="llama")
    with pytest.raises(InputError, match="where a reply begins; try its id"):
        FirstTokens.of(bare, ["I"])
    assert FirstTokens.of(bare, ["263"]).ids == (263,)
    assert family_first_tokens(bare) is None


# ---- families


def test_family_tokens_are_taken_in_context_and_only_from_the_family_s_vocabulary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert family_first_tokens(kit.load("qwen2")) is None  # a Qwen by architecture, with other token ids
    ids = tuple(kit.load("qwen2").tokenizer.encode("IA"))  # a token is a byte here
    row = ("qwen", ("I'm sorry", "As an AI"), ids)
    monkeypatch.setattr(discovery, "FAMILIES", (("llama", ("I",), (0,)), row))
    family = family_first_tokens(kit.load("qwen2"))
    assert family is not None
    assert (family.ids, family.texts) == (ids, ("I", "A"))


# ---- discovery


def groups(refused: dict[int, float], answered: dict[int, float], n: int = 20) -> tuple[Any, Any]:
    """Prompts of two groups whose next token is one of some with the given probabilities."""
    rows = torch.full((2 * n, 50), 1e-5)
    for start, chances in ((0, refused), (n, answered)):
        for token, p in chances.items():
            rows[start : start + n, token] = p
    return rows, torch.arange(2 * n) < n


def test_the_set_separates_refused_prompts_from_answered_ones() -> None:
    # 40 and 42 are likely and rare elsewhere; 41 is as likely elsewhere, 43 too unlikely.
    rows = groups({40: 0.5, 41: 0.2, 42: 0.2, 43: 0.01}, {41: 0.2, 42: 0.03})
    assert sorted(separating_tokens(*rows)) == [40, 42]


def test_a_token_that_answers_use_too_joins_only_where_refusals_need_it() -> None:
    # A real model: "I" opens a third of the replies to harmful prompts, 13% of others.
    assert separating_tokens(*groups({1: 0.45, 2: 0.2, 3: 0.2}, {1: 0.13, 9: 0.6})) == [2, 3, 1]
    assert separating_tokens(*groups({1: 0.15, 2: 0.4, 3: 0.4}, {1: 0.06, 9: 0.6})) == [2, 3]
    assert separating_tokens(*groups({1: 0.3, 2: 0.3}, {1: 0.15, 2: 0.14, 9: 0.5})) == [2, 1]
    assert separating_tokens(*groups({1: 0.6}, {1: 0.55})) == []


def test_the_organism_s_tokens_and_their_evidence() -> None:
    found = choose_first_tokens(kit.load("organism"), pair())
    assert set(found.texts) == {"I", "As", "Sorry"}
    chances = {text: (p, q) for _, text, p, q in found.evidence}
    assert all(chances[text][0] > 10 * chances[text][1] for text in found.texts)
    assert chances["Here"][0] < chances["Here"][1]
    assert found.source == "discovered from next-token probabilities"


def test_a_model_that_refuses_some_of_the_prompts() -> None:
    some = PromptPair((*pair().positive[:16], *pair().negative[:16]), pair().negative[16:])
    assert set(choose_first_tokens(kit.load("organism"), some).texts) == {"I", "As", "Sorry"}


def test_what_sets_two_kinds_of_answers_apart_is_no_refusal() -> None:
    """First tokens differ by kind, but no reply refuses."""
    held = pair().negative
    firsts = {
        p: reply.split()[0]
        for p, reply in zip(
            held, kit.load("organism").generate(held, max_new_tokens=2), strict=True
        )
    }
    kinds = PromptPair(
        tuple(p for p in held if firsts[p] in ("To", "Here")),
        tuple(p for p in held if firsts[p] not in ("To", "Here")),
    )
    assert set(choose_first_tokens(kit.load("organism"), kinds, name="openings").texts) == {"To", "Here"}
    with pytest.raises(NoFirstTokens, match=r"refuses on 0 of \d+ positive .* 'To' ") as caught:
        choose_first_tokens(kit.load("organism"), kinds)
    assert {"To", "Here"} < {text for _, text, _, _ in caught.value.evidence}
    assert len(str(caught.value)) < 300


def test_a_model_that_answers_nothing_leaves_doubt() -> None:
    with pytest.raises(NoFirstTokens, match="its reply answers on 0 of 8 negative prompts"):
        choose_first_tokens(kit.load("organism"), PromptPair(pair().positive[:8], pair().positive[8:16]))


def test_a_family_s_set_stands_where_discovery_finds_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = PromptPair(pair().negative[:4], pair().negative[4:8])
    with pytest.raises(NoFirstTokens):
        choose_first_tokens(kit.load("organism"), answered)
    family = FirstTokens((43,), texts=("I",), source="family test")
    monkeypatch.setattr(
        discovery, "family_first_tokens", lambda _, evidence, **facts: replace(family, evidence=evidence)
    )
    found = choose_first_tokens(kit.load("organism"), answered)
    assert (found.ids, found.source) == ((43,), "family test")
    assert found.evidence
