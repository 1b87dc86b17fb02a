"""Loading: every weight from the checkpoint, one line for whatever is damaged, and the models that people have."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusal_lens import organism
from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel, fingerprint
from refusal_lens.model import fingerprint as _fingerprint_function  # noqa: F401
from refusal_lens.model.boundary import loading
from refusal_lens.model.loading import _open, bridge_of, require_embedded
from refusal_lens.model.source import find_source
from refusal_lens.pipeline.export_model import model_folder, where

PROMPTS = ["Paint the door.", "How does one bake bread?"]
EVERY = [*(tiny.CONFIGS | tiny.MORE_CONFIGS), *(r.id for r in (*architectures.ROWS, *architectures.REFUSED))]


def of(name: str) -> Path:
    tinies = tiny.CONFIGS | tiny.MORE_CONFIGS
    return tiny.folder(name) if name in tinies else architectures.folder(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a tiny llama to damage."""
    return Path(shutil.copytree(tiny.folder("llama"), tmp_path / "model"))


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, tensors: dict[str, Tensor], file: str = "model.safetensors") -> None:
    kept = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / file, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(model: ChatModel) -> Tensor:
    return model.logits(model.chat.render(PROMPTS))


def refused(folder: Path | str, match: str = "", **options: Any) -> str:
    with pytest.raises(InputError, match=match) as caught:
        ChatModel.load(str(folder), **options)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 420, line
    return line


# ------------------------------------------------------------------ every weight is loaded


@pytest.mark.parametrize("name", EVERY)
def test_no_false_alarm_for_a_model_as_it_was_saved(name: str) -> None:
    shared = {"revision": None, "trust_remote_code": False}
    model, _, _, unread = _open(find_source(str(of(name))), torch.float32, None, shared)
    assert not unread
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("name", [DOWN, NORM, "lm_head.weight", "model.embed_tokens.weight"])
def test_a_parameter_that_the_checkpoint_lacks_is_an_error_that_names_it(folder: Path, name: str) -> None:
    tensors = weights(folder)
    tensors.pop(name)
    put(folder, tensors)
    refused(folder, match=name)


def test_a_tied_unembedding_may_be_absent(folder: Path) -> None:
    tied = {name: tensor for name, tensor in weights(folder).items() if name != "lm_head.weight"}
    put(folder, tied)
    configure(folder, tie_word_embeddings=True)
    model = ChatModel.load(str(folder))
    assert torch.equal(model.hf.lm_head.weight, tied["model.embed_tokens.weight"])


@pytest.mark.parametrize("listed", ["half", "all but one", "one too many"])
def test_an_index_must_list_what_its_shards_hold(folder: Path, listed: str) -> None:
    tensors = weights(folder)
    names = sorted(tensors)
    half = len(names) // 2
    put(folder, {n: tensors[n] for n in names[:half]}, "a.safetensors")
    put(folder, {n: tensors[n] for n in names[half:]}, "b.safetensors")
    (folder / "model.safetensors").unlink()
    places = {n: "a.safetensors" if i < half else "b.safetensors" for i, n in enumerate(names)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert torch.equal(logits(ChatModel.load(str(folder))), logits(ChatModel.load(str(tiny.folder("llama")))))
    if listed == "half":
        places = dict(list(places.items())[:half])
    elif listed == "all but one":
        places.pop(NORM)
    else:
        places["model.layers.9.mlp.up_proj.weight"] = "a.safetensors"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    refused(folder)


def test_another_size_is_an_error_that_names_both(folder: Path) -> None:
    configure(folder, vocab_size=263)
    assert "259" in refused(folder, match="263")


def test_tensors_that_no_parameter_took_are_reported(folder: Path, caplog: Any) -> None:
    put(folder, weights(folder) | {"model.layers.0.gate_of_nothing": torch.ones(3)})
    with caplog.at_level("WARNING", logger="refusal_lens"):
        model = ChatModel.load(str(folder))
    assert model.unread == ("model.layers.0.gate_of_nothing",)
    assert "gate_of_nothing" in caplog.text


def quantise(folder: Path, *, scales: bool, storage: torch.dtype) -> None:
    stored = {}
    for name, tensor in weights(folder).items():
        if "_proj" in name and tensor.ndim == 2:
            scale = tensor.abs().max() / 100
            stored[name] = (tensor / scale).to(storage)
            if scales:
                stored[name + "_scale"] = scale.reshape(1)
        else:
            stored[name] = tensor
    put(folder, stored)


@pytest.mark.parametrize("storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bfloat16])
@pytest.mark.parametrize("scales", [True, False])
def test_quantised_weights_without_their_method_are_refused(
    folder: Path, storage: torch.dtype, scales: bool
) -> None:
    if storage is torch.bfloat16 and not scales:
        return
    quantise(folder, scales=scales, storage=storage)
    refused(folder, match="quantization_config")


@pytest.mark.parametrize("method", ["modelopt", "no-such", None, 3])
def test_quantisation_that_transformers_does_not_read_is_refused(folder: Path, method: Any) -> None:
    configure(folder, quantization_config={"quant_method": method, "quant_algo": "FP8"})
    refused(folder, match="quantised")


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "hqq"])
def test_a_known_quantisation_that_cannot_be_had_here_is_one_line(folder: Path, method: str) -> None:
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    configure(folder, quantization_config=settings)
    refused(folder)


