"""Streamed exports: bytes, shards, dtypes, names, kills, and everything that can be wrong with a folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from architectures import by_id, folder, make
from kit import ROOT, WIDTH, direction, plain
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from refusal_lens.errors import InputError
from refusal_lens.model.shards import INDEX, SINGLE, open_checkpoint
from refusal_lens.weights import (
    AddBias,
    add_bias,
    arithmetic,
    atomic,
    copying,
    edited,
    export,
    orthogonalise,
    prepare,
    verify,
    verify_files,
    write_checkpoint,
    writers_of,
)


def saved(
    tmp_path: Path, name: str, *, dtype: torch.dtype = torch.float32, shard_bytes: int | None = None
) -> Path:
    """A row's model on disk in a dtype, in one file or in shards."""
    path = tmp_path / "source"
    size = {} if shard_bytes is None else {"max_shard_size": shard_bytes}
    make(by_id(name), dtype=dtype).save_pretrained(path, **size)
    (path / "tokenizer.json").write_text("{}")
    return path


def export_to(source: Path, out: Path, **options: object) -> Path:
    return write_checkpoint(
        prepare(source, orthogonalise(direction()), **options), out, provenance={}
    )


def digest(path: Path) -> dict[str, tuple[str, float]]:
    """Hash and time of change of every file of a folder."""
    return {
        p.name: (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime)
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


def tensors(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        found |= load_file(file)
    return found


class TestBytes:
    def test_only_edited_tensors_change_and_everything_else_is_bit_for_bit(
        self, tmp_path: Path
    ) -> None:
        source = saved(tmp_path, "llama")
        before = digest(source)
        job = prepare(source, orthogonalise(direction()))
        write_checkpoint(job, tmp_path / "out", provenance={"who": "a test"})
        old, new = tensors(source), tensors(tmp_path / "out")
        changed = {name for name in old if not torch.equal(old[name], new[name])}
        assert changed == set(job.changes)
        assert list(old) == list(new)
        assert digest(source) == before
        with safe_open(tmp_path / "out" / SINGLE, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        assert json.loads((tmp_path / "out" / "refusal_lens.json").read_text()) == {"who": "a test"}
        assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_the_arithmetic_is_finer_than_the_dtype(
        self, tmp_path: Path, dtype: torch.dtype
    ) -> None:
        source = saved(tmp_path, "gpt2", dtype=dtype)
        export_to(source, tmp_path / "out")
        old, new = tensors(source), tensors(tmp_path / "out")
        name = "transformer.h.1.mlp.c_proj.weight"
        unit = direction().vector / direction().vector.norm()
        exact = old[name].double() - (old[name].double() @ unit)[:, None] * unit
        assert new[name].dtype == dtype
        # One rounding of the exact result, where float32 arithmetic could be off by a last digit.
        wrong = (new[name] != exact.to(dtype)).float().mean()
        assert float(wrong) <= (0.01 if dtype != torch.float32 else 0.0)

    @pytest.mark.parametrize("name", ["llama", "gemma", "mixtral", "gpt2"])
    def test_shards_keep_their_index_and_equal_the_single_file(
        self, tmp_path: Path, name: str
    ) -> None:
        source = saved(tmp_path, name, shard_bytes=20_000)
        one = tmp_path / "one"
        make(by_id(name)).save_pretrained(one)
        assert len(list(source.glob("*.safetensors"))) > 2
        export_to(source, tmp_path / "out")
        export_to(one, tmp_path / "out-one")
        sharded, single = tensors(tmp_path / "out"), tensors(tmp_path / "out-one")
        assert sharded.keys() == single.keys()
        assert all(torch.equal(sharded[key], single[key]) for key in single)
        old = json.loads((source / INDEX).read_text())
        new = json.loads((tmp_path / "out" / INDEX).read_text())
        added = {
            key: file for key, file in new["weight_map"].items() if key not in old["weight_map"]
        }
        assert old["weight_map"] == {k: v for k, v in new["weight_map"].items() if k not in added}
        assert set(added) == ({"lm_head.weight"} if name in ("gemma", "gpt2") else set())
        size = sum(t.numel() * t.element_size() for t in sharded.values())
        assert new["metadata"]["total_size"] == size
        result = verify(plain(one), plain(tmp_path / "out"), orthogonalise(direction()))
        assert result.equal, result.line

    def test_an_untied_unembedding_has_the_unedited_values(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "gemma")
        export_to(source, tmp_path / "out")
        old, new = tensors(source), tensors(tmp_path / "out")
        assert torch.equal(new["lm_head.weight"], old["model.embed_tokens.weight"])
        assert (
            json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
            is False
        )

    def test_names_without_the_prefix_of_the_inner_model_are_found(self, tmp_path: Path) -> None:
        """As GPT-2 and BLOOM have them on the hub."""
        source = saved(tmp_path, "gpt2")
        bare = {k.removeprefix("transformer."): v for k, v in load_file(source / SINGLE).items()}
        save_file(bare, source / SINGLE, metadata={"format": "pt"})
        export_to(source, tmp_path / "out")
        result = verify(plain(source), plain(tmp_path / "out"), orthogonalise(direction()))
        assert result.equal, result.line

    def test_experts_are_edited_in_the_layout_of_the_file(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "mixtral")
        job = prepare(source, orthogonalise(direction()))
        experts = [name for name in job.changes if "experts" in name]
        assert len(experts) == 3 * 4
        assert all(name.endswith(".w2.weight") and job.changes[name].axis == 0 for name in experts)

    def test_a_copy_by_reference_gives_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = saved(tmp_path, "llama", shard_bytes=20_000)
        export_to(source, tmp_path / "copied")

        def clone(one: Path, other: Path) -> bool:
            shutil.copyfile(one, other)
            return True

        monkeypatch.setattr(export, "reflink", clone)
        export_to(source, tmp_path / "cloned")
        assert {k: v[0] for k, v in digest(tmp_path / "cloned").items()} == {
            k: v[0] for k, v in digest(tmp_path / "copied").items()
        }

    def test_tables_and_matrices_in_pieces_give_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = saved(tmp_path, "mixtral", dtype=torch.bfloat16)
        export_to(source, tmp_path / "whole")
        monkeypatch.setattr(arithmetic, "CHUNK", 2000)
        monkeypatch.setattr(copying, "PIECE", 777)
        monkeypatch.delattr(os, "copy_file_range")
        export_to(source, tmp_path / "pieces")
        one, other = tensors(tmp_path / "whole"), tensors(tmp_path / "pieces")
        assert all(torch.allclose(one[k].float(), other[k].float(), atol=1e-2) for k in one)
        assert sum(int((one[k] != other[k]).sum()) for k in one) < 0.001 * sum(
            t.numel() for t in one.values()
        )

    def test_progress_counts_every_byte_once(self, tmp_path: Path) -> None:
        for name, size in (("llama", None), ("gemma", None), ("gemma", 20_000)):
            source = saved(tmp_path, name, shard_bytes=size)
            job, seen = prepare(source, orthogonalise(direction())), []
            write_checkpoint(job, tmp_path / "out", provenance={}, progress=seen.append)
            assert sum(seen) == job.total_bytes
            shutil.rmtree(source)
            shutil.rmtree(tmp_path / "out")


class TestEdits:
    @pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
    def test_numbers_that_are_none_are_refused(self, wrong: float) -> None:
        vector = direction().vector.clone()
        vector[3] = wrong
        for make_edit in (
            lambda: orthogonalise(direction(), strength=wrong),
            lambda: orthogonalise(vector),
            lambda: add_bias(direction(), strength=wrong),
            lambda: AddBias(vector, 2),
        ):
            with pytest.raises(InputError, match=r"need a number|finite"):
                make_edit()

    def test_partial_strength_takes_a_part_of_every_write(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "llama")
        edit = orthogonalise(direction(), strength=0.3)
        write_checkpoint(prepare(source, edit), tmp_path / "out", provenance={})
        assert verify(plain(source), plain(tmp_path / "out"), edit).equal

    @pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gemma"])
    def test_norms_are_kept_and_nothing_is_left_along_r(self, tmp_path: Path, name: str) -> None:
        source = saved(tmp_path, name)
        job = prepare(source, orthogonalise(direction(), keep_norms=True))
        write_checkpoint(job, tmp_path / "out", provenance={})
        old, new = tensors(source), tensors(tmp_path / "out")
        unit = (direction().vector / direction().vector.norm()).float()
        for key, change in job.changes.items():
            one, other = (t[key].movedim(change.axis, -1) for t in (old, new))
            assert torch.allclose(one.norm(dim=-1), other.norm(dim=-1), rtol=1e-4), key
            assert float((other @ unit).abs().max()) < 1e-5 * float(one.norm(dim=-1).max()), key

    @pytest.mark.parametrize(
        ("name", "layer"),
        [
            *[("llama", 2), ("llama", 0), ("gpt2", 1), ("gpt2", 0), ("gpt_neox", 2), ("gemma", 0)],
            *[("bloom", 0), ("granite", 2), ("granite", 0), ("mamba", 2), ("opt-projected", 0)],
        ],
    )
    def test_addition_as_a_bias_equals_the_hook(
        self, tmp_path: Path, name: str, layer: int
    ) -> None:
        source = saved(tmp_path, name)
        for strength in (1.0, -0.5):
            edit = add_bias(direction(layer=layer), strength=strength)
            out = tmp_path / f"out{strength}"
            write_checkpoint(prepare(source, edit), out, provenance={})
            result = verify(plain(source), plain(out), edit)
            assert result.equal, result.line

    def test_the_map_of_an_addition_says_what_it_changes(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "gpt2")
        later = prepare(source, add_bias(direction())).writers
        treated = {w.parameter: w.treatment for w in later.writers}
        assert treated.pop("transformer.h.1.mlp.c_proj.bias") == "edited"
        assert set(treated.values()) == {"unchanged"}
        assert later.exactness == "exact"
        assert not later.notes
        first = prepare(source, add_bias(direction(layer=0)))
        assert first.writers.exactness == "exact with untied unembedding"
        assert prepare(
            saved(tmp_path / "b", "gemma2"), add_bias(direction(layer=0))
        ).writers.exactness == ("exact with untied unembedding")

    def test_addition_adds_a_bias_where_the_configuration_can_say_so(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        row = by_id("llama")
        make(replace(row, config={**row.config, "mlp_bias": False})).save_pretrained(source)
        job = prepare(source, add_bias(direction()))
        assert job.config["mlp_bias"] is True
        assert len(job.added) == 3 * 3
        (new,) = (w for w in job.writers.writers if w.treatment == "edited")
        assert (new.parameter, new.shape) == ("model.layers.1.mlp.down_proj.bias", (WIDTH,))
        assert "no bias" in new.why
        nonzero = [each.name for each in job.added if each.values.any()]
        assert nonzero == ["model.layers.1.mlp.down_proj.bias"]
        write_checkpoint(job, tmp_path / "out", provenance={})
        assert verify(plain(source), plain(tmp_path / "out"), add_bias(direction())).equal

    @pytest.mark.parametrize(
        ("name", "match"),
        [
            ("qwen2", "config.json cannot ask for one"),
            ("gemma2", "norm or a router"),
            ("mixtral", "router"),
        ],
    )
    def test_addition_that_no_bias_can_carry_says_so(
        self, tmp_path: Path, name: str, match: str
    ) -> None:
        with pytest.raises(InputError, match=match):
            prepare(saved(tmp_path, name), add_bias(direction()))


class TestVerifyFiles:
    def test_it_sees_what_was_edited_and_what_was_not(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "llama", shard_bytes=20_000)
        export_to(source, tmp_path / "out")
        found = verify_files(source, tmp_path / "out", direction())
        assert found.equal
        assert set(found.frame()["tensor"]) == set(
            prepare(source, orthogonalise(direction())).changes
        )

    def test_a_tensor_put_back_or_another_one_changed_is_found(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "llama")
        export_to(source, tmp_path / "out")
        path = tmp_path / "out" / SINGLE
        good, old = load_file(path), load_file(source / SINGLE)
        for name, values in (
            ("model.layers.1.mlp.down_proj.weight", old["model.layers.1.mlp.down_proj.weight"]),
            (
                "model.layers.0.self_attn.q_proj.weight",
                good["model.layers.0.self_attn.q_proj.weight"] + 1,
            ),
        ):
            save_file({**good, name: values.contiguous()}, path, metadata={"format": "pt"})
            found = verify_files(source, tmp_path / "out", direction())
            assert not found.equal
            assert name in found.line
        edit = orthogonalise(direction())
        save_file({**good, "model.layers.1.mlp.down_proj.weight": old["model.layers.1.mlp.down_proj.weight"]},
                  path, metadata={"format": "pt"})  # fmt: skip
        result = verify(plain(source), plain(tmp_path / "out"), edit)
        assert not result.equal
        assert result.leak == 2

    @pytest.mark.parametrize(
        ("name", "dtype"),
        [("mixtral", torch.bfloat16), ("gpt2", torch.float16), ("llama", torch.float32)],
    )
    def test_writers_that_are_damaged_without_a_trace_along_r_are_found(
        self, tmp_path: Path, name: str, dtype: torch.dtype
    ) -> None:
        source = saved(tmp_path, name, dtype=dtype)
        job = prepare(source, orthogonalise(direction()))
        write_checkpoint(job, tmp_path / "out", provenance={})
        assert verify_files(source, tmp_path / "out", direction()).equal
        path = tmp_path / "out" / SINGLE
        good = load_file(path)
        writer = next(n for n in job.changes if good[n].ndim == 2 and "embed" not in n)
        one_number = good[writer].clone()
        one_number[3, 5] *= 1.1
        for values in (
            torch.zeros_like(good[writer]),
            -3 * good[writer],
            good[writer] * 0.9,
            torch.full_like(good[writer], torch.nan),
            one_number,
        ):
            save_file({**good, writer: values}, path, metadata={"format": "pt"})
            found = verify_files(source, tmp_path / "out", direction())
            assert writer in found.line
            assert "rounding step" in found.line or "along r" in found.line

    def test_a_part_and_kept_lengths_are_asked_for_by_name(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "gemma", shard_bytes=20_000)
        for options in ({"strength": 0.3}, {"keep_norms": True}):
            out = tmp_path / next(iter(options))
            write_checkpoint(
                prepare(source, orthogonalise(direction(), **options)), out, provenance={}
            )
            assert verify_files(source, out, direction(), **options).equal
            assert not verify_files(source, out, direction()).equal

    def test_what_hardly_wrote_along_r_is_no_false_alarm(self, tmp_path: Path) -> None:
        """What is left there after rounding may be more than the edit took away."""
        source = saved(tmp_path, "llama", dtype=torch.bfloat16)
        export_to(source, tmp_path / "once")
        export_to(tmp_path / "once", tmp_path / "twice")
        found = verify_files(tmp_path / "once", tmp_path / "twice", direction())
        assert found.equal, found.line

    def test_a_folded_norm_is_verified_too(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "gemma2", dtype=torch.bfloat16)
        export_to(source, tmp_path / "out")
        found = verify_files(source, tmp_path / "out", direction())
        assert found.equal, found.line

    def test_added_missing_and_further_tensors_are_told_apart(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "gemma")
        export_to(source, tmp_path / "out")
        path = tmp_path / "out" / SINGLE
        good = load_file(path)
        q = "model.layers.0.self_attn.q_proj.weight"
        head = "lm_head.weight"
        for tensors_now, match in (
            ({**good, head: good["model.embed_tokens.weight"].clone()}, f"{head}: differs"),
            ({k: v for k, v in good.items() if k != head}, f"{head}: is not in the edited"),
            ({k: v for k, v in good.items() if k != q}, f"{q}: is not in the edited"),
            ({**good, "more.weight": torch.ones(2)}, "more.weight: is not in the original"),
            ({**good, q: good[q].half()}, f"{q}: is stored as F16, need F32"),
            ({**good, q: good[q][:-1].contiguous()}, f"{q}: has shape"),
        ):
            save_file(tensors_now, path, metadata={"format": "pt"})
            assert match in verify_files(source, tmp_path / "out", direction()).line
        save_file(good, path, metadata={"format": "pt"})
        assert verify_files(source, tmp_path / "out", direction()).equal

    def test_a_configuration_that_ties_what_was_untied_is_found(self, tmp_path: Path) -> None:
        for name, wrong in (("gemma", True), ("llama", True)):
            source, out = saved(tmp_path / name, name), tmp_path / f"out-{name}"
            export_to(source, out)
            assert verify_files(source, out, direction()).equal
            config = json.loads((out / "config.json").read_text())
            config["tie_word_embeddings"] = wrong
            (out / "config.json").write_text(json.dumps(config))
            found = verify_files(source, out, direction())
            assert not found.equal
            assert "config.json: tie_word_embeddings" in found.line

    def test_pieces_of_any_size_give_the_same_answer(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = saved(tmp_path, "mixtral", dtype=torch.bfloat16)
        export_to(source, tmp_path / "out")
        whole = verify_files(source, tmp_path / "out", direction()).frame()
        monkeypatch.setattr(arithmetic, "CHUNK", 2000)
        pieces = verify_files(source, tmp_path / "out", direction()).frame()
        assert list(whole["tensor"]) == list(pieces["tensor"])
        assert whole["before"].to_numpy() == pytest.approx(pieces["before"].to_numpy(), rel=1e-3)
        assert not any(pieces["problem"])


class TestMemory:
    def test_bits_come_back_after_an_exception(self) -> None:
        model = plain(folder("gemma"))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        tied = model.lm_head.weight
        with pytest.raises(ZeroDivisionError), edited(model, orthogonalise(direction())):
            assert model.lm_head.weight is not tied
            raise ZeroDivisionError
        assert model.lm_head.weight is tied
        assert tied is model.model.embed_tokens.weight
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())

    def test_the_permanent_form_equals_the_files(self, tmp_path: Path) -> None:
        from refusal_lens.weights import apply

        model = plain(folder("gpt2"))
        apply(model, orthogonalise(direction()))
        export_to(folder("gpt2"), tmp_path / "out")
        other = plain(tmp_path / "out").state_dict()
        assert all(torch.equal(v, other[k]) for k, v in model.state_dict().items())

    def test_a_permanent_edit_says_in_the_configuration_what_is_tied_no_more(
        self, tmp_path: Path
    ) -> None:
        from refusal_lens.weights import apply

        model = plain(folder("gemma"))
        apply(model, orthogonalise(direction()))
        model.save_pretrained(tmp_path / "saved")
        config = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        result = verify(
            plain(folder("gemma")), plain(tmp_path / "saved"), orthogonalise(direction())
        )
        assert result.equal, result.line

    def test_a_permanent_addition_leaves_ties_that_it_does_not_touch(self) -> None:
        from refusal_lens.weights import apply

        model = plain(folder("gpt2"))
        apply(model, add_bias(direction()))
        assert model.lm_head.weight is model.transformer.wte.weight

    def test_the_map_names_every_writer_once(self) -> None:
        frame = writers_of(plain(folder("gpt2"))).frame()
        assert frame["parameter"].is_unique
        assert set(frame["treatment"]) == {"edited"}
        assert set(frame["role"]) == {
            "token embedding",
            "position embedding",
            "attention output",
            "attention output bias",
            "MLP output",
            "MLP output bias",
        }


def _no_shard(source: Path) -> None:
    sorted(source.glob("model-*.safetensors"))[1].unlink()


def _cut_short(source: Path) -> None:
    path = sorted(source.glob("model-*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-10])


def _not_safetensors(source: Path) -> None:
    sorted(source.glob("model-*.safetensors"))[0].write_bytes(b"<html>not found</html>")


def _index_lies(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"]["renamed." + name] = index["weight_map"].pop(name)
    (source / INDEX).write_text(json.dumps(index))


def _index_without_a_tensor(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    gone = index["weight_map"].pop("model.layers.0.mlp.down_proj.weight")
    file = source / gone
    kept = {k: v for k, v in load_file(file).items() if k != "model.layers.0.mlp.down_proj.weight"}
    save_file(kept, file, metadata={"format": "pt"})
    (source / INDEX).write_text(json.dumps(index))


def _no_config(source: Path) -> None:
    (source / "config.json").unlink()


def _config_of_another(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["intermediate_size"] = 56
    (source / "config.json").write_text(json.dumps(config))


def _quantised(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (source / "config.json").write_text(json.dumps(config))


def _pickles(source: Path) -> None:
    for path in [*source.glob("*.safetensors"), source / INDEX]:
        path.unlink()
    (source / "pytorch_model.bin").write_bytes(b"x")


def _unknown_model(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config["model_type"] = "nobody_knows"
    (source / "config.json").write_text(json.dumps(config))


def _index(contents: object) -> Callable[[Path], None]:
    """An index that is this JSON."""

    def damage(source: Path) -> None:
        (source / INDEX).write_text(json.dumps(contents))

    return damage


def _shard_named(name: str) -> Callable[[Path], None]:
    """The first shard lies elsewhere, whole, and the index says so."""

    def damage(source: Path) -> None:
        index = json.loads((source / INDEX).read_text())
        first = sorted(set(index["weight_map"].values()))[0]
        place = source / name.replace("HERE", str(source))
        place.parent.mkdir(exist_ok=True)
        (source / first).rename(place)
        index["weight_map"] = {
            k: str(place) if "HERE" in name else name if v == first else v
            for k, v in index["weight_map"].items()
        }
        (source / INDEX).write_text(json.dumps(index))

    return damage


def _header(change: Callable[[dict, dict], object]) -> Callable[[Path], None]:
    """The first shard with another header in front of the same data."""

    def damage(source: Path) -> None:
        path = sorted(source.glob("model-*.safetensors"))[0]
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        tensor = next(value for name, value in header.items() if name != "__metadata__")
        change(header, tensor)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])

    return damage


def _config(**changes: object) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        config = json.loads((source / "config.json").read_text()) | changes
        (source / "config.json").write_text(json.dumps(config))

    return damage


class TestBadInput:
    @pytest.mark.parametrize(
        ("damage", "match"),
        [
            (_no_shard, "1 of .* shards are missing"),
            (_cut_short, "cut short"),
            (_not_safetensors, "not a safetensors file"),
            (_index_lies, "does not hold it"),
            (_index_without_a_tensor, "stored nowhere in the checkpoint"),
            (_no_config, "no config.json"),
            (_config_of_another, "need .* as config.json describes"),
            (_quantised, "quantised .bitsandbytes."),
            (_pickles, "need safetensors"),
            (_unknown_model, "config.json: cannot be used"),
            (_index({"weight_map": []}), "weight_map"),
            (_index({"weight_map": "x"}), "weight_map"),
            (_index({"weight_map": {"a": 3}}), "weight_map"),
            (_index({}), "weight_map"),
            (_index("x"), "got a JSON str"),
            (_shard_named("../evil.safetensors"), "plain file name"),
            (_shard_named("HERE/evil.safetensors"), "plain file name"),
            (_shard_named("sub/evil.safetensors"), "plain file name"),
            (_shard_named("evil.bin"), "plain file name"),
            (_header(lambda _, first: first.pop("dtype")), "not a safetensors file"),
            (_header(lambda _, first: first.update(dtype=3)), "not a safetensors file"),
            (_header(lambda _, first: first.update(shape=[3, 5])), "has shape"),
            (_header(lambda _, first: first.update(shape=[-1, 5])), "not a safetensors file"),
            (_header(lambda _, first: first.update(shape=7)), "not a safetensors file"),
            (_header(lambda _, first: first.update(data_offsets=[8, 4])), "not a safetensors file"),
            (
                _header(lambda _, first: first.update(data_offsets=["0", 4])),
                "not a safetensors file",
            ),
            (_header(lambda header, _: header.update(__metadata__=3)), "not a safetensors file"),
            (_config(hidden_size="32"), "config.json: cannot be used"),
            (_config(hidden_size=-4), "cannot build it"),
            (_config(num_attention_heads=0), "cannot"),
            (_config(num_hidden_layers=0), "need"),
            (_config(vocab_size=None), "cannot"),
        ],
    )
    def test_a_damaged_source_is_one_line_and_untouched(
        self, tmp_path: Path, damage: Callable[[Path], None], match: str
    ) -> None:
        source = saved(tmp_path, "llama", shard_bytes=20_000)
        damage(source)
        before = digest(source)
        with pytest.raises(InputError, match=match) as caught:
            export_to(source, tmp_path / "out")
        assert "\n" not in str(caught.value)
        assert digest(source) == before
        assert not (tmp_path / "out").exists()

    def test_a_missing_expert_is_found_out(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "mixtral")
        kept = {k: v for k, v in load_file(source / SINGLE).items() if "experts.3.w2" not in k}
        save_file(kept, source / SINGLE, metadata={"format": "pt"})
        with pytest.raises(InputError, match="is a shard missing"):
            export_to(source, tmp_path / "out")

    def test_a_direction_of_another_width_is_one_line(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "llama")
        for edit in (orthogonalise(direction(width=48)), add_bias(direction(width=48))):
            with pytest.raises(InputError, match="48 dimensions, need d_model = 32"):
                prepare(source, edit)
        with pytest.raises(InputError, match="need 0 to 2"):
            prepare(source, add_bias(direction(layer=3)))

    def test_an_output_folder_that_is_not_empty_is_left_alone(self, tmp_path: Path) -> None:
        source, out = saved(tmp_path, "llama"), tmp_path / "out"
        out.mkdir()
        (out / "mine").write_text("keep")
        with pytest.raises(InputError, match="not empty"):
            export_to(source, out)
        assert [p.name for p in out.iterdir()] == ["mine"]
        with pytest.raises(InputError, match="which is only read"):
            export_to(source, source / "edited")

    def test_an_empty_output_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        assert (export_to(saved(tmp_path, "llama"), tmp_path / "out") / "config.json").is_file()

    def test_a_link_to_an_empty_folder_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "disk" / "real").mkdir(parents=True)
        (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
        out = export_to(saved(tmp_path, "llama"), tmp_path / "out")
        assert (out / "config.json").is_file()
        assert out.is_symlink()
        assert [p.name for p in (tmp_path / "disk").iterdir()] == ["real"]
        (tmp_path / "inside").symlink_to(tmp_path / "source" / "new")
        with pytest.raises(InputError, match="which is only read"):
            export_to(tmp_path / "source", tmp_path / "inside")

    def test_a_mount_point_is_refused_before_writing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "out").mkdir()
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "out"))
        with pytest.raises(InputError, match="mount point"):
            atomic.require_room(tmp_path / "out", 0)

    def test_an_error_of_the_check_is_not_one_of_writing(self, tmp_path: Path) -> None:
        def check(hidden: Path) -> None:
            raise OSError(errno.ENOENT, "no tokenizer in it", "tokenizer.json")

        source = saved(tmp_path, "llama")
        job = prepare(source, orthogonalise(direction()))
        with pytest.raises(OSError, match="no tokenizer in it") as caught:
            write_checkpoint(job, tmp_path / "out", provenance={}, check=check)
        assert "could not be checked" in str(caught.value)
        assert "written" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == ["source"]

    def test_too_little_space_is_said_before_writing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        with pytest.raises(InputError, match=r"needed and 1\.00 kB free"):
            export_to(saved(tmp_path, "llama"), tmp_path / "out")

    def test_a_disk_that_fills_up_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = saved(tmp_path, "llama", shard_bytes=20_000)
        before, written, write = digest(source), [], os.pwrite

        def full(descriptor: int, data: memoryview, at: int) -> int:
            written.append(at)
            if len(written) > 3:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, data, at)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left on device; nothing was left there"):
            export_to(source, tmp_path / "out")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]
        assert digest(source) == before

    def test_a_read_only_source_is_enough(self, tmp_path: Path) -> None:
        source = saved(tmp_path, "llama")
        for path in source.iterdir():
            path.chmod(0o444)
        source.chmod(0o555)
        before = digest(source)
        out = export_to(source, tmp_path / "out")
        source.chmod(0o755)
        assert digest(source) == before
        assert os.access(out / SINGLE, os.W_OK)

    def test_an_output_under_a_file_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match="is a file"):
            export_to(saved(tmp_path, "llama"), tmp_path / "file" / "out")


KILLED = """
import sys, time
sys.path[:0] = {paths!r}
from kit import direction
from pathlib import Path
from refusal_lens.weights import orthogonalise, prepare, write_checkpoint
job = prepare(Path({source!r}), orthogonalise(direction()))
n = 0
def slow(moved):
    global n
    n += 1
    print(n, flush=True)
    time.sleep(0.05)
write_checkpoint(job, Path({out!r}), provenance={{}}, progress=slow)
"""


@pytest.mark.parametrize("steps", [1, 10])
def test_a_killed_export_leaves_nothing_that_loads(tmp_path: Path, steps: int) -> None:
    source, out = saved(tmp_path, "llama", shard_bytes=20_000), tmp_path / "out"
    code = KILLED.format(paths=[str(ROOT), str(ROOT / "tests")], source=str(source), out=str(out))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= steps:
                break
        process.send_signal(signal.SIGKILL)
    left = [p for p in tmp_path.iterdir() if p != source]
    assert left, "killed too late to show anything"
    assert not out.exists()
    for path in left:
        assert not (path / "config.json").exists()
        with pytest.raises((OSError, ValueError)):
            hf.AutoModelForCausalLM.from_pretrained(path)
    export_to(source, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_headers_alone_say_what_an_export_needs(tmp_path: Path) -> None:
    from refusal_lens.weights.estimate import estimate

    source = saved(tmp_path, "gemma", dtype=torch.bfloat16)
    job = prepare(source, orthogonalise(direction()))
    told = estimate(hf.AutoConfig.from_pretrained(source), dtype=torch.bfloat16)
    data = sum(t.bytes for t in open_checkpoint(source).tensors.values())
    assert (told.checkpoint, told.edited, told.largest_edited, told.held) == (
        data,
        job.edited_bytes,
        job.largest_edited,
        job.held_bytes,
    )
    assert told.added == sum(each.bytes for each in job.added)
