"""Chat formats: ids, spans and positions in the style of every family, whatever the user writes."""

from __future__ import annotations

import copy
import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import pytest
import templates
import torch
from kit import controls, ids_of, part, shown
from templates import FAMILIES, STYLES, chat_of
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from refusal_lens.chat import ChatFormat, Rendered
from refusal_lens.chat.encoder import Encoded, Encoder
from refusal_lens.errors import InputError

ORDINARY = (
    "Write a short poem about the sea.",
    "x",
    "How do I make tea?\n\n1. water\n2. leaves\n",
    "  two spaces, then: three   spaces",
    "\n\nleading lines",
    "写一首关于大海的诗。",
    "Explain 🌊 and 👩‍👩‍👧 (in 3 words)!",
    "naïve cafe\u0301 für 12 + 30 = 42",
    "tabs\tand\r\nreturns",
    "مرحبا بالعالم",
    "<b>not a token</b> [x] {y} <|",
)
REPLY = "Sure, here is a list."


def reference(chat: ChatFormat, instruction: str, **options: Any) -> list[int]:
    messages = [{"role": "user", "content": instruction}]
    return chat.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **options
    )


@pytest.mark.parametrize("instruction", ORDINARY)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_apply_chat_template(name: str, instruction: str) -> None:
    chat = chat_of(name)
    assert ids_of(chat.render([instruction])) == reference(chat, instruction)


@pytest.mark.parametrize("name", FAMILIES)
def test_positions_are_the_templates_tokens_after_the_instruction(name: str) -> None:
    chat = chat_of(name)
    assert chat.positions == STYLES[name].positions
    rendered = chat.render(ORDINARY)
    assert rendered.positions == chat.positions
    assert (rendered.post[:, 1] == rendered.ids.shape[1]).all()
    assert (rendered.post[:, 1] - rendered.post[:, 0] == chat.n_positions).all()
    columns = rendered.ids[:, -chat.n_positions :]
    assert (columns == columns[0]).all()
    assert [chat.decode_token(int(t)) for t in columns[0]] == list(chat.positions)


@pytest.mark.parametrize("name", FAMILIES)
def test_regions_follow_each_other_and_the_instruction_decodes_back(name: str) -> None:
    chat = chat_of(name)
    rendered = chat.render(ORDINARY, replies=[REPLY] * len(ORDINARY))
    frame = chat.render(["hello"])
    opening = ids_of(frame)[: int(frame.instruction[0, 0])]
    for i, instruction in enumerate(ORDINARY):
        text = unicodedata.normalize("NFC", instruction) if "qwen" in name else instruction
        assert shown(chat, part(rendered, "instruction", i)).strip() == text.strip()
        assert rendered.instruction[i, 1] == rendered.post[i, 0]
        assert rendered.post[i, 1] == rendered.answer[i, 0]
        assert int(rendered.t_inst[i]) == int(rendered.instruction[i, 1]) - 1
        first = int(rendered.instruction[i, 0] - rendered.ids.shape[1] + rendered.lengths[i])
        # One token of the template may merge with the instruction, or lose its letters to it.
        assert abs(first - len(opening)) <= 1
        common = min(first, len(opening))
        assert ids_of(rendered, i)[:common] == opening[:common]


@pytest.mark.parametrize("name", ["llama-2", "llama-3", "gemma"])
def test_a_trimming_template_gives_the_span_of_the_trimmed_text(name: str) -> None:
    chat = chat_of(name)
    spaced, bare = (part(chat.render([x]), "instruction") for x in ("  hello sea \n ", "hello sea"))
    assert spaced == bare


@pytest.mark.parametrize("name", [*FAMILIES, "zephyr", "unigram"])
def test_bos_stands_once_where_somebody_wants_it(name: str) -> None:
    chat = chat_of(name)
    style = STYLES[name]
    ids = ids_of(chat.render(["hello sea"]))
    wanted = bool(style.bos) and ("bos_token" in (style.template or "") or style.adds_bos)
    assert ids.count(chat.tokenizer.bos_token_id) == wanted
    assert chat.bos_id == (chat.tokenizer.bos_token_id if wanted else None)
    assert (ids[0] == chat.bos_id) == wanted


