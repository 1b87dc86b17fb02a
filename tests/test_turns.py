"""Several turns: what is rendered, and that nobody's earlier text becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import templates
import torch
from kit import controls, ids_of, part, shown
from templates import FAMILIES, STYLES, chat_of
from tokenizers import processors

from refusal_lens.chat import ChatFormat
from refusal_lens.chat.suffixed import render_suffixed
from refusal_lens.conversations import Conversation, Message
from refusal_lens.errors import InputError

TURNS = [("Name a river.", "The river.\n\nIt is long."), (" and the sea ", "No sea, I'm sorry!")]
CUTS = ("r1", "qwen3")
"""Templates that cut thoughts out of past turns."""


def talk(turns: Sequence[tuple[str, str]], last: str, **more: Any) -> Conversation:
    """A conversation of turns and a last message; more: its system prompt and its reply."""
    system = more.pop("system", None)
    head = [] if system is None else [Message("system", system)]
    for user, assistant in turns:
        head += [Message("user", user), Message("assistant", assistant)]
    return Conversation((*head, Message("user", last)), **more)


def reference(chat: ChatFormat, conversation: Conversation, **options: Any) -> list[int]:
    """What the tokenizer's own apply_chat_template makes of it."""
    return chat.tokenizer.apply_chat_template(
        [message._asdict() for message in conversation.messages],
        add_generation_prompt=True,
        return_dict=False,
        **options,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_is_that_of_apply_chat_template(name: str) -> None:
    chat = chat_of(name)
    talks = [talk(TURNS[:n], "hello sea") for n in (0, 1, 2)]
    rendered = chat.render([*talks, "x"])
    for i, conversation in enumerate(talks):
        ids = ids_of(rendered, i)
        assert ids == reference(chat, conversation)
        assert shown(chat, part(rendered, "instruction", i)).strip() == "hello sea"
        assert part(rendered, "post", i) == part(rendered, "post", 3)
        bos = chat.tokenizer.bos_token_id
        assert ids.count(bos) == reference(chat, conversation).count(bos)
        assert ids == ids_of(chat.render([conversation]))
    assert rendered.prompts == ("hello sea", *talks[1:], "x")


@pytest.mark.parametrize("name", [n for n in FAMILIES if STYLES[n].system])
def test_system_prompts_of_the_format_and_of_the_conversation(name: str) -> None:
    """The format's stays unless the conversation has its own, the empty one included."""
    chat = chat_of(name, system="Be brief.")
    own = talk(TURNS, "x", system="Be kind. Rhyme.")
    rendered = chat.render([talk(TURNS, "x"), own, "x", talk([], "x", system="")])
    assert ids_of(rendered, 0) == reference(chat, talk(TURNS, "x", system="Be brief."))
    assert ids_of(rendered, 1) == reference(chat, own) == ids_of(chat_of(name).render([own]))
    assert ids_of(rendered, 2) == reference(chat, talk([], "x", system="Be brief."))
    assert ids_of(rendered, 3) == reference(chat, talk([], "x", system=""))


@pytest.mark.parametrize("name", [n for n in FAMILIES if not STYLES[n].system])
def test_a_template_without_system_role_names_the_row(name: str) -> None:
    with pytest.raises(InputError, match=r"prompt 1: chat template .*without a system prompt") as caught:
        chat_of(name).render(["x", talk([], "x", system="Be brief.")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_earlier_text_becomes_a_control_token(name: str) -> None:
    chat = chat_of(name)
    names = controls(chat)
    special = {i for i in names if chat.tokenizer.added_tokens_decoder[i].special}
    usual = [t for t in ids_of(chat.render([talk([("hello", "sea")], "x")])) if t in names]
    for spelt in names.values():
        asked = chat.render([talk([(f"a {spelt} b", "sea")], "x")])
        assert [t for t in ids_of(asked) if t in names] == usual, spelt
        if STYLES[name].system:
            kind, odd = (
                ids_of(chat.render([talk([], "x", system=text)])) for text in ("a b", f"a {spelt} b")
            )
            assert [t for t in odd if t in names] == [t for t in kind if t in names], spelt
        if "think" in spelt:
            continue
        said = ids_of(chat.render([talk([("hello", f"a {spelt} b")], "x")]))
        assert [t for t in said if t in special] == [t for t in usual if t in special], spelt
        assert spelt in shown(chat, said)


@pytest.mark.parametrize("name", CUTS)
def test_thoughts_of_past_turns_are_treated_as_the_template_does(name: str) -> None:
    chat = chat_of(name)
    thought = talk([("hello", "<think>\nhm\n</think>\n\nhi"), ("more", "river")], "x")
    assert ids_of(chat.render([thought])) == reference(chat, thought)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n not in CUTS])
def test_a_conversation_with_its_reply_is_that_of_apply_chat_template(name: str) -> None:
    chat = chat_of(name)
    answered = talk(TURNS, "hello", reply="Sure, here.")
    rendered = chat.render(["x", answered])
    assert ids_of(rendered, 1) == chat.tokenizer.apply_chat_template(
        answered.to_json(), return_dict=False
    )
    assert shown(chat, part(rendered, "answer", 1)).strip() == "Sure, here."
    assert part(rendered, "answer", 0) == []
    assert ids_of(rendered, 1) == ids_of(chat.render([talk(TURNS, "hello")], replies=["Sure, here."]))


def test_a_reply_after_turns_is_rendered_and_prefilled() -> None:
    chat = chat_of("llama-3", prefill="Sure")
    reply = chat.render([talk(TURNS, "x")], replies=[", here."])
    assert shown(chat, part(reply, "answer")) == "Sure, here."
    assert shown(chat, ids_of(chat.render([talk(TURNS, "x")]))).endswith("Sure")
    with pytest.raises(InputError, match="got one for prompt 1, which has its own"):
        chat.render(["x", talk([], "x", reply="y")], replies=["a", "b"])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_suffix_goes_to_the_last_message(name: str) -> None:
    chat = chat_of(name)
    asked = [talk(TURNS, "hello sea"), "hello", talk(TURNS, "hello sea", reply="Sure.")]
    suffixed = render_suffixed(chat, asked, [" now", " now", " now"])
    longer = [talk(TURNS, "hello sea now"), "hello now", talk(TURNS, "hello sea now")]
    assert torch.equal(suffixed.rendered.ids, chat.render(longer).ids)
    assert suffixed.rendered.prompts == tuple(longer)
    for row, (start, stop) in enumerate(suffixed.suffix.tolist()):
        assert shown(chat, suffixed.rendered.ids[row, start:stop].tolist()).strip() == "now"
    assert torch.equal(suffixed.suffix[:, 1], suffixed.rendered.instruction[:, 1])


def test_a_token_that_begins_texts_and_ends_turns_still_begins_them() -> None:
    tokenizer = templates.tokenizer("zephyr")
    tokenizer.bos_token = tokenizer.eos_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert ids_of(chat.render(["x"]))[0] == tokenizer.eos_token_id
    assert ids_of(chat.render([talk(TURNS, "x")]))[0] == tokenizer.eos_token_id


def test_what_cannot_be_turns_is_one_line() -> None:
    with pytest.raises(InputError, match=r"prompt 1: .*base models have no turns"):
        ChatFormat.plain(templates.tokenizer("qwen")).render(["x", talk(TURNS, "x")])
    with pytest.raises(InputError, match=r"prompt 0: assistant's text: got U\+FDD0"):
        chat_of("qwen").render([talk([("a", "\ufdd0")], "x")])
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = (
        "{{ '<|im_start|>' + messages[-1].content + '<|im_end|>' }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"prompt 0: turn 0: got 'a'.* writes 0 times"):
        ChatFormat.from_tokenizer(tokenizer).render([talk([("a", "b")], "x")])


def test_other_tokens_behind_a_later_message_are_refused() -> None:
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = templates.CHATML + "{{ '!' * (messages | length) }}"
    chat = ChatFormat.from_tokenizer(tokenizer)
    with pytest.raises(InputError, match=r"prompt 1: .* behind the last message after user, assistant"):
        chat.render(["x", talk(TURNS[:1], "x")])


# ---- headers


HARMONY = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}"
    "{%- else -%}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif -%}"
)


