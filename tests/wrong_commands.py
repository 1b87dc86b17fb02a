"""Every command with options, files and folders that it cannot use."""

from __future__ import annotations

import inspect
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, get_args, get_origin

import kit
import synthetic_run
import torch
import typer

import refusal_lens as rl
from refusal_lens.chat import Place
from refusal_lens.cli.shell import app
from refusal_lens.pipeline import RunConfig
from refusal_lens.runs import Run

DEEP = "[" * 100_000
JSON_DAMAGE = {
    "empty": b"",
    "half": b'{"a": ',
    "list": b"[]",
    "list of numbers": b"[1, 2]",
    "number": b"3",
    "null": b"null",
    "text": b'"x"',
    "object": b"{}",
    "deep": DEEP.encode(),
    "long number": b"1" * 5000,
    "binary": bytes(range(256)),
    "utf-16": '{"a": 1}'.encode("utf-16"),
}
PROMPT_DAMAGE: dict[str, dict[str, bytes]] = {
    "txt": {
        "empty": b"",
        "blank lines": b"\n \n\t\n",
        "binary": bytes(range(256)) * 20,
        "utf-16": "Do it.\nSay it.\n".encode("utf-16"),
        "latin-1": "Caf\xe9.\n".encode("latin-1") * 40,
        "nul": b"a\0b\n" * 40,
        "one prompt": b"Do it.\n",
        "the same prompt": b"Do it.\n" * 40,
        "one huge line": b"a" * 3_000_000,
    },
    "json": {
        **JSON_DAMAGE,
        "numbers": json.dumps([1] * 40).encode(),
        "empty texts": json.dumps([""] * 40).encode(),
        "lists": json.dumps([["a"]] * 40).encode(),
        "nulls": json.dumps([None] * 40).encode(),
        "strange objects": json.dumps([{"a": 1, "b": 2}] * 40).encode(),
        "lone surrogates": json.dumps([f"a\ud800{n}" for n in range(40)]).encode(),
    },
    "jsonl": {
        "empty": b"",
        "half": b'{"prompt": "a"}\n{"prom',
        "numbers": b"1\n2\n",
        "mixed": b'{"prompt": "a"}\n[1]\n',
        "another column": b'{"prompt": "a"}\n{"other": "b"}\n',
    },
    "csv": {
        "empty": b"",
        "header": b"prompt\n",
        "numbers": b"prompt\n" + b"1\n" * 40,
        "ragged": b"a,b\n1,2,3\n4\n",
        "open quote": b'prompt\n"a\nb\n',
        "binary": bytes(range(256)),
        "empty cells": b"prompt\n" + b'""\n' * 40,
    },
    "parquet": {"empty": b"", "text": b"not parquet", "magic": b"PAR1" + b"\0" * 40 + b"PAR1"},
    "xyz": {"another kind": b"Do it.\n" * 40},
}
CONFIGS = {
    "empty object": {},
    "list": [],
    "null": None,
    "unknown type": {"model_type": "no_such_model"},
    "no type": {"hidden_size": 8},
    "type is a number": {"model_type": 3},
}
CHANGES: dict[str, dict[str, Any]] = {
    "layers as text": {"num_hidden_layers": "three"},
    "no layers": {"num_hidden_layers": 0},
    "more layers": {"num_hidden_layers": kit.LAYERS + 1},
    "another width": {"hidden_size": 48},
    "heads that do not divide": {"num_attention_heads": 5},
    "null width": {"hidden_size": None},
    "negative vocabulary": {"vocab_size": -1},
    "fewer words than the tokenizer": {"vocab_size": 10},
    "another type": {"model_type": "gpt2"},
    "unknown dtype": {"dtype": "float7"},
    "unknown quantisation": {"quantization_config": {"quant_method": "no_such_method"}},
}


class Case(NamedTuple):
    """One wrong command; `fine` is the reason where it can after all be done."""

    name: str
    make: Callable[[Path], Sequence[object]]
    """From an empty folder, the current one then, to the arguments."""
    fine: str = ""


