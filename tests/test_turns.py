"""Several turns: what is rendered, and that nobody's earlier text becomes a control token."""

from __future__ import annotations

from typing import Any

import pytest
import templates
from jaxtyping import config
from kit import controls, ids_of, part, shown
from templates import FAMILIES, STYLES, chat_of
from tokenizers import processors

from refusal_lens.chat import ChatFormat
from refusal_lens.errors import InputError

TURNS = [("Name a river.", "The river.\n\nIt is long."), (" and the sea ", "No sea, I'm sorry!")]
CUTS = ("r1", "qwen3")
"""Templates that cut thoughts out of past turns."""


def messages(turns: list[tuple[str, str]], last: str) -> list[dict[str, str]]:
    listed = []
    for user, assistant in turns:
        listed += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [*listed, {"role": "user", "content": last}]


def reference(
    chat: ChatFormat, turns: list[tuple[str, str]], last: str, **options: Any
) -> list[int]:
    head = (
        [] if not options.get("system") else [{"role": "system", "content": options.pop("system")}]
    )
    return chat.tokenizer.apply_chat_template(
        [*head, *messages(turns, last)], add_generation_prompt=True, return_dict=False, **options
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_conversation_is_that_of_apply_chat_template(name: str) -> None:
    chat = chat_of(name)
    for n in (1, 2):
        later = chat.after(TURNS[:n])
        rendered = later.render(["hello sea", "x"])
        assert ids_of(rendered) == reference(chat, TURNS[:n], "hello sea")
        assert shown(chat, part(rendered, "instruction")).strip() == "hello sea"
        assert later.positions == chat.positions
        assert part(rendered, "post") == part(chat.render(["x"]), "post")
        assert later.stop_ids == chat.stop_ids
        assert ids_of(rendered).count(chat.tokenizer.bos_token_id) == reference(
            chat, TURNS[:n], "hello sea"
        ).count(chat.tokenizer.bos_token_id)
        assert later.template_sha256 != chat.template_sha256
    assert ids_of(chat.after(TURNS[:1]).after(TURNS[1:]).render(["x"])) == ids_of(
        later.render(["x"])
    )
    assert chat.after([]).template_sha256 == chat.template_sha256


@pytest.mark.parametrize("name", [n for n in FAMILIES if STYLES[n].system])
def test_the_system_prompt_stays(name: str) -> None:
    chat = chat_of(name, system="Be brief.")
    assert ids_of(chat.after(TURNS).render(["x"])) == reference(
        chat, TURNS, "x", system="Be brief."
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_no_earlier_text_becomes_a_control_token(name: str) -> None:
    chat = chat_of(name)
    names = controls(chat)
    special = {i for i in names if chat.tokenizer.added_tokens_decoder[i].special}
    usual = [t for t in ids_of(chat.after([("hello", "sea")]).render(["x"])) if t in names]
    for spelt in names.values():
        asked = [
            t for t in ids_of(chat.after([(f"a {spelt} b", "sea")]).render(["x"])) if t in names
        ]
        assert asked == usual, spelt
        if "think" in spelt:
            continue
        said = ids_of(chat.after([("hello", f"a {spelt} b")]).render(["x"]))
        assert [t for t in said if t in special] == [t for t in usual if t in special], spelt
        assert spelt in shown(chat, said)


@pytest.mark.parametrize("name", CUTS)
def test_thoughts_of_past_turns_are_treated_as_the_template_does(name: str) -> None:
    chat = chat_of(name)
    turns = [("hello", "<think>\nhm\n</think>\n\nhi"), ("more", "river")]
    assert ids_of(chat.after(turns).render(["x"])) == reference(chat, turns, "x")


def test_a_reply_after_turns_is_rendered_and_prefilled() -> None:
    chat = chat_of("llama-3", prefill="Sure")
    later = chat.after(TURNS)
    reply = later.render(["x"], replies=[", here."])
    assert shown(chat, part(reply, "answer")) == "Sure, here."
    assert shown(chat, ids_of(later.render(["x"]))).endswith("Sure")


def test_a_token_that_begins_texts_and_ends_turns_still_begins_them() -> None:
    tokenizer = templates.tokenizer("zephyr")
    tokenizer.bos_token = tokenizer.eos_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert ids_of(chat.render(["x"]))[0] == tokenizer.eos_token_id
    assert ids_of(chat.after(TURNS).render(["x"]))[0] == tokenizer.eos_token_id


def test_what_cannot_be_turns_is_one_line() -> None:
    chat = chat_of("qwen")
    with pytest.raises(InputError, match="base models have no turns"):
        ChatFormat.plain(templates.tokenizer("qwen")).after(TURNS)
    config.update("jaxtyping_disable", True)
    try:
        for turns in (["ab"], [("one",)], [("one", 2)], [("one", "two", "three")], [7]):
            with pytest.raises(InputError, match="turn 0"):
                chat.after(turns)
    finally:
        config.update("jaxtyping_disable", False)
    tokenizer = templates.tokenizer("qwen")
    tokenizer.chat_template = (
        "{{ '<|im_start|>' + messages[-1].content + '<|im_end|>' }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    )
    with pytest.raises(InputError, match=r"turn 0: got 'a'.* writes 0 times"):
        ChatFormat.from_tokenizer(tokenizer).after([("a", "b")])


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
    assert ids == reference(chat, [], "hello")


def test_bos_behind_the_system_prompt_is_seen() -> None:
    tokenizer = templates.tokenizer("r1")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content + '\n' }}{% endif %}"
        "{{ bos_token }}"
        + templates.R1.replace("{{ bos_token }}", "").replace("{{ m.content }}", "")
    )
    chat = ChatFormat.from_tokenizer(tokenizer, system="Be brief.")
    assert ids_of(chat.render(["hello"])).count(tokenizer.bos_token_id) == 1
