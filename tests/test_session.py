"""`refusal-lens chat` on a terminal: turns, the words that change the edit, and what a pipe gets."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kit
import pytest
import torch

from refusal_lens.behaviours import Behaviour, FirstTokens, Words
from refusal_lens.chat import Place
from refusal_lens.cli import chat, shell
from refusal_lens.cli.session import Respondent, Session
from refusal_lens.conversations import Conversation, Exchange
from refusal_lens.direction import Direction
from refusal_lens.errors import InputError
from refusal_lens.evaluation import Completion
from refusal_lens.interventions import Ablate, Add, Edit
from refusal_lens.judges import Score

R = Direction(torch.ones(4).double(), layer=1, place=Place.post(-1))


class Recorder(Respondent):
    """A model that answers with a number, and notes what it was asked under which edit."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        super().__init__(None, R, behaviour or FirstTokens((40,)), 8)  # type: ignore[arg-type]
        object.__setattr__(self, "asked", [])

    def reply(self, conversation: Conversation, edit: Edit | None) -> Completion:
        self.asked.append(  # type: ignore[attr-defined]
            (conversation.instruction, list(conversation.turns), edit)
        )
        reply = f"{len(self.asked)}\x1b[2J"  # type: ignore[attr-defined]
        return Completion(conversation.prompt, reply, False, "", 0.5, (1, 2), False)


class Keyboard(io.StringIO):
    """A terminal at which lines are typed."""

    def isatty(self) -> bool:
        return True


def talk(*lines: str, edit: str = "ablate") -> tuple[list[Any], list[str]]:
    """What the model was asked, and what the conversation said, for some lines typed."""
    model, said = Recorder(), list[str]()
    session = Session(model, edit, 1.0)  # type: ignore[arg-type]
    for line in lines:
        try:
            if not session.take(line, show=lambda replies: None, say=said.append):
                said.append("left")
        except InputError as error:
            said.append(f"error: {error}")
    return model.asked, said  # type: ignore[attr-defined]


class TestTurns:
    def test_each_model_keeps_its_own_replies_in_mind(self) -> None:
        asked, _ = talk("one", "two")
        assert [(prompt, turns, type(edit)) for prompt, turns, edit in asked] == [
            ("one", [], type(None)),
            ("one", [], Ablate),
            ("two", [("one", "1\x1b[2J")], type(None)),
            ("two", [("one", "2\x1b[2J")], Ablate),
        ]

    def test_another_edit_begins_anew_and_the_plain_model_goes_on(self) -> None:
        asked, said = talk("one", "/edit add", "/strength 0.5", "two")
        assert [turns for _, turns, _ in asked[2:]] == [[("one", "1\x1b[2J")], []]
        edit = asked[-1][2]
        assert isinstance(edit, Add)
        assert edit.strength == 0.5
        assert said == ["plain beside add", "plain beside add x 0.5"]

    def test_none_is_the_plain_model_alone(self) -> None:
        asked, said = talk("/edit none", "one")
        assert [edit for _, _, edit in asked] == [None]
        assert said == ["plain"]

    def test_reset_forgets(self) -> None:
        asked, _ = talk("one", "/reset", "two")
        assert all(turns == [] for _, turns, _ in asked)

    def test_two_slashes_are_a_prompt_and_no_words_are_none(self) -> None:
        asked, said = talk("//edit add", "", "   ", edit="none")
        assert [prompt for prompt, _, _ in asked] == ["/edit add"]
        assert not said

    def test_help_and_exit(self) -> None:
        _, said = talk("/help", "/exit")
        assert all(word in said[0] for word in ("/edit", "/strength", "/reset", "/exit", "//text"))
        assert said[1] == "left"

    @pytest.mark.parametrize(
        "line", ["/edit", "/edit delete", "/strength", "/strength nan", "/strength inf", "/strength x", "/no"]
    )
    def test_a_command_that_cannot_be_followed_changes_nothing(self, line: str) -> None:
        asked, said = talk("one", line, "two")
        assert said[0].startswith(f"error: {line.split()[0]}: ")
        assert asked[-1][1] == [("one", "2\x1b[2J")]

    def test_the_turns_are_part_of_the_prompt_and_of_what_the_judge_sees(self) -> None:
        loaded = kit.load("qwen2")
        direction = Direction(torch.ones(loaded.d_model).double(), layer=1, place=Place.post(-1))
        seen = []

        class Listener:
            name = "listener"

            def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
                seen.extend(exchanges)
                return [Score(None, "", self.name)] * len(exchanges)

        model = Respondent(loaded, direction, FirstTokens((40,), judge=Listener()), 6)
        turns = Conversation.of(
            [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "1"},
                {"role": "user", "content": "two"},
            ]
        )
        alone, after = model.reply(Conversation.of("two"), None), model.reply(turns, None)
        assert alone.score != after.score
        assert after.shows is None
        assert [exchange.conversation.turns for exchange in seen] == [(), (("one", "1"),)]
        text = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        text += "<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n"
        ids = loaded.tokenizer(text, return_tensors="pt").input_ids
        assert loaded.chat.render([turns]).ids.tolist() == ids.tolist()
        assert model.reply(Conversation.of("two"), None) == alone