def outcome_of(
    case: Case, limited: Callable[[], Any], problem_of: Callable[[str], str]
) -> tuple[str, str]:
    """What a command comes to ("line" or "usage" for good ones), and what it said."""
    place = Path.cwd()
    here = place / f"case{next(_numbers)}"
    here.mkdir()
    args = [str(arg) for arg in case.make(here)]
    before = snapshot(place, here)
    out, err = io.StringIO(), io.StringIO()
    os.chdir(here)
    stdin, sys.stdin = sys.stdin, io.StringIO()
    code: Any = None
    problem = ""
    try:
        with redirect_stdout(out), redirect_stderr(err), limited():
            app(args=["--quiet", *args], prog_name="refusal-lens")
    except SystemExit as left:
        code = left.code
    except BaseException as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        sys.stdin = stdin
        os.chdir(place)
    said = err.getvalue()
    changed = sorted(before.symmetric_difference(snapshot(place, here)))
    shutil.rmtree(here)
    if not problem and changed:
        problem = f"wrote elsewhere: {changed[0][0]}"
    return problem or _judged(code, said, problem_of), " ".join(said.split())[:500]


def _judged(code: Any, said: str, problem_of: Callable[[str], str]) -> str:
    if "Traceback" in said:
        return "traceback"
    if code in (0, None):
        return "fine"
    if code == 2:
        return "usage" if "Error: " in said else "no usage line"
    if code != 1:
        return f"exit {code}"
    if not said.startswith("error: "):
        return "no error line"
    return problem_of(said.removeprefix("error: ").removesuffix("\n")) or "line"


_numbers = count()


def snapshot(place: Path, but: Path) -> set[tuple[str, int, int]]:
    """Every file below a place, apart from those in one folder."""
    found = set()
    for folder, folders, files in os.walk(place):
        folders[:] = [name for name in folders if Path(folder, name) != but]
        for name in [*folders, *files]:
            path = Path(folder, name)
            if name == ".lock":
                continue  # who locks a run writes down who it is
            stat = path.lstat()
            # A folder's own time changes with the case's folder beside it.
            when = 0 if path.is_dir() else stat.st_mtime_ns
            found.add((str(path), when, 0 if path.is_dir() else stat.st_size))
    return found


def make_world(place: Path) -> SimpleNamespace:
    """Prompts, a finished run of a tiny model, and a run folder of invented numbers."""
    place.mkdir(parents=True)
    good, others = place / "good.txt", place / "others.txt"
    good.write_text("\n".join(f"Do thing {n}." for n in range(40)))
    others.write_text("\n".join(f"Say thing {n}." for n in range(40)))
    folder = kit.folder("llama")
    model = rl.ChatModel.load(str(folder), dtype="float32", device="cpu")
    direction = rl.Direction(
        torch.ones(model.d_model).double(),
        1,
        Place.post(-1),
        model=model.name,
        template_sha256=model.chat.template_sha256,
    )
    finished = place / "finished"
    with Run.open(finished) as run:
        with (
            run.step("selection", inputs={}) as step,
            step.writing("direction.safetensors") as path,
        ):
            direction.save(path)
        with run.step("summary", inputs={}, after=["selection"]) as step:
            step.write_json("summary.json", {"behaviour": kit.about([40])})
        config = RunConfig(str(folder), positive=str(good), negative=str(others))
        run.finish(config=config.as_dict(), model=str(folder))
    invented = synthetic_run.write_run(place / "invented", n_layers=5, n_prompts=4)
    return SimpleNamespace(
        place=place, good=good, others=others, folder=folder, finished=finished, invented=invented
    )


def cases(w: SimpleNamespace) -> Iterator[Case]:
    """All of them."""
    yield from _usage(w)
    yield from _prompts(w)
    yield from _models(w)
    yield from _run_folders(w)
    yield from _damaged_runs(w)
    yield from _outs(w)
    yield from _suffixes(w)


# ------------------------------------------------------------------------------- options


def _usage(w: SimpleNamespace) -> Iterator[Case]:
    """Every option of every command with what its type does not take."""
    for registered in app.registered_commands:
        name, function = str(registered.name), registered.callback
        assert function is not None
        whole = _whole(w, name)
        yield Case(f"{name}: an unknown option", partial(_same, [*whole, "--no-such-option"]))
        yield Case(f"{name}: arguments too many", partial(_same, [*whole, "more", "and more"]))
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            kind, info = get_args(parameter.annotation)
            if isinstance(info, typer.models.ArgumentInfo):
                continue
            written = [each for each in info.param_decls or () if each.startswith("--")]
            flag = (written or ["--" + parameter.name.replace("_", "-")])[0].partition("/")[0]
            kind = next(one for one in get_args(kind) or (kind,) if one is not type(None))
            kind = Literal if get_origin(parameter.annotation.__origin__) is Literal else kind
            if kind is bool:
                yield Case(f"{name} {flag}=x", partial(_same, [*whole, f"{flag}=x"]))
                continue
            yield Case(f"{name} {flag} without a value", partial(_same, [*whole, flag]))
            for value in _not_of(kind, info.min):
                yield Case(f"{name} {flag} {value!r}", partial(_same, [*whole, flag, value]))
    yield Case("no command", partial(_same, ["nonsense"]))


