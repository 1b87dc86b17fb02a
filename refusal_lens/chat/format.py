"""The chat format of a tokenizer: renders instructions once, to ids with spans."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..display import shown
from ..door import checked
from ..errors import InputError
from .encoder import Encoded, Encoder, admissible, name_of
from .rendered import Rendered, Row
from .special import bos_prefix, pad_id, stop_ids
from .template import ReplyText, Template, Turn

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


@shown("positions", "bos_id", "pad_id", "stop_ids")
class ChatFormat:
    """How a model's conversations are written, derived from its tokenizer.

    User text (instructions, replies, earlier turns, the system prompt) never becomes a control token,
    whatever it holds; a prefill is the researcher's own and may hold any. Replies may hold added tokens
    that are not special, such as thinking markers, since models write those.

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
        encoder: Encoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self._template = template
        self._given: dict[str, Any] = {
            "prefill": prefill,
            "bos": bos,
            "extra_stop_ids": extra_stop_ids,
        }
        self._encoder = encoder or Encoder(tokenizer)
        self._suffix = self._encoder.mark(suffix)
        self._before, self._after = self._marked_prompt()
        self._reply = _reply_text(template)
        opening = (template.answer_opening if template else "") + prefill
        blank = not self._reply.lead.strip()
        self._header = "" if blank else self._encoder.mark(self._reply.lead)
        space = self._reply.lead if blank else ""
        self._opening = space + self._encoder.mark(opening) if opening else ""
        self._end = self._encoder.mark(self._reply.end)

        probes = template.written(_PROBES) if template else _PROBES
        prompts = self._prompts(probes, _PROBES)
        self._bos = bos_prefix(tokenizer, self._leading(prompts[0]), wanted=bos)
        self._post_ids = self._shared_tail(prompts, probes)
        self.positions = tuple(self.decode_token(i) for i in self._post_ids)
        self.template_sha256 = _sha256(
            template=template.source if template else None,
            system=template.system if template else None,
            options=dict(template.options) if template else {},
            suffix=suffix,
            prefill=opening,
            bos=self._bos,
            **({"turns": template.turns} if template and template.turns else {}),
        )
        self.stop_ids = stop_ids(tokenizer.eos_token_id, self._end_of_turn(), extra_stop_ids)
        self.pad_id = pad_id(tokenizer)
        first = (self._bos + prompts[0].ids)[0]
        self.bos_id = first if self._bos or first == tokenizer.bos_token_id else None
        # The original would read control tokens out of such a system prompt; nothing to compare.
        if template is not None and all(
            self._encoder.mark(text) == text
            for text in (template.prompt.before[f.start : f.stop] for f in template.foreign)
        ):
            _check_faithful(tokenizer, template, prompts)

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

    def after(self, turns: Sequence[Turn]) -> ChatFormat:
        """The format whose prompts begin with these turns, behind the system prompt and turns so far.

        turns: (what the user said, what the model replied in full), the oldest first. Neither text can
        become a control token. What the template does to past turns (trimming, cutting thoughts) is done.

        Raises:
            InputError: a base model's format, or a template that does not write each turn once.
        """
        if self._template is None:
            raise InputError(
                f"turns at tokenizer {name_of(self.tokenizer)}: got {len(turns)} for a plain format, need a "
                "chat template; base models have no turns"
            )
        pairs = [_turn(number, turn) for number, turn in enumerate(turns)]
        template = self._template.after(pairs) if pairs else self._template
        return ChatFormat(self.tokenizer, template, encoder=self._encoder, **self._given)

    @property
    def n_positions(self) -> int:
        """Number of post-instruction tokens."""
        return len(self.positions)

    @checked
    def render(
        self, instructions: Sequence[str], *, replies: Sequence[str] | None = None
    ) -> Rendered:
        """Token ids with spans for each instruction, with its reply if replies are given.

        A reply follows the prompt (and prefill) and is ended by the template's end of turn, which
        is in `ids` but not in the answer span. A header that the template writes before a reply (a
        channel) stands before the answer span too. The tokens of the prompt are the same with and
        without a reply.

        Raises:
            InputError: an empty instruction, one whose tokens merge with the positions, or a
                template that cannot hold replies; the message names the row.
        """
        texts = admissible(instructions, "instruction")
        written = self._template.written(texts) if self._template else texts
        prompts = self._prompts(written, texts)
        header = self._header if replies is not None or self._opening else ""
        headed = self._extended(prompts, [header] * len(prompts))
        opened = self._extended(headed, [self._opening] * len(prompts))
        answered, ended = opened, opened
        if replies is not None:
            answered = self._extended(opened, self._reply_texts(replies, len(texts)))
            ended = self._extended(answered, [self._end] * len(prompts))
        rows = [
            self._row(number, *parts)
            for number, parts in enumerate(
                zip(written, prompts, headed, answered, ended, strict=True)
            )
        ]
        return Rendered.from_rows(
            rows, pad_id=self.pad_id, positions=self.positions, instructions=texts
        )

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

    def _marked_prompt(self) -> tuple[str, str]:
        if self._template is None:
            return "", ""
        prompt, mark = self._template.prompt, self._encoder.mark
        parts, done = [], 0
        for each in self._template.foreign:
            said = prompt.before[each.start : each.stop]
            parts += [mark(prompt.before[done : each.start])]
            parts += [mark(said, special=False) if each.spoken else said]
            done = each.stop
        return "".join(parts) + mark(prompt.before[done:]), mark(prompt.after)

    def _leading(self, prompt: Encoded) -> tuple[int, ...]:
        """The control tokens that the template writes before the instruction.

        Where one token begins texts and ends turns, those before any text.
        """
        foreign = self._template.foreign if self._template else ()
        head = len(self._before)
        if foreign and self.tokenizer.bos_token_id == self.tokenizer.eos_token_id:
            assert self._template is not None
            head = len(self._encoder.mark(self._template.prompt.before[: foreign[0].start]))
        return tuple(
            token
            for i, token in enumerate(prompt.ids)
            if prompt.is_marked(i) and prompt.offsets[i][1] <= head
        )

    def _prompts(self, written: Sequence[str], instructions: Sequence[str]) -> list[Encoded]:
        encoded = self._encoder.encode([self._before + w + self._after for w in written])
        for row, (text, encoding) in enumerate(zip(written, encoded, strict=True)):
            if not text.strip() or self._instruction_span(encoding, text) is None:
                raise InputError(
                    f"instruction {row}: got {instructions[row]!r}, need text that gives at least "
                    "one token; try to drop it"
                )
        return self._extended(encoded, [self._suffix] * len(encoded))

    def _extended(self, encoded: list[Encoded], additions: Sequence[str]) -> list[Encoded]:
        return self._encoder.extend(encoded, additions) if any(additions) else encoded

    def _instruction_span(self, prompt: Encoded, written: str) -> tuple[int, int] | None:
        start = len(self._before)
        return prompt.overlapping(start, start + len(written))

    def _shared_tail(self, prompts: Sequence[Encoded], probes: Sequence[str]) -> tuple[int, ...]:
        """Ids of the tokens after the instruction that all probes have in common."""
        tails = []
        for prompt, probe in zip(prompts, probes, strict=True):
            span = self._instruction_span(prompt, probe)
            tails.append(prompt.ids[span[1] :] if span else ())
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
        self,
        number: int,
        written: str,
        prompt: Encoded,
        headed: Encoded,
        answered: Encoded,
        ended: Encoded,
    ) -> Row:
        n, bos = len(self._post_ids), len(self._bos)
        span = self._instruction_span(prompt, written)
        if span is None or prompt.ids[-n:] != self._post_ids:
            raise InputError(
                f"instruction {number}: got {written[-30:]!r} at its end, which merges with the "
                f"template's {self.positions[0]!r}, need the same {n} post-instruction tokens in "
                "every row; try to strip it"
            )
        self._refuse_control(number, prompt.ids[slice(*span)])
        post = (len(prompt) - n + bos, len(prompt) + bos)
        answer = (len(headed) + bos, len(answered) + bos)
        return Row(self._bos + ended.ids, (span[0] + bos, span[1] + bos), post, answer)

    def _refuse_control(self, number: int, ids: Sequence[int]) -> None:
        found = self._encoder.control_ids.intersection(ids) - self._encoder.unknown_ids
        if found:
            raise InputError(
                f"instruction {number}: got text that this tokenizer turns into the control token "
                f"{self.tokenizer.convert_ids_to_tokens(min(found))!r}, need plain text; try to "
                "rephrase or drop it"
            )

    def _reply_texts(self, replies: Sequence[str], n: int) -> list[str]:
        if len(replies) != n:
            raise InputError(f"replies: got {len(replies)}, need one for each of {n} instructions")
        if self._template is not None and self._reply is _NO_REPLY:
            self._template.reply()
        texts = admissible(replies, "reply", empty=True)
        marked = [self._encoder.mark(text, special=False) for text in texts]
        if self._opening:
            return marked
        lead = "" if self._header else self._reply.lead
        return [lead + self._reply.trim(text) for text in marked]

    def _end_of_turn(self) -> int | None:
        """The first control token that the template writes after a reply."""
        [answered] = self._encoder.encode(
            [self._before + _PROBES[0] + self._after + self._header + "Yes"]
        )
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


def _turn(number: int, turn: object) -> Turn:
    if isinstance(turn, str) or not isinstance(turn, Sequence) or len(turn) != 2:
        raise InputError(
            f"turn {number}: got {turn!r:.60}, need (what the user said, what the model replied)"
        )
    user, assistant = (admissible([text], f"text of turn {number},")[0] for text in turn)
    return user, assistant


def _sha256(**facts: object) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check_faithful(
    tokenizer: PreTrainedTokenizerBase, template: Template, prompts: Sequence[Encoded]
) -> None:
    """InputError unless the probes' ids are those that the tokenizer itself makes of the template's text."""
    for probe, text, prompt in zip(_PROBES, template.texts(_PROBES), prompts, strict=True):
        reference = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if tuple(reference) != prompt.ids:
            raise InputError(
                f"tokenizer {name_of(tokenizer)}: got other ids for {probe!r} than its "
                "own of the same text, need a tokenizer whose normaliser, pre-tokeniser and model "
                "alone decide them; please report it"
            )