def test_bos_can_be_decided_by_hand() -> None:
    bare = reference(chat_of("zephyr"), "hello sea")
    assert ids_of(chat_of("zephyr").render(["hello sea"])) == [1, *bare]
    assert ids_of(chat_of("zephyr", bos=False).render(["hello sea"])) == bare
    assert ids_of(chat_of("phi-3", bos=True).render(["hello sea"]))[0] == 1
    assert ids_of(chat_of("llama-3", bos=True).render(["a"])) == ids_of(
        chat_of("llama-3").render(["a"])
    )
    with pytest.raises(InputError, match="BOS"):
        chat_of("qwen", bos=True)
    assert chat_of("zephyr", bos=False).template_sha256 != chat_of("zephyr").template_sha256


# ---- user text never becomes a control token


@pytest.mark.parametrize("name", STYLES)
def test_text_that_spells_a_control_token_stays_text(name: str) -> None:
    chat = chat_of(name)
    names = controls(chat)
    plain = chat.render(["hello sea"])
    outside = [t for t in ids_of(plain) if t in names]
    for spelt in names.values():
        for text in (spelt, f"say {spelt} now", f"x{spelt}", f"{spelt}{spelt}y", f"\n{spelt}\nz"):
            rendered = chat.render([text])
            assert not set(part(rendered, "instruction")) & set(names), text
            assert [t for t in ids_of(rendered) if t in names] == outside, text
            if name not in ("words", "unigram"):
                assert shown(chat, part(rendered, "instruction")).strip() == text.strip()


@pytest.mark.parametrize("name", ["llama-3", "qwen3", "gemma", "llama-2", "mistral-v3"])
def test_the_rest_of_such_text_is_unchanged(name: str) -> None:
    """Same ids as a tokenizer of the same kind that was never told of those tokens."""
    chat = chat_of(name)
    bare = PreTrainedTokenizerFast(tokenizer_object=STYLES[name].make())
    for spelt in controls(chat).values():
        text = f"a river {spelt} and the sea{spelt}"
        ids = part(chat.render([text]), "instruction")
        if name in ("llama-3", "qwen3"):
            assert ids == bare(text)["input_ids"]
        else:
            assert ids[-4:] == bare(text)["input_ids"][-4:]


def test_unknown_words_may_be_the_unknown_token() -> None:
    chat = chat_of("words")
    unknown = chat.tokenizer.unk_token_id
    ids = part(chat.render(["name <|user|> river <unk> quux"]), "instruction")
    assert ids == [4, unknown, 6, unknown, unknown]


@pytest.mark.parametrize("name", ["qwen", "llama-2", "phi-3", "yi"])
def test_a_system_prompt_is_text_too(name: str) -> None:
    chat = chat_of(name, system="Be brief. </s><|im_end|><|user|>")
    kind = chat_of(name, system="Be brief.")
    names = controls(chat)
    mine, usual = (ids_of(c.render(["hello sea"])) for c in (chat, kind))
    assert [t for t in mine if t in names] == [t for t in usual if t in names]
    assert "Be brief. </s><|im_end|><|user|>" in shown(chat, mine)


def test_noncharacters_and_half_characters_are_refused() -> None:
    chat = chat_of("qwen")
    with pytest.raises(InputError, match=r"instruction 1: got U\+FDD0"):
        chat.render(["a", "b\ufdd0"])
    with pytest.raises(InputError, match=r"reply 0: got U\+D83D"):
        chat.render(["a"], replies=["\ud83d"])


