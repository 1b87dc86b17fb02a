"""A direction in other tools' formats: read back, and applied as those tools apply it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from architectures import folder
from kit import direction, plain
from torch import Tensor, nn

from refusal_lens.chat import Place
from refusal_lens.direction import Direction
from refusal_lens.directions import Candidates
from refusal_lens.errors import InputError
from refusal_lens.interop.vectors import (
    read_gguf,
    read_reference,
    write_gguf,
    write_reference,
    write_steered,
)
from refusal_lens.weights import (
    add_bias,
    orthogonalise,
    writers_of,
)
from refusal_lens.weights.measure import hooked, logits_of, random_ids


class TestGguf:
    def test_it_reads_back_what_was_written(self, tmp_path: Path) -> None:
        gguf = pytest.importorskip("gguf")
        path = tmp_path / "v.gguf"
        write_gguf(path, add_bias(direction()), architecture="qwen2", provenance={"model": "m"})
        layer, vector = read_gguf(path)
        assert layer == 2
        assert torch.equal(vector, direction().vector.float())
        fields = gguf.GGUFReader(str(path)).fields
        text = {name: field.contents() for name, field in fields.items()}
        assert text["general.architecture"] == "controlvector"
        assert text["controlvector.model_hint"] == "qwen2"
        assert json.loads(text["refusal_lens.provenance"]) == {"model": "m"}

    def test_a_subtraction_is_the_negative(self, tmp_path: Path) -> None:
        pytest.importorskip("gguf")
        path = tmp_path / "v.gguf"
        write_gguf(path, add_bias(direction(), strength=-2), architecture="x", provenance={})
        assert torch.equal(read_gguf(path)[1], (-2 * direction().vector).float())

    def test_it_acts_where_llama_cpp_adds(self, tmp_path: Path) -> None:
        """llama.cpp adds ``direction.K`` to the output of block K, 0-based."""
        gguf = pytest.importorskip("gguf")
        path = tmp_path / "v.gguf"
        write_gguf(path, add_bias(direction()), architecture="llama", provenance={})
        (tensor,) = gguf.GGUFReader(str(path)).tensors
        block = int(tensor.name.removeprefix("direction."))
        model, vector = plain(folder("llama")), torch.tensor(tensor.data.copy())
        ids = random_ids(250)
        with hooked(model, writers_of(model), add_bias(direction())):
            wanted = logits_of(model, ids)
        handle = model.model.layers[block].register_forward_hook(lambda _m, _a, out: out + vector)
        assert torch.allclose(logits_of(model, ids), wanted, atol=1e-5)
        handle.remove()

    @pytest.mark.parametrize("layer", [0, 1])
    def test_what_llama_cpp_has_no_place_for_is_refused(self, tmp_path: Path, layer: int) -> None:
        pytest.importorskip("gguf")
        with pytest.raises(InputError, match="2 or more"):
            write_gguf(
                tmp_path / "v.gguf", add_bias(direction(layer)), architecture="x", provenance={}
            )
        with pytest.raises(InputError, match="only adds"):
            write_gguf(
                tmp_path / "v.gguf", orthogonalise(direction()), architecture="x", provenance={}
            )
        assert not list(tmp_path.iterdir())


def add(x: Tensor, *, vector: Tensor) -> Tensor:
    return x + vector


def clamp(x: Tensor, *, unit: Tensor, value: float) -> Tensor:
    return x + unit * (value - (x * unit).sum(-1, keepdim=True))


@contextmanager
def steered_as_lm_eval_does(model: nn.Module, path: Path) -> Iterator[None]:
    """Hooks named as modules of ``model.base_model``; every key must be one (lm-eval 0.4.13)."""
    entries = torch.load(path, weights_only=True)
    modules = dict(model.base_model.named_modules())
    assert set(entries) <= set(modules)
    with ExitStack() as handles:
        for name, entry in entries.items():
            assert set(entry) == {"steering_vector", "steering_coefficient", "action", "bias"}
            vector, coefficient = entry["steering_vector"], float(entry["steering_coefficient"])
            act = partial(add, vector=vector * coefficient)
            if entry["action"] == "clamp":
                act = partial(clamp, unit=vector / vector.norm(), value=coefficient)

            def hook(
                _module: nn.Module, _args: tuple, output: object, act: partial = act
            ) -> object:
                return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)

            handles.callback(modules[name].register_forward_hook(hook).remove)
        yield


class TestSteered:
    @pytest.mark.parametrize(
        "name",
        [
            "llama",
            "gpt2",
            "gemma2",
            "gpt_neox",
            "mixtral",
            "bloom",
            "gpt_oss",
            "mamba",
            "opt-projected",
        ],
    )
    def test_it_equals_the_hooks_in_lm_evals_hands(self, tmp_path: Path, name: str) -> None:
        model, ids = plain(folder(name)), random_ids(250)
        writers = writers_of(model)
        for edit in (
            orthogonalise(direction()),
            add_bias(direction()),
            add_bias(direction(1), strength=-1.5),
        ):
            path = tmp_path / f"{edit.name}.pt"
            write_steered(
                path, edit, writers, base=model.base_model_prefix, provenance={"model": name}
            )
            with hooked(model, writers, edit):
                wanted = logits_of(model, ids)
            with steered_as_lm_eval_does(model, path):
                assert torch.allclose(logits_of(model, ids), wanted, atol=1e-4)
            assert json.loads(path.with_suffix(".json").read_text()) == {"model": name}

    @pytest.mark.parametrize("name", ["llama", "bloom"])
    def test_layer_0_is_behind_the_embedding(self, tmp_path: Path, name: str) -> None:
        model, ids = plain(folder(name)), random_ids(250)
        edit, writers = add_bias(direction(0)), writers_of(model)
        write_steered(tmp_path / "s.pt", edit, writers, base=model.base_model_prefix, provenance={})
        with hooked(model, writers, edit):
            wanted = logits_of(model, ids)
        with steered_as_lm_eval_does(model, tmp_path / "s.pt"):
            assert torch.allclose(logits_of(model, ids), wanted, atol=1e-5)

    def test_what_it_cannot_say_is_refused(self, tmp_path: Path) -> None:
        writers = writers_of(plain(folder("gemma")))
        with pytest.raises(InputError, match="rescaled"):
            write_steered(
                tmp_path / "s.pt", add_bias(direction(0)), writers, base="model", provenance={}
            )
        with pytest.raises(InputError, match="strength 1"):
            edit = orthogonalise(direction(), strength=0.5)
            write_steered(tmp_path / "s.pt", edit, writers, base="model", provenance={})


class TestReference:
    @pytest.fixture
    def candidates(self) -> Candidates:
        means = [torch.randn(5, 3, 32, dtype=torch.float64) for _ in range(2)]
        return Candidates(means[0], means[1], Place.posts(5), ("a", "b", "c", "d", "e"))

    def test_it_reads_back_identically(self, tmp_path: Path, candidates: Candidates) -> None:
        chosen = candidates.direction("post[-2]", 1)
        out = write_reference(tmp_path / "ref", chosen, candidates, provenance={"model": "m"})
        vector, means, position, layer = read_reference(out)
        assert torch.equal(vector, chosen.vector)
        assert torch.equal(means, candidates.mean_diffs)
        assert torch.equal(vector, means[position, layer])
        assert (position, layer) == (-2, 1)
        assert json.loads((out / "refusal_lens.json").read_text()) == {"model": "m"}

    def test_the_files_are_the_reference_implementations(
        self, tmp_path: Path, candidates: Candidates
    ) -> None:
        chosen = candidates.direction("post[-1]", 2)
        out = write_reference(tmp_path / "ref", chosen, candidates, provenance={})
        names = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
        assert names == {
            "direction.pt",
            "direction_metadata.json",
            "generate_directions/mean_diffs.pt",
            "refusal_lens.json",
        }
        assert json.loads((out / "direction_metadata.json").read_text()) == {"pos": -1, "layer": 2}
        raw = torch.load(out / "direction.pt", weights_only=True)
        assert (raw.dtype, raw.shape) == (torch.float64, (32,))
        # Not a view that drags its whole storage into the file.
        assert (out / "direction.pt").stat().st_size < 4000

    def test_a_damaged_folder_is_one_line(self, tmp_path: Path, candidates: Candidates) -> None:
        out = write_reference(
            tmp_path / "ref", candidates.direction("post[-1]", 0), candidates, provenance={}
        )
        (out / "direction.pt").write_bytes(b"not a tensor")
        with pytest.raises(InputError, match="cannot be read"):
            read_reference(out)
        with pytest.raises(InputError, match="cannot be read"):
            read_reference(tmp_path / "nothing")
        assert isinstance(candidates.direction("post[-1]", 0), Direction)