def _same(args: Sequence[object], _: Path) -> Sequence[object]:
    return args


def _whole(w: SimpleNamespace, name: str) -> list[object]:
    more: dict[str, list[object]] = {
        "run": [w.folder, "--harmful", w.good, "--harmless", w.others, "--out", "out"],
        "report": [w.invented],
        "chat": [w.finished, "--prompt", "Hello"],
        "suffix": [w.finished, "--suffix", " x"],
        "export": [w.finished, "--to", "reference", "--out", "out"],
    }
    return [name, *more[name]]


def _not_of(kind: Any, least: float | None) -> tuple[str, ...]:
    if kind is Literal:
        return ("nope", "", "1")
    if kind is int:
        return ("x", "1.5", "", "nan", "1e3", *(() if least is None else (str(int(least) - 1),)))
    return ("x", "", "1,5") if kind is float else ()


# ------------------------------------------------------------------------------- prompts


def _few(w: SimpleNamespace, model: object, out: object = "out") -> list[object]:
    sizes = ["--n-train", 8, "--n-val", 4, "--n-test", 2, "--max-new-tokens", 2]
    return ["run", model, "--out", out, *sizes]


def _prompts(w: SimpleNamespace) -> Iterator[Case]:
    def command(flag: str, path: object) -> list[object]:
        given: dict[str, object] = {"--harmful": w.good, "--harmless": w.others, flag: path}
        return [*_few(w, w.folder), *(part for pair in given.items() for part in pair)]

    def written(ending: str, contents: bytes, flag: str, here: Path) -> list[object]:
        path = here / f"prompts.{ending}"
        path.write_bytes(contents)
        return command(flag, path)

    for ending, damages in PROMPT_DAMAGE.items():
        for label, contents in damages.items():
            for flag in ("--harmful", "--harmless"):
                yield Case(
                    f"run {flag}: {ending}, {label}", partial(written, ending, contents, flag)
                )

    def made(make: Callable[[Path], object], flag: str, here: Path) -> list[object]:
        return command(flag, make(here))

    for label, make in _strange_paths().items():
        for flag in ("--harmful", "--harmless"):
            yield Case(f"run {flag}: {label}", partial(made, make, flag))

    def splits(make: Callable[[Path], object], here: Path) -> list[object]:
        return [*_few(w, w.folder), "--splits", make(here)]

    for label, make in _strange_paths().items():
        yield Case(f"run --splits: {label}", partial(splits, make))
    for label, contents in JSON_DAMAGE.items():
        yield Case(f"run --splits: {label}", partial(splits, partial(_split_folder, contents)))
    yield Case("run: harmful alone", partial(_same, [*_few(w, w.folder), "--harmful", w.good]))
    yield Case("run: no prompts", partial(_same, _few(w, w.folder)))
    both = ["--harmful", w.good, "--harmless", w.others, "--splits", w.place]
    yield Case("run: prompts and splits", partial(_same, [*_few(w, w.folder), *both]))
    same = ["--harmful", w.good, "--harmless", w.good]
    yield Case("run: the same prompts twice", partial(_same, [*_few(w, w.folder), *same]))


