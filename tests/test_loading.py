"""Loading: every weight from the checkpoint, one line for whatever is damaged, and the models that people have."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import kit
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from refusal_lens.errors import InputError
from refusal_lens.model import ChatModel, fingerprint
from refusal_lens.model.boundary import loading
from refusal_lens.model.loading import _open, bridge_of, load_plain, require_embedded
from refusal_lens.model.source import find_source
from refusal_lens.pipeline.export_model import model_folder, where

PROMPTS = ["Paint the door.", "How does one bake bread?"]
EVERY = [
    *kit.CONFIGS,
    *(r.id for r in (*architectures.ROWS, *architectures.REFUSED)),
]


def of(name: str) -> Path:
    return kit.folder(name) if name in kit.CONFIGS else architectures.folder(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a tiny llama to damage."""
    return Path(shutil.copytree(kit.folder("llama"), tmp_path / "model"))


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
    with pytest.raises(InputError) as caught:
        ChatModel.load(str(folder), **options)
    line = str(caught.value)
    assert match in line
    assert "\n" not in line
    assert len(line) < 420, line
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
def test_a_parameter_that_the_checkpoint_lacks_is_an_error_that_names_it(
    folder: Path, name: str
) -> None:
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
    assert torch.equal(
        logits(ChatModel.load(str(folder))), logits(ChatModel.load(str(kit.folder("llama"))))
    )
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


@pytest.mark.parametrize(
    "storage", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bfloat16]
)
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


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "hqq", "fbgemm_fp8"])
def test_a_known_quantisation_that_cannot_be_had_here_is_one_line(
    folder: Path, method: str
) -> None:
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": method == "bitsandbytes"}
    configure(folder, quantization_config=settings)
    refused(folder)


def test_fp8_without_scales_is_refused_under_its_own_method_too(folder: Path) -> None:
    quantise(folder, scales=False, storage=torch.float8_e4m3fn)
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [8, 8]})
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
    return lambda folder: next((folder / file).unlink() for file in files)


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
    "code of its own": configured(
        model_type="own", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}
    ),
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
    "index outside": instead(
        "model.safetensors.index.json", '{"weight_map": {"a": "../a.safetensors"}}'
    ),
    "no tokenizer.json": without("tokenizer.json"),
    "no tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer.json a list": write("tokenizer.json", "[]"),
    "tokenizer.json an object": write("tokenizer.json", "{}"),
    "tokenizer.json a pointer": write("tokenizer.json", POINTER),
    "tokenizer.json of no model": write(
        "tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'
    ),
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
    for name in (
        "",
        "  ",
        "a\0b",
        "no/such/name/at/all",
        str(tmp_path / "none"),
        str(tmp_path / "a.txt"),
    ):
        refused(name)


def test_memory_and_interrupts_keep_their_own_ways_out() -> None:
    for kind in (MemoryError, KeyboardInterrupt, torch.OutOfMemoryError):
        with pytest.raises(kind), loading("name"):
            raise kind("x")
    panic = type("PanicException", (BaseException,), {})
    for error in (
        panic("deep\nin Rust"),
        RecursionError(),
        RuntimeError("x" * 4000),
        AssertionError(),
    ):
        with pytest.raises(InputError) as caught, loading("name"):
            raise error
        assert caught.value.__cause__ is error
        assert len(str(caught.value)) < 300


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
    kit.byte_tokenizer().save_pretrained(tmp_path)
    try:
        ChatModel.load(str(tmp_path))
    except InputError as error:
        line = str(error)
    else:
        return
    assert "TransformerLens" in line
    assert "\n" not in line


# ------------------------------------------------------------------ GGUF files


def permuted(tensor: Tensor, heads: int) -> Tensor:
    """llama.cpp's order of the rows of a rotary projection."""
    rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return rows.swapaxes(1, 2).reshape(tensor.shape)


