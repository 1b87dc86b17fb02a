"""Attribution adds up, agrees with plain PyTorch, and fails loudly where it cannot."""

from __future__ import annotations

from dataclasses import replace

import kit
import pytest
import torch
from torch import Tensor

from refusal_lens.attribution import (
    Head,
    Regions,
    attribute,
    attribute_sources,
    head_effects,
    last_head_outputs,
    mean_head_outputs,
    random_head_sets,
    replaced_heads,
)
from refusal_lens.behaviours import FirstTokens
from refusal_lens.chat import Place, Rendered
from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.interventions import add, applied
from refusal_lens.metrics import first_token_log_odds
from refusal_lens.model import ChatModel, Site
from refusal_lens.model.norms import measure_norm
from refusal_lens.model.writers import attention_writer

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gemma3", "olmo2", "neox", "gpt2", "granite", "phi3")
LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
PROMPTS = ["Paint the door.", "Wake!", "How does one bake bread without an oven, please?", "Ok"]
LAST = kit.LAYERS - 1


def direction(layer: int = LAST) -> Direction:
    return kit.direction(layer, seed=3)


def rendered(architecture: str) -> Rendered:
    return kit.load(architecture).chat.render(PROMPTS)


def output_matrix(architecture: str, layer: int) -> Tensor:
    """The attention output matrix as the Hugging Face model holds it, [head * d_head, d_model]."""
    hf = kit.load(architecture).hf
    if architecture == "gpt2":
        return hf.transformer.h[layer].attn.c_proj.weight.detach()
    if architecture == "neox":
        return hf.gpt_neox.layers[layer].attention.dense.weight.detach().T
    return hf.model.layers[layer].self_attn.o_proj.weight.detach().T


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *LATENT])
def test_contributions_add_up_to_the_projection(architecture: str) -> None:
    model, r = kit.load(architecture), direction()
    batch, places = rendered(architecture), ("last", "post[-2]", "t_inst", "instruction.mean")
    found = attribute(model, batch, r, places=places, batch_size=3)
    along = model.read(batch, [Site("resid_pre", LAST)])[Site("resid_pre", LAST)].double() @ r.unit
    rows = torch.arange(len(batch))
    columns = (torch.tensor(-1), batch.post[:, 1] - 2, batch.t_inst)
    whole = batch.instruction_mask.double()
    mean = (along * whole).sum(1) / whole.sum(1)
    expected = torch.stack([*(along[rows, column] for column in columns), mean], 1)
    torch.testing.assert_close(found.projection, expected, rtol=1e-5, atol=1e-6)
    assert found.error <= 1e-5 * float(expected.abs().max())
    assert found.relative_error <= 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_output_weights_are_those_of_the_plain_model(architecture: str) -> None:
    for layer in range(kit.LAYERS):
        mine = attention_writer(kit.load(architecture), layer).W_O
        assert torch.equal(mine.reshape(-1, kit.WIDTH), output_matrix(architecture, layer))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "neox", "gpt2", *LATENT])
def test_a_head_writes_what_its_slice_of_the_output_matrix_says(architecture: str) -> None:
    model, r = kit.load(architecture), direction()
    z = model.read(rendered(architecture), [Site("z", 1)])[Site("z", 1)]
    matrix = output_matrix(architecture, 1).reshape(kit.HEADS, -1, kit.WIDTH).double()
    by_head = z[:, -1].reshape(len(z), kit.HEADS, -1).double()
    written = torch.einsum("bhd,hdm->bhm", by_head, matrix) @ r.unit
    found = attribute(model, rendered(architecture), r).heads[:, 0, 1]
    torch.testing.assert_close(found, written, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "olmo2", "granite", "deepseek_v3"])
def test_removing_a_head_of_the_last_layer_removes_its_contribution(architecture: str) -> None:
    """A head just below l* acts on resid_pre[l*] only directly, up to what the norms rescale."""
    model, r, head = kit.load(architecture), direction(layer=1), Head(0, 2)
    gone = head_effects(
        model, rendered(architecture), r, heads=[head], values=None, behaviour=FirstTokens((5,)), edit="zero"
    )
    by_set = {name: rows["projection"].to_numpy() for name, rows in gone.groupby("heads")}
    drop = torch.from_numpy(by_set["none"] - by_set["top"])
    with replaced_heads(model, [head]):
        without = attribute(model, rendered(architecture), r)
    within = attribute(model, rendered(architecture), r)
    assert float(without.heads[:, 0, 0, 2].abs().max()) == 0
    torch.testing.assert_close(within.projection[:, 0] - without.projection[:, 0], drop)
    if architecture == "granite":
        return
    rescaled = (within.total - without.total)[:, 0]
    torch.testing.assert_close(rescaled, drop, rtol=1e-4, atol=1e-5)