# ------------------------------------------------------------------ damaged and odd folders

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


class Code:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("made-by-a-pickle",))


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = content.encode() if isinstance(content, str) else content
        (folder / file).write_bytes(data)

    return change


def configured(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **changes)


def tokenizer_setting(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def instead(file: str, content: str | bytes) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write(file, content)(folder)

    return change


def is_folder(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def is_pipe(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


def without(*files: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / file).unlink() for file in files][0]


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


RECURSES = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(messages) }}"
DAMAGES: dict[str, Callable[[Path], None]] = {
    "no config.json": without("config.json"),
    "config.json empty": write("config.json", ""),
    "config.json a list": write("config.json", "[1]"),
    "config.json null": write("config.json", "null"),
    "config.json nested deep": write("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000),
    "config.json binary": write("config.json", b"\xff\xfe\x00"),
    "config.json a pointer": write("config.json", POINTER),
    "config.json a folder": is_folder("config.json"),
    "config.json a pipe": is_pipe("config.json"),
    "config.json without model_type": write("config.json", "{}"),
    "unknown model_type": configured(model_type="no-such"),
    "model_type of no language model": configured(model_type="vit"),
    "model_type a list": configured(model_type=["llama"]),
    "text_config null": configured(text_config=None, model_type="llava"),
    "heads that do not divide": configured(num_attention_heads=5),
    "more key heads than heads": configured(num_key_value_heads=3),
    "no heads": configured(num_attention_heads=0),
    "no layers": configured(num_hidden_layers=0),
    "more layers": configured(num_hidden_layers=5),
    "layers without end": configured(num_hidden_layers=10**9),
    "layers as text": configured(num_hidden_layers="3"),
    "layers null": configured(num_hidden_layers=None),
    "layers minus": configured(num_hidden_layers=-1),
    "width as text": configured(hidden_size="32"),
    "width minus": configured(hidden_size=-32),
    "width none": configured(hidden_size=0),
    "width without end": configured(hidden_size=2**40),
    "vocabulary without end": configured(vocab_size=10**12),
    "layer_types short": configured(layer_types=["full_attention"]),
    "rope of no kind": configured(rope_parameters={"rope_type": "no-such", "rope_theta": 1e4}),
    "rope null": configured(rope_parameters={"rope_type": None}),
    "activation of no kind": configured(hidden_act="no-such"),
    "dtype of no kind": configured(dtype="no-such"),
    "quantization_config a list": configured(quantization_config=[1]),
    "code of its own": configured(model_type="own", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
    "no weights": without("model.safetensors"),
    "weights empty": write("model.safetensors", b""),
    "weights noise": write("model.safetensors", b"\x07" * 4000),
    "weights a pointer": write("model.safetensors", POINTER),
    "weights a folder": is_folder("model.safetensors"),
    "weights a pipe": is_pipe("model.safetensors"),
    "weights cut": cut,
    "pickle a pointer": instead("pytorch_model.bin", POINTER),
    "pickle with code": instead("pytorch_model.bin", pickle.dumps(Code())),
    "pickle noise": instead("pytorch_model.bin", b"PK\x03\x04" + b"\0" * 2000),
    "index of missing shards": instead(
        "model.safetensors.index.json", json.dumps({"weight_map": {"a": "model-00001.safetensors"}})
    ),
    "index a list": instead("model.safetensors.index.json", "[]"),
    "index of numbers": instead("model.safetensors.index.json", '{"weight_map": {"a": 1}}'),
    "index outside": instead("model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'),
    "no tokenizer.json": without("tokenizer.json"),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer.json a list": write("tokenizer.json", "[]"),
    "tokenizer.json an object": write("tokenizer.json", "{}"),
    "tokenizer.json a pointer": write("tokenizer.json", POINTER),
    "tokenizer.json of no model": write("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'),
    "tokenizer_config.json a list": write("tokenizer_config.json", "[]"),
    "tokenizer_config.json cut": write("tokenizer_config.json", '{"eos'),
    "tokenizer class of no kind": tokenizer_setting(tokenizer_class=["a"]),
    "template a number": tokenizer_setting(chat_template=3),
    "template that recurses": write("chat_template.jinja", RECURSES),
    "template that does not parse": write("chat_template.jinja", "{% for"),
    "template that raises": write("chat_template.jinja", "{{ messages[0].a.b.c }}"),
    "template empty": write("chat_template.jinja", ""),
    "generation_config.json a list": write("generation_config.json", "[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_line(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    DAMAGES[damage](folder)
    refused(folder)
    assert not (tmp_path / "made-by-a-pickle").exists()


def test_names_that_are_no_model_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for name in ("", "  ", "a\0b", "no/such/name/at/all", str(tmp_path / "none"), str(tmp_path / "a.txt")):
        refused(name)


def test_memory_and_interrupts_keep_their_own_ways_out() -> None:
    for kind in (MemoryError, KeyboardInterrupt, torch.OutOfMemoryError):
        with pytest.raises(kind), loading("name"):
            raise kind("x")
    panic = type("PanicException", (BaseException,), {})
    for error in (panic("deep\nin Rust"), RecursionError(), RuntimeError("x" * 4000), AssertionError()):
        with pytest.raises(InputError) as caught, loading("name"):
            raise error
        assert caught.value.__cause__ is error and len(str(caught.value)) < 300


def test_tokens_must_have_rows_unless_nothing_can_write_them(folder: Path, caplog: Any) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    tokenizer.save_pretrained(folder)
    with caplog.at_level("WARNING", logger="refusal_lens"):
        ChatModel.load(str(folder))
    assert "no embedding" in caplog.text
    tokenizer.add_tokens(["zebra"])
    tokenizer.save_pretrained(folder)
    refused(folder, match="'zebra'")
    with pytest.raises(InputError, match="picture"):
        require_embedded("name", tokenizer, torch.tensor([[260 - 1]]), 259)


ODD = {
    "qwen3_next": {},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    "phi": {"qk_layernorm": True},
}


@pytest.mark.parametrize("kind", ODD)
def test_an_architecture_that_the_bridge_cannot_run_is_one_line(kind: str, tmp_path: Path) -> None:
    row = architectures.by_id(kind)
    config = hf.AutoConfig.for_model(kind, **{**row.config, **ODD[kind]})
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    try:
        ChatModel.load(str(tmp_path))
    except InputError as error:
        assert "TransformerLens" in str(error) and "\n" not in str(error)


def test_a_model_in_memory_becomes_a_bridge(folder: Path) -> None:
    plain = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    before = tokenizer.encode("hello")
    bridge = bridge_of(plain, tokenizer)
    assert bridge.original_model is plain and tokenizer.encode("hello") == before
    with pytest.raises(InputError, match="cannot wrap"):
        bridge_of(torch.nn.Linear(2, 2), tokenizer)
