"""Prompts: sources, disjoint seeded splits, and one clear line for what cannot be used."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from refusal_lens.conversations import (
    Conversation,
    Message,
    Prompt,
    prompt_of_row,
    row_of_prompt,
)
from refusal_lens.errors import InputError
from refusal_lens.prompts import Contrast, PromptPair
from refusal_lens.prompts.sources import read_dataset, read_file

SIZES = {"n_train": 6, "n_val": 3, "n_test": 4}


def texts(kind: str, n: int) -> list[str]:
    return [f"{kind} instruction {i}" for i in range(n)]


def write(path: Path, entries: list[Any]) -> Path:
    """Entries in the format that the suffix stands for."""
    suffix = path.suffix
    if suffix == ".txt":
        path.write_text("\n".join(entries) + "\n", encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(entries), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(e) + "\n" for e in entries), encoding="utf-8")
    else:
        frame = pd.DataFrame(entries)
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        write(tmp_path / "harmful.txt", texts("bad", 20)),
        write(tmp_path / "harmless.txt", texts("good", 30)),
    )


def all_texts(contrast: Contrast) -> list[str]:
    return contrast.frame().instruction.tolist()


# ---- splits


def test_splits_are_disjoint_sized_and_of_the_right_kind(pair: tuple[Path, Path]) -> None:
    contrast = Contrast.from_files(*pair, **SIZES)
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        assert len(contrast.pair(split).positive) == len(contrast.pair(split).negative) == n
        assert all(t.startswith("bad") for t in contrast.pair(split).positive)
        assert all(t.startswith("good") for t in contrast.pair(split).negative)
    assert len(set(all_texts(contrast))) == len(all_texts(contrast)) == 26
    assert contrast.duplicates_removed == 0


def test_the_seed_decides_and_nothing_else(pair: tuple[Path, Path]) -> None:
    one, same, other = (Contrast.from_files(*pair, **SIZES, seed=s) for s in (0, 0, 1))
    random.seed(5)
    assert one == same == Contrast.from_files(*pair, **SIZES)
    assert one.sha256 == same.sha256
    assert one != other
    assert one.sha256 != other.sha256
    assert list(one.train.positive) != sorted(one.train.positive)


def test_a_larger_train_set_moves_neither_val_nor_test(pair: tuple[Path, Path]) -> None:
    small = Contrast.from_files(*pair, **SIZES)
    large = Contrast.from_files(*pair, **SIZES | {"n_train": 12})
    assert (large.val, large.test) == (small.val, small.test)
    assert large.train.positive[:6] == small.train.positive


def test_hash_depends_on_the_split_of_a_text() -> None:
    empty = PromptPair((), ())
    one = Contrast(PromptPair(("a",), ("b",)), empty, empty)
    assert one.sha256 != Contrast(empty, PromptPair(("a",), ("b",)), empty).sha256
    assert one.sha256 != Contrast(PromptPair(("b",), ("a",)), empty, empty).sha256
    assert one.sha256 == Contrast(PromptPair(("a",), ("b",)), empty, empty, name="x").sha256


def test_frame_has_a_row_per_instruction(pair: tuple[Path, Path]) -> None:
    contrast = Contrast.from_files(*pair, **SIZES, kinds=("loud", "quiet"), name="volume")
    frame = contrast.frame()
    assert list(frame.columns) == ["split", "kind", "instruction"]
    assert frame.groupby(["split", "kind"]).size().to_dict() == {
        (split, kind): n
        for split, n in (("train", 6), ("val", 3), ("test", 4))
        for kind in ("loud", "quiet")
    }
    assert (
        tuple(frame[(frame.split == "val") & (frame.kind == "quiet")].instruction)
        == contrast.val.negative
    )


def test_source_can_be_written_as_json(pair: tuple[Path, Path]) -> None:
    source = json.loads(json.dumps(Contrast.from_files(*pair, **SIZES, seed=7).source))
    assert source["seed"] == 7
    assert source["harmful"]["file"] == str(pair[0])
    assert len(source["harmless"]["sha256"]) == 64


def test_an_unknown_split_is_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="'dev', need one of train, val, test"):
        Contrast.from_files(*pair, **SIZES).pair("dev")


# ---- duplicates


def test_duplicates_are_removed_and_counted(tmp_path: Path) -> None:
    bad = [*texts("bad", 13), "bad instruction 2", "  bad instruction 3\t"]
    good = [*texts("good", 13), "bad instruction 0", "good instruction 1", "Good instruction 1"]
    contrast = Contrast.from_files(
        write(tmp_path / "a.txt", bad), write(tmp_path / "b.txt", good), **SIZES
    )
    assert contrast.duplicates_removed == 4
    assert len(set(all_texts(contrast))) == 26
    assert "bad instruction 0" not in {
        *contrast.train.negative,
        *contrast.val.negative,
        *contrast.test.negative,
    }


def test_duplicates_do_not_count_as_prompts(tmp_path: Path) -> None:
    few = write(tmp_path / "a.txt", ["same"] * 50 + texts("bad", 11))
    enough = write(tmp_path / "b.txt", texts("good", 13))
    with pytest.raises(InputError, match=r"distinct harmful .* 6 train .* got 12, need 13"):
        Contrast.from_files(few, enough, **SIZES)


def test_a_contrast_made_by_hand_must_be_disjoint() -> None:
    one, two = PromptPair(("a",), ("b",)), PromptPair((" a ",), ("c",))
    with pytest.raises(InputError, match="harmful prompts at split val: got ' a ' a second time"):
        Contrast(one, two, PromptPair((), ()))


# ---- files


@pytest.mark.parametrize("suffix", [".txt", ".json", ".jsonl"])
def test_strings(tmp_path: Path, suffix: str) -> None:
    odd = ["naïve 😀", "写一首诗", "  spaces round  ", 'quotes "and", commas', "<|im_end|>"]
    bad = write(tmp_path / f"a{suffix}", odd)
    good = write(tmp_path / f"b{suffix}", texts("good", 5))
    contrast = Contrast.from_files(bad, good, n_train=5, n_val=0, n_test=0)
    assert set(contrast.train.positive) == {t.strip() for t in odd}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("column", ["instruction", "prompt", "text", "goal", "Goal", "Behavior"])
def test_columns_are_found(tmp_path: Path, suffix: str, column: str) -> None:
    bad = write(tmp_path / f"a{suffix}", [{"id": 1, column: t} for t in texts("bad", 13)])
    good = write(tmp_path / f"b{suffix}", [{column: "multi\nline", "n": 0}, {column: "x", "n": 2}])
    contrast = Contrast.from_files(bad, good, n_train=2, n_val=0, n_test=0)
    assert set(contrast.train.negative) == {"multi\nline", "x"}


def test_a_column_can_be_named(tmp_path: Path) -> None:
    rows = [{"instruction": "no", "query": t} for t in texts("bad", 4)]
    bad, good = (write(tmp_path / n, rows) for n in ("a.csv", "b.json"))
    with pytest.raises(InputError, match="harmless"):
        Contrast.from_files(bad, good, column="query", n_train=2, n_val=1, n_test=1)
    other = write(tmp_path / "c.jsonl", [{"query": t} for t in texts("good", 4)])
    contrast = Contrast.from_files(bad, other, column="query", n_train=2, n_val=1, n_test=1)
    assert set(all_texts(contrast)) == {*texts("bad", 4), *texts("good", 4)}


def test_line_ends_marks_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\n \r\ntwo\u2028half\r\nthree".encode())
    good = write(tmp_path / "b.txt", texts("good", 3))
    contrast = Contrast.from_files(tmp_path / "a.txt", good, n_train=3, n_val=0, n_test=0)
    assert set(contrast.train.positive) == {"one", "two\u2028half", "three"}


def test_rows_that_need_a_second_text_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"instruction": "alone", "input": ""},
        {"instruction": "summarise this", "input": "long"},
    ]
    bad = write(tmp_path / "a.json", rows)
    good = write(tmp_path / "b.txt", ["x"])
    contrast = Contrast.from_files(bad, good, n_train=1, n_val=0, n_test=0)
    assert contrast.train.positive == ("alone",)
    assert contrast.source["harmful"]["skipped"] == 1
    with pytest.raises(InputError, match=r"distinct harmful .* got 1, need 2"):
        Contrast.from_files(bad, good, n_train=2, n_val=0, n_test=0)


BROKEN = {
    "a.txt": ("", "got no instruction"),
    "b.txt": ("\n  \n", "got no instruction"),
    "c.json": ("[]", "got no instruction"),
    "d.json": ("", "got no instruction"),
    "e.json": ('["a",\n "b"\n "c"]', "line 3: got broken JSON .* column 2"),
    "f.json": ('{"instruction": "a"}', "got a JSON dict with instruction, need a list"),
    "g.jsonl": ('{"text": "a"}\n\n{"text": \n', "line 3: got broken JSON"),
    "h.jsonl": ('{"title": "a", "n": 1}\n', "entry 1: got columns title, n, need instruction"),
    "i.json": ('[{"text": "a"}, {"title": "b"}]', "entry 2: got columns title"),
    "j.json": ('["a", 3]', "entry 2: got 3, need text"),
    "k.json": ('[{"text": null}]', "entry 1: got None, need text"),
    "l.csv": ("name,size\na,1\n", "got columns name, size"),
    "m.csv": ("text\n", "got no instruction"),
    "n.csv": ('text\n"a', "line 2: got .*, need CSV"),
    "q.json": ("[" * 200_000, "nested too deeply"),
    "r.jsonl": ('"a"\n' + "[" * 200_000, "line 2: got JSON nested too deeply"),
    "s.json": ("[" + "1" * 5000 + "]", "a number too long"),
    "t.json": (r'["a", "b \ud800"]', r"entry 2: got a lone surrogate in 'b \\ud800'"),
    "u.jsonl": (r'{"text": "\udc80"}', "entry 1: got a lone surrogate"),
    "o.xml": ("<a/>", "got .xml, need .txt, .json"),
    "p": ("a", "got no suffix, need .txt"),
}


def test_a_lone_surrogate_in_a_contrast_made_by_hand_gets_one_clear_line() -> None:
    pair = PromptPair(("a",), ("b",))
    with pytest.raises(InputError, match="harmless prompts at split test: got a lone surrogate"):
        Contrast(train=pair, val=PromptPair((), ()), test=PromptPair((), ("\ud800",)))


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_get_one_clear_line(tmp_path: Path, name: str) -> None:
    content, line = BROKEN[name]
    (tmp_path / name).write_text(content)
    good = write(tmp_path / "good.txt", texts("good", 30))
    with pytest.raises(InputError, match=line) as caught:
        Contrast.from_files(tmp_path / name, good, **SIZES)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_and_foreign_files(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt: got no such file"):
        Contrast.from_files(pair[0], tmp_path / "nowhere.txt", **SIZES)
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match="got byte 3 that is not UTF-8"):
        Contrast.from_files(tmp_path / "latin.txt", pair[1], **SIZES)


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (
            {"n_train": 14},
            "distinct harmful prompts .*: got 20, need 21; try fewer, such as --n-train 13 --n-val 2 --n-test 3",
        ),
        ({"n_train": 0}, "number of train prompts: got 0"),
        ({"n_val": -1}, "number of val prompts: got -1"),
    ],
)
def test_numbers_that_cannot_be(pair: tuple[Path, Path], sizes: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Contrast.from_files(*pair, **SIZES | sizes)


# ---- what else files hold

READ: dict[str, tuple[str, list[str]]] = {
    "a.csv": ("id,instruction\n1,null\n2,NA\n3,1984\n4,\n5,true\n", ["null", "NA", "1984", "true"]),
    "semicolons.csv": ("id;Prompt\n1;a, b\n2;c\n", ["a, b", "c"]),
    "told.csv": ("sep=;\r\ntext;n\r\na;1\r\n", ["a"]),
    "tabs.csv": ("n\ttext\n1\ta, b; c\n", ["a, b; c"]),
    "tabs.tsv": ("n\ttext\n1\ta, b\n", ["a, b"]),
    "bars.csv": ("n|goal\n1|a\n", ["a"]),
    "breaks.csv": ('text,n\r\n"a\r\nb, ""c""",1\r\n', ['a\r\nb, "c"']),
    "index.csv": ("\n,text,,\n0,a,x,y\n", ["a"]),
    "trailing.csv": ("text,n\na,1,,\n", ["a"]),
    "short.csv": ("text,n\na\n", ["a"]),
    "repeated.csv": ("text,note,note\na,1,2\n", ["a"]),
    "mac.txt": ("one\rtwo\r", ["one", "two"]),
    "data.json": ('{"version": 1, "data": [{"text": "a"}], "errors": []}', ["a"]),
    "only.json": ('{"about": "x", "jailbreaks": ["a", "b"]}', ["a", "b"]),
    "instructions.json": ('{"instructions": ["a"]}', ["a"]),
    "columns.json": ('{"goal": ["a", "b"], "target": ["x", "y"]}', ["a", "b"]),
    "pandas.json": ('{"n": {"0": 1, "1": 2}, "prompt": {"0": "a", "1": "b"}}', ["a", "b"]),
    "numbered.json": ('{"0": {"prompt": "a"}, "1": {"prompt": "b"}}', ["a", "b"]),
    "lines.json": ('{"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
    "list.jsonl": ('["a", "b"]\n', ["a", "b"]),
    "pretty.jsonl": ('[\n "a",\n "b"\n]\n', ["a", "b"]),
    "marked.jsonl": ('\ufeff{"text": "a"}\n', ["a"]),
    "both.jsonl": ('{"prompt": "a", "messages": []}\n', ["a"]),
}


