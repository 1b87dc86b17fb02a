"""What a chat template writes round an instruction and round a reply, found by rendering probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .encoder import name_of

# Plain words, so that no template treats them in a special way.
_INSTRUCTION, _REPLY, _SYSTEM = "quillwortqx", "marshmallowqx", "saxifrageqx"
_THINKING_KEYS = ("enable_thinking", "thinking")
_OPEN_THINK, _CLOSE_THINK = "<think>", "</think>"

Message = dict[str, str]


@dataclass(frozen=True)
class PromptText:
    """The template text before and after the instruction, generation prompt included."""

    before: str
    after: str


@dataclass(frozen=True)
class ReplyText:
    """What the template writes round a reply that follows the generation prompt.

    `lead` is white space between the two, `end` the end of turn, `trim` what it does to the reply.
    """

    lead: str
    end: str
    trim: Callable[[str], str]


class Template:
    """A tokenizer's chat template with its system prompt and options fixed."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        thinking: bool | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.name = name_of(tokenizer)
        self.source = _source(tokenizer)
        self.system = system
        self._head: list[Message] = []
        self._options: Mapping[str, Any] = {}
        if system is not None:
            self._head = [{"role": "system", "content": self._checked_system(system)}]
        self.answer_opening = "" if thinking is None else self._set_thinking(thinking)
        self.prompt = self._probe()
        self.system_span = self._system_span(system)

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments that the template is rendered with."""
        return dict(self._options)

    def messages(self, instruction: str) -> list[Message]:
        """The conversation that holds one instruction."""
        return [*self._head, {"role": "user", "content": instruction}]

    def written(self, instructions: Sequence[str]) -> list[str]:
        """Each instruction as the template writes it (many trim white space)."""
        # A template that writes today's date must not fail a run that passes midnight.
        now = self._probe() if "strftime_now" in self.source else self.prompt
        texts = self._render([self.messages(i) for i in instructions])
        for row, text in enumerate(texts):
            room = len(text) - len(now.before) - len(now.after)
            if room < 0 or not (text.startswith(now.before) and text.endswith(now.after)):
                raise InputError(
                    f"instruction {row}: got {instructions[row][:60]!r}, which changes what the "
                    f"chat template of {self.name} writes around it; need an instruction that the "
                    "template only wraps; try to rephrase or drop it"
                )
        return [text[len(now.before) : len(text) - len(now.after)] for text in texts]

    def reply(self) -> ReplyText:
        """What stands round a reply. InputError where the template has no assistant turns."""
        [text] = self._render([self._conversation(_REPLY)], generation_prompt=False)
        if text.count(_REPLY) != 1 or text.count(_INSTRUCTION) != 1:
            raise InputError(
                f"chat template of {self.name}: got {text.count(_REPLY)} copies of a reply, need a "
                "template that writes each turn once; try rendering without replies"
            )
        head, _, end = text.partition(_REPLY)
        prompt = self.prompt.before + _INSTRUCTION + self.prompt.after
        lead = head[len(prompt) :] if head.startswith(prompt) else ""
        # A thinking block written into past turns is no part of what follows the prompt.
        return ReplyText(lead if lead.isspace() else "", end, self._reply_trim(head, end))

    def _conversation(self, reply: str) -> list[Message]:
        return [*self.messages(_INSTRUCTION), {"role": "assistant", "content": reply}]

    def _reply_trim(self, head: str, end: str) -> Callable[[str], str]:
        [text] = self._render([self._conversation(f"  {_REPLY}  ")], generation_prompt=False)
        left = text.startswith(head + _REPLY)
        right = text.endswith(_REPLY + end)
        if left and right:
            return str.strip
        if left or right:
            return str.lstrip if left else str.rstrip
        return str

    def _render(
        self,
        conversations: Sequence[list[Message]],
        *,
        generation_prompt: bool = True,
        **options: Any,
    ) -> list[str]:
        try:
            texts = self._tokenizer.apply_chat_template(
                list(conversations),
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self._options,
                **options,
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = ", ".join(message["role"] for message in conversations[0])
            remedy = "try without a system prompt" if self._head else "try another chat template"
            raise InputError(
                f"chat template of {self.name}: got {str(error)!r} for the turns {roles}, need a "
                f"template that takes them; {remedy}"
            ) from error
        return [str(text) for text in texts]

    def _probe(self) -> PromptText:
        [text] = self._render([self.messages(_INSTRUCTION)])
        if text.count(_INSTRUCTION) != 1:
            raise InputError(
                f"chat template of {self.name}: got {text.count(_INSTRUCTION)} copies of the "
                "instruction in the prompt, need exactly 1; try another chat_template"
            )
        before, _, after = text.partition(_INSTRUCTION)
        return PromptText(before, after)

    def _checked_system(self, system: str) -> str:
        self._head = [{"role": "system", "content": _SYSTEM}]
        [text] = self._render([self.messages(_INSTRUCTION)])
        if text.count(_SYSTEM) != 1:
            raise InputError(
                f"chat template of {self.name}: got a system prompt that the template writes "
                f"{text.count(_SYSTEM)} times, need a template with a system role; try system=None "
                "and put the text into the instruction"
            )
        return system

    def _system_span(self, system: str | None) -> tuple[int, int]:
        """Where the system prompt stands in `prompt.before`: user text, never control tokens."""
        if not system:
            return (0, 0)
        marker = {"role": "system", "content": _SYSTEM}
        [text] = self._render([[marker, *self.messages(_INSTRUCTION)[1:]]])
        before = text.partition(_INSTRUCTION)[0]
        start = before.find(_SYSTEM)
        stop = len(self.prompt.before) - (len(before) - start - len(_SYSTEM))
        if start < 0 or self.prompt.before != (
            before[:start] + self.prompt.before[start:stop] + before[start + len(_SYSTEM) :]
        ):
            raise InputError(
                f"chat template of {self.name}: got a system prompt that is not simply wrapped "
                "before the instruction, need one that is; try another one, or system=None"
            )
        return (start, stop)

    def _set_thinking(self, thinking: bool) -> str:
        """Switch thinking on or off; what must open the answer where the template cannot."""
        probe = [self.messages(_INSTRUCTION)]
        for key in _THINKING_KEYS:
            if self._render(probe, **{key: True}) != self._render(probe, **{key: False}):
                self._options = {key: thinking}
                return ""
        prompt = self._render(probe)[0]
        if prompt.rstrip().endswith(_OPEN_THINK):
            blank = "\n" if prompt.endswith("\n") else "\n\n"
            return "" if thinking else f"{blank}{_CLOSE_THINK}\n\n"
        if _CLOSE_THINK in self._tokenizer.get_added_vocab():
            return f"{_OPEN_THINK}\n" if thinking else f"{_OPEN_THINK}\n\n{_CLOSE_THINK}\n\n"
        raise InputError(
            f"thinking at tokenizer {self.name}: got thinking={thinking}, need a template or "
            "vocabulary that knows thinking; try thinking=None"
        )


def _source(tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise InputError(
            f"tokenizer {name_of(tokenizer)}: got no chat template, need one; try a chat model, or "
            "render it as a base model (base=True, ChatFormat.plain)"
        )
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise InputError(
            f"tokenizer {name_of(tokenizer)}: got several chat templates and no default, need one; "
            "try tokenizer.chat_template = the one to use"
        ) from error
