"""What a chat template writes round an instruction and round a reply, found by rendering probes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from .bounds import SECONDS, LimitError, render
from .encoder import name_of

# Plain words, so that no template treats them in a special way.
_INSTRUCTION, _REPLY, _SYSTEM, _TURN = "quillwortqx", "marshmallowqx", "saxifrageqx", "larkspur"
_THINKING_KEYS = ("enable_thinking", "thinking")
_OPEN_THINK, _CLOSE_THINK = "<think>", "</think>"

# A template is a program from elsewhere, which may fail in any of a program's ways.
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_THOUGHT = re.compile(
    r".*[<\[◁][^<>\[\]◁▷]*(?:think|thought|reason)[^<>\[\]◁▷]*[>\]▷]", re.I | re.S
)

SECONDS_EACH = 0.05
"""Seconds that every rendering may take; usual ones take a ten-thousandth."""

Message = dict[str, str]
Turn = tuple[str, str]
"""What a user said, and what the model replied."""


@dataclass(frozen=True)
class PromptText:
    """The template text before and after the instruction, generation prompt included."""

    before: str
    after: str


@dataclass(frozen=True)
class ReplyText:
    """What the template writes round a reply that follows the generation prompt.

    `lead` stands between the two: white space, or a header such as a channel. `end` is the end of turn, `trim`
    what the template does to the reply.
    """

    lead: str
    end: str
    trim: Callable[[str], str]


@dataclass(frozen=True)
class Foreign:
    """Where in the text before the instruction something stands that the template did not write.

    spoken: by the model, which may write added tokens that are not special.
    """

    start: int
    stop: int
    spoken: bool


class Template:
    """A tokenizer's chat template with its system prompt, earlier turns and options fixed."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        thinking: bool | None = None,
        turns: Sequence[Turn] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._thinking = thinking
        self._seconds = SECONDS
        self.turns = tuple(turns)
        self.name = name_of(tokenizer)
        self.source = _source(tokenizer)
        self.system = system
        self._head: list[Message] = []
        self._options: Mapping[str, Any] = {}
        if system is not None:
            self._head = [{"role": "system", "content": self._checked_system(system)}]
        for user, assistant in self.turns:
            self._head += [
                {"role": "user", "content": user},
                {"role": "assistant", "content": assistant},
            ]
        self.answer_opening = "" if thinking is None else self._set_thinking(thinking)
        self.prompt = self._probe()
        self.foreign = self._foreign()

    def after(self, turns: Sequence[Turn]) -> Template:
        """The same template with further turns before the instruction."""
        return Template(
            self._tokenizer,
            system=self.system,
            thinking=self._thinking,
            turns=(*self.turns, *turns),
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments that the template is rendered with."""
        return dict(self._options)

    def messages(self, instruction: str) -> list[Message]:
        """The conversation that holds one instruction."""
        return [*self._head, {"role": "user", "content": instruction}]

    def texts(self, instructions: Sequence[str]) -> list[str]:
        """The whole prompt of each instruction, generation prompt included."""
        return self._render([self.messages(i) for i in instructions])

    def written(self, instructions: Sequence[str]) -> list[str]:
        """Each instruction as the template writes it (many trim white space)."""
        # A template that writes today's date must not fail a run that passes midnight.
        now = self._probe() if "strftime_now" in self.source else self.prompt
        texts = self.texts(instructions)
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
        lead = _without_thought(head[len(prompt) :]) if head.startswith(prompt) else ""
        return ReplyText(lead, end, self._reply_trim(head, end))

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
        shared = {
            **self._tokenizer.special_tokens_map,
            **self._options,
            **options,
            "tools": None,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        try:
            return [self._timed({**shared, "messages": each}) for each in conversations]
        except LimitError as error:
            raise InputError(
                f"chat template of {self.name}: got {error}, need one that ends; try another chat template"
            ) from error
        except _FAILURES as error:
            roles = [message["role"] for message in conversations[0]]
            said = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
            remedy = "another chat template"
            if self.system is not None:
                remedy = "without a system prompt"
            elif self.turns:
                remedy = "one turn at a time"
            problem = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(
                f"chat template of {self.name}: got {problem!r} for the turns {said}, need a "
                f"template that takes them; try {remedy}"
            ) from error

    def _timed(self, variables: Mapping[str, Any]) -> str:
        """One rendering. All of a template's together have the seconds of one, and a little for each."""
        start = time.thread_time()
        text = render(self.source, variables)
        self._seconds += SECONDS_EACH - (time.thread_time() - start)
        if self._seconds < 0:
            raise LimitError(f"more than {SECONDS:g} seconds")
        return text

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

    def _foreign(self) -> tuple[Foreign, ...]:
        """Where the system prompt and the earlier turns stand in `prompt.before`, in reading order."""
        kept = [i for i, message in enumerate(self._head) if message["content"]]
        if not kept:
            return ()
        names = {i: f"{_TURN}{_letters(i)}qx" for i in kept}
        marked = self._before({i: names[i] for i in kept})
        places = {i: marked.find(name) for i, name in names.items()}
        for i, name in names.items():
            if marked.count(name) != 1:
                raise self._not_wrapped(i, f"writes {marked.count(name)} times")
        order = sorted(kept, key=places.__getitem__)
        whole = marked
        spans: list[Foreign] = []
        for i in reversed(order):
            # Alone among placeholders, to see what the template makes of it: many trim, some cut thoughts.
            alone = self._before({j: names[j] for j in kept if j != i})
            start, rest = places[i], marked[places[i] + len(names[i]) :]
            text = alone[start : len(alone) - len(rest)]
            if len(alone) < start + len(rest) or alone != marked[:start] + text + rest:
                raise self._not_wrapped(i, "does not simply wrap")
            whole = whole[:start] + text + whole[start + len(names[i]) :]
            spans = [
                Foreign(start, start + len(text), self._head[i]["role"] == "assistant"),
                *(_moved(each, len(text) - len(names[i])) for each in spans),
            ]
        if whole != self.prompt.before:
            raise self._not_wrapped(order[-1], "does not simply wrap")
        return tuple(spans)

    def _before(self, contents: Mapping[int, str]) -> str:
        """The text before the instruction, with other contents for some messages of the head."""
        head = [
            {**message, "content": contents.get(i, message["content"])}
            for i, message in enumerate(self._head)
        ]
        [text] = self._render([[*head, {"role": "user", "content": _INSTRUCTION}]])
        return text.partition(_INSTRUCTION)[0]

    def _not_wrapped(self, index: int, does: str) -> InputError:
        if self._head[index]["role"] == "system":
            return InputError(
                f"chat template of {self.name}: got a system prompt that it {does} before the "
                "instruction, need one that is written once as it is; try another one, or system=None"
            )
        text = self._head[index]["content"]
        number = (index - (self.system is not None)) // 2
        return InputError(
            f"turn {number}: got {text[:40]!r}, which the chat template of {self.name} {does} before the "
            "instruction, need earlier turns that it writes once as they are; try to drop the turn"
        )

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


def _moved(span: Foreign, by: int) -> Foreign:
    return Foreign(span.start + by, span.stop + by, span.spoken)


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> ba: no digits, which some templates count."""
    more, last = divmod(number, 26)
    return (_letters(more) if more else "") + chr(ord("a") + last)


def _without_thought(lead: str) -> str:
    """What stands before a reply, without the block of thought that templates write into past turns."""
    rest = _THOUGHT.sub("", lead)
    if (rest != lead and rest.isspace()) or re.search("think|thought|reason", rest, re.I):
        return ""
    return rest


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