@pytest.mark.parametrize("name", READ)
def test_files_as_others_write_them(tmp_path: Path, name: str) -> None:
    content, wanted = READ[name]
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content.encode())
    assert list(read_file(path).prompts) == wanted
    # The same file says the same in a folder.
    assert list(read_dataset(str(path.parent)).prompts) == wanted


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json"])
def test_text_behind_a_byte_order_mark(tmp_path: Path, encoding: str, name: str) -> None:
    content = {"a.txt": "é\r\nb\r\n", "a.csv": "text\r\né\r\nb\r\n", "a.json": '["é", "b"]'}[name]
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert read_file(tmp_path / name).prompts == ("é", "b")


SECOND: dict[str, list[dict[str, Any]]] = {
    "alpaca": [{"instruction": "a", "input": ""}, {"instruction": "b", "input": "x"}],
    "no input": [{"instruction": "a", "input": "<noinput>"}, {"instruction": "b", "input": "x"}],
    "prompt": [{"prompt": "a", "Input": None}, {"prompt": "b", "Input": "x"}],
    "harmbench": [{"Behavior": "a", "ContextString": ""}, {"Behavior": "b", "ContextString": "x"}],
    "spelling": [
        {"Behavior": "a", "context_string": " "},
        {"Behavior": "b", "context_string": "x"},
    ],
    "question": [{"question": "a", "Context": None}, {"question": "b", "Context": "x"}],
    "lists": [{"question": "a", "choices": []}, {"question": "b", "choices": ["x", "y"]}],
    "one list": [{"goal": "a"}, {"goal": "b", "history": [["x", "y"]]}],
}


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_second_texts_are_never_lost(
    tmp_path: Path, name: str, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_file(write(tmp_path / f"a{suffix}", SECOND[name]))
    assert (found.prompts, found.skipped) == (("a",), 1)
    assert "1 rows need a second text" in caplog.text


def test_second_texts_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('Behavior,Tags,ContextString,BehaviorID\na,"x, y",,1\nb,context,long,2\n')
    assert (read_file(path).prompts, read_file(path).skipped) == (("a",), 1)
    path.write_text("Behavior,ContextString\nb,long\n")
    with pytest.raises(InputError, match=r"no instruction \(1 rows need a second text\)"):
        read_file(path)


REFUSED = {
    "cut.csv": ("text\nTell me, how\n", "line 2: got 2 cells, need 1 as in the header"),
    "twice.csv": ("text,Text,text\na,b,c\n", "got two columns 'text'"),
    "spelt.csv": ("text,Text\na,b\n", "got columns text, Text, need one of them"),
    "nul.csv": ("text\na\0b\n", "got a NUL"),
    "wide.txt": ("a\0b\0", "got a NUL"),
    "role.jsonl": ('{"messages": [{"role": "tool", "content": "a"}]}', "entry 1: role of message 0: got 'tool'"),
    "content.jsonl": ('{"messages": [{"role": "user", "content": [1]}]}', "entry 1: content of message 0: got"),
    "order.jsonl": (
        '"a"\n{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        "entry 2: conversation: got user, user, need user and assistant in turns",
    ),
    "alone.jsonl": ('{"messages": [{"role": "system", "content": "a"}]}', "got system, need user"),
    "none.jsonl": ('{"messages": []}', "got no message, need user"),
    "text.jsonl": ('{"conversations": "USER: a"}', "got 'USER: a' for a conversation, need a list"),
    "texts.jsonl": ('{"turns": ["a", "b"]}', "message 0: got 'a', need a role and a content"),
    "twice.jsonl": (
        '{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "response": "c"}',
        "got a reply both in the prompt and beside it",
    ),
    "half.jsonl": ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "got a lone surrogate"),
    "two.json": ('{"left": ["a"], "right": ["b"]}', "got a JSON dict with left, right"),
    "text.json": ('"a"', "got a JSON str"),
    "a.parquet": ("PAR1", "need a readable parquet file"),
    "a.arrow": ("", "need a readable arrow file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_would_be_read_wrongly_get_one_clear_line(tmp_path: Path, name: str) -> None:
    content, line = REFUSED[name]
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(InputError, match=line) as caught:
        read_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_pipes_folders_and_huge_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "folder.txt").mkdir()
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(2**40)
    for name, line in (
        ("pipe.txt", "pipe or device"),
        ("folder.txt", "a folder"),
        ("huge.txt", "1048576 MiB"),
    ):
        with pytest.raises(InputError, match=line):
            read_file(tmp_path / name)
    for path, line in (
        ("/dev/zero", "pipe or device"),
        ("x" * 5000, "data set"),
        ("", "need the path"),
        ("a\0", "NUL"),
    ):
        with pytest.raises(InputError, match=line):
            read_dataset(path)


def test_folders_are_read_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "README.txt").write_text("about")
    write(tmp_path / "data" / "train-00001.csv", [{"text": "b"}])
    write(tmp_path / "data" / "train-00000.csv", [{"text": "1984"}])
    write(tmp_path / "data" / "deep" / "validation.csv", [{"text": "c"}])
    assert read_dataset(str(tmp_path)).prompts == ("1984", "b")
    assert read_dataset(str(tmp_path), split="dev").prompts == ("c",)
    assert set(read_dataset(str(tmp_path)).provenance["files"]) == {
        "data/train-00000.csv",
        "data/train-00001.csv",
    }
    write(tmp_path / "more.json", ["x"])
    with pytest.raises(InputError, match=r"got files in \.csv, \.json, need one"):
        read_dataset(str(tmp_path))