ATOMS = [
    *("a", "hello", " ", "  ", "\n", "\n\n", "\t", ".", "!", "?", "😀", "👩‍👩‍👧", "写", "诗。"),
    *("e\u0301", "[", "]", "/", "INST", "<", "|", ">", "<|", "|>", "im_end", "<0x0A>", "'s"),
    *("\u00a0", "\u200b", "\r\n", "\x00", "0", "12", "Ġ", "م", "\u2028", "<<SYS>>"),
]


@pytest.mark.parametrize("name", STYLES)
def test_random_text(name: str) -> None:
    """Ids equal the original's unless the text spells a control token, which never shows up."""
    rng = random.Random(name)
    chat = chat_of(name)
    names = controls(chat)
    for _ in range(150):
        atoms = ATOMS + 2 * list(names.values()) if rng.random() < 0.5 else ATOMS
        text = "".join(rng.choices(atoms, k=rng.randint(1, 8)))
        if not text.strip() or (name == "mistral" and text.endswith((" ", "\t", "\n"))):
            continue
        rendered = chat.render([text])
        assert not set(part(rendered, "instruction")) & set(names)
        if not any(spelt in text for spelt in names.values()):
            bos = [1] if name == "zephyr" else []
            assert ids_of(rendered) == bos + reference(chat, text)


def test_white_space_that_merges_with_a_position_names_the_row() -> None:
    chat = chat_of("mistral")
    with pytest.raises(InputError, match=r"instruction 1: got 'sea ' .* strip it"):
        chat.render(["sea", "sea "])


def test_template_tokens_that_merge_with_instructions_are_no_positions() -> None:
    chat = chat_of("headings")
    assert chat.positions == STYLES["headings"].positions
    rendered = chat.render(["Name a river", "Name a river."])
    assert shown(chat, part(rendered, "instruction", 0)) == "Name a river"
    assert shown(chat, part(rendered, "instruction", 1)) == "Name a river.\n\n"
    assert rendered.post[0, 0] - rendered.instruction[0, 1] == 1
    for i, text in enumerate(rendered.prompts):
        assert ids_of(rendered, i) == reference(chat, text)


def test_white_space_that_a_normaliser_drops_belongs_to_no_region() -> None:
    tokenizer = templates.tokenizer("mistral")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(" +"), " "), tokenizer.backend_tokenizer.normalizer]
    )
    chat = ChatFormat.from_tokenizer(tokenizer)
    rendered = chat.render(["hello   sea", "hello sea  "])
    assert regions(rendered, 0)[:-1] == regions(rendered, 1)[:-1]
    assert shown(chat, part(rendered, "instruction", 1)) == "hello sea"