@pytest.fixture(scope="module")
def plain_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama without biases, for formats that hold none."""
    path = tmp_path_factory.mktemp("plain-llama")
    row = {**kit.GROUPED, "pad_token_id": 258, "eos_token_id": 257, "bos_token_id": 256}
    torch.manual_seed(1)
    return kit.save(kit.shaken(hf.LlamaForCausalLM(hf.LlamaConfig(**row)), 0.1), path)


def write_gguf_model(
    source: Path, out: Path, *, quantised: bool = False, more: Any = (), **facts: Any
) -> Path:
    """A tiny llama as llama.cpp's converter would write it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(out, facts.get("architecture", "llama"))
    writer.add_name("tiny")
    writer.add_vocab_size(259)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(3)
    writer.add_feed_forward_length(48)
    writer.add_rope_dimension_count(8)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    tokenizer = kit.byte_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(range(259))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 3)
    # No merges: transformers derives them from scores, and a vocabulary of bytes has none.
    writer.add_token_scores([0.0] * 259)
    writer.add_eos_token_id(257)
    writer.add_bos_token_id(256)
    writer.add_pad_token_id(258)
    if facts.get("template", True):
        writer.add_chat_template(kit.CHATML)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
    }
    names |= {
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
    }
    names |= {
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    tensors = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    tensors["output.weight"] = "lm_head.weight"
    for layer in range(3):
        for theirs, ours in names.items():
            tensors[f"blk.{layer}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    held = load_file(source / "model.safetensors")
    for name, own in tensors.items():
        if name in facts.get("without", ()):
            continue
        value = held[own]
        if "attn_q." in name or "attn_k." in name:
            value = permuted(value, 4 if "attn_q" in name else 2)
        array = value.numpy()
        if quantised and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    for name in more:
        writer.add_tensor(name, torch.ones(4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_a_gguf_file_is_the_model_it_was_written_from(plain_llama: Path, tmp_path: Path) -> None:
    original = ChatModel.load(str(plain_llama))
    path = write_gguf_model(plain_llama, tmp_path / "tiny.gguf")
    model = ChatModel.load(str(path))
    assert torch.allclose(logits(model), logits(original), atol=1e-4)
    assert model.chat.template_sha256 == original.chat.template_sha256
    plain = load_plain(str(path))
    plain.model.save_pretrained(tmp_path / "saved")
    plain.tokenizer.save_pretrained(tmp_path / "saved")
    again = ChatModel.load(str(tmp_path / "saved"))
    assert torch.equal(logits(again), logits(model))
    assert fingerprint(str(path))["covers"] == "every byte"
    with pytest.raises(InputError, match="GGUF"):
        model_folder(str(path))
    assert where(str(path)) == path


def test_a_quantised_gguf_file_is_dequantised(plain_llama: Path, tmp_path: Path) -> None:
    model = ChatModel.load(str(write_gguf_model(plain_llama, tmp_path / "q8.gguf", quantised=True)))
    weight = model.hf.model.layers[0].mlp.up_proj.weight
    stored = load_file(plain_llama / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert weight.dtype == torch.float32
    assert not torch.equal(weight, stored)
    assert torch.allclose(weight, stored, atol=float(stored.abs().max()) / 100)


GGUFS = {
    "mlp.down_proj.weight": {"without": ("blk.1.ffn_down.weight",)},
    "input_layernorm.weight": {"without": ("blk.1.attn_norm.weight",)},
    "leaves out 4 numbers": {"more": ("blk.0.attn_output.bias",)},
    "rope_freqs.weight": {"more": ("rope_freqs.weight",)},
    "template": {"template": False},
    "no-such": {"architecture": "no-such"},
}


@pytest.mark.parametrize("odd", GGUFS)
def test_a_gguf_file_that_is_not_read_whole_is_one_line(
    plain_llama: Path, tmp_path: Path, odd: str
) -> None:
    refused(write_gguf_model(plain_llama, tmp_path / "odd.gguf", **GGUFS[odd]), match=odd)


def test_damaged_gguf_files_are_one_line(plain_llama: Path, tmp_path: Path) -> None:
    whole = write_gguf_model(plain_llama, tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "b.gguf"
    for content in (b"", b"GGUF", whole[:5000], whole[:-500], b"x" * 3000, POINTER.encode()):
        path.write_bytes(content)
        refused(path)
    path.unlink()
    refused(path)
    os.mkfifo(path)
    refused(path)


# ------------------------------------------------------------------ adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA on the tiny llama, alone in its folder."""
    peft = pytest.importorskip("peft")
    base = hf.AutoModelForCausalLM.from_pretrained(kit.folder("llama"), attn_implementation="eager")
    config = peft.LoraConfig(r=2, target_modules=["down_proj", "o_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(base, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def by_peft(adapter: Path) -> Tensor:
    """Logits of the base with the adapter beside it, by peft alone."""
    import peft

    base = hf.AutoModelForCausalLM.from_pretrained(kit.folder("llama"), attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(base, adapter).eval()
    rendered = ChatModel.load(str(kit.folder("llama"))).chat.render(PROMPTS)
    with torch.no_grad():
        out = adapted(input_ids=rendered.ids, attention_mask=rendered.mask)
    return out.logits[:, -1]


@pytest.mark.parametrize("way", ["alone", "given", "beside its base", "relative"])
def test_an_adapter_is_measured_merged(adapter: Path, tmp_path: Path, way: str) -> None:
    base = str(kit.folder("llama"))
    if way == "alone":
        model = ChatModel.load(str(adapter))
    elif way == "given":
        settings = json.loads((adapter / "adapter_config.json").read_text())
        del settings["base_model_name_or_path"]
        (adapter / "adapter_config.json").write_text(json.dumps(settings))
        refused(adapter, match="adapter=")
        model = ChatModel.load(base, adapter=adapter)
    elif way == "beside its base":
        shutil.copytree(base, adapter, dirs_exist_ok=True)
        model = ChatModel.load(str(adapter))
    else:
        shutil.copytree(base, adapter / "base")
        settings = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(
            json.dumps({**settings, "base_model_name_or_path": "base"})
        )
        model = ChatModel.load(str(adapter))
    assert torch.allclose(logits(model), by_peft(adapter), atol=1e-4)
    assert not torch.allclose(logits(model), logits(ChatModel.load(base)), atol=1e-2)
    assert model.adapter is not None
    shapes = {
        name.split(".")[-2]: tuple(t.shape)
        for name, t in model.adapter.tensors.items()
        if "down" in name
    }
    assert shapes == {"lora_A": (2, 48), "lora_B": (32, 2)}
    if way != "given":
        with pytest.raises(InputError, match="adapter"):
            model_folder(str(adapter))


def test_an_adapter_that_loads_partly_is_refused(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    first = sorted(whole)[0]
    save_file({name: t for name, t in whole.items() if name != first}, path)
    refused(adapter, match="not in it")
    save_file(whole | {first.replace("layers.0", "layers.7"): whole[first].clone()}, path)
    refused(adapter, match="fit nothing")
    save_file(whole | {first: whole[first] * float("nan")}, path)
    refused(adapter, match="NaN")
    path.unlink()
    refused(adapter, match="adapter_model.safetensors")


ADAPTERS = (
    "[]",
    "{}",
    '{"peft_type": "LORA"}',
    '{"peft_type": "NO", "base_model_name_or_path": "x/y"}',
    POINTER,
)


@pytest.mark.parametrize("settings", ADAPTERS)
def test_a_damaged_adapter_is_one_line(adapter: Path, settings: str) -> None:
    (adapter / "adapter_config.json").write_text(settings)
    refused(adapter)


# ------------------------------------------------------------------ the language model inside another


def test_the_language_model_inside_a_multimodal_one_is_taken(tmp_path: Path) -> None:
    text = {
        **kit.GROUPED,
        "head_dim": 8,
        "pad_token_id": 258,
        "eos_token_id": 257,
        "bos_token_id": None,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 16, "patch_size": 8}
    configs = {
        "llava": hf.LlavaConfig(
            text_config=hf.LlamaConfig(**text),
            vision_config=hf.CLIPVisionConfig(**vision),
            image_token_index=0,
        ),
        "gemma3": hf.Gemma3Config(
            text_config=hf.Gemma3TextConfig(**text).to_dict(),
            vision_config=hf.SiglipVisionConfig(**vision).to_dict(),
        ),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        whole = hf.AutoModelForImageTextToText.from_config(
            config, attn_implementation="eager"
        ).eval()
        whole.save_pretrained(tmp_path / name)
        kit.byte_tokenizer().save_pretrained(tmp_path / name)
        model = ChatModel.load(str(tmp_path / name))
        rendered = model.chat.render(PROMPTS[:1])
        with torch.no_grad():
            told = whole(input_ids=rendered.ids).logits[:, -1]
        assert torch.allclose(model.logits(rendered), told, atol=1e-4)
        assert type(model.hf).__name__ in ("LlamaForCausalLM", "Gemma3ForCausalLM")


# ------------------------------------------------------------------ fingerprints


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_fingerprint_covers_every_byte_and_not_the_place(folder: Path, tmp_path: Path) -> None:
    told = fingerprint(str(folder))
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "model")
    assert fingerprint(str(copied)) == told
    size = (folder / "model.safetensors").stat().st_size
    seen = {told["sha256"]}
    for file, at in (("model.safetensors", size // 2), ("tokenizer.json", 999), ("config.json", 5)):
        flip(folder / file, at)
        seen.add(fingerprint(str(folder))["sha256"])
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool.jinja").write_text("x")
    seen.add(fingerprint(str(folder))["sha256"])
    assert len(seen) == 5


def test_a_fingerprint_of_an_adapter_knows_adapter_and_base(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(kit.folder("llama"), tmp_path / "base")
    told = [fingerprint(str(tmp_path / "base"), adapter=adapter)]
    flip(tmp_path / "base" / "model.safetensors", 90_000)
    told.append(fingerprint(str(tmp_path / "base"), adapter=adapter))
    flip(adapter / "adapter_model.safetensors", 2000)
    told.append(fingerprint(str(tmp_path / "base"), adapter=adapter))
    assert len({json.dumps(each) for each in told}) == 3


def test_a_large_model_is_known_by_size_time_header_and_blocks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["refusal_lens.model.fingerprint"]
    monkeypatch.setattr(module, "EVERY_BYTE", 1000)
    monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(module, "BLOCKS", 4)
    told = fingerprint(str(folder))
    assert "blocks" in told["covers"]
    assert fingerprint(str(folder)) == told
    path = folder / "model.safetensors"
    times = path.stat()
    flip(path, 1500)
    changed = fingerprint(str(folder))
    assert changed != told
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    flip(path, 100)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert fingerprint(str(folder))["sha256"] not in (told["sha256"], changed["sha256"])


def test_a_model_in_memory_becomes_a_bridge(folder: Path) -> None:
    plain = hf.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    before = tokenizer.encode("hello")
    bridge = bridge_of(plain, tokenizer)
    assert bridge.original_model is plain
    assert tokenizer.encode("hello") == before
    with pytest.raises(InputError, match="cannot wrap"):
        bridge_of(torch.nn.Linear(2, 2), tokenizer)
