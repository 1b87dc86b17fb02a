"""The chat format of a tokenizer: renders prompts once, to ids with spans."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..conversations import Conversation, Prompt
from ..display import shown
from ..door import checked
from ..errors import InputError
from .encoder import Encoded, Encoder, admissible, name_of, require_admissible
from .frames import Frames, MarkedFrame
from .rendered import Rendered, Row
from .special import pad_id, stop_ids
from .template import ReplyText, Template

logger = logging.getLogger(__name__)

# Ends of ordinary instructions: template tokens that merge with one of them are no positions.
_PROBES = (
    "Name a river",
    "Name a river.",
    "Which river is long?",
    "Go!",
    "List them:",
    'Say "no"',
    "Sum (1 + 2)",
    "Add 40",
    "写一首诗。",
)


class UserTurn(NamedTuple):
    """A user's last message as the template writes it, and the half-open range of characters of each of its tokens."""

    text: str
    tokens: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Turn:
    """One prompt up to the answer: its frame, its last message as given and as written, and the tokens."""

    marked: MarkedFrame
    given: str
    written: str
    prompt: Encoded

    @property
    def span(self) -> tuple[int, int] | None:
        """The tokens of the message, half-open; None where it leaves none."""
        start = len(self.marked.before)
        return self.prompt.overlapping(start, start + len(self.written))