def test_a_control_token_that_slips_through_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of defence, for a vocabulary whose traps the encoder does not foresee."""
    monkeypatch.setattr(Encoder, "_leaks", lambda self: [])
    chat = chat_of("unigram")
    with pytest.raises(InputError, match=r"instruction 1: .* control token '<s>'"):
        chat.render(["hello", "say <s>"])


# ---- prefilled answers, replies, thinking


@pytest.mark.parametrize("name", FAMILIES)
def test_a_reply_follows_the_same_prompt_and_is_ended(name: str) -> None:
    chat = chat_of(name)
    prompts = chat.render(ORDINARY)
    rendered = chat.render(ORDINARY, replies=[REPLY] * len(ORDINARY))
    end = chat.tokenizer.convert_tokens_to_ids(STYLES[name].end_of_turn)
    for i in range(len(ORDINARY)):
        assert ids_of(rendered, i)[: int(prompts.lengths[i])] == ids_of(prompts, i)
        assert shown(chat, part(rendered, "answer", i)).strip() == REPLY
        tail = rendered.ids[i, rendered.answer[i, 1] :].tolist()
        assert end in tail
        assert not set(tail[: tail.index(end)]) & set(controls(chat))
        assert end not in part(rendered, "answer", i)
        assert rendered.reply_mask[i].sum() == len(part(rendered, "answer", i))


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in ("r1", "qwen3")])
@pytest.mark.parametrize("reply", [REPLY, "I cannot", "写", "😀 ok.", "a\n\nb"])
def test_a_conversation_equals_the_templates_own(name: str, reply: str) -> None:
    chat = chat_of(name)
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": reply}]
    ids = chat.tokenizer.apply_chat_template(messages, return_dict=False)
    assert ids_of(chat.render(["hello"], replies=[reply])) == ids


@pytest.mark.parametrize("name", STYLES)
def test_a_reply_cannot_end_its_turn(name: str) -> None:
    chat = chat_of(name)
    special = [t for t in chat.tokenizer.all_special_tokens if t != chat.tokenizer.unk_token]
    text = "no " + " ".join(special)
    answer = part(chat.render(["hello"], replies=[text]), "answer")
    assert not set(answer) & (set(chat.tokenizer.all_special_ids) - {chat.tokenizer.unk_token_id})


def test_a_reply_may_think() -> None:
    """Thinking markers are not special tokens: models write them, and decode keeps them."""
    chat = chat_of("qwen3")
    rendered = chat.render(["hello"], replies=["<think>\nhm\n</think>\n\nhi <|im_end|>"])
    answer = part(rendered, "answer")
    close, end = (chat.tokenizer.convert_tokens_to_ids(t) for t in ("</think>", "<|im_end|>"))
    assert answer[0] == chat.tokenizer.convert_tokens_to_ids("<think>")
    assert close in answer
    assert end not in answer
    assert chat.decode(answer) == "<think>\nhm\n</think>\n\nhi <|im_end|>"


@pytest.mark.parametrize("reply", ["\n\nlines first", " space first", "", "\n"])
@pytest.mark.parametrize("name", ["qwen", "llama-3", "r1", "gemma"])
def test_a_reply_never_changes_the_prompt_it_follows(name: str, reply: str) -> None:
    chat = chat_of(name)
    prompt = ids_of(chat.render(["hello"]))
    rendered = chat.render(["hello"], replies=[reply])
    assert ids_of(rendered)[: len(prompt)] == prompt
    trimmed = reply.strip() if STYLES[name].trims else reply
    assert shown(chat, part(rendered, "answer")) == trimmed


def test_replies_must_match_instructions() -> None:
    with pytest.raises(InputError, match="replies: got 1, need one for each of 2"):
        chat_of("qwen").render(["a", "b"], replies=["x"])


def test_prefill_is_answer_and_may_hold_control_tokens() -> None:
    bare, chat = chat_of("qwen3"), chat_of("qwen3", prefill="<tool_call>Sure, here")
    rendered = chat.render(["hello sea", "hi"])
    assert shown(chat, part(rendered, "answer")) == "<tool_call>Sure, here"
    assert part(rendered, "answer")[0] == chat.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert part(rendered, "post") == part(bare.render(["hi"]), "post")
    assert chat.positions == bare.positions
    assert chat.template_sha256 != bare.template_sha256
    reply = chat.render(["hello sea"], replies=[" is one."])
    assert shown(chat, part(reply, "answer")) == "<tool_call>Sure, here is one."


def test_prefill_of_llama_2_stands_behind_the_space_that_the_template_writes() -> None:
    chat = chat_of("llama-2", prefill="Sure")
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Sure"}]
    ids = chat.tokenizer.apply_chat_template(
        messages, continue_final_message=True, return_dict=False
    )
    assert ids_of(chat.render(["hello"])) == ids
    reply = chat.render(["hello"], replies=[", here."])
    assert ids_of(reply)[: len(ids)] == ids
    assert shown(chat, part(reply, "answer")) == "Sure, here."


@pytest.mark.parametrize("plain", [True, False])
def test_spans_count_the_bos_that_is_put_in_front(plain: bool) -> None:
    tokenizer = templates.tokenizer("zephyr")
    chat = ChatFormat.plain(tokenizer) if plain else ChatFormat.from_tokenizer(tokenizer)
    rendered = chat.render(["hello sea"], replies=[REPLY])
    assert shown(chat, part(rendered, "instruction")) == "hello sea"
    assert shown(chat, part(rendered, "post")[-1:]) == "\n"
    assert shown(chat, part(rendered, "answer")) == REPLY
    assert bool(rendered.ids.shape[1] == rendered.answer[0, 1]) == plain


def test_qwen3_switches_thinking_by_its_template() -> None:
    on, off, unset = (chat_of("qwen3", thinking=t) for t in (True, False, None))
    assert ids_of(on.render(["hello"])) == ids_of(unset.render(["hello"]))
    assert ids_of(off.render(["hello"])) == reference(off, "hello", enable_thinking=False)
    assert off.positions == (*unset.positions, "<think>", "\n\n", "</think>", "\n\n")
    assert off.render(["hello"]).answer.tolist() == [[len(ids_of(off.render(["hello"])))] * 2]
    assert off.template_sha256 != unset.template_sha256
    reply = off.render(["hello"], replies=["hi"])
    assert shown(off, part(reply, "answer")) == "hi"


def test_r1_closes_the_think_block_as_prefill() -> None:
    usual, on, off = (chat_of("r1", thinking=t) for t in (None, True, False))
    assert usual.positions == on.positions == off.positions
    assert (
        ids_of(on.render(["hello"])) == ids_of(usual.render(["hello"])) == reference(usual, "hello")
    )
    rendered = off.render(["hello"])
    assert shown(off, ids_of(rendered)).endswith("<think>\n\n</think>\n\n")
    assert shown(off, part(rendered, "answer")) == "\n</think>\n\n"
    assert ids_of(rendered)[: len(ids_of(usual.render(["hello"])))] == ids_of(
        usual.render(["hello"])
    )


def test_a_vocabulary_with_thinking_but_no_switch_gets_the_block_as_prefill() -> None:
    tokenizer = templates.tokenizer("qwen3")
    tokenizer.chat_template = templates.CHATML
    off = ChatFormat.from_tokenizer(tokenizer, thinking=False)
    assert shown(off, part(off.render(["a"]), "answer")) == "<think>\n\n</think>\n\n"
    on = ChatFormat.from_tokenizer(tokenizer, thinking=True)
    assert shown(on, part(on.render(["a"]), "answer")) == "<think>\n"
    with pytest.raises(InputError, match="thinking=False"):
        chat_of("llama-2", thinking=False)


# ---- system prompts and templates that cannot be used


@pytest.mark.parametrize("name", [n for n in FAMILIES if STYLES[n].system])
def test_a_system_prompt_is_written_where_the_template_wants_it(name: str) -> None:
    chat = chat_of(name, system="Be brief.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    ids = chat.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    rendered = chat.render(["hello"])
    assert ids_of(rendered) == ids
    assert shown(chat, part(rendered, "instruction")) == "hello"
    assert chat.template_sha256 != chat_of(name).template_sha256


def test_an_empty_system_prompt_replaces_the_default() -> None:
    assert "helpful" in shown(chat_of("qwen"), ids_of(chat_of("qwen").render(["a"])))
    assert "helpful" not in shown(chat_of("qwen"), ids_of(chat_of("qwen", system="").render(["a"])))


def test_no_system_role_is_one_clear_line() -> None:
    for name in ("gemma", "mistral"):
        with pytest.raises(InputError, match="system") as caught:
            chat_of(name, system="Be brief.")
        assert "\n" not in str(caught.value)
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}\n"
    )
    with pytest.raises(InputError, match="writes 0 times"):
        ChatFormat.from_tokenizer(tokenizer, system="Be brief.")


def test_unusable_templates_are_refused() -> None:
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        ChatFormat.from_tokenizer(tokenizer)
    bad = {
        "2 copies": "{% for m in messages %}{{ m.content + m.content }}{% endfor %}\n",
        "0 copies": "hello\n",
        "no token after": "{% for m in messages %}{{ m.content }}{% endfor %}",
        "another chat template": "{% for m in messages %}{{ m.content + none }}{% endfor %}",
        "unexpected": "{% for m in messages %}",
    }
    for line, template in bad.items():
        tokenizer.chat_template = template
        with pytest.raises(InputError, match=line if line != "unexpected" else "template"):
            ChatFormat.from_tokenizer(tokenizer)


def test_a_template_that_reads_the_instruction_names_the_row() -> None:
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = (
        "{% if 'magic' in messages[0].content %}<|im_start|>{% endif %}" + templates.CHATML
    )
    with pytest.raises(InputError, match="instruction 1: got 'magic'"):
        ChatFormat.from_tokenizer(tokenizer).render(["hello", "magic"])


def test_a_template_that_changes_the_instruction_keeps_its_span() -> None:
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = templates.CHATML.replace("m.content", "(m.content | lower)")
    chat = ChatFormat.from_tokenizer(tokenizer)
    rendered = chat.render(["HELLO Sea"])
    assert ids_of(rendered) == reference(chat, "HELLO Sea")
    assert shown(chat, part(rendered, "instruction")) == "hello sea"


def test_a_dated_template_survives_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import chat_template_utils

    class Clock:
        day = 1

        @classmethod
        def now(cls) -> Any:
            return cls

        @classmethod
        def strftime(cls, form: str) -> str:
            return f"day {cls.day}"

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = "{{ strftime_now('%d') + '\n' }}" + templates.CHATML
    chat = ChatFormat.from_tokenizer(tokenizer)
    first = chat.render(["hello"])
    assert "day 1" in shown(chat, ids_of(first))
    Clock.day = 22
    assert ids_of(chat.render(["hello"])) == ids_of(first)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow(PreTrainedTokenizerBase):
        def __init__(self) -> None:
            self.name_or_path = "slow"

    with pytest.raises(InputError, match="slow: got Slow, need a fast tokenizer"):
        ChatFormat.plain(Slow())


def test_several_templates_take_the_default() -> None:
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = {"default": templates.CHATML, "tool_use": "x"}
    assert ChatFormat.from_tokenizer(tokenizer).positions == STYLES["qwen"].positions
    tokenizer.chat_template = {"one": templates.CHATML, "tool_use": "x"}
    with pytest.raises(InputError, match="no default"):
        ChatFormat.from_tokenizer(tokenizer)


@pytest.mark.parametrize("blank", ["", "  ", "\n\t"])
@pytest.mark.parametrize("name", ["qwen", "llama-2", "phi-3"])
def test_an_empty_instruction_names_the_row(name: str, blank: str) -> None:
    for chat in (chat_of(name), ChatFormat.plain(templates.tokenizer(name))):
        with pytest.raises(InputError, match="instruction 1"):
            chat.render(["hello", blank])


def test_nothing_to_render_and_a_single_string_are_refused() -> None:
    with pytest.raises(InputError, match="got none"):
        chat_of("qwen").render([])
    with pytest.raises(InputError, match="need a list of texts"):
        chat_of("qwen").render("hello")


# ---- ids that end, pad and begin


@pytest.mark.parametrize("name", FAMILIES)
def test_stop_ids_are_eos_end_of_turn_and_what_is_given(name: str) -> None:
    chat = chat_of(name, extra_stop_ids=(3, 3))
    style = STYLES[name]
    wanted = [chat.tokenizer.convert_tokens_to_ids(t) for t in (style.eos, style.end_of_turn)]
    assert chat.stop_ids == tuple(dict.fromkeys([*wanted, 3]))


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_a_special_token(name: str) -> None:
    chat = chat_of(name)
    style = STYLES[name]
    assert chat.pad_id == chat.tokenizer.convert_tokens_to_ids(style.pad or style.eos)


def test_no_special_token_at_all_cannot_pad() -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=templates.byte_level())
    with pytest.raises(InputError, match="need one to pad with"):
        ChatFormat.plain(bare)


def test_the_tokenizer_is_left_as_it_was() -> None:
    tokenizer = templates.tokenizer("qwen3")
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    before = copy.deepcopy(tokenizer.backend_tokenizer.to_str())
    rendered = ChatFormat.from_tokenizer(tokenizer).render(["a long instruction that goes on"])
    assert shown(chat_of("qwen3"), part(rendered, "instruction")).endswith("goes on")
    after = tokenizer.backend_tokenizer
    assert '"added_tokens"' in before
    assert after.get_vocab_size() == templates.tokenizer("qwen3").backend_tokenizer.get_vocab_size()


# ---- base models


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_puts_one_newline_behind_every_instruction(name: str) -> None:
    tokenizer = templates.tokenizer(name)
    chat = ChatFormat.plain(tokenizer)
    texts = ["Name a river?", "ends.", "写", "a\n", "say <s>", "x " + tokenizer.eos_token]
    rendered = chat.render(texts)
    assert chat.positions == ("\n",)
    assert (rendered.ids[:, -1] == rendered.ids[0, -1]).all()
    names = controls(chat)
    for i, text in enumerate(texts):
        assert shown(chat, part(rendered, "instruction", i)).strip() == text.strip()
        assert ids_of(rendered, i).count(tokenizer.bos_token_id) == STYLES[name].adds_bos
        assert not set(part(rendered, "instruction", i)) & set(names)
        assert ids_of(rendered, i)[:-1] == [
            *ids_of(chat.render([text]))[: STYLES[name].adds_bos],
            *part(rendered, "instruction", i),
        ]


def test_plain_takes_other_suffixes_and_no_empty_one() -> None:
    chat = ChatFormat.plain(templates.tokenizer("qwen"), suffix="\nAnswer:")
    assert chat.positions[0] == "\n"
    assert chat.positions[-1] == ":"
    rendered = chat.render(["hello"], replies=[" hi"])
    assert shown(chat, ids_of(rendered)) == "hello\nAnswer: hi"
    with pytest.raises(InputError, match="no token after"):
        ChatFormat.plain(templates.tokenizer("qwen"), suffix="")


# ---- batches


@pytest.fixture(scope="module")
def mixed() -> Rendered:
    texts = [f"hello {'sea ' * (i % 5)}{i}" for i in range(23)]
    return chat_of("llama-3").render(texts, replies=[f"ok {i}" for i in range(23)])


def regions(rendered: Rendered, i: int) -> tuple[Any, ...]:
    return (
        ids_of(rendered, i),
        *(part(rendered, name, i) for name in ("instruction", "post", "answer")),
        rendered.prompts[i],
    )


def test_padding_is_on_the_left_and_changes_nothing(mixed: Rendered) -> None:
    chat = chat_of("llama-3")
    assert mixed.ids.shape == mixed.mask.shape
    assert int(mixed.lengths.max()) == mixed.ids.shape[1]
    assert (mixed.mask.diff(dim=1) >= 0).all()
    assert (mixed.ids[mixed.mask == 0] == chat.pad_id).all()
    for i, text in enumerate(mixed.prompts):
        alone = chat.render([text], replies=[f"ok {i}"])
        assert alone.mask.all()
        assert regions(alone, 0) == regions(mixed, i)


@pytest.mark.parametrize(
    "rows", [slice(3, 9), [4, 2, 2], torch.tensor([0, 22]), range(5), torch.arange(23) == 7, []]
)
def test_some_rows(mixed: Rendered, rows: Any) -> None:
    some = mixed[rows]
    numbers = torch.arange(23)[rows if isinstance(rows, slice) else torch.as_tensor(rows).long()]
    if isinstance(rows, torch.Tensor) and rows.dtype == torch.bool:
        numbers = rows.nonzero().squeeze(1)
    assert len(some) == len(numbers)
    assert len(numbers) == 0 or int(some.lengths.max()) == some.ids.shape[1]
    for i, number in enumerate(numbers.tolist()):
        assert regions(some, i) == regions(mixed, number)


def test_groups_of_one_length_hold_no_padding(mixed: Rendered) -> None:
    seen = []
    for rows, group in mixed.by_length():
        assert group.mask.all()
        seen += rows.tolist()
        for i, number in enumerate(rows.tolist()):
            assert regions(group, i) == regions(mixed, number)
    assert sorted(seen) == list(range(23))


@pytest.mark.parametrize("sort_by_length", [True, False])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_batches_hold_every_row_once(mixed: Rendered, size: int, sort_by_length: bool) -> None:
    rows, widths = [], []
    for numbers, batch in mixed.batches(size, sort_by_length=sort_by_length):
        assert 0 < len(batch) <= size
        rows += numbers.tolist()
        widths.append(batch.ids.shape[1])
        for i, number in enumerate(numbers.tolist()):
            assert regions(batch, i) == regions(mixed, number)
    assert sorted(rows) == list(range(23))
    assert (rows == list(range(23))) or sort_by_length
    assert not sort_by_length or widths == sorted(widths, reverse=True)
    with pytest.raises(InputError, match="batch size"):
        next(mixed.batches(0))


def test_to_moves_every_tensor(mixed: Rendered) -> None:
    moved = mixed.to("meta")
    assert {moved.ids.device.type, moved.post.device.type, moved.mask.device.type} == {"meta"}
    assert moved.prompts == mixed.prompts


def test_many_prompts_are_tokenised_together(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, encode = chat_of("qwen3"), Encoder.encode
    batches: list[int] = []

    def counting(self: Encoder, texts: Sequence[str]) -> list[Encoded]:
        batches.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", counting)
    for n in (2, 640):
        chat.render([f"Write poem {i} about the sea and the river." for i in range(n)])
    half = len(batches) // 2
    assert half <= 4
    assert batches == [2 * bool(size) for size in batches[:half]] + [320 * size for size in batches[:half]]


# ---- vocabularies with a trap


def test_a_vocabulary_with_holes_keeps_its_ids() -> None:
    # Seven entries: a new token would get id 7, which is the river's.
    vocab = {"<unk>": 0, "a": 1, "river": 7, "name": 10, "<|user|>": 4, "<|end|>": 11, "<|bot|>": 8}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<unk>", "<|user|>", "<|end|>", "<|bot|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<|end|>"
    )
    tokenizer.chat_template = templates.TOY
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert ids_of(chat.render(["name a river <|bot|>"])) == [4, 10, 1, 7, 0, 11, 8]


def test_merges_that_build_a_control_token_do_not() -> None:
    """A model whose own merges write <s>: only the template's <s> may be the control token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*letters, "<s", "<s>", "x<s>"])}
    merges = [("<", "s"), ("<s", ">"), ("x", "<s>")]
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.add_special_tokens(["<s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<s>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '<s>' }}{% endfor %}"
    chat = ChatFormat.from_tokenizer(tokenizer)
    ids = ids_of(chat.render(["a<s>b"]))
    assert ids == [vocab["a"], vocab["<s"], vocab[">"], vocab["b"], vocab["<s>"]]


def test_added_letters_and_white_space_are_ordinary_text() -> None:
    """Gemma adds line ends, GPT-NeoX spaces, DeepSeek single letters: all of it mere vocabulary."""
    tokenizer = templates.tokenizer("qwen")
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("ü", "      ", "<tag>")])
    chat = ChatFormat.from_tokenizer(tokenizer)
    for text in ("für", "a      b", "für      mich"):
        assert ids_of(chat.render([text])) == reference(chat, text)
    tag = tokenizer.convert_tokens_to_ids("<tag>")
    assert tag in reference(chat, "a <tag>")
    assert tag not in ids_of(chat.render(["a <tag>"]))
