"""Edited weights equal hooks, on every architecture: in memory, in files and as a LoRA.

The reference here knows nothing of writers: it projects what every *reader* of the stream sees (the entry of
each block, what reads the stream within it, the end), so a writer that the map missed shows as a difference.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from architectures import (
    EXACT,
    GROUPED,
    LAYERS,
    PLAIN,
    POST_NORM,
    REFUSED,
    ROWS,
    UNTIED,
    VOCAB,
    WIDTH,
    Row,
    by_id,
    folder,
    make,
)
from kit import CLOSE, direction, gap, hooked_logits, logits, plain, tokens
from safetensors.torch import load_file, save_file
from torch import nn

from refusal_lens.errors import InputError
from refusal_lens.interop.adapter import write_adapter
from refusal_lens.interop.vectors import write_steered
from refusal_lens.interventions import ablate, applied
from refusal_lens.model import ChatModel
from refusal_lens.weights import (
    Writer,
    edited,
    equivalence,
    orthogonalise,
    prepare,
    write_checkpoint,
    writers_of,
)
from refusal_lens.weights.measure import hooked

ids_of = pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
@ids_of
def test_weights_in_memory_equal_hooks(row: Row) -> None:
    model, edit = plain(folder(row.id)), orthogonalise(direction())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    unedited, wanted = logits(model), hooked_logits(model, row)
    assert gap(unedited, wanted) > 10 * CLOSE * float(wanted.abs().max())
    writers = writers_of(model)
    assert writers.exactness == row.exactness
    assert not any(writer.apart for writer in writers.writers)
    with edited(model, edit, post_norm="hook", writers=writers):
        assert gap(logits(model), wanted) < CLOSE
    result = equivalence(model, edit, ids=tokens(), writers=writers)
    assert result.leak is None, result.line
    assert result.equal == (row.exactness != POST_NORM), result.line
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(logits(model), unedited)


@ids_of
def test_files_and_lora_equal_hooks(row: Row, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    original, edit = plain(folder(row.id)), orthogonalise(direction())
    wanted = hooked_logits(original, row)
    if row.exactness == POST_NORM:
        with edited(original, edit):
            wanted = logits(original)
    job = prepare(folder(row.id), edit)
    write_checkpoint(job, tmp_path / "out", provenance={})
    assert gap(logits(plain(tmp_path / "out")), wanted) < CLOSE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if row.lora:
            with pytest.raises(InputError, match=row.lora):
                write_adapter(job, tmp_path / "lora", provenance={})
            return
        write_adapter(job, tmp_path / "lora", provenance={})
        adapted = peft.PeftModel.from_pretrained(original, tmp_path / "lora").eval()
    assert gap(logits(adapted), wanted) < CLOSE


def one_of_each_role(model: nn.Module, writers: Sequence[Writer]) -> list[Writer]:
    """The writer of each role that has most along r, so that leaving it out can be seen."""
    r = direction().vector.float()

    def along(writer: Writer) -> float:
        values = model.get_parameter(writer.parameter).detach().movedim(writer.axis, -1)
        return float((values @ r).abs().max())

    best: dict[str, Writer] = {}
    for writer in sorted(writers, key=along):
        best[writer.role] = writer
    return list(best.values())


@ids_of
def test_a_skipped_writer_makes_the_row_fail(row: Row) -> None:
    model, edit = plain(folder(row.id)), orthogonalise(direction())
    wanted = hooked_logits(model, row)
    writers = writers_of(model)
    for skipped in one_of_each_role(model, writers.writers):
        rest = replace(writers, writers=tuple(w for w in writers.writers if w is not skipped))
        hook = "hook" if not any(w.site == skipped.site for w in rest.writers) else "fold"
        with edited(model, edit, writers=rest, post_norm=hook):
            assert gap(logits(model), wanted) > CLOSE, skipped.parameter
        assert equivalence(model, edit, ids=tokens(), writers=rest).leak is not None, skipped.parameter


@pytest.mark.parametrize("row", [r for r in ROWS if r.exactness == POST_NORM], ids=lambda r: r.id)
def test_a_share_is_taken_once_of_what_a_norm_rescales(row: Row) -> None:
    model, edit = plain(folder(row.id)), orthogonalise(direction(), strength=0.5)
    with hooked(model, writers_of(model), edit):
        wanted = logits(model)
    with edited(model, edit, post_norm="hook"):
        assert gap(logits(model), wanted) < CLOSE
    assert gap(logits(model), wanted) > 10 * CLOSE


BRIDGED = [row for row in ROWS if row.bridge]


@pytest.mark.parametrize("row", BRIDGED, ids=[row.id for row in BRIDGED])
def test_this_packages_own_hooks_agree(row: Row) -> None:
    model = ChatModel.load(str(folder(row.id)))
    mask = torch.ones_like(tokens())
    with applied(model, ablate(direction())), torch.no_grad():
        wanted = model.run(tokens(), mask, all_positions=True)
    with edited(model, orthogonalise(direction()), post_norm="hook"), torch.no_grad():
        got = model.run(tokens(), mask, all_positions=True)
    assert gap(got, wanted) < CLOSE
    assert gap(hooked_logits(plain(folder(row.id)), row), wanted) < CLOSE


@pytest.mark.parametrize("row", REFUSED, ids=[row.id for row in REFUSED])
def test_what_cannot_be_exact_is_refused_with_a_reason(row: Row) -> None:
    model = make(row)
    assert writers_of(model).exactness == row.exactness
    with (
        pytest.raises(InputError, match="allow-partial"),
        edited(model, orthogonalise(direction())),
    ):
        pass


@pytest.mark.parametrize("name", ["dbrx", "laguna"])
def test_mixtures_whose_code_looks_at_values_are_exported(name: str, tmp_path: Path) -> None:
    model, edit = plain(folder(name)), orthogonalise(direction())
    with edited(model, edit):
        wanted = logits(model)
    job = prepare(folder(name), edit)
    write_checkpoint(job, tmp_path / "out", provenance={})
    assert gap(logits(plain(tmp_path / "out")), wanted) < CLOSE


def test_an_adapter_that_peft_would_load_in_part_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    job = prepare(folder("laguna"), orthogonalise(direction()))
    with pytest.raises(InputError, match=by_id("laguna").lora):
        write_adapter(job, tmp_path / "lora", provenance={})
    assert list(tmp_path.iterdir()) == []


def test_writers_of_layers_that_nothing_runs_are_noted(tmp_path: Path) -> None:
    source = shutil.copytree(folder("llama"), tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    drafts = {f"model.layers.{LAYERS}.mlp.{n}.weight": torch.ones(WIDTH, 48) for n in ("down_proj", "x")}
    save_file(tensors | drafts, source / "model.safetensors", {"format": "pt"})
    (note,) = prepare(source, orthogonalise(direction())).writers.notes
    assert note.startswith(f"model.layers.{LAYERS}.mlp.down_proj.weight: named like writers")
    assert prepare(folder("llama"), orthogonalise(direction())).writers.notes == ()


def test_wrong_inputs_of_edits_are_one_line() -> None:
    with pytest.raises(InputError, match="finite"):
        orthogonalise(torch.full((WIDTH,), float("nan")))


def test_the_vocabulary_fits_the_tokenizer() -> None:
    assert int(tokens().max()) < VOCAB


def test_a_bias_that_is_handed_on_beside_the_output_is_hooked_there() -> None:
    """GPT-NeoX-Japanese returns the last attention's bias next to its output, and adds it in the block."""
    row = Row("gpt_neox_japanese", UNTIED, {**PLAIN, "intermediate_multiple_size": 2})
    model, edit = make(row), orthogonalise(direction())
    writers = writers_of(model)
    apart = [writer.parameter for writer in writers.writers if writer.apart]
    assert apart == ["gpt_neox_japanese.layers.2.attention.dense_bias"]
    result = equivalence(model, edit, ids=tokens(), writers=writers)
    assert result.equal, result.line
    wanted = hooked_logits(model, row)
    with hooked(model, writers, edit):
        assert gap(logits(model), wanted) < CLOSE
    with pytest.raises(InputError, match="added beside"):
        write_steered("unused.pt", edit, writers, base="", provenance={})


def test_a_parameter_that_no_module_hands_on_cannot_be_hooked() -> None:
    model = make(Row("llama", EXACT, GROUPED))
    block = model.model.layers[1]
    block.mlp.more = nn.Parameter(torch.ones(WIDTH))
    forward = block.forward
    block.forward = lambda *args, **kwargs: forward(*args, **kwargs) + block.mlp.more
    writers = writers_of(model)
    assert [w.parameter for w in writers.writers if w.apart] == ["model.layers.1.mlp.more"]
    with (
        pytest.raises(InputError, match="no hook reaches"),
        hooked(model, writers, orthogonalise(direction())),
    ):
        logits(model)