def test_one_prompt_alone_gives_the_same_as_in_a_padded_batch() -> None:
    model, r = kit.load("qwen2"), direction()
    together = attribute(model, PROMPTS, r)
    alone = torch.cat([attribute(model, [prompt], r).heads for prompt in PROMPTS])
    torch.testing.assert_close(together.heads, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *LATENT])
def test_sources_add_up_to_their_head(architecture: str) -> None:
    model, r = kit.load(architecture), direction()
    heads = [Head(0, 1), Head(1, 3), Head(LAST, 0)]
    found = attribute_sources(model, rendered(architecture), r, heads=heads, batch_size=3)
    assert found.error <= 1e-5 * float(found.dfa.abs().max())
    assert found.past_target == (False, False, True)
    torch.testing.assert_close(
        found.dfa[:, :2], attribute(model, rendered(architecture), r).of(heads[:2])
    )
    torch.testing.assert_close(found.contribution_by_region().sum(-1), found.dfa, atol=1e-6, rtol=0)
    assert float((found.attention_by_region().sum(-1) - 1).abs().max()) < 1e-5


@pytest.mark.tl3
def test_a_hooked_transformer_gives_the_numbers_of_the_bridge() -> None:
    bridge, r = kit.load("qwen2"), direction()
    wrapped = ChatModel.wrap(kit.hooked_qwen2(), chat=bridge.chat)
    heads = [Head(0, 1), Head(1, 3)]
    for ask in (
        lambda m: attribute(m, PROMPTS, r).heads,
        lambda m: attribute(m, PROMPTS, r).total,
        lambda m: attribute_sources(m, PROMPTS, r, heads=heads).contribution,
    ):
        torch.testing.assert_close(ask(wrapped), ask(bridge), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_half_precision_adds_up_to_its_own_rounding(architecture: str) -> None:
    model = ChatModel.load(str(kit.folder(architecture)), device="cpu", dtype="bfloat16")
    found = attribute(model, PROMPTS, direction())
    assert found.relative_error < 0.05
    sources = attribute_sources(model, PROMPTS, direction(), heads=[Head(0, 1)])
    assert sources.error <= 0.05 * float(found.projection.abs().max())
    exact = attribute(kit.load(architecture), PROMPTS, direction())
    torch.testing.assert_close(found.heads, exact.heads, rtol=0.1, atol=0.05)


def test_regions_partition_every_row() -> None:
    batch = rendered("qwen2")
    suffix = torch.stack([batch.instruction[:, 1] - 2, batch.instruction[:, 1]], 1)
    regions = Regions.of(batch, suffix=suffix)
    assert torch.equal(regions.index == -1, batch.mask == 0)
    assert torch.equal(regions["suffix"].sum(1), torch.full((len(PROMPTS),), 2))
    assert torch.equal(regions["BOS"].sum(1), torch.ones(len(PROMPTS), dtype=torch.long))
    length = batch.instruction[:, 1] - batch.instruction[:, 0]
    assert torch.equal(regions["instruction"].sum(1), (length - 2).clamp_min(0))
    with pytest.raises(InputError, match="need them inside"):
        Regions.of(batch, suffix=suffix - 40)


def test_top_heads_are_those_with_the_highest_mean() -> None:
    found = attribute(kit.load("llama"), PROMPTS, direction())
    mean = found.heads[:, 0].mean(0)
    best = found.top_heads(3)
    assert [mean[h.layer, h.head] for h in best] == sorted(mean.flatten(), reverse=True)[:3]
    assert all(head.layer < LAST for head in found.top_heads(2 * kit.HEADS))
    with pytest.raises(InputError, match="need 1 to 8"):
        found.top_heads(2 * kit.HEADS + 1)
    with pytest.raises(InputError, match=r"place post\[-2\]: need one of last"):
        found.top_heads(3, place="post[-2]")


def test_frame_has_every_component_and_its_means_add_up() -> None:
    found = attribute(kit.load("gpt2"), PROMPTS, direction(), places=["last", "post[-2]"]).frame()
    last = found[found["place"] == "last"].set_index("component")["mean"]
    parts = last.drop(["total", "projection"]).sum()
    assert abs(parts - last["projection"]) < 1e-5
    assert abs(last["position embedding"]) > 1e-3
    assert len(found) == 2 * (LAST * (kit.HEADS + 2) + 4)


def test_layer_zero_is_all_embedding() -> None:
    found = attribute(kit.load("qwen2"), PROMPTS, direction(), layer=0)
    assert found.heads.shape == (len(PROMPTS), 1, 0, kit.HEADS)
    torch.testing.assert_close(found.token_embedding, found.projection)


@pytest.mark.parametrize("site", [Site("resid_pre", 1), Site("attn_out", 1), Site("resid_pre", 2)])
def test_another_writer_to_the_stream_is_an_error(site: Site) -> None:
    model = kit.load("qwen2")
    with (
        model.hooked([(site, lambda x: x + 1.0)]),
        pytest.raises(InputError, match="something else writes"),
    ):
        attribute(model, PROMPTS, direction())


def test_an_edited_mlp_output_is_simply_what_the_mlp_writes() -> None:
    model, r = kit.load("qwen2"), direction()
    with model.hooked([(Site("mlp_out", 0), lambda x: 0 * x)]):
        assert float(attribute(model, PROMPTS, r).mlps[:, 0, 0].abs().max()) == 0


def test_a_multiplier_is_found_in_the_pass_and_not_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = kit.load("granite")
    assert attention_writer(model, 1).multiplier == 0.5
    monkeypatch.setattr(model.hf.config, "residual_multiplier", 1.0)
    assert attribute(model, PROMPTS, direction()).relative_error < 1e-5


def test_attention_that_is_not_pattern_times_values_is_an_error() -> None:
    model = kit.load("qwen2")
    with (
        model.hooked([(Site("z", 0), lambda z: 2 * z)]),
        pytest.raises(InputError, match="not pattern times values"),
    ):
        attribute_sources(model, PROMPTS, direction(), heads=[Head(0, 0)])


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"layer": 9}, "got 9, need 0 to 2"),
        ({"layer": -1}, "got -1, need 0 to 2"),
        ({"places": ["first"]}, "place: got 'first'"),
        ({"places": ["post[-99]"]}, r"place post\[-99\] at prompt 0: got \d+ tokens"),
        ({"places": ["reply.mean"]}, "try prompts with replies"),
        ({"places": []}, "places: got none"),
    ],
)
def test_bad_places_get_a_line(given: dict, line: str) -> None:
    with pytest.raises(InputError, match=line):
        attribute(kit.load("qwen2"), PROMPTS, direction(), **given)


