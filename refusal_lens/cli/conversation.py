"""A conversation with the plain and the edited model: its turns, its edit, and the words that change them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from refusal_lens.errors import InputError

if TYPE_CHECKING:
    from refusal_lens.directions import Direction
    from refusal_lens.evaluation import Completion
    from refusal_lens.interventions import Edit
    from refusal_lens.model import ChatModel

EditName = Literal["none", "ablate", "add", "subtract"]
Reply = tuple[str, "Completion"]
"""The title of an edit, and what the model replies under it."""
Turns = list[tuple[str, str]]
"""What was asked and answered so far."""

LONGEST_REPLY = 256
"""Tokens of a reply, where nobody says another number."""

HELP = """\
/edit ablate|add|subtract|none   what to do with the direction, from the next prompt on
/scale 0.5                       how much of it: share ablated, or multiple of r added
/reset                           begin a new conversation
/help                            this list
/exit                            leave (Ctrl-D does too)
//text                           a prompt that begins with a slash
Every model keeps its own replies in mind; a changed edit or scale begins a new conversation for the
edited model."""


@dataclass(frozen=True)
class Model:
    """A chat model with the direction of a run, and what its replies are judged with."""

    model: ChatModel
    direction: Direction
    refusal_tokens: tuple[int, ...]
    max_new_tokens: int | None

    def reply(self, prompt: str, turns: Turns, edit: Edit | None) -> Completion:
        """The reply to a prompt after some turns, under an edit."""
        from refusal_lens.behaviours import FirstTokens
        from refusal_lens.evaluation import complete
        from refusal_lens.judges import phrase_judge

        model = self.model
        if turns:
            model = model.with_chat(model.chat.after(turns))
        length = self.max_new_tokens or model.reply_room(model.chat.render([prompt]), LONGEST_REPLY)
        (completion,) = complete(
            model,
            [prompt],
            behaviour=FirstTokens(self.refusal_tokens) if self.refusal_tokens else None,
            judge=phrase_judge,
            edit=edit,
            max_new_tokens=length,
        )
        return completion


class Conversation:
    """Turns with the plain model and, unless the edit is "none", beside it with the edited one."""

    def __init__(self, model: Model, edit: EditName, scale: float) -> None:
        self._model = model
        self.edit = edit
        self.scale = scale
        self._turns: dict[str, Turns] = {}
        self._edits: dict[str, Edit | None] = {}
        self._change()

    @property
    def state(self) -> str:
        """The models that answer, by their titles."""
        return " beside ".join(self._edits)

    def _change(self) -> None:
        """Put the models to work that edit and scale ask for; the plain one goes on."""
        edits: dict[str, Edit | None] = {"plain": None}
        if self.edit != "none":
            title = self.edit if self.scale == 1 else f"{self.edit} x {self.scale:g}"
            edits[title] = make_edit(self.edit, self._model.direction, self.scale)
        self._edits = edits
        self._turns = {title: self._turns.get(title, []) for title in edits}

    def reset(self) -> None:
        """Forget all turns."""
        self._turns = {title: [] for title in self._edits}

    def answer(self, prompt: str) -> list[Reply]:
        """What each model replies, which is then part of the conversation."""
        replies = [
            (title, self._model.reply(prompt, self._turns[title], edit))
            for title, edit in self._edits.items()
        ]
        for title, reply in replies:
            self._turns[title].append((prompt, reply.response))
        return replies

    def take(
        self,
        text: str,
        *,
        show: Callable[[Sequence[Reply]], None],
        say: Callable[[str], None],
    ) -> bool:
        """Answer a prompt or do as a command says; whether to go on.

        Raises InputError for a command that cannot be followed; the conversation is then as before.
        """
        text = text.strip()
        if not text.startswith("/") or text.startswith("//"):
            prompt = text.removeprefix("/") if text.startswith("//") else text
            if prompt:
                show(self.answer(prompt))
            return True
        name, _, value = text[1:].partition(" ")
        value = value.strip()
        if name in ("exit", "quit"):
            return False
        if name == "help":
            say(HELP)
        elif name == "reset":
            self.reset()
            say(f"a new conversation; {self.state}")
        elif name in ("edit", "scale"):
            self._set(name, value)
            say(self.state)
        else:
            raise InputError(f"/{name}: no such command; try /help, or //{name} for a prompt")
        return True

    def _set(self, name: str, value: str) -> None:
        before = self.edit, self.scale
        if name == "edit":
            self.edit = _edit_name(value)
        else:
            self.scale = _number(value)
        try:
            self._change()
        except InputError:
            self.edit, self.scale = before
            raise


def make_edit(name: EditName, direction: Direction, scale: float) -> Any:
    """The edit of a name: a share ablated, or a multiple of r added or subtracted."""
    from refusal_lens import interventions

    if name == "ablate":
        return interventions.ablate(direction, strength=scale)
    make = interventions.add if name == "add" else interventions.subtract
    return make(direction, strength=scale)


def _edit_name(text: str) -> EditName:
    for name in get_args(EditName):
        if name == text:
            return name  # type: ignore[no-any-return]
    raise InputError(f"/edit: got {text!r}, need one of {', '.join(get_args(EditName))}")


def _number(text: str) -> float:
    import math

    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"/scale: got {text!r}, need a number such as 0.5")
    return number