@shown("positions", "bos_id", "pad_id", "stop_ids")
class ChatFormat:
    """How a model's conversations are written, derived from its tokenizer.

    A prompt is a user's message or a whole conversation, whose own system prompt replaces the format's. User text
    (instructions, replies, earlier turns, the system prompt) never becomes a control token, whatever it holds; a
    prefill is the researcher's own and may hold any. Replies may hold added tokens that are not special, such as
    thinking markers, since models write those. Post-instruction tokens are those behind the last message, the same
    in every prompt.

    The answer starts where the generation prompt ends. For a thinking model that is its reasoning,
    whether the prompt ends before the think block (Qwen3) or inside it (R1 distills), and the
    reply itself where ``thinking=False`` lets the template close the block (Qwen3); where the
    block is closed by prefill (R1 distills), the answer span begins with the closing marker.

    Attributes:
        tokenizer: the tokenizer, unchanged.
        positions: names of the post-instruction tokens: what the template writes after the
            instruction up to the end of the generation prompt, as tokens in context. Leading
            tokens that merge with the ends of some instructions are left out.
        template_sha256: hash of all that decides what is written round an instruction.
        stop_ids: end-of-sequence token, the template's end of turn, and the extra ids given.
        pad_id: the padding token, else end-of-sequence, never a content token.
        bos_id: the id that begins every prompt, or None.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template | None,
        *,
        suffix: str = "",
        prefill: str = "",
        bos: bool | None = None,
        extra_stop_ids: Sequence[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._encoder = Encoder(tokenizer)
        self._frames = Frames(tokenizer, template, self._encoder, bos=bos)
        self._suffix = self._encoder.mark(suffix)
        self._reply = _reply_text(template)
        opening = (template.answer_opening if template else "") + prefill
        blank = not self._reply.lead.strip()
        self._header = "" if blank else self._encoder.mark(self._reply.lead)
        space = self._reply.lead if blank else ""
        self._opening = space + self._encoder.mark(opening) if opening else ""
        self._end = self._encoder.mark(self._reply.end)

        usual = self._frames.usual
        if usual.bos:
            logger.info("BOS is put in front: tokenizer %s adds it by itself", name_of(tokenizer))
        turns = self._turns(_conversations(_PROBES))
        self._post_ids = self._shared_tail(turns)
        self.positions = tuple(self.decode_token(i) for i in self._post_ids)
        self.template_sha256 = _sha256(
            template=template.source if template else None,
            system=template.system if template else None,
            options=dict(template.options) if template else {},
            suffix=suffix,
            prefill=opening,
            bos=usual.bos,
        )
        self.stop_ids = stop_ids(tokenizer.eos_token_id, self._end_of_turn(), extra_stop_ids)
        self.pad_id = pad_id(tokenizer)
        first = (usual.bos + turns[0].prompt.ids)[0]
        self.bos_id = first if usual.bos or first == tokenizer.bos_token_id else None
        # The original would read control tokens out of such a system prompt; nothing to compare.
        if template is not None and self._frames.is_plain(usual):
            _check_faithful(tokenizer, template, [turn.prompt for turn in turns])

    @classmethod
    @checked
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        system: str | None = None,
        prefill: str = "",
        thinking: bool | None = None,
        bos: bool | None = None,
        extra_stop_ids: Sequence[int] = (),
    ) -> ChatFormat:
        """The format of a tokenizer with a chat template.

        Token ids equal ``apply_chat_template(add_generation_prompt=True)``, except that BOS is put
        in front where the tokenizer wants one and the template writes none (bos=None; logged).

        Args:
            tokenizer: a fast tokenizer.
            system: a system prompt; None leaves the template its default, if it has one.
            prefill: text that opens every answer; it counts as answer, not as template.
            thinking: True or False switches a thinking model's reasoning on or off: by the
                template's own switch, whose markers are post-instruction tokens, or, where it has
                none (R1 distills), by an open or empty think block that counts as prefill. None
                leaves it as the template has it.
            bos: True adds BOS where the template writes none, False never adds it.
            extra_stop_ids: more ids that end an answer, e.g. of a generation config.

        Raises:
            InputError: no chat template, a slow tokenizer, or a template that cannot take the
                system prompt or the thinking switch.
        """
        admissible([system or "", prefill], "system prompt or prefill")
        template = Template(tokenizer, system=system, thinking=thinking)
        return cls(tokenizer, template, prefill=prefill, bos=bos, extra_stop_ids=extra_stop_ids)

    @classmethod
    @checked
    def plain(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        *,
        suffix: str = "\n",
        bos: bool | None = None,
        extra_stop_ids: Sequence[int] = (),
    ) -> ChatFormat:
        """The format of a base model: the instruction, then `suffix` as its own tokens.

        The paper's Fig. 24 reads base models at one newline after the instruction (its footnote 6),
        so the suffix never merges with the end of an instruction.
        """
        return cls(tokenizer, None, suffix=suffix, bos=bos, extra_stop_ids=extra_stop_ids)

    @property
    def n_positions(self) -> int:
        """Number of post-instruction tokens."""
        return len(self.positions)

    @checked
    def render(
        self, prompts: Sequence[Prompt], *, replies: Sequence[str] | None = None
    ) -> Rendered:
        """Token ids with spans for each prompt, with its reply where it has one or replies are given.

        A reply follows the prompt (and prefill) and is ended by the template's end of turn, which
        is in `ids` but not in the answer span. A header that the template writes before a reply (a
        channel) stands before the answer span too. The tokens of the prompt are the same with and
        without a reply.

        Raises:
            InputError: an empty instruction, one whose tokens merge with the positions, a template that cannot
                hold replies, the system prompt or the turns of a conversation, or replies for prompts that have
                their own; the message names the row.
        """
        conversations = _conversations(prompts)
        turns = self._turns(conversations)
        texts = self._reply_texts(conversations, replies)
        header = [self._header if text is not None or self._opening else "" for text in texts]
        headed = self._extended([turn.prompt for turn in turns], header)
        opened = self._extended(headed, [self._opening] * len(turns))
        answered = self._extended(opened, [text or "" for text in texts])
        ended = self._extended(answered, ["" if text is None else self._end for text in texts])
        rows = [
            self._row(number, *parts)
            for number, parts in enumerate(zip(turns, headed, answered, ended, strict=True))
        ]
        return Rendered.from_rows(
            rows,
            pad_id=self.pad_id,
            positions=self.positions,
            prompts=[conversation.prompt for conversation in conversations],
        )

    @checked
    def user_turns(self, prompts: Sequence[Prompt]) -> list[UserTurn]:
        """The last message of each prompt as the template writes it, with the characters of each of its tokens.

        There are as many tokens as `render` gives the instruction. Raises InputError as `render` does.
        """
        user_turns = []
        for turn in self._turns(_conversations(prompts)):
            head = len(turn.marked.before)
            tokens = turn.prompt.offsets[slice(*_present(turn.span))]
            user_turns.append(
                UserTurn(turn.written, tuple((start - head, stop - head) for start, stop in tokens))
            )
        return user_turns

    @checked
    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of token ids, special tokens left out."""
        listed = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        if any(token < 0 for token in listed):
            raise InputError(f"token id {min(listed)}: no such id, need 0 or more")
        text = self.tokenizer.decode(
            listed, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _turns(self, conversations: Sequence[Conversation]) -> list[_Turn]:
        """Every prompt up to the end of the generation prompt, as tokens."""
        given = admissible([conversation.instruction for conversation in conversations], "instruction")
        marked = [self._frames.of(row, conversation) for row, conversation in enumerate(conversations)]
        framed = [(head.frame, text) for head, text in zip(marked, given, strict=True)]
        written = self._template.written(framed) if self._template else given
        encoded = self._encoder.encode(
            [head.before + text + head.after for head, text in zip(marked, written, strict=True)]
        )
        turns = [_Turn(*parts) for parts in zip(marked, given, written, encoded, strict=True)]
        for row, turn in enumerate(turns):
            if not turn.written.strip() or turn.span is None:
                raise _no_token(row, turn.given)
        prompts = self._extended(encoded, [self._suffix] * len(encoded))
        return [replace(turn, prompt=prompt) for turn, prompt in zip(turns, prompts, strict=True)]

    def _extended(self, encoded: list[Encoded], additions: Sequence[str]) -> list[Encoded]:
        return self._encoder.extend(encoded, additions) if any(additions) else encoded

    def _shared_tail(self, turns: Sequence[_Turn]) -> tuple[int, ...]:
        """Ids of the tokens after the instruction that all probes have in common."""
        tails = [turn.prompt.ids[turn.span[1] :] if turn.span else () for turn in turns]
        shared = 0
        while all(len(t) > shared and t[-1 - shared] == tails[0][-1 - shared] for t in tails):
            shared += 1
        if not shared:
            raise InputError(
                f"positions at tokenizer {name_of(self.tokenizer)}: got no token after the "
                "instruction, need at least one; try a template with a generation prompt, or a "
                "plain suffix"
            )
        return tails[0][-shared:]

    def _row(
        self, number: int, turn: _Turn, headed: Encoded, answered: Encoded, ended: Encoded
    ) -> Row:
        prompt, span, n, bos = turn.prompt, turn.span, len(self._post_ids), len(turn.marked.bos)
        if span is None or prompt.ids[-n:] != self._post_ids:
            raise InputError(
                f"instruction {number}: got {turn.written[-30:]!r} at its end, which merges with the "
                f"template's {self.positions[0]!r}, need the same {n} post-instruction tokens in "
                "every row; try to strip it"
            )
        self._refuse_control(number, prompt.ids[slice(*span)])
        return Row(
            turn.marked.bos + ended.ids,
            instruction=(span[0] + bos, span[1] + bos),
            post=(len(prompt) - n + bos, len(prompt) + bos),
            answer=(len(headed) + bos, len(answered) + bos),
        )

    def _refuse_control(self, number: int, ids: Sequence[int]) -> None:
        controls = self._encoder.control_ids.intersection(ids) - self._encoder.unknown_ids
        if controls:
            raise InputError(
                f"instruction {number}: got text that this tokenizer turns into the control token "
                f"{self.tokenizer.convert_ids_to_tokens(min(controls))!r}, need plain text; try to "
                "rephrase or drop it"
            )

    def _reply_texts(
        self, conversations: Sequence[Conversation], replies: Sequence[str] | None
    ) -> list[str | None]:
        """The marked text of each row's reply, None where it has none."""
        texts: list[str | None] = [conversation.reply for conversation in conversations]
        if replies is not None:
            if len(replies) != len(texts):
                raise InputError(
                    f"replies: got {len(replies)}, need one for each of {len(texts)} instructions"
                )
            if answered := [row for row, text in enumerate(texts) if text is not None]:
                raise InputError(
                    f"replies: got one for prompt {answered[0]}, which has its own, need prompts without; "
                    "try conversation.with_reply(None)"
                )
            texts = [*replies]
        if not any(text is not None for text in texts):
            return texts
        if self._template is not None and self._reply is _NO_REPLY:
            self._template.reply()
        lead = "" if self._header or self._opening else self._reply.lead
        trim = str if self._opening else self._reply.trim
        marked: list[str | None] = []
        for row, text in enumerate(texts):
            if text is not None:
                require_admissible(text, f"reply {row}")
                text = lead + trim(self._encoder.mark(text, special=False))
            marked.append(text)
        return marked

    def _end_of_turn(self) -> int | None:
        """The first control token that the template writes after a reply."""
        usual = self._frames.usual
        text = usual.before + _PROBES[0] + usual.after + self._header + "Yes"
        [answered] = self._encoder.encode([text])
        [ended] = self._extended([answered], [self._end])
        ends = range(len(answered), len(ended))
        return next((ended.ids[i] for i in ends if ended.is_marked(i)), None)

    def decode_token(self, token: int) -> str:
        """How to show one token: its text, or its name in the vocabulary where it has none."""
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return str(text or self.tokenizer.convert_ids_to_tokens(token))


_NO_REPLY = ReplyText("", "", str)


def _reply_text(template: Template | None) -> ReplyText:
    if template is None:
        return ReplyText("", "", str)
    try:
        return template.reply()
    except InputError as error:
        logger.info("replies cannot be rendered: %s", error)
        return _NO_REPLY


def _conversations(prompts: Sequence[Prompt]) -> list[Conversation]:
    for row, prompt in enumerate(prompts):
        if isinstance(prompt, str) and not prompt.strip():
            raise _no_token(row, prompt)
    return [Conversation.of(prompt) for prompt in prompts]


def _no_token(row: int, instruction: str) -> InputError:
    return InputError(
        f"instruction {row}: got {instruction!r}, need text that gives at least one token; try to drop it"
    )


def _present(span: tuple[int, int] | None) -> tuple[int, int]:
    assert span is not None, "turns without tokens are refused"
    return span


def _sha256(**facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_faithful(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompts: Sequence[Encoded]
) -> None:
    """InputError unless the probes' ids are those that the tokenizer itself makes of the template's text."""
    texts = template.texts([(template.frame.head, probe) for probe in _PROBES])
    for probe, text, prompt in zip(_PROBES, texts, prompts, strict=True):
        reference = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tuple(reference) != prompt.ids:
            raise InputError(
                f"tokenizer {name_of(tokenizer)}: got other ids for {probe!r} than its "
                "own of the same text, need a tokenizer whose normaliser, pre-tokeniser and model "
                "alone decide them; please report it"
            )
