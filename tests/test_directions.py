"""Directions and candidates as values: algebra, files, provenance; the one call."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import kit
import pytest
import torch
import transformers as hf

from refusal_lens.activations import mean_next_token_probabilities, mean_residuals
from refusal_lens.behaviours import FirstTokens
from refusal_lens.behaviours.tokens import top_tokens
from refusal_lens.chat import Place
from refusal_lens.direction import Direction
from refusal_lens.directions import Candidates
from refusal_lens.directions.finding import filter_by_behaviour
from refusal_lens.errors import InputError
from refusal_lens.interventions import ablate, applied
from refusal_lens.model import ChatModel
from refusal_lens.model.fingerprint import weights_sha256
from refusal_lens.prompts import PromptPair

VECTOR = torch.tensor([3.0, 0.0, 4.0, 0.0])
HARMFUL = ["Wake the dragon now", "wake it", "Do wake this dragon", "Now, wake the dragon!"]
HARMLESS = ["Paint the door", "paint it red", "Please paint a bridge", "Do paint this door"]


def direction() -> Direction:
    return Direction(VECTOR, layer=1, place=Place.post(-2), position_name="\n", model="m", data_sha256="d")


def test_direction_algebra_keeps_provenance() -> None:
    d = direction()
    assert d.norm == 5
    assert torch.allclose(d.unit, VECTOR.double() / 5)
    assert (-d).cosine(d) == pytest.approx(-1)
    assert torch.equal((2 * d).vector, (d * 2).vector)
    assert (2 * d / 2) == d
    assert (d + d - d) == d
    assert (-d).provenance | {"norm": 5} == d.provenance
    assert d.vector.dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 2}, "got one of layer 2 .* need layer 1"),
        ({"site": "mlp_out"}, r"got one of layer 1 \(mlp_out\), need"),
        ({"vector": torch.ones(5)}, r"got \[5\], need \[4\]"),
    ],
)
def test_directions_of_different_layers_or_widths_do_not_add_up(change: dict, message: str) -> None:
    for combine in (operator.add, operator.sub):
        with pytest.raises(InputError, match=message):
            combine(direction(), replace(direction(), **change))


def test_direction_does_not_share_memory_with_its_source() -> None:
    source = VECTOR.clone()
    d = Direction(source, layer=0, place=Place.post(-1))
    source.zero_()
    assert d.norm == 5


def test_direction_file_round_trips_bit_for_bit(tmp_path: Path) -> None:
    d = replace(direction(), vector=torch.randn(7, dtype=torch.float64), more={"seed": 3})
    assert Direction.load(d.save(tmp_path / "d.safetensors")) == d


def test_direction_file_of_another_model_is_refused(tmp_path: Path) -> None:
    here = Direction(
        torch.ones(kit.WIDTH),
        layer=1,
        place=Place.post(-1),
        model=kit.load("qwen2").name,
        weights_sha256=kit.load("qwen2").weights_sha256,
        template_sha256=kit.load("qwen2").chat.template_sha256,
    )
    path = here.save(tmp_path / "d.safetensors")
    assert Direction.load(path, kit.load("qwen2")) == here
    for change, message in (
        ({"vector": torch.ones(5)}, "d_model"),
        ({"layer": 9}, "3 layers"),
        ({"weights_sha256": "0" * 64}, "got weights 00000000, but"),
        ({"template_sha256": "0" * 64}, "another chat template"),
    ):
        path = replace(here, **change).save(tmp_path / "other.safetensors")
        with pytest.raises(InputError, match=message):
            Direction.load(path, kit.load("qwen2"))


def found_on(model: ChatModel) -> Direction:
    """A direction as `find_direction` notes it."""
    return Direction(
        torch.ones(kit.WIDTH),
        layer=1,
        place=Place.post(-1),
        model=model.name,
        weights_sha256=model.weights_sha256,
        template_sha256=model.chat.template_sha256,
    )


def saved(path: Path, change: Callable[[hf.PreTrainedModel], object] = lambda _: None) -> ChatModel:
    """The tiny model after a change, as a folder of its own that is loaded again."""
    plain = kit.plain(kit.folder("qwen2"))
    change(plain)
    return ChatModel.load(str(kit.save(plain, path)), device="cpu")


def tune(plain: hf.PreTrainedModel) -> None:
    plain.get_parameter("model.layers.2.mlp.down_proj.weight").data.mul_(1.01)


def test_a_model_is_known_by_its_weights_and_not_by_its_name(tmp_path: Path) -> None:
    d, name = found_on(kit.load("qwen2")), Path(kit.load("qwen2").name).name
    d.check_belongs_to(saved(tmp_path / "renamed"))
    tuned = saved(tmp_path / name, tune)
    assert Path(tuned.name).name == name
    with pytest.raises(InputError, match=r"got weights .*, but .*try direction\.transferred\(model\)") as failed:
        d.check_belongs_to(tuned)
    assert "\n" not in str(failed.value)
    with pytest.raises(InputError, match="got weights"), applied(tuned, ablate(d)):
        pass


def test_a_direction_is_taken_over_to_another_model_when_asked(tmp_path: Path) -> None:
    d, tuned = found_on(kit.load("qwen2")), saved(tmp_path / "tuned", tune)
    path = d.save(tmp_path / "d.safetensors")
    moved = Direction.load(path, tuned, transfer=True)
    assert moved == d.transferred(tuned)
    assert torch.equal(moved.vector, d.vector)
    assert moved.more["transferred_from"]["weights_sha256"] == kit.load("qwen2").weights_sha256
    moved.check_belongs_to(tuned)
    with applied(tuned, ablate(moved)):
        pass
    with pytest.raises(InputError, match="got weights"):
        moved.check_belongs_to(kit.load("qwen2"))
    with pytest.raises(InputError, match="need the one to take it over to"):
        Direction.load(path, transfer=True)
    with pytest.raises(InputError, match="d_model 4"):
        direction().transferred(tuned)


def test_a_file_of_before_weights_were_noted_is_taken_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = replace(found_on(kit.load("qwen2")), model="other/model", weights_sha256="").save(tmp_path / "d.safetensors")
    Direction.load(path, kit.load("qwen2"))
    assert "could not be checked" in caplog.text


@pytest.mark.parametrize("architecture", ["qwen2", "phi3", "gpt2"])
def test_weights_are_the_same_behind_a_bridge_and_in_bfloat16(architecture: str) -> None:
    """A bridge renames parameters and adds split copies of fused ones."""
    where = kit.folder(architecture)
    plain, coarse = kit.plain(where), kit.plain(where, torch.bfloat16)
    wrapped = ChatModel.wrap(kit.plain(where), tokenizer=kit.byte_tokenizer())
    known = {weights_sha256(plain), weights_sha256(coarse), wrapped.weights_sha256}
    assert known == {kit.load(architecture).weights_sha256}


def test_damaged_and_foreign_direction_files_get_one_line(tmp_path: Path) -> None:
    (tmp_path / "noise").write_bytes(b"not a safetensors file at all")
    with pytest.raises(InputError, match="cannot be read"):
        Direction.load(tmp_path / "noise")
    with pytest.raises(InputError, match="no such file"):
        Direction.load(tmp_path / "missing")
    from safetensors.torch import save_file

    save_file({"direction": torch.ones(3)}, str(tmp_path / "foreign"))
    with pytest.raises(InputError, match="no direction with provenance"):
        Direction.load(tmp_path / "foreign")


def test_candidates_are_differences_of_means_and_round_trip(tmp_path: Path) -> None:
    means = [mean_residuals(kit.load("qwen2"), prompts) for prompts in (HARMFUL, HARMLESS)]
    found = Candidates.from_means(*means, model="m", template_sha256="t")
    assert torch.equal(found.mean_diffs, means[0].mean - means[1].mean)
    assert found.mean_diffs.dtype == torch.float64
    again = Candidates.load(found.save(tmp_path / "c.safetensors"))
    assert torch.equal(again.mean_diffs, found.mean_diffs)
    assert again.names == found.names == kit.load("qwen2").chat.positions
    chosen = again.direction("post[-1]", 2)
    assert torch.equal(chosen.vector, found.mean_diffs[-1, 2])
    assert (chosen.position_name, chosen.model) == (found.names[-1], "m")
    with pytest.raises(InputError, match="need a place of"):
        again.direction("post[0]", 2)


def test_layer_zero_candidates_are_rounding_noise() -> None:
    means = [mean_residuals(kit.load("qwen2"), prompts) for prompts in (HARMFUL, HARMLESS[:3])]
    found = Candidates.from_means(*means)
    assert found.mean_diffs[:, 0].abs().max() < 1e-8
    assert found.mean_diffs[:, 1].norm(dim=-1).min() > 1e-4


def test_top_tokens_are_in_order() -> None:
    top = top_tokens(kit.load("qwen2"), mean_next_token_probabilities(kit.load("qwen2"), HARMFUL), k=5)
    assert list(top["probability"]) == sorted(top["probability"], reverse=True)
    assert len(top) == 5


def test_filter_that_leaves_too_few_says_so() -> None:
    token = int(mean_next_token_probabilities(kit.load("qwen2"), HARMFUL).argmin())
    with pytest.raises(InputError, match=r"val prompts: only 0 of 4 positive"):
        filter_by_behaviour(
            kit.load("qwen2"), PromptPair(tuple(HARMFUL), tuple(HARMLESS)), behaviour=FirstTokens((token,))
        ).require_enough("val")
