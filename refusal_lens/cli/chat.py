"""`refusal-lens chat`: the same prompts to the plain and the edited model, side by side."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refusal_lens.cli.options import Debug, Json, Quiet, check_place, finite
from refusal_lens.cli.output import (
    deliver,
    deliver_json,
    one_line,
    only_shows,
    require_delivered,
    say,
)
from refusal_lens.cli.output import (
    quiet as is_quiet,
)
from refusal_lens.cli.session import EditName, Reply, Respondent, Session
from refusal_lens.errors import InputError

if TYPE_CHECKING:
    from refusal_lens.behaviours import Words
    from refusal_lens.evaluation import Completion


def chat(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    edit: Annotated[EditName, typer.Option(help="What to do with the direction.")] = "ablate",
    strength: Annotated[
        float,
        typer.Option(
            callback=finite, help="How much of it: share ablated, or multiple of r added."
        ),
    ] = 1.0,
    prompt: Annotated[
        str | None, typer.Option(help="One prompt  [default: ask, or a line each from a pipe]")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="Another system prompt  [default: the run's]")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest reply  [default: 256, or what fits]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="[default: the run's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: the best there is]")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put the same prompts to the plain and the edited model of RUN, side by side.

    On a terminal it is one conversation of several turns, and /help lists what else can be typed.
    From a pipe every line is a prompt of its own. --json prints one line for each prompt.
    """
    asking = prompt is None and sys.stdin.isatty()
    if json and asking:
        raise typer.BadParameter(
            "a conversation cannot be JSON; give --prompt or a pipe", param_hint="--json"
        )
    if prompt is not None and not prompt.strip():
        raise typer.BadParameter(f"got {prompt!r}, need some text", param_hint="--prompt")
    check_place(dtype, device)
    respondent = _load(
        run,
        system=system,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    session = Session(respondent, edit, strength)
    if asking:
        _converse(session, respondent.behaviour.words)
        return
    for text in _lines() if prompt is None else [prompt]:
        replies = session.answer(text)
        if json:
            deliver_json({"prompt": text, "replies": [as_json(reply) for reply in replies]})
        else:
            show_replies(replies, respondent.behaviour.words)
        session.reset()


def _load(
    folder: Path, *, system: str | None, max_new_tokens: int | None, **options: Any
) -> Respondent:
    """The run's model, direction and behaviour, as something that answers."""
    from refusal_lens.chat import ChatFormat
    from refusal_lens.pipeline.config import chat_options
    from refusal_lens.pipeline.finding import LoadOptions, open_run

    finding = open_run(folder, LoadOptions(**options))
    direction = finding.direction
    if not is_quiet():
        say(one_line(f"loading {finding.settings['model']}"))
    model = finding.model
    direction.check_belongs_to(model)
    if system is not None:
        # The direction was checked first: it was found with the run's own system prompt.
        written = chat_options(finding.settings) | {"system": system}
        model = model.with_chat(ChatFormat.from_tokenizer(model.tokenizer, **written))
    return Respondent(model, direction, finding.behaviour, max_new_tokens)


def _converse(session: Session, words: Words) -> None:
    """Prompts and commands from the keyboard until Ctrl-D or /exit."""
    import readline  # noqa: F401  (gives input() its history and editing)

    def show(replies: Sequence[Reply]) -> None:
        show_replies(replies, words)

    if not is_quiet():
        say(f"{session.state}; /help lists what can be typed")
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        try:
            if not session.take(text, show=show, say=say):
                return
        except InputError as error:
            say(f"error: {one_line(str(error))}")


def _lines() -> Iterator[str]:
    """A prompt from each line of the standard input; no empty ones."""
    number = 0
    while True:
        try:
            text = input()
        except EOFError:
            return
        number += 1
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(
                f"line {number} of the standard input: got bytes that are no UTF-8 text"
            )
        if text.strip():
            yield text


def as_json(reply: Reply) -> dict[str, Any]:
    """One reply with the edit that it was given under, its verdict, and the score of its prompt."""
    title, completion = reply
    return {
        "edit": title,
        "response": completion.response,
        "shows": completion.shows,
        "evidence": completion.evidence,
        "score": completion.score,
    }


def show_replies(replies: Sequence[Reply], words: Words) -> None:
    """Print replies in columns on a terminal, one below the other elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    titles = [printable_text(f"{title}: {verdict(reply, words)}") for title, reply in replies]
    texts = [printable_text(reply.response) for _, reply in replies]
    if not console.is_terminal:
        for title, text in zip(titles, texts, strict=True):
            deliver(f"[{title}]\n{text}\n")
        return
    table = Table(expand=True, show_lines=True)
    for title in titles:
        table.add_column(Text(title), ratio=1)
    table.add_row(*(Text(text) for text in texts))
    console.print(table)
    require_delivered()


def verdict(reply: Completion, words: Words) -> str:
    """What the judge says of a reply, and the score of its prompt, in the behaviour's words."""
    verdicts = {True: words.shows, False: words.lacks, None: "not judged"}
    return f"{verdicts[reply.shows]}, {words.score} {reply.score:+.2f}"


def printable_text(text: str) -> str:
    r"""`text` without the control characters by which a model could command the terminal.

    >>> printable_text("a\x1b[2Jb\nc")
    'a�[2Jb\nc'
    """
    return "".join(letter if only_shows(letter) or letter in "\n\t" else "�" for letter in text)