def test_folders_that_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_dict({"instruction": ["a", "b"], "input": ["", "x"]})
    rows.save_to_disk(str(tmp_path / "rows"))
    datasets.DatasetDict(train=rows).save_to_disk(str(tmp_path / "splits"))
    for name in ("rows", "splits"):
        found = read_dataset(str(tmp_path / name))
        assert (found.prompts, found.skipped) == (("a",), 1)
        assert found.provenance["files"]
    with pytest.raises(InputError, match="got splits train, need one of them"):
        read_dataset(str(tmp_path / "splits"), split="test")
    assert read_file(next((tmp_path / "rows").glob("*.arrow"))).prompts == ("a",)
    (tmp_path / "rows" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="need a data set that can be read"):
        read_dataset(str(tmp_path / "rows"))


def test_too_few_prompts_name_the_options_and_what_was_left_out(tmp_path: Path) -> None:
    rows = [{"text": t, "input": ""} for t in texts("bad", 52)] + [{"text": "x", "input": "y"}]
    bad = write(tmp_path / "a.json", rows)
    good = write(tmp_path / "b.txt", texts("good", 260))
    with pytest.raises(
        InputError,
        match=r"\(1 rows need a second text\) for 128 train \+ 32 val \+ 100 test: got 52, need 260; "
        r"try fewer, such as --n-train 25 --n-val 6 --n-test 20",
    ):
        Contrast.from_files(bad, good)
    one = write(tmp_path / "c.txt", ["x"])
    with pytest.raises(InputError, match="more prompts, or fewer by --n-train"):
        Contrast.from_files(one, good)


