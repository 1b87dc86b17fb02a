"""`refusal-lens chat`: the same prompt to the plain and the edited model, side by side."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from refusal_lens.evaluation import Completion

EditName = Literal["none", "ablate", "add", "subtract"]


def chat(
    run: Annotated[Path, typer.Argument(help="A finished run folder.")],
    edit: Annotated[EditName, typer.Option(help="What to do with the direction.")] = "ablate",
    scale: Annotated[
        float, typer.Option(help="How much of it: share ablated, or multiple of r added.")
    ] = 1.0,
    prompt: Annotated[
        str | None, typer.Option(help="One prompt  [default: ask, or a line each from a pipe]")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply.")] = 256,
    dtype: Annotated[str | None, typer.Option(help="[default: the run's]")] = None,
    device: Annotated[str | None, typer.Option(help="[default: the best there is]")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with the model.")
    ] = False,
) -> None:
    """Put the same prompt to the plain and the edited model of RUN, side by side."""
    answer = _answerer(
        run,
        edit,
        scale=scale,
        max_new_tokens=max_new_tokens,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    for text in _prompts() if prompt is None else [prompt]:
        _show(answer(text))


def _answerer(
    folder: Path, edit: EditName, *, scale: float, max_new_tokens: int, **options: Any
) -> Callable[[str], list[tuple[str, Completion]]]:
    """Load the run's model and direction; return what maps a prompt to titled replies."""
    from refusal_lens import interventions
    from refusal_lens.directions import Direction
    from refusal_lens.evaluation import complete
    from refusal_lens.model import ChatModel
    from refusal_lens.pipeline.config import chat_options
    from refusal_lens.runs import Run, read_json

    run = Run.read(folder)
    config = run.whole()["config"]
    path, tokens = run.output("direction.safetensors"), read_json(run.output("summary.json"))
    # Whether to run a model's code is for the person at the keyboard to say, not for a folder.
    options["dtype"] = options["dtype"] or config["dtype"]
    model = ChatModel.load(
        config["model"], revision=config["revision"], **chat_options(config), **options
    )
    direction = Direction.load(path, model)
    edits: dict[str, Any] = {"plain": None}
    if edit == "ablate":
        edits[_title(edit, scale)] = interventions.ablate(direction, strength=scale)
    elif edit != "none":
        make = interventions.add if edit == "add" else interventions.subtract
        edits[_title(edit, scale)] = make(direction, coefficient=scale)

    def answer(prompt: str) -> list[tuple[str, Completion]]:
        return [
            (
                title,
                complete(
                    model,
                    [prompt],
                    refusal_tokens=tokens["refusal_tokens"],
                    edit=each,
                    max_new_tokens=max_new_tokens,
                )[0],
            )
            for title, each in edits.items()
        ]

    return answer


def _title(edit: EditName, scale: float) -> str:
    return edit if scale == 1 else f"{edit} x {scale:g}"


def _prompts() -> Iterator[str]:
    """Prompts from the keyboard until Ctrl-D, or a line each from a pipe; no empty ones."""
    asking = sys.stdin.isatty()
    if asking:
        import readline  # noqa: F401  (gives input() its history and editing)
    while True:
        try:
            text = input("> " if asking else "")
        except EOFError:
            return
        if text.strip():
            yield text


def _show(replies: Sequence[tuple[str, Completion]]) -> None:
    """Print replies in columns on a terminal, one below the other elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    titles = [f"{title}: {verdict(reply.refusal, reply.metric)}" for title, reply in replies]
    texts = [harmless_text(reply.response) for _, reply in replies]
    if not console.is_terminal:
        for title, text in zip(titles, texts, strict=True):
            print(f"[{title}]\n{text}\n")
        return
    table = Table(expand=True, show_lines=True)
    for title in titles:
        table.add_column(Text(title), ratio=1)
    table.add_row(*(Text(text) for text in texts))
    console.print(table)


def verdict(refusal: bool, metric: float) -> str:
    """What the phrase judge says of a reply, and the refusal metric of its prompt, nats."""
    return f"{'refuses' if refusal else 'answers'}, refusal metric {metric:+.2f}"


def harmless_text(text: str) -> str:
    r"""`text` without the control characters by which a model could command the terminal.

    >>> harmless_text("a\x1b[2Jb\nc")
    'a�[2Jb\nc'
    """
    return "".join(letter if letter.isprintable() or letter in "\n\t" else "�" for letter in text)
