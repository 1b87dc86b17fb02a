"""`refusal-lens export` on a finished run: every format, the check, and every way it can be refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from architectures import by_id, folder, make
from kit import byte_tokenizer, finished_run
from safetensors.torch import load_file, save_file

from refusal_lens import organism
from refusal_lens.directions import Candidates
from refusal_lens.errors import InputError
from refusal_lens.evaluation.parity import STREAM_ALLOWED
from refusal_lens.interop.vectors import read_gguf, read_reference
from refusal_lens.pipeline import export_job, export_model
from refusal_lens.runs import Run, read_csv, read_json
from refusal_lens.weights import orthogonalise, prepare
from refusal_lens.weights.atomic import size_in_words


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs by row, made once each."""
    made: dict[str, Path] = {}

    def run_of(name: str) -> Path:
        if name not in made:
            made[name] = finished_run(tmp_path_factory.mktemp("run") / name, folder(name))
        return made[name]

    return run_of


@pytest.fixture
def call(call: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command that shows nothing of its progress."""
    return partial(call, "--quiet")


SHORT = ("--max-new-tokens", 4)


class TestFormats:
    @pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
    @pytest.mark.parametrize("to", ["checkpoint", "lora"])
    def test_weights_are_loaded_again_and_agree(
        self, call: Any, run_of: Any, tmp_path: Path, name: str, to: str
    ) -> None:
        run, out = run_of(name), tmp_path / f"as-{to}"
        done = call("export", run, "--to", to, "--out", out, *SHORT)
        assert done.code == 0, done.err
        assert f"export: {out}" in done.out
        assert "KL(hooks || files)" in done.out
        record = read_json(run / "exports" / f"as-{to}.json")
        assert all(row["equal"] for row in record["parity"])
        assert {"refusal metric, mean", "refusal rate", "stream along r^, largest"} <= {
            row["quantity"] for row in record["parity"]
        }
        coverage = read_csv(run / "exports" / f"as-{to}.writers.csv", text=("why", "after_norm"))
        assert set(coverage["treatment"]) == {"edited"}
        whole = Run.read(run).whole()
        assert {f"exports/as-{to}.json", f"exports/as-{to}.writers.csv"} <= set(whole["outputs"])
        assert whole["steps"].keys() >= {"selection", f"export-as-{to}"}
        assert not Run.read(run).damage()
        made = read_json(out / "refusal_lens.json")
        assert made["direction"]["layer"] == 2
        assert len(made["direction"]["vector"]) == 32
        assert "licence" in made["note"]
        assert set(made["writers"]) == set(coverage["parameter"])

    def test_a_post_norm_model_says_what_remains(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        done = call(
            "export", run_of("gemma2"), "--to", "checkpoint", "--out", tmp_path / "out", *SHORT
        )
        assert done.code == 0, done.err
        assert "post-norm" in done.out
        assert "6 folded" in done.out

    def test_a_hybrid_is_compared_with_its_own_hooks_which_reach_its_mixers(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        done = call(
            "export", run_of("jamba"), "--to", "checkpoint", "--out", tmp_path / "out", *SHORT
        )
        assert done.code == 0, done.err
        assert "leave a write" not in done.out

    def test_norms_are_kept_and_the_stream_is_asked_to_be_clean(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        out = ("--norm-preserving", "--out", tmp_path / "kept")
        assert call("export", run_of("llama"), "--to", "checkpoint", *out, *SHORT).code == 0
        rows = read_json(run_of("llama") / "exports" / "kept.json")["parity"]
        asked = [row["quantity"] for row in rows if row["allowed"] is not None]
        assert asked == ["stream along r^, largest"]

    def test_two_exports_of_one_name_both_stay_in_the_run(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        run = run_of("stablelm")
        for place in ("a", "b"):
            (tmp_path / place).mkdir()
            assert (
                call("export", run, "--to", "reference", "--out", tmp_path / place / "r").code == 0
            )
        shutil.rmtree(tmp_path / "b" / "r")
        assert call("export", run, "--to", "reference", "--out", tmp_path / "b" / "r").code == 0
        found = {path.name: read_json(path)["out"] for path in (run / "exports").iterdir()}
        assert found == {f"r{n}.json": str(tmp_path / p / "r") for n, p in (("", "a"), ("-2", "b"))}

    def test_addition_in_a_lora_where_no_bias_can_be(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        options = ("--edit", "add", "--strength", 0.7, *SHORT)
        done = call("export", run_of("qwen2"), "--to", "lora", "--out", tmp_path / "lora", *options)
        assert done.code == 0, done.err
        done = call(
            "export", run_of("qwen2"), "--to", "checkpoint", "--out", tmp_path / "ck", *options
        )
        assert done.code == 1
        assert "cannot ask for one" in done.err

    def test_files_for_other_tools(self, call: Any, run_of: Any, tmp_path: Path) -> None:
        run, candidates = (
            run_of("llama"),
            Candidates.load(run_of("llama") / "candidates.safetensors"),
        )
        gguf = tmp_path / "v.gguf"
        assert call("export", run, "--to", "gguf", "--edit", "subtract", "--out", gguf).code == 0
        layer, vector = read_gguf(gguf)
        assert layer == 2
        assert torch.equal(vector, -candidates.direction("post[-1]", 2).vector.float())
        assert call("export", run, "--to", "steered", "--out", tmp_path / "s.pt").code == 0
        assert len(torch.load(tmp_path / "s.pt", weights_only=True)) == 7
        assert call("export", run, "--to", "reference", "--out", tmp_path / "ref").code == 0
        assert torch.equal(read_reference(tmp_path / "ref")[1], candidates.mean_diffs)

    def test_the_models_folder_may_have_another_name(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        shutil.copytree(folder("llama"), tmp_path / "renamed")
        options = ("--model", tmp_path / "renamed", "--out", tmp_path / "out", *SHORT)
        assert call("export", run_of("llama"), "--to", "checkpoint", *options).code == 0

    def test_a_check_in_a_coarser_dtype_than_the_files(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        """The hooks are rounded too then, at every write."""
        options = ("--dtype", "bfloat16", "--out", tmp_path / "coarse", *SHORT)
        done = call("export", run_of("llama"), "--to", "checkpoint", *options)
        assert done.code == 0, done.err
        rows = read_json(run_of("llama") / "exports" / "coarse.json")["parity"]
        (stream,) = (row for row in rows if row["quantity"] == "stream along r^, largest")
        assert stream["allowed"] == STREAM_ALLOWED[torch.bfloat16]
        assert stream["files"] > STREAM_ALLOWED[torch.float32]

    def test_an_estimate_counts_the_bytes_of_the_files(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        """What config.json says of the dtype is a hint, which may be wrong."""
        for dtype in (torch.float32, torch.bfloat16):
            source = tmp_path / str(dtype)
            make(by_id("gemma"), dtype=dtype).save_pretrained(source)
            byte_tokenizer().save_pretrained(source)
            config = read_json(source / "config.json") | {"dtype": "float32"}
            (source / "config.json").write_text(json.dumps(config))
            done = call(
                *("export", run_of("gemma"), "--to", "checkpoint", "--estimate"),
                *("--model", source),
            )
            assert done.code == 0, done.err
            job = prepare(source, orthogonalise(torch.ones(32, dtype=torch.float64)))
            assert f"disk: {size_in_words(job.total_bytes)} free" in done.out
            assert f"{size_in_words(job.edited_bytes)} are worked out anew" in done.out

    def test_an_estimate_writes_nothing(self, call: Any, run_of: Any, tmp_path: Path) -> None:
        done = call("export", run_of("llama"), "--to", "checkpoint", "--estimate")
        assert done.code == 0
        assert "memory:" in done.out
        assert not list(tmp_path.iterdir())


class TestRefusals:
    def test_files_that_do_not_equal_the_hooks_fail_and_leave_nothing(
        self, call: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if a writer had been skipped."""
        write = export_job.write_checkpoint

        def skip_one(job: Any, out: Path, *, check: Any, **options: Any) -> Path:
            def put_one_back(hidden: Path) -> None:
                name = "model.layers.1.mlp.down_proj.weight"
                old = load_file(job.checkpoint.folder / "model.safetensors")[name]
                new = {**load_file(hidden / "model.safetensors"), name: old}
                save_file(new, hidden / "model.safetensors", metadata={"format": "pt"})
                check(hidden)

            return write(job, out, check=put_one_back, **options)

        monkeypatch.setattr(export_job, "write_checkpoint", skip_one)
        run = run_of("mistral")
        done = call("export", run, "--to", "checkpoint", "--out", tmp_path / "out", *SHORT)
        assert done.code == 3
        assert "parity of" in done.err
        assert done.err.count("\n") == 1
        assert not list(tmp_path.iterdir())
        assert not (run / "exports").exists()

    def test_a_direction_of_another_model_is_one_line(
        self, call: Any, run_of: Any, tmp_path: Path
    ) -> None:
        other = tmp_path / "other"
        model = make(by_id("llama"), seed=7)
        model.lm_head.weight.data *= 5
        model.save_pretrained(other)
        byte_tokenizer().save_pretrained(other)
        wide = tmp_path / "wide"
        hf.AutoModelForCausalLM.from_config(
            hf.LlamaConfig(hidden_size=64, intermediate_size=8, num_hidden_layers=3, vocab_size=264)
        ).save_pretrained(wide)
        template = tmp_path / "template"
        shutil.copytree(folder("llama"), template)
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "helper")
        tokenizer.save_pretrained(template)
        for place, match in (
            (other, "is it another model"),
            (wide, "d_model 64"),
            (template, "another chat template"),
            (tmp_path / "nowhere", "neither a folder"),
        ):
            options = ("--model", place, "--out", tmp_path / "out", *SHORT)
            done = call("export", run_of("llama"), "--to", "checkpoint", *options)
            assert (done.code, done.err.count("\n")) == (1, 1), done.err
            assert match in done.err
            assert not (tmp_path / "out").exists()

    def test_bad_usage_and_bad_places(self, call: Any, run_of: Any, tmp_path: Path) -> None:
        run = run_of("llama")
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "x").write_text("x")
        (tmp_path / "full" / "config.json").write_text("{}")
        for args, code, match in (
            (("--to", "checkpoint"), 2, "--out"),
            (("--to", "checkpoint", "--out", tmp_path / "full"), 1, "not empty"),
            (("--to", "steered", "--out", tmp_path / "full" / "config.pt"), 1, "is there already"),
            (("--to", "gguf", "--out", tmp_path / "v.gguf"), 1, "only adds"),
            (("--to", "gguf", "--edit", "add", "--out", tmp_path / "v.bin"), 1, "need '.gguf'"),
            (("--to", "reference", "--edit", "add", "--out", tmp_path / "r"), 2, "got --edit,"),
            (("--to", "lora", "--norm-preserving", "--out", tmp_path / "l"), 1, "not of rank one"),
        ):
            done = call("export", run, *args)
            assert done.code == code, done.err
            assert match in done.err
        assert [p.name for p in tmp_path.iterdir()] == ["full"]
        assert (
            call("export", tmp_path / "no-run", "--to", "reference", "--out", tmp_path / "r").code
            == 1
        )

    @pytest.mark.parametrize(
        ("to", "name"),
        [
            *(("checkpoint", "x"), ("lora", "x"), ("reference", "x")),
            *(("gguf", "x.gguf"), ("steered", "x.pt")),
        ],
    )
    def test_nothing_is_written_into_a_model(
        self, call: Any, run_of: Any, tmp_path: Path, to: str, name: str
    ) -> None:
        run, source = run_of("llama"), folder("llama")
        other = shutil.copytree(source, tmp_path / "other")
        (tmp_path / "link").symlink_to(source)
        packaged = organism.folder("chat")
        before = [sorted(each.rglob("*")) for each in (source, other, packaged.parent)]
        edit = ("--edit", "add") if to == "gguf" else ()
        for out, model in (
            (source / name, None),
            (source / "deep" / name, None),
            (tmp_path / "link" / name, None),
            (source, None),
            (packaged / name, None),
            (packaged.parent / name, None),
            *(() if to == "reference" else ((other / name, other), (source / name, other))),
        ):
            options = ("--model", model) if model else ()
            done = call("export", run, "--to", to, "--out", out, *edit, *options)
            assert (done.code, done.err.count("\n")) == (1, 1), done.err
            assert "only read" in done.err
        assert [sorted(each.rglob("*")) for each in (source, other, packaged.parent)] == before

    def test_a_place_in_the_model_is_refused_before_any_work(
        self, run_of: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(export_job, "prepare", pytest.fail)
        config = export_job.ExportConfig(to="checkpoint", out=folder("llama") / "out")
        with pytest.raises(InputError, match="only read"):
            export_job.run_export(run_of("llama"), config)

    def test_a_place_in_the_cache_of_the_hub_is_refused(self, tmp_path: Path) -> None:
        from huggingface_hub.constants import HF_HUB_CACHE

        cache = Path(HF_HUB_CACHE) / "models--some--model"
        assert export_model.where("some/model") == cache
        assert export_model.where(str(tmp_path)) == tmp_path
        assert export_model.where("organism") in organism.folder("chat").parents

    @pytest.mark.parametrize(
        ("to", "options", "named"),
        [
            ("reference", ("--norm-preserving",), ["--norm-preserving"]),
            ("reference", ("--model", "x", "--strength", 2), ["--model", "--strength"]),
            (
                "reference",
                ("--allow-partial", "--dtype", "float16"),
                ["--allow-partial", "--dtype"],
            ),
            ("gguf", ("--edit", "add", "--n-prompts", 3), ["--n-prompts"]),
            ("steered", ("--allow-partial",), ["--allow-partial"]),
            ("steered", ("--batch-size", 3, "--device", "cpu"), ["--batch-size", "--device"]),
        ],
    )
    def test_options_that_a_format_has_no_use_for_are_named(
        self, call: Any, run_of: Any, tmp_path: Path, to: str, options: Any, named: list[str]
    ) -> None:
        suffix = {"gguf": ".gguf", "steered": ".pt"}.get(to, "")
        out = tmp_path / f"out{suffix}"
        done = call("export", run_of("llama"), "--to", to, "--out", out, *options)
        assert done.code == 2, done.err
        assert f"got {', '.join(named)}, which" in done.err
        assert not list(tmp_path.iterdir())

    def test_an_interrupt_does_not_promise_that_the_command_goes_on(
        self, call: Any, run_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(export_job, "run_export", interrupted)
        done = call("export", run_of("llama"), "--to", "checkpoint", "--out", tmp_path / "out")
        assert done.code == 130
        assert done.err.startswith("interrupted")
        assert "goes on" not in done.err
        assert done.err.count("\n") == 1

    def test_what_cannot_be_exact_needs_a_word(self, tmp_path: Path) -> None:
        """No bridge wraps these models, so the weights alone are asked."""
        from refusal_lens.weights import write_checkpoint

        vector = torch.randn(32, dtype=torch.float64)
        with pytest.raises(InputError, match="pass --allow-partial"):
            prepare(folder("doge"), orthogonalise(vector))
        job = prepare(folder("doge"), orthogonalise(vector), allow_partial=True)
        write_checkpoint(job, tmp_path / "out", provenance={})
        assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "doge"
        assert job.writers.problems


def test_the_page_of_the_run_shows_coverage_and_parity(
    call: Any, run_of: Any, tmp_path: Path
) -> None:
    run = run_of("phi3")
    assert call("export", run, "--to", "checkpoint", "--out", tmp_path / "<out>", *SHORT).code == 0
    page = (run / "report.html").read_text()
    assert "Edited weights and other exports" in page
    assert "model.layers.2.mlp.down_proj.weight" in page
    assert "&lt;out&gt;: hooks against files" in page
    assert "<out>" not in page
    (run / "exports" / "<out>.json").write_text("{}")
    done = call("report", run)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "another size" in done.err
