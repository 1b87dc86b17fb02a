"""Prompts: sources, disjoint seeded splits, and one clear line for what cannot be used."""

from __future__ import annotations

import json
import random
import re
import sys
import types
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from refusal_lens.errors import InputError
from refusal_lens.prompts import Contrast, PromptPair

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
    "f.json": ('{"instruction": "a"}', "got a JSON dict, need a list"),
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
        ({"n_train": 14}, "distinct harmful prompts .*: got 20, need 21; try fewer with --n-train"),
        ({"n_train": 0}, "number of train prompts: got 0"),
        ({"n_val": -1}, "number of val prompts: got -1"),
    ],
)
def test_numbers_that_cannot_be(pair: tuple[Path, Path], sizes: dict[str, int], line: str) -> None:
    with pytest.raises(InputError, match=line):
        Contrast.from_files(*pair, **SIZES | sizes)


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
    with pytest.raises(InputError, match=r"data set .*broken"):
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
    contrast = Contrast.refusal(seed=3)
    sizes = [len(contrast.pair(s).positive) for s in ("train", "val", "test")]
    assert sizes == [128, 32, 100]
    assert contrast.val.negative[0] == "harmless val 3 0"
    assert contrast.source == {"bundled": "organism", "seed": 3}


def test_bundled_sets_that_are_too_small_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_world(monkeypatch, 50)
    with pytest.raises(InputError, match="distinct harmful train prompts: got 50, need 128"):
        Contrast.refusal()