def test_bad_directions_and_heads_get_a_line() -> None:
    model = kit.load("qwen2")
    with pytest.raises(InputError, match="d_model 16"):
        attribute(model, PROMPTS, Direction(torch.ones(16), 1, Place.post(-1)))
    with pytest.raises(InputError, match="got weights 0000"):
        attribute(model, PROMPTS, Direction(torch.ones(32), 1, Place.post(-1), weights_sha256="0" * 64))
    with pytest.raises(InputError, match="zero vector"):
        attribute(model, PROMPTS, Direction(torch.zeros(32), 1, Place.post(-1)))
    with pytest.raises(InputError, match=r"head 1\.7"):
        attribute_sources(model, PROMPTS, direction(), heads=[Head(1, 7)])
    with pytest.raises(InputError, match="got none"):
        attribute_sources(model, PROMPTS, direction(), heads=[])
    with pytest.raises(InputError, match=r"2\.1: at or past layer 2"):
        head_effects(
            model,
            PROMPTS,
            direction(),
            heads=[Head(2, 1)],
            values=None,
            behaviour=FirstTokens((5,)),
            edit="zero",
        )


def test_random_head_sets_keep_the_layers_and_leave_the_given_heads_out() -> None:
    heads, three = (Head(0, 0), Head(0, 1), Head(2, 3)), range(3)
    drawn = random_head_sets(heads, 8, layers=three, n_sets=6, seed=1)
    assert len({frozenset(d) for d in drawn}) == 6
    assert all(sorted(h.layer for h in d) == [0, 0, 2] for d in drawn)
    assert not set(heads) & {head for d in drawn for head in d}
    assert drawn == random_head_sets(heads, 8, layers=three, n_sets=6, seed=1)
    assert len(random_head_sets(heads, 4, layers=[0, 2], n_sets=6, seed=1)) == 3


def test_random_head_sets_take_from_other_layers_what_a_layer_lacks() -> None:
    most = tuple(Head(1, h) for h in range(3))
    drawn = random_head_sets(most, 4, layers=range(3), n_sets=5, seed=1)
    assert len({frozenset(d) for d in drawn}) == 5
    assert all(len(set(d)) == 3 and Head(1, 3) in d and not set(d) & set(most) for d in drawn)
    assert random_head_sets(most, 4, layers=[1], n_sets=5, seed=1) == ()