def test_a_contrast_made_by_hand_says_what_does_not_fit() -> None:
    def made(**changed: Any) -> Contrast:
        # The test suite's own type checks would speak first.
        values = dict.fromkeys(("train", "val", "test"), PromptPair((), ())) | changed
        return Contrast(**values)

    for changed, line in (
        ({"kinds": ("same", "same")}, "kinds: got .* need two different names"),
        ({"kinds": ("../up", "down")}, "need two different names"),
        ({"kinds": ("", "down")}, "need two different names"),
        ({"name": " "}, "name of the concept"),
    ):
        with pytest.raises(InputError, match=line):
            made(**changed)
    for texts_ in (("a", ""), ("a", " \n")):
        with pytest.raises(InputError, match=r"positive prompt 1: got .*, need text"):
            PromptPair(texts_, ())


WRONG = """
from pathlib import Path
from refusal_lens.errors import InputError
from refusal_lens.prompts import Contrast, PromptPair
empty = PromptPair((), ())
files = Path("a.txt"), Path("b.txt")
calls = [
    lambda: PromptPair("text", ()), lambda: PromptPair(None, ()), lambda: PromptPair((1,), ()),
    lambda: Contrast("a", empty, empty), lambda: Contrast(empty, empty, None),
    lambda: Contrast(empty, empty, empty, kinds="ab"), lambda: Contrast(empty, empty, empty, kinds=("a",)),
    lambda: Contrast(empty, empty, empty, kinds=("a", 1)), lambda: Contrast(empty, empty, empty, name=3),
    *[lambda n=n: Contrast.toy(n_train=n) for n in (True, 1.5, -1, 10**400, "9", None, float("nan"))],
    *[lambda s=s: Contrast.toy(n_train=2, n_val=1, n_test=1, seed=s) for s in (-1, 0.5, None, "x")],
    *[lambda p=p: Contrast.from_files(p, p) for p in (None, 3, "", b"a.txt", ["a.txt"])],
    lambda: Contrast.from_files(*files, kinds=("x", "x")),
    lambda: Contrast.from_datasets("a", "b", column=("x", "y", "z")),
    lambda: Contrast.from_datasets("a", "b", split=3),
    lambda: Contrast.from_reference_splits("nowhere"), lambda: Contrast.from_reference_splits(None),
]
for number, call in enumerate(calls):
    try:
        call()
    except InputError as error:
        assert "\\n" not in str(error) and len(str(error)) < 300, (number, error)
    else:
        raise SystemExit(f"call {number} raised nothing")
"""


