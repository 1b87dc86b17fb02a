"""Hooks reach every write to the residual stream: what `applied` does equals edited weights."""

from __future__ import annotations

import logging
from functools import cache

import kit
import pytest
import torch
from architectures import WIDTH, by_id, folder
from kit import CLOSE, gap
from torch import Tensor

from refusal_lens.chat import Place
from refusal_lens.direction import Direction, unit
from refusal_lens.errors import InputError
from refusal_lens.interventions import Ablate, Edit, NormMatchedMove, ablate, add, applied
from refusal_lens.model import ChatModel, Site
from refusal_lens.model.hooks import on_every_write
from refusal_lens.model.plain import PlainModel
from refusal_lens.weights import edited, orthogonalise, writers_of

HYBRIDS = ("jamba", "bamba", "falcon_h1", "lfm2", "lfm2_moe", "zamba2", "recurrent_gemma")
UNUSUAL = (*HYBRIDS, "gemma4_text", "mamba2", "bloom", "nanochat", "granite", "opt")
GENERATOR = torch.Generator().manual_seed(1)
DIRECTION = Direction(3 * torch.randn(WIDTH, generator=GENERATOR).double(), layer=1, place=Place.post(-1))
OTHER = torch.randn(WIDTH, generator=GENERATOR).double()
IDS = torch.randint(3, 250, (3, 9), generator=GENERATOR)


@cache
def load(name: str) -> ChatModel:
    return ChatModel.load(str(folder(name)), device="cpu")


@torch.no_grad()
def logits(model: ChatModel) -> Tensor:
    return model.run(IDS, torch.ones_like(IDS), all_positions=True)


@pytest.mark.parametrize(
    ("name", "strength"),
    # The others are ablated whole in test_equivalence.py.
    [*((name, 0.5) for name in UNUSUAL), ("lfm2_moe", 1.0), ("gemma4_text", 1.0)],
)
def test_ablation_by_hooks_equals_edited_weights(name: str, strength: float) -> None:
    model = load(name)
    plain = logits(model)
    with edited(model, orthogonalise(DIRECTION, strength=strength), post_norm="hook"):
        wanted = logits(model)
    with applied(model, ablate(DIRECTION, strength=strength)):
        assert gap(logits(model), wanted) < CLOSE
    assert model.missed_writes == ()
    assert gap(plain, wanted) > 10 * CLOSE
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", HYBRIDS)
def test_an_edit_without_a_module_output_misses_a_write(name: str) -> None:
    """The sites that TransformerLens has are not enough here, so the test above can fail."""
    model = load(name)
    own = [site for site in model.writes() if site.kind != "output"]
    with edited(model, orthogonalise(DIRECTION)):
        wanted = logits(model)
    with applied(model, ablate(DIRECTION), at=own):
        assert gap(logits(model), wanted) > 10 * CLOSE


def test_a_move_of_every_write_is_made_once() -> None:
    """Moving each write by its own share of r adds up to moving their sum, the stream, by its share."""
    model, edit = load("falcon_h1"), NormMatchedMove(DIRECTION.vector, OTHER)
    r_hat, u_hat = (unit(vector).float() for vector in (edit.vector, edit.other))
    before: list[Tensor] = []
    after: list[Tensor] = []

    def edit_and_note(x: Tensor) -> Tensor:
        before.append(x)
        after.append(edit(x))
        return after[-1]

    with model.hooked([(site, edit_and_note) for site in model.writes(once=True)]):
        logits(model)
    assert len(before) == len(model.writes(once=True))
    written = torch.stack(before).sum(0)
    moved = torch.stack(after).sum(0) - written
    assert torch.allclose(moved, -(written @ r_hat)[..., None] * u_hat, atol=1e-3)


def test_replies_rows_and_parts_of_a_conversation_are_edited_at_module_outputs_too() -> None:
    model = load("lfm2_moe")
    rendered = model.chat.render(["hello", "a longer question?"])
    with edited(model, orthogonalise(DIRECTION)):
        wanted = model.generate(rendered, max_new_tokens=6)
    with applied(model, ablate(DIRECTION)):
        assert model.generate(rendered, max_new_tokens=6) == wanted
        assert model.generate(rendered, max_new_tokens=6, use_cache=False) == wanted
    rows = torch.stack([DIRECTION.vector, OTHER])[:, None]
    with applied(model, Ablate(rows)):
        both = model.logits(rendered)
    for row, vector in enumerate((DIRECTION.vector, OTHER)):
        with applied(model, Ablate(vector)):
            assert gap(model.logits(rendered)[row], both[row]) < CLOSE
    with applied(model, ablate(DIRECTION), when="reply"):
        assert gap(model.logits(rendered), load("lfm2_moe").logits(rendered)) == 0