def test_patching_every_head_of_a_layer_moves_its_output() -> None:
    """Patching all heads of layer 0 with another prompt's equals plain surgery on the Hugging Face
    model: its output projection is fed the other prompt's head outputs at the last token."""
    model, r = kit.load("qwen2"), direction()
    one, other = ["Paint the door."], ["Wake up!"]
    given = last_head_outputs(model, other, layers=[0])
    effects = head_effects(
        model,
        one,
        r,
        heads=[Head(0, h) for h in range(kit.HEADS)],
        values=given,
        behaviour=FirstTokens((5, 6)),
        edit="patch",
    ).set_index("heads")

    def swap(_module: object, args: tuple[Tensor]) -> tuple[Tensor]:
        x = args[0].clone()
        x[:, -1] = given[0].flatten(1)
        return (x,)

    ids = model.chat.render(one).ids
    handle = model.hf.model.layers[0].self_attn.o_proj.register_forward_pre_hook(swap)
    with torch.no_grad():
        logits = model.hf(input_ids=ids).logits[:, -1]
    handle.remove()
    assert effects.loc["top", "score"] == pytest.approx(float(first_token_log_odds(logits, [5, 6])[0]))
    assert effects.loc["none", "score"] != pytest.approx(effects.loc["top", "score"])


def test_patching_with_its_own_outputs_changes_nothing() -> None:
    model, heads = kit.load("gemma2"), [Head(0, 1), Head(1, 2)]
    own = last_head_outputs(model, PROMPTS, layers=[0, 1], batch_size=3)
    effects = head_effects(
        model,
        PROMPTS,
        direction(),
        heads=heads,
        values=own,
        behaviour=FirstTokens((5,)),
        edit="patch",
        n_random=2,
        batch_size=3,
    )
    spread = effects.groupby("prompt")[["projection", "score"]].agg(lambda x: x.max() - x.min())
    assert float(spread.to_numpy().max()) < 1e-5
    mean = mean_head_outputs(own, {0: own[0] * 0, 1: own[1] * 0})
    torch.testing.assert_close(mean[1][0], own[1].double().mean(0) / 2)


def test_an_edit_below_the_target_is_seen_by_attribution() -> None:
    """Added at resid_pre, r is a writer of its own, and the sum says so."""
    model, r = kit.load("qwen2"), direction(layer=1)
    with applied(model, add(r)), pytest.raises(InputError, match="an installed edit"):
        attribute(model, PROMPTS, r)


@pytest.mark.parametrize(
    "norm", [torch.nn.LayerNorm(9), torch.nn.LayerNorm(8), torch.nn.RMSNorm(8, eps=1e-6)]
)
def test_a_probed_norm_is_the_norm(norm: torch.nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    found = measure_norm(norm, norm.normalized_shape[0])
    x = torch.randn(5, norm.normalized_shape[0])
    y = norm(x).detach()
    assert found.centred == isinstance(norm, torch.nn.LayerNorm)
    scale = found.scale(x.double(), y.double())
    again = scale[:, None] * found.centre(x.double()) * found.gain + found.bias
    torch.testing.assert_close(again, y.double(), rtol=1e-4, atol=1e-5)
    u = torch.randn(norm.normalized_shape[0], dtype=torch.float64)
    inside = scale * (x.double() @ found.pull_back(u)) + found.bias @ u
    torch.testing.assert_close(inside, y.double() @ u, rtol=1e-4, atol=1e-5)


def test_as_many_tokens_as_heads_are_not_taken_for_each_other() -> None:
    """Latent attention holds values by head first; here the two axes have the same length."""
    model, r = kit.load("deepseek_v3"), direction()
    ids = torch.arange(40, 40 + kit.HEADS)[None]
    spans = torch.tensor([[0, kit.HEADS]])
    short = replace(rendered("deepseek_v3")[:1], ids=ids, mask=torch.ones_like(ids), instruction=spans)
    found = attribute_sources(model, short, r, heads=[Head(0, 1), Head(1, 3)])
    assert found.error <= 1e-5 * float(found.dfa.abs().max())


def test_head_outputs_of_latent_attention_are_kept_and_replaced_by_head() -> None:
    model, r = kit.load("deepseek_v3"), direction()
    prompts = rendered("deepseek_v3")[:1]
    kept = last_head_outputs(model, prompts, layers=[0, 1])
    assert kept[1].shape == (1, kit.HEADS, 6)
    plain = attribute(model, prompts, r).heads[:, 0, 1]
    with replaced_heads(model, [Head(1, 2)], {1: 2 * kept[1]}):
        doubled = attribute(model, prompts, r).heads[:, 0, 1]
    torch.testing.assert_close(doubled[:, 2], 2 * plain[:, 2], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(doubled[:, 1], plain[:, 1], rtol=1e-4, atol=1e-6)


def test_heads_that_the_output_matrix_does_not_divide_into_are_one_clear_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = kit.load("qwen2")
    monkeypatch.setattr(model, "n_heads", 3)
    with pytest.raises(InputError, match="cannot be split over 3 heads"):
        attribute(model, PROMPTS, direction())
    with pytest.raises(InputError, match="do not divide into 3 heads"):
        last_head_outputs(model, PROMPTS, layers=[0])