def test_wrong_types_get_one_clear_line_without_type_checks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRONG], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0, done.stderr + done.stdout


# ---- conversations

ASK, ANSWER = {"role": "user", "content": " a "}, {"role": "assistant", "content": "b"}
TALK = Conversation((Message("user", " a "), Message("assistant", "b"), Message("user", "c")))
TALKS: dict[str, tuple[Any, Prompt]] = {
    "messages": ({"messages": [ASK]}, "a"),
    "a reply": ({"messages": [ASK, ANSWER]}, Conversation((Message("user", " a "),), "b")),
    "turns": ({"Messages": [ASK, ANSWER, {"role": "user", "content": "c"}], "id": 1}, TALK),
    "a list": ([ASK, ANSWER, {"role": "user", "content": "c"}], TALK),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
        Conversation((Message("system", "s"), Message("user", "a")), "b"),
    ),
    "a list as the prompt": (
        {"prompt": [{"role": "system", "content": "s"}, ASK], "completion": [ANSWER]},
        Conversation((Message("system", "s"), Message("user", " a ")), "b"),
    ),
    "prompt and response": ({"prompt": " a ", "response": "b"}, Conversation((Message("user", "a"),), "b")),
    "prompt without response": ({"prompt": " a ", "response": None}, "a"),
    "instruction and response": ({"instruction": "a", "response": "b"}, "a"),
}


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_files_of_conversations(tmp_path: Path, name: str, suffix: str) -> None:
    row, prompt = TALKS[name]
    if suffix == ".parquet" and isinstance(row, list):
        return
    path = write(tmp_path / f"a{suffix}", [row, {**row, "n": 2} if isinstance(row, dict) else row])
    assert read_file(path).prompts == (prompt, prompt)