class TestWords:
    def test_a_chat_about_poems_speaks_of_poems(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = Words("verse", "rhymes", "tells it in prose", "verse score", "themes")
        replies = [
            (title, Completion("Sing.", "La", shows, "", 1.5, (1,)))
            for title, shows in (("plain", True), ("ablate", False), ("add", None))
        ]
        chat.show_replies(replies, words)
        assert capsys.readouterr().out.splitlines()[::3] == [
            "[plain: rhymes, verse score +1.50]",
            "[ablate: tells it in prose, verse score +1.50]",
            "[add: not judged, verse score +1.50]",
        ]


class TestTerminal:
    def chat(
        self, monkeypatch: pytest.MonkeyPatch, stdin: Any, *args: str, lines: tuple[str, ...] = ()
    ) -> int | str | None:
        typed = iter(lines)

        def ask(shown: str = "") -> str:
            for line in typed:
                return line
            raise EOFError

        monkeypatch.setattr("builtins.input", ask)
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(chat, "_load", lambda *args, **more: Recorder())
        with pytest.raises(SystemExit) as left:
            shell.app(args=["chat", "x", *args], prog_name="refusal-lens")
        return left.value.code

    def test_it_goes_on_after_an_error_and_ends_with_exit(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = ("one", "/nothing", "two", "/exit", "never")
        assert self.chat(monkeypatch, Keyboard(), lines=lines) == 0
        said = capsys.readouterr()
        assert said.out.count("[plain: answers, refusal metric +0.50]") == 2
        assert "\x1b" not in said.out
        assert said.err.splitlines()[0] == "plain beside ablate; /help lists what can be typed"
        assert "error: /nothing: no such command" in said.err

    def test_lines_of_a_pipe_are_prompts_of_their_own_and_never_commands(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        seen = []

        def reply(self: Any, conversation: Conversation, edit: Any) -> Completion:
            seen.append((conversation.instruction, list(conversation.turns)))
            return Completion("", "x", True, "x", 1.0, (1,), True)

        monkeypatch.setattr(Recorder, "reply", reply)
        lines = ("one", "/exit", " ", "two")
        assert self.chat(monkeypatch, io.StringIO(), "--edit", "none", "--json", lines=lines) == 0
        assert seen == [("one", []), ("/exit", []), ("two", [])]
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["prompt"] for each in found] == ["one", "/exit", "two"]
        assert found[0]["replies"] == [
            {"edit": "plain", "response": "x", "shows": True, "evidence": "x", "score": 1.0}
        ]

    def test_a_line_that_is_no_text_is_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.chat(monkeypatch, io.StringIO(), lines=("one", "\udcff")) == 1
        assert "error: line 2 of the standard input" in capsys.readouterr().err

    def test_a_conversation_is_no_json(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.chat(monkeypatch, Keyboard(), "--json") == 2
        assert "a conversation cannot be JSON" in capsys.readouterr().err


def test_another_system_prompt_is_the_model_s_and_the_direction_stays_the_run_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from refusal_lens.pipeline import RunConfig
    from refusal_lens.runs import Run

    model = kit.load("qwen2")
    direction = Direction(
        torch.ones(model.d_model).double(),
        layer=1,
        place=Place.post(-1),
        model=model.name,
        template_sha256=model.chat.template_sha256,
    )
    with Run.open(tmp_path / "run") as run:
        with run.step("selection", inputs={}) as step:
            with step.writing("direction.safetensors") as path:
                direction.save(path)
        with run.step("summary", inputs={}, after=["selection"]) as step:
            step.write_json("summary.json", {"behaviour": kit.about([40])})
        run.finish(config=RunConfig(str(kit.folder("qwen2")), positive="a", negative="b").as_dict())
    options = {"dtype": None, "device": "cpu", "trust_remote_code": False, "max_new_tokens": 4}
    found = chat._load(tmp_path / "run", system="Be brief.", **options)
    assert found.direction == direction
    (written,) = found.model.chat.render(["Hello"]).ids
    assert "Be brief." in found.model.tokenizer.decode(written)