def _strange_paths() -> dict[str, Callable[[Path], object]]:
    return {
        "missing": lambda here: here / "none",
        "missing, as a name": lambda here: "no-such-name",
        "missing, as a hub name": lambda here: "no/such-name",
        "empty folder": lambda here: _made(here / "folder"),
        "empty name": lambda here: "",
        "long name": lambda here: "x" * 5000,
        "fifo": lambda here: _fifo(here / "fifo.txt"),
        "dangling link": lambda here: _link(here / "link.txt", here / "none"),
        "link to itself": lambda here: _link(here / "loop.txt", here / "loop.txt"),
        "device": lambda here: "/dev/null",
        "odd letters": lambda here: here / "\udcff.txt",
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def _link(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


def _split_folder(contents: bytes, here: Path) -> Path:
    folder = _made(here / "splits")
    for kind in ("harmful", "harmless"):
        for split in ("train", "val", "test"):
            (folder / f"{kind}_{split}.json").write_bytes(contents)
    return folder


# ------------------------------------------------------------------------------- models


def _models(w: SimpleNamespace) -> Iterator[Case]:
    more = ["--harmful", w.good, "--harmless", w.others]

    def made(make: Callable[[Path], object], here: Path) -> list[object]:
        return [*_few(w, make(here)), *more]

    for label, make in _strange_paths().items():
        yield Case(f"run MODEL: {label}", partial(made, make))

    def changed(change: Callable[[Path], Any], here: Path) -> list[object]:
        folder = here / "model"
        shutil.copytree(w.folder, folder)
        change(folder)
        return [*_few(w, folder), *more]

    def rewrite(name: str, contents: bytes, folder: Path) -> None:
        (folder / name).write_bytes(contents)

    def remove(name: str, folder: Path) -> None:
        (folder / name).unlink()

    def configure(change: dict[str, Any], folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    for label, config in CONFIGS.items():
        contents = json.dumps(config).encode()
        yield Case(
            f"run MODEL: config {label}",
            partial(changed, partial(rewrite, "config.json", contents)),
        )
    for label, change in CHANGES.items():
        yield Case(f"run MODEL: config with {label}", partial(changed, partial(configure, change)))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        yield Case(f"run MODEL: no {name}", partial(changed, partial(remove, name)))
        for label in ("empty", "half", "list", "deep", "binary"):
            damage = partial(changed, partial(rewrite, name, JSON_DAMAGE[label]))
            yield Case(f"run MODEL: {name}, {label}", damage)
    cut = (w.folder / "model.safetensors").read_bytes()[:-100]
    yield Case(
        "run MODEL: weights cut", partial(changed, partial(rewrite, "model.safetensors", cut))
    )
    for label, template in {
        "empty": "",
        "broken": "{% for message in messages %}",
        "constant": "hello",
        "raises": "{{ raise_exception('no') }}",
        "unknown filter": "{{ messages | no_such_filter }}",
    }.items():
        damage = partial(changed, partial(rewrite, "chat_template.jinja", template.encode()))
        yield Case(f"run MODEL: template {label}", damage)
    whole = [*_few(w, w.folder), *more]
    for flag, value in {
        "--dtype": "float7",
        "--device": "toaster",
        "--device-map": "nowhere",
        "--refusal-tokens": "99999999",
        "--system": "a\ud800",
        "--prefill": "a\ud800",
        "--base": str(w.place / "none"),
        "--induce-threshold": "nan",
        "--kl-threshold": "nan",
    }.items():
        yield Case(f"run {flag} {value!r}", partial(_same, [*whole, flag, value]))
    for value in ("-1", "not one token", "I,,As", ",", "1" * 5000):
        named = f"run --refusal-tokens {value[:20]!r}"
        yield Case(named, partial(_same, [*whole, "--refusal-tokens", value]))


# ------------------------------------------------------------------------------- run folders


def _commands(w: SimpleNamespace, run: object) -> dict[str, list[object]]:
    return {
        "report": ["report", run],
        "chat": ["chat", run, "--prompt", "Hello", "--max-new-tokens", 2],
        "suffix": ["suffix", run, "--suffix", " x", "--max-new-tokens", 2],
        "export": ["export", run, "--to", "steered", "--out", "out.pt"],
    }


def _run_folders(w: SimpleNamespace) -> Iterator[Case]:
    def foreign(here: Path) -> Path:
        folder = _made(here / "foreign")
        (folder / "notes.txt").write_text("mine")
        return folder

    def unfinished(here: Path) -> Path:
        Run.open(here / "unfinished").close()
        return here / "unfinished"

    paths = _strange_paths() | {
        "somebody else's": foreign,
        "unfinished": unfinished,
        "a file": lambda here: w.good,
        "a model": lambda here: w.folder,
    }

    def made(command: str, make: Callable[[Path], object], here: Path) -> list[object]:
        return _commands(w, make(here))[command]

    for command in ("report", "chat", "suffix", "export"):
        for label, make in paths.items():
            yield Case(f"{command} RUN: {label}", partial(made, command, make))


FILES_OF_A_RUN = {
    "chat": (
        "run.json",
        "manifest.json",
        "summary.json",
        "steps/selection.json",
        "direction.safetensors",
    ),
    "suffix": ("manifest.json", "summary.json", "steps/summary.json", "direction.safetensors"),
    "export": ("run.json", "manifest.json", "direction.safetensors"),
    "report": (
        "summary.json",
        "manifest.json",
        "candidates.csv",
        "curves.csv",
        "completions/harmful_baseline.jsonl",
    ),
}
SHOWN = "a page shows what there is, and says what is missing"


def _damaged_runs(w: SimpleNamespace) -> Iterator[Case]:
    def damaged(command: str, name: str, contents: bytes | None, here: Path) -> list[object]:
        run = here / "run"
        shutil.copytree(w.invented if command == "report" else w.finished, run)
        path = run / name
        path.unlink()
        if contents is None:
            os.mkfifo(path)
        else:
            path.write_bytes(contents)
        return _commands(w, run)[command]

    for command, names in FILES_OF_A_RUN.items():
        for name in names:
            for label, contents in {**JSON_DAMAGE, "fifo": None}.items():
                fine = SHOWN if _is_page_without(command, name, label) else ""
                call = partial(damaged, command, name, contents)
                yield Case(f"{command} RUN: {name}, {label}", call, fine)


def _is_page_without(command: str, name: str, label: str) -> bool:
    missing = label in ("fifo", "empty") and name != "summary.json"
    return command == "report" and (missing or label == "object" or name == "manifest.json")


# ------------------------------------------------------------------------------- where results go


def _outs(w: SimpleNamespace) -> Iterator[Case]:
    more = ["--harmful", w.good, "--harmless", w.others]

    def file(here: Path) -> Path:
        (here / "file").write_text("mine")
        return here / "file"

    def full(here: Path) -> Path:
        (_made(here / "full") / "notes.txt").write_text("mine")
        return here / "full"

    outs: dict[str, Callable[[Path], object]] = {
        "a file": file,
        "below a file": lambda here: file(here) / "run",
        "somebody else's folder": full,
        "long name": lambda here: "x" * 5000,
        "fifo": lambda here: _fifo(here / "fifo"),
        "link to itself": lambda here: _link(here / "loop", here / "loop"),
        "the model": lambda here: w.folder,
        "inside the model": lambda here: w.folder / "run",
        "a device": lambda here: "/dev/null",
    }
    for label, make in outs.items():
        yield Case(
            f"run --out: {label}", lambda here, make=make: [*_few(w, w.folder, make(here)), *more]
        )
    for to, ending in {"steered": ".pt", "gguf": ".gguf", "reference": ""}.items():
        for label, make in outs.items():
            yield Case(
                f"export --to {to} --out: {label}",
                lambda here, make=make, to=to: [
                    "export",
                    w.finished,
                    "--to",
                    to,
                    "--out",
                    make(here),
                ],
            )
        if ending:
            yield Case(
                f"export --to {to} --out: another ending",
                partial(_same, ["export", w.finished, "--to", to, "--out", "x.txt"]),
            )
    for strength in ("nan", "inf", "-inf"):
        args = ["export", w.finished, "--to", "steered", "--out", "x.pt", "--strength", strength]
        yield Case(f"export --strength {strength}", partial(_same, args))
        chat = ["chat", w.finished, "--prompt", "Hello", "--max-new-tokens", 2, "--strength", strength]
        yield Case(f"chat --strength {strength}", partial(_same, chat))
    yield Case("export without --out", partial(_same, ["export", w.finished, "--to", "gguf"]))
    yield Case("report --out of our own", partial(_same, ["report", w.invented, "--out", "x"]))


# ------------------------------------------------------------------------------- suffixes


def _suffixes(w: SimpleNamespace) -> Iterator[Case]:
    def file(ending: str, contents: bytes, here: Path) -> list[object]:
        path = here / f"suffix.{ending}"
        path.write_bytes(contents)
        return ["suffix", w.finished, "--suffix-file", path]

    for label, contents in JSON_DAMAGE.items():
        yield Case(f"suffix --suffix-file: json, {label}", partial(file, "json", contents))
    for label in ("number", "null", "list", "deep"):
        contents = b'{"suffix": ' + JSON_DAMAGE[label] + b"}"
        yield Case(f"suffix --suffix-file: a {label} in it", partial(file, "json", contents))
    for label in ("empty", "binary", "utf-16"):
        yield Case(f"suffix --suffix-file: txt, {label}", partial(file, "txt", JSON_DAMAGE[label]))
    for label, make in _strange_paths().items():
        yield Case(
            f"suffix --suffix-file: {label}",
            lambda here, make=make: ["suffix", w.finished, "--suffix-file", make(here)],
        )
    for text in ("", " ", "a\ud800"):
        yield Case(
            f"suffix --suffix {text!r}", partial(_same, ["suffix", w.finished, "--suffix", text])
        )
    both = ["suffix", w.finished, "--suffix", " x", "--suffix-file", w.good]
    yield Case("suffix: both", partial(_same, both))
