"""What a chat template writes round an instruction and round a reply, found by rendering probes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ..conversations import Message
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

Head = tuple[Message, ...]
"""What stands before the last user message: a system prompt, and earlier turns."""


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


@dataclass(frozen=True)
class Frame:
    """The text round the last user message of the prompts with one head, generation prompt included.

    foreign: where in `before` the head's own texts stand, in reading order.
    """

    head: Head
    before: str
    after: str
    foreign: tuple[Foreign, ...]


class Template:
    """A tokenizer's chat template with its default system prompt and its options fixed.

    `frame` is that of a single message behind the default system prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        thinking: bool | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._seconds = SECONDS
        self.name = name_of(tokenizer)
        self.source = _source(tokenizer)
        self.system = system
        self._options: Mapping[str, Any] = {}
        head = self.head(())
        self.answer_opening = "" if thinking is None else self._set_thinking(thinking, head)
        self.frame = self.frame_of(head)

    @property
    def options(self) -> Mapping[str, Any]:
        """Keyword arguments that the template is rendered with."""
        return dict(self._options)

    def head(self, earlier: Head) -> Head:
        """The head of a prompt with these earlier messages: behind the default system prompt, or their own."""
        if self.system is None or (earlier and earlier[0].role == "system"):
            return earlier
        return (Message("system", self.system), *earlier)

    def frame_of(self, head: Head) -> Frame:
        """What the template writes round a message behind this head.

        Raises InputError where it does not write the message, the system prompt and each turn once, as they are.
        """
        self._check_system(head)
        before, after = self._probe(head)
        return Frame(head, before, after, self._foreign(head, before))

    def texts(self, prompts: Sequence[tuple[Head, str]]) -> list[str]:
        """The whole prompt of each last message behind its head, generation prompt included."""
        return self._render([_listed(head, instruction) for head, instruction in prompts])

    def written(self, prompts: Sequence[tuple[Frame, str]]) -> list[str]:
        """Each last message as the template writes it (many trim white space)."""
        # A template that writes today's date must not fail a run that passes midnight.
        dated = "strftime_now" in self.source
        around: dict[Head, tuple[str, str]] = {}
        texts = self.texts([(frame.head, instruction) for frame, instruction in prompts])
        written = []
        for row, (text, (frame, instruction)) in enumerate(zip(texts, prompts, strict=True)):
            if frame.head not in around:
                around[frame.head] = (
                    self._probe(frame.head) if dated else (frame.before, frame.after)
                )
            before, after = around[frame.head]
            room = len(text) - len(before) - len(after)
            if room < 0 or not (text.startswith(before) and text.endswith(after)):
                raise InputError(
                    f"instruction {row}: got {instruction[:60]!r}, which changes what the "
                    f"chat template of {self.name} writes around it; need an instruction that the "
                    "template only wraps; try to rephrase or drop it"
                )
            written.append(text[len(before) : len(text) - len(after)])
        return written

    def reply(self) -> ReplyText:
        """What stands round a reply. InputError where the template has no assistant turns."""
        [text] = self._render([self._conversation(_REPLY)], generation_prompt=False)
        if text.count(_REPLY) != 1 or text.count(_INSTRUCTION) != 1:
            raise InputError(
                f"chat template of {self.name}: got {text.count(_REPLY)} copies of a reply, need a "
                "template that writes each turn once; try rendering without replies"
            )
        head, _, end = text.partition(_REPLY)
        prompt = self.frame.before + _INSTRUCTION + self.frame.after
        lead = _without_thought(head[len(prompt) :]) if head.startswith(prompt) else ""
        return ReplyText(lead, end, self._reply_trim(head, end))

    def _conversation(self, reply: str) -> list[dict[str, str]]:
        return _listed((*self.frame.head, Message("user", _INSTRUCTION)), reply, "assistant")

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
        conversations: Sequence[list[dict[str, str]]],
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
            return [self._timed({**shared, "messages": messages}) for messages in conversations]
        except LimitError as error:
            raise InputError(
                f"chat template of {self.name}: got {error}, need one that ends; try another chat template"
            ) from error
        except _FAILURES as error:
            roles = [message["role"] for message in conversations[0]]
            listed = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
            remedy = "another chat template"
            if "system" in roles:
                remedy = "without a system prompt"
            elif roles.count("user") > 1:
                remedy = "one turn at a time"
            problem = " ".join(str(error).split())[:120] or type(error).__name__
            raise InputError(
                f"chat template of {self.name}: got {problem!r} for the turns {listed}, need a "
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

    def _probe(self, head: Head) -> tuple[str, str]:
        """The text before and after a message behind this head."""
        [text] = self.texts([(head, _INSTRUCTION)])
        if text.count(_INSTRUCTION) != 1:
            raise InputError(
                f"chat template of {self.name}: got {text.count(_INSTRUCTION)} copies of the "
                "instruction in the prompt, need exactly 1; try another chat_template"
            )
        before, _, after = text.partition(_INSTRUCTION)
        return before, after

    def _check_system(self, head: Head) -> None:
        """InputError for a system prompt in a head where the template has no place for one."""
        if not head or head[0].role != "system":
            return
        [text] = self.texts([((Message("system", _SYSTEM),), _INSTRUCTION)])
        if text.count(_SYSTEM) != 1:
            raise InputError(
                f"chat template of {self.name}: got a system prompt that the template writes "
                f"{text.count(_SYSTEM)} times, need a template with a system role; try system=None "
                "and put the text into the instruction"
            )

    def _foreign(self, head: Head, before: str) -> tuple[Foreign, ...]:
        """Where the texts of a head stand in the text before the message, in reading order."""
        kept = [i for i, message in enumerate(head) if message.content]
        if not kept:
            return ()
        names = {i: f"{_TURN}{_letters(i)}qx" for i in kept}
        marked = self._before(head, {i: names[i] for i in kept})
        starts = {i: marked.find(name) for i, name in names.items()}
        for i, name in names.items():
            if marked.count(name) != 1:
                raise self._not_wrapped(head, i, f"writes {marked.count(name)} times")
        order = sorted(kept, key=starts.__getitem__)
        whole = marked
        spans: list[Foreign] = []
        for i in reversed(order):
            # Alone among placeholders, to see what the template makes of it: many trim, some cut thoughts.
            alone = self._before(head, {j: names[j] for j in kept if j != i})
            start, rest = starts[i], marked[starts[i] + len(names[i]) :]
            text = alone[start : len(alone) - len(rest)]
            if len(alone) < start + len(rest) or alone != marked[:start] + text + rest:
                raise self._not_wrapped(head, i, "does not simply wrap")
            whole = whole[:start] + text + whole[start + len(names[i]) :]
            spans = [
                Foreign(start, start + len(text), head[i].role == "assistant"),
                *(_moved(span, len(text) - len(names[i])) for span in spans),
            ]
        if whole != before:
            raise self._not_wrapped(head, order[-1], "does not simply wrap")
        return tuple(spans)

    def _before(self, head: Head, contents: Mapping[int, str]) -> str:
        """The text before the message, with other contents for some messages of the head."""
        changed = tuple(
            message._replace(content=contents.get(i, message.content))
            for i, message in enumerate(head)
        )
        [text] = self.texts([(changed, _INSTRUCTION)])
        return text.partition(_INSTRUCTION)[0]

    def _not_wrapped(self, head: Head, index: int, does: str) -> InputError:
        if head[index].role == "system":
            return InputError(
                f"chat template of {self.name}: got a system prompt that it {does} before the "
                "instruction, need one that is written once as it is; try another one, or system=None"
            )
        text = head[index].content
        number = (index - (head[0].role == "system")) // 2
        return InputError(
            f"turn {number}: got {text[:40]!r}, which the chat template of {self.name} {does} before the "
            "instruction, need earlier turns that it writes once as they are; try to drop the turn"
        )

    def _set_thinking(self, thinking: bool, head: Head) -> str:
        """Switch thinking on or off; what must open the answer where the template cannot."""
        probe = [_listed(head, _INSTRUCTION)]
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


def _listed(before: Sequence[Message], text: str, role: str = "user") -> list[dict[str, str]]:
    """The messages as templates read them, with one more."""
    return [*(message._asdict() for message in before), {"role": role, "content": text}]


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