def test_a_named_column_stands_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "response": "b", "messages": [ASK]}] * 2)
    assert read_file(path, column="prompt").prompts == ("a", "a")
    assert read_file(path, column="messages").prompts == ("a", "a")


def talks(kind: str, n: int) -> list[Prompt]:
    """Conversations that share their question and differ in their replies."""
    return [Conversation((Message("user", "How?"),), f"{kind} {i}") for i in range(n)]


def test_conversations_are_told_apart_by_all_that_is_said() -> None:
    again = Conversation((Message("user", "  How?"),), "bad 3\n")
    contrast = Contrast.of([*talks("bad", 10), again], [*talks("good", 10), talks("bad", 1)[0]])
    assert contrast.sizes == {"train": 12, "val": 4, "test": 4}
    assert contrast.duplicates_removed == 2
    assert {p.reply for p in contrast.train.positive} < {f"bad {i}" for i in range(10)}
    with pytest.raises(InputError, match=r"positive prompts at split val: got 'How\?' a second time"):
        pair = PromptPair(tuple(talks("bad", 1)), ())
        Contrast(pair, pair, PromptPair((), ()), kinds=("positive", "negative"))


def test_a_conversation_of_one_message_is_its_text() -> None:
    plain, talk = Conversation((Message("user", "a"),)), TALK
    assert PromptPair((plain, talk), ()).positive == ("a", talk)
    of_texts, of_talks = (Contrast.of([p, *"cd"], [*"efg"], n_train=3) for p in ("a", plain))
    assert of_texts == of_talks
    assert of_texts.sha256 == of_talks.sha256