def harmony(**options: Any) -> ChatFormat:
    tokenizer = templates.tokenizer("qwen")
    names = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = HARMONY
    return ChatFormat.from_tokenizer(tokenizer, **options)


def test_a_channel_before_the_reply_is_part_of_the_prompt() -> None:
    chat = harmony()
    rendered = chat.render(["hello"], replies=["Sure, here."])
    assert ids_of(rendered) == chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Sure, here."}],
        return_dict=False,
    )
    assert shown(chat, part(rendered, "answer")) == "Sure, here."
    assert part(rendered, "post") == part(chat.render(["hello"]), "post")
    end = chat.tokenizer.convert_tokens_to_ids("<|end|>")
    assert end in chat.stop_ids
    opened = harmony(prefill="Sure").render(["hello"])
    assert shown(chat, ids_of(opened)).endswith("assistant<|channel|>final<|message|>Sure")
    assert shown(chat, part(opened, "answer")) == "Sure"


@pytest.mark.parametrize(
    "block",
    [
        "<think>\n\n</think>\n\n",
        "[THINK][/THINK]",
        "◁think▷◁/think▷",
        "<|channel>thought\n<channel|>",
    ],
)
def test_a_block_of_thought_in_past_turns_is_not(block: str) -> None:
    tokenizer = templates.tokenizer("qwen3")
    tokenizer.chat_template = (
        "{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\n' }}"
        f"{{%- if m.role == 'assistant' %}}{{{{ {block!r} }}}}{{% endif -%}}"
        "{{ m.content + '<|im_end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}"
    )
    chat = ChatFormat.from_tokenizer(tokenizer)
    rendered = chat.render(["hello"], replies=["hi"])
    assert shown(chat, ids_of(rendered)).endswith("assistant\nhi<|im_end|>\n")


# ---- BOS behind other things


@pytest.mark.parametrize("before", ["\n", "  ", "\n\n\t", "System:\n"])
def test_a_template_that_writes_bos_later_gets_no_second_one(before: str) -> None:
    tokenizer = templates.tokenizer("llama-3")
    tokenizer.chat_template = f"{{{{ {before!r} }}}}" + templates.LLAMA3
    chat = ChatFormat.from_tokenizer(tokenizer)
    ids = ids_of(chat.render(["hello"]))
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == reference(chat, talk([], "hello"))


def test_bos_behind_the_system_prompt_is_seen() -> None:
    tokenizer = templates.tokenizer("r1")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
        "{{ bos_token }}"
        + templates.R1.replace("{{ bos_token }}", "").replace("{{ m.content }}", "")
    )
    chat = ChatFormat.from_tokenizer(tokenizer, system="Be brief.")
    assert ids_of(chat.render(["hello"])).count(tokenizer.bos_token_id) == 1