def test_plain_passes_edit_the_same_writes() -> None:
    model = load("gemma4_text")
    edit = ablate(DIRECTION)
    with applied(model, edit):
        wanted = model.run(IDS, torch.ones_like(IDS))[:, -1]
    plain = PlainModel(model)
    with torch.no_grad(), plain.opened(), plain.editing(edit, every_block=True):
        assert gap(plain.last_logits(IDS)[:, -1], wanted) < CLOSE


def test_what_is_installed_does_not_disturb_the_look_at_the_stream() -> None:
    """An edit of the reply only needs to know where that starts, which a pass on a few tokens does not."""
    model = ChatModel.load(str(folder("falcon_h1")), device="cpu")
    with applied(model, add(DIRECTION), when="reply"), applied(model, ablate(DIRECTION)):
        model.logits(model.chat.render(["hello"]))
    assert model.missed_writes == ()
    assert len(model.writes()) == len(load("falcon_h1").writes())


def test_a_write_without_a_site_of_its_own_is_hooked_where_it_is_made() -> None:
    model = ChatModel.load(str(kit.folder("qwen2")), device="cpu")
    del model._points[Site("attn_out", 1).hook_name]
    assert [s.layer for s in model.writes() if s.kind == "output"] == [1]
    for strength in (1.0, 0.5):
        with edited(model, orthogonalise(DIRECTION, strength=strength)):
            wanted = logits(model)
        with applied(model, ablate(DIRECTION, strength=strength)):
            assert gap(logits(model), wanted) < CLOSE


def test_usual_models_keep_their_usual_sites() -> None:
    model = ChatModel.load(str(kit.folder("llama")), device="cpu")
    kinds = ("resid_pre", "attn_out", "mlp_out")
    usual = [Site(kind, layer) for layer in range(kit.LAYERS) for kind in kinds]
    assert model.writes() == (*usual, Site("resid_post", kit.LAYERS - 1))
    assert model.writes(once=True) == (usual[0], *(s for s in usual if s.kind != "resid_pre"))


def test_what_cannot_be_followed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    assert by_id("rwkv").exactness == "not editable"
    model = ChatModel.load(str(folder("rwkv")), device="cpu")
    with caplog.at_level(logging.WARNING), applied(model, ablate(DIRECTION)):
        pass
    assert "may leave writes to the residual stream unedited" in caplog.text
    assert "_original_component" not in caplog.text
    assert model.missed_writes
    with (
        pytest.raises(InputError, match="only a full ablation"),
        applied(model, ablate(DIRECTION, strength=0.5)),
    ):
        pass


def test_the_map_of_a_bridged_model_is_that_of_the_plain_one() -> None:
    """Marks, wrappers and their hook points change neither writers nor the order they come in."""
    for name in ("bloom", "falcon_h1"):
        bridged = writers_of(load(name).hf)
        assert not any(writer.apart for writer in bridged.writers)
        assert not any("hook_" in writer.site for writer in bridged.writers)


@pytest.mark.parametrize("name", ["falcon_h1", "gemma4_text", "llama"])
@pytest.mark.parametrize("edit", [ablate(DIRECTION), ablate(DIRECTION, strength=0.5), add(DIRECTION)])
def test_a_loss_is_followed_back_through_edits(name: str, edit: Edit) -> None:
    """The gradient of an embedding row is what a small step along it changes, in both backends."""
    model = load(name)
    table = model.hf.get_input_embeddings().weight

    def loss() -> Tensor:
        return model.run(IDS, torch.ones_like(IDS))[:, -1].log_softmax(-1)[:, 5].sum()

    step = torch.zeros_like(table)
    step[IDS[0, -1]] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    with applied(model, edit):
        (gradient,) = torch.autograd.grad(loss(), table)
        with torch.no_grad():
            table += 1e-2 * step
            more = float(loss())
            table -= 2e-2 * step
            less = float(loss())
            table += 1e-2 * step
    assert float((gradient * step).sum()) == pytest.approx((more - less) / 2e-2, rel=0.05, abs=2e-3)


def test_a_loss_is_followed_back_to_the_direction_itself() -> None:
    model, vector = load("llama"), DIRECTION.vector.clone().requires_grad_()
    with applied(model, Ablate(vector)):
        bridged = torch.autograd.grad(model.run(IDS, torch.ones_like(IDS))[:, -1, 5].sum(), vector)
    with on_every_write(model.hf, writers_of(model.hf), Ablate(vector)):
        plain = torch.autograd.grad(model.run(IDS, torch.ones_like(IDS))[:, -1, 5].sum(), vector)
    assert float(bridged[0].abs().max()) > 1e-3
    assert torch.allclose(bridged[0], plain[0], atol=1e-4)