def test_the_hash_of_texts_is_that_of_their_lists() -> None:
    contrast = Contrast.of(texts("bad", 5), texts("good", 5))
    listed = {s: [contrast.pair(s).positive, contrast.pair(s).negative] for s in ("train", "val", "test")}
    assert contrast.sha256 == hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    talking = Contrast.of([*texts("bad", 4), TALK], texts("good", 5))
    other = Contrast.of([*texts("bad", 4), TALK.with_reply("x")], texts("good", 5))
    assert len({c.sha256 for c in (contrast, talking, other)}) == 3


@pytest.mark.parametrize(
    ("n", "given", "sizes"),
    [
        (1, {}, (1, 0, 0)),
        (4, {}, (2, 2, 0)),
        (10, {}, (6, 2, 2)),
        (100, {}, (60, 20, 20)),
        (1000, {}, (128, 32, 100)),
        (10, {"n_train": 4}, (4, 3, 3)),
        (10, {"n_val": 0, "n_test": 0}, (10, 0, 0)),
    ],
)
def test_lists_are_split_by_shares(n: int, given: dict[str, int], sizes: tuple[int, int, int]) -> None:
    contrast = Contrast.of(texts("bad", n), texts("good", n + 3), **given)
    assert tuple(len(contrast.pair(s).negative) for s in ("train", "val", "test")) == sizes


def test_lists_that_cannot_be_split_get_a_line() -> None:
    with pytest.raises(InputError, match=r"distinct positive prompts for .*: got 3, need 5"):
        Contrast.of([*"abc"], [*"defgh"], n_train=3, n_val=1, n_test=1)
    with pytest.raises(InputError, match="loud prompt 1: conversation: got assistant, user, need"):
        odd = [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
        Contrast.of(["a", odd], ["b"], kinds=("loud", "quiet"))
    with pytest.raises(InputError, match=r"positive of Contrast.of: got 'abc', need a list"):
        Contrast.of("abc", ["d"])


def test_frames_and_rows_hold_conversations() -> None:
    contrast = Contrast.of([TALK, "x"], ["y", "z"], n_train=2, n_val=0, n_test=0)
    rows = contrast.frame().to_dict("records")
    assert {row["instruction"] for row in rows} == {"c", "x", "y", "z"}
    assert [row["messages"] for row in rows if row["instruction"] == "c"] == [TALK.to_json()]
    for prompt in ("x", TALK, TALK.with_reply("d"), TALK.with_reply("")):
        assert prompt_of_row(json.loads(json.dumps(row_of_prompt(prompt)))) == prompt


# ---- data sets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_local_folders_are_data_sets(tmp_path: Path) -> None:
    for name, suffix in (("bad", ".jsonl"), ("good", ".parquet")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / f"train{suffix}", [{"prompt": t} for t in texts(name, 20)])
    folders = str(tmp_path / "bad"), str(tmp_path / "good")
    contrast = Contrast.from_datasets(*folders, **SIZES)
    assert len(all_texts(contrast)) == 26
    assert contrast == Contrast.from_files(*folders, **SIZES)
    assert contrast.source["harmful"] == {
        "dataset": folders[0],
        "split": "train",
        "revision": None,
        "files": {
            "train.jsonl": hashlib.sha256(
                (tmp_path / "bad" / "train.jsonl").read_bytes()
            ).hexdigest()
        },
        "skipped": 0,
    }
    with pytest.raises(InputError, match="got columns prompt, need query"):
        Contrast.from_datasets(*folders, column=("prompt", "query"), **SIZES)
    with pytest.raises(InputError, match="split dev"):
        Contrast.from_datasets(*folders, split=("train", "dev"), **SIZES)


def test_data_sets_that_cannot_be_read(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    with pytest.raises(
        InputError, match=r"data set nobody/nothing .* local file or folder"
    ) as caught:
        Contrast.from_datasets("nobody/nothing", "nobody/nothing", revision="abc", **SIZES)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"missing\.txt: got no such file"):
        Contrast.from_datasets(str(tmp_path / "missing.txt"), str(pair[1]), **SIZES)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.jsonl").write_text('{"text": \n')
    with pytest.raises(InputError, match=r"prompts at .*train\.jsonl, line 1: got broken JSON"):
        Contrast.from_datasets(str(tmp_path / "broken"), str(tmp_path / "broken"), **SIZES)


def test_names_revisions_and_configurations_reach_the_hub_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    asked = []

    def load(path: str, **options: Any) -> list[dict[str, str]]:
        asked.append((path, options))
        return [{"text": f"{path} {i}"} for i in range(13)]

    monkeypatch.setattr(datasets, "load_dataset", load)
    contrast = Contrast.from_datasets(
        "a/bad:small", "b/good", split=("test", "train"), revision=("v1", None), **SIZES
    )
    assert asked == [
        ("a/bad", {"split": "test", "name": "small", "revision": "v1"}),
        ("b/good", {"split": "train", "name": None, "revision": None}),
    ]
    assert contrast.source["harmful"]["revision"] == "v1"


# ---- the reference implementation's folder


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    for kind in ("harmful", "harmless"):
        for split, n in (("train", 40), ("val", 12), ("test", 30)):
            entries = [{"instruction": f" {kind} {split} {i} ", "category": None} for i in range(n)]
            write(tmp_path / f"{kind}_{split}.json", entries)
    return tmp_path


def test_reference_splits_are_sampled_in_the_references_order(reference: Path) -> None:
    contrast = Contrast.from_reference_splits(reference, n_train=20, n_val=8, n_test=10)
    random.seed(42)
    pools = {
        (kind, split): [e["instruction"] for e in json.loads(path.read_text())]
        for kind in ("harmful", "harmless")
        for split in ("train", "val", "test")
        for path in [reference / f"{kind}_{split}.json"]
    }
    assert list(contrast.train.positive) == random.sample(pools["harmful", "train"], 20)
    assert list(contrast.train.negative) == random.sample(pools["harmless", "train"], 20)
    assert list(contrast.val.positive) == random.sample(pools["harmful", "val"], 8)
    assert list(contrast.val.negative) == random.sample(pools["harmless", "val"], 8)
    assert list(contrast.test.negative) == random.sample(pools["harmless", "test"], 10)
    assert set(contrast.test.positive) < set(pools["harmful", "test"])
    assert len(contrast.test.positive) == 10


def test_reference_splits_leave_out_what_stands_twice(reference: Path) -> None:
    rows = json.loads((reference / "harmful_test.json").read_text())
    write(
        reference / "harmful_test.json", [{"instruction": "harmful train 3"}, *rows[:9], *rows[:9]]
    )
    sizes = {"n_train": 40, "n_val": 12, "n_test": 10}
    contrast = Contrast.from_reference_splits(reference, **sizes)
    assert len(contrast.test.positive) == 9
    assert contrast.duplicates_removed == 1


def test_reference_splits_that_are_missing_or_small(reference: Path) -> None:
    with pytest.raises(InputError, match=r"harmful val prompts at .*: got 12, need 32"):
        Contrast.from_reference_splits(reference, n_train=20)
    (reference / "harmless_val.json").unlink()
    with pytest.raises(InputError, match=re.escape("harmless_val.json: got no such file")):
        Contrast.from_reference_splits(reference, n_train=20, n_val=8, n_test=10)


# ---- the bundled sets


def fake_world(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    world = types.ModuleType("refusal_lens.organism.world")

    def instructions(kind: str, split: str, n: int, seed: int) -> list[str]:
        return [f"{kind} {split} {seed} {i}" for i in range(min(n, size))]

    world.instructions = instructions  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "refusal_lens.organism.world", world)


def test_bundled_sets_come_from_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_world(monkeypatch, 1000)
    contrast = Contrast.toy(seed=3)
    sizes = [len(contrast.pair(s).positive) for s in ("train", "val", "test")]
    assert sizes == [128, 32, 100]
    assert contrast.val.negative[0] == "harmless val 3 0"
    assert contrast.source == {"bundled": "organism", "seed": 3}


def test_bundled_sets_that_are_too_small_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_world(monkeypatch, 50)
    with pytest.raises(InputError, match="distinct harmful train prompts: got 50, need 128"):
        Contrast.toy()
