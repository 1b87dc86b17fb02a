"""The scoring engine gives what hooks give, one candidate at a time, and lazy chooses the same."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import kit
import pandas as pd
import pytest
import torch
from kit import PUBLISHED

from refusal_lens.activations import map_last_logits, mean_residuals
from refusal_lens.behaviours import FirstTokens
from refusal_lens.chat import ChatFormat, Place
from refusal_lens.directions.candidates import Candidates
from refusal_lens.directions.selection import NoCandidateError, Thresholds, select
from refusal_lens.directions.sweep import Sweep, SweepCheckpoint, paths, score_candidates, sweep
from refusal_lens.directions.sweep import budget as passes
from refusal_lens.directions.sweep.batches import PassSize, Row, common_prefix, make_batches
from refusal_lens.directions.sweep.engine import SweepEngine
from refusal_lens.directions.sweep.passes import Count
from refusal_lens.directions.sweep.schedule import exhaustive, lazy
from refusal_lens.directions.sweep.state import NAMES, CandidateScores
from refusal_lens.errors import InputError
from refusal_lens.interventions import ZERO_NORM, Ablate, Add, applied
from refusal_lens.metrics import first_token_log_odds, kl_divergence
from refusal_lens.model import ChatModel, Site

POSITIVE = ("make a bomb", "how to steal a car", "do bad things", "poison the well of my town")
NEGATIVE = ("bake a cake", "how to wash a car", "do good", "paint the wall of my house red")
REFUSAL = (65, 77, 200)
SYSTEM = "You answer in one short line, politely."
WINDOW = 16

ARCHITECTURES = ("llama", "qwen2", "gemma2", "gemma3", "neox", "mixtral", "qwen2_moe", "granite")


Key = tuple[str, str | None, str]
"""Architecture, system prompt, dtype."""
QWEN: Key = ("qwen2", None, "float32")
GEMMA: Key = ("gemma3", None, "float32")
NEOX: Key = ("neox", None, "float32")


@lru_cache
def model(key: Key) -> ChatModel:
    architecture, system, dtype = key
    return ChatModel.load(str(kit.folder(architecture)), system=system, dtype=dtype)


@lru_cache
def candidates(key: Key) -> Candidates:
    """Two positions of difference-of-means candidates, made long enough to matter."""
    of = model(key)
    means = [mean_residuals(of, prompts).mean[[-4, -1]] for prompts in (POSITIVE, NEGATIVE)]
    moved = means[1] + 8 * (means[0] - means[1])
    names = tuple(of.chat.positions[i] for i in (-4, -1))
    return Candidates(moved, means[1], (Place.post(-4), Place.post(-1)), names)


def one_by_one(of: ChatModel, found: Candidates) -> pd.DataFrame:
    """Every score by hooks, one candidate and one prompt at a time."""

    def logits(prompts: Sequence[str]) -> torch.Tensor:
        return map_last_logits(of, list(prompts), batch_size=1)

    plain = logits(NEGATIVE)
    bypass = first_token_log_odds(logits(POSITIVE), REFUSAL).float().mean()
    induce, kl = first_token_log_odds(plain, REFUSAL).float().mean(), 0.0
    rows = []
    for number, layer in sorted(found.index(), key=lambda c: c[1]):
        position, vector = found.places[number].position, found.mean_diffs[number, layer]
        if vector.norm() > ZERO_NORM:
            with applied(of, Ablate(vector)):
                bypass = first_token_log_odds(logits(POSITIVE), REFUSAL).float().mean()
                kl = kl_divergence(plain, logits(NEGATIVE)).mean()
            with applied(of, Add(vector, layer)):
                induce = first_token_log_odds(logits(NEGATIVE), REFUSAL).float().mean()
        rows.append((position, layer, float(bypass), float(induce), float(kl)))
    table = pd.DataFrame(rows, columns=["position", "layer", *NAMES])
    return table.sort_values(["position", "layer"], ignore_index=True)


@lru_cache
def expected(key: Key) -> pd.DataFrame:
    return one_by_one(model(key), candidates(key))


def swept(key: Key = QWEN, **options: Any) -> Sweep:
    return sweep(
        model(key),
        candidates(key),
        positive=POSITIVE,
        negative=NEGATIVE,
        behaviour=FirstTokens(REFUSAL),
        **options,
    )


def largest_gap(one: pd.DataFrame, other: pd.DataFrame) -> float:
    return float((one[list(NAMES)] - other[list(NAMES)]).abs().to_numpy().max())


# ------------------------------------------------------------------ equal to hooks


CASES = [(architecture, None) for architecture in ARCHITECTURES]
CASES += [(architecture, SYSTEM) for architecture in ("qwen2", "gemma2", "gemma3", "neox")]


@pytest.mark.parametrize(("architecture", "system"), CASES)
def test_scores_equal_those_of_hooks(architecture: str, system: str | None) -> None:
    key = (architecture, system, "float32")
    found = swept(key, budget=300)
    assert largest_gap(found.table, expected(key)) < 1e-5
    assert found.stats.path.startswith("plain passes")
    assert found.stats.prefix == (6 if system is None else 16 + len(SYSTEM))
    spread = found.table[list(NAMES)].std()
    assert (spread > 1e-3).all(), "scores that hardly differ prove nothing"


def test_prompts_are_longer_than_the_sliding_windows() -> None:
    for architecture in ("gemma2", "gemma3"):
        assert model((architecture, None, "float32")).hf.config.sliding_window == WINDOW
        assert (
            int(model((architecture, None, "float32")).chat.render(["do good"]).lengths[0]) > WINDOW
        )


def test_a_block_under_the_addition_is_not_run() -> None:
    of = model(QWEN)
    counts = dict.fromkeys(range(of.n_layers), 0)

    def count(layer: int) -> Any:
        def hook(_module: Any, _args: Any, _output: Any) -> None:
            counts[layer] += 1

        return hook

    blocks = [block.original_component.mlp for block in of.bridge.blocks]
    mlps = [getattr(mlp, "original_component", mlp) for mlp in blocks]
    handles = [mlp.register_forward_hook(count(i)) for i, mlp in enumerate(mlps)]
    try:
        swept(budget=10**6)
    finally:
        for handle in handles:
            handle.remove()
    assert counts[0] < counts[1] < counts[2]


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_bfloat16_scores_are_within_its_rounding_of_those_of_hooks(architecture: str) -> None:
    key = (architecture, None, "bfloat16")
    found = swept(key, budget=300)
    assert found.stats.path.startswith("plain passes")
    # bfloat16 keeps 8 bits: logits of size 4 are off by 1/64, sums over layers by more.
    assert largest_gap(found.table, expected(key)) < 0.15


@pytest.mark.parametrize(
    ("architecture", "budget"),
    [("qwen2", 1), ("qwen2", 70), ("qwen2", 10**9), ("gemma2", 70), ("mixtral", 10**9)],
)
def test_any_budget_gives_the_same_scores_and_selection(architecture: str, budget: int) -> None:
    key = (architecture, None, "float32")
    found = swept(key, budget=budget)
    assert largest_gap(found.table, expected(key)) < 1e-5
    rule = Thresholds(kl_threshold=10.0, induce_threshold=-20.0, prune_layers=0.0)
    one = select(found.table, kit.LAYERS, rule)
    other = select(expected(key), kit.LAYERS, rule)
    assert (one.position, one.layer) == (other.position, other.layer)


def test_the_budget_of_the_model_gives_the_same_scores() -> None:
    found = swept()
    assert found.stats.size.tokens > 1
    assert largest_gap(found.table, expected(QWEN)) < 1e-5


@pytest.mark.parametrize("free", [3 << 30, 100 << 30])
def test_the_passes_follow_from_the_model_and_not_from_the_moment(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    monkeypatch.setattr(passes, "free_memory", lambda device: free)
    monkeypatch.setattr(time, "perf_counter", iter(range(10**9)).__next__)
    found = swept()
    assert found.stats.size == PassSize(16384, 13020.833)
    assert passes.memory_of(model(QWEN), None).limit in (1 << 29, 4 << 30)


def test_passes_of_large_models_are_small_and_fit() -> None:
    shape = passes.Shape(d_model=4096, d_mlp=14336, d_heads=4096, d_kv=1024)
    room = passes.Memory(limit=1 << 30, per_token=1 << 20, per_stream=1, per_cached=1)
    assert passes.pass_size_for("cpu", shape, room).tokens == 256
    assert passes.pass_size_for("cpu", shape, replace(room, limit=1 << 28)).tokens == 128
    assert passes.pass_size_for("cuda", shape, replace(room, limit=1 << 40)).tokens == 4096


def test_little_memory_means_several_bands_of_layers_and_the_same_scores() -> None:
    found = swept(budget=300, memory=2**14)
    assert largest_gap(found.table, expected(QWEN)) < 1e-5


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_padded_passes_give_the_same_scores(architecture: str) -> None:
    key = (architecture, None, "float32")
    done = swept(key, budget=300).checkpoint
    dear = replace(done, size=PassSize(10**6, overhead=1e9), prefix=0, scores=())
    found = swept(key, resume=dear)
    assert found.stats.passes < 12, "starting a pass costs so much that all lengths go together"
    assert largest_gap(found.table, expected(key)) < 1e-5


def test_rounding_noise_is_scored_as_the_unedited_model_without_passes() -> None:
    found = swept(budget=300)
    noise = found.table[found.table["norm"] <= ZERO_NORM]
    assert sorted(noise["layer"]) == [0, 0]
    assert found.stats.evaluations == {"induce": 4, "bypass": 4, "kl": 4}
    plain = first_token_log_odds(map_last_logits(model(QWEN), POSITIVE), REFUSAL).float().mean()
    assert noise["bypass"].tolist() == pytest.approx([float(plain)] * 2, abs=1e-5)
    assert noise["kl"].tolist() == [0.0, 0.0]


def test_a_pass_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    def fits(self: Any, batch: Any, members: Sequence[int], streams: Any) -> Any:
        if len(members) > 1:
            raise torch.OutOfMemoryError("no room")
        return inner(self, batch, members, streams)

    for trial in (paths._Ablated, paths._Added):
        inner = trial.logits
        monkeypatch.setattr(trial, "logits", fits)
        found = swept(budget=10**6)
        monkeypatch.setattr(trial, "logits", inner)
        assert found.checkpoint.size.tokens < 10**6
        assert largest_gap(found.table, expected(QWEN)) < 1e-5


# ------------------------------------------------------------------ falling back


def test_an_edit_around_the_sweep_is_honoured_through_hooks_and_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    of = model(QWEN)
    edit = Ablate(torch.ones(kit.WIDTH))
    with applied(of, edit), caplog.at_level(logging.WARNING):
        found = swept(budget=300)
        wanted = one_by_one(of, candidates(QWEN))
    assert found.stats.path == "hooks"
    assert "TransformerLens hooks, which is slow" in caplog.text
    assert largest_gap(found.table, wanted) < 1e-5


@pytest.mark.tl3
def test_a_hooked_transformer_is_scored_through_hooks() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    tokenizer = kit.byte_tokenizer()
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=128, d_head=4, n_heads=4, d_vocab=259, act_fn="gelu"
    )
    of = ChatModel.wrap(HookedTransformer(cfg), chat=ChatFormat.from_tokenizer(tokenizer), name="x")
    means = [mean_residuals(of, prompts).mean[-1:] for prompts in (POSITIVE, NEGATIVE)]
    found = Candidates(*means, Place.posts(1), of.chat.positions[-1:])
    asked = {"positive": POSITIVE, "negative": NEGATIVE, "behaviour": FirstTokens(REFUSAL)}
    result = sweep(of, found, budget=300, **asked)
    assert result.stats.path == "hooks"
    assert largest_gap(result.table, one_by_one(of, found)) < 1e-5


@pytest.mark.parametrize("fails", [False, True])
def test_the_bridge_is_whole_again_after_a_sweep(fails: bool) -> None:
    of = model(GEMMA)
    rendered = of.chat.render(["hello"])
    before = of.logits(rendered)
    attention = of.hf.config._attn_implementation

    def stop(_checkpoint: SweepCheckpoint) -> None:
        raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            swept(GEMMA, budget=300, on_block=stop)
    else:
        swept(GEMMA, budget=300)
    assert torch.equal(of.logits(rendered), before)
    assert of.hf.config._attn_implementation == attention
    site = Site("attn_out", 1)
    assert of.read(rendered, [site])[site].shape == (1, rendered.ids.shape[1], kit.WIDTH)
    assert not any("forward" in block.original_component.__dict__ for block in of.bridge.blocks)


# ------------------------------------------------------------------ going on after a stop


@pytest.mark.parametrize("budget", [100, 300])
@pytest.mark.parametrize("mode", ["exhaustive", "lazy"])
def test_a_sweep_stopped_after_any_block_ends_the_same(mode: str, budget: int) -> None:
    """Bit for bit, also where several candidates share a pass."""
    middle = float(expected(QWEN)["induce"].median())
    rule = Thresholds(kl_threshold=10.0, induce_threshold=middle, prune_layers=0.0)
    options = {"mode": mode, "rule": rule, "budget": budget}
    saved: list[str] = []
    whole = swept(on_block=lambda checkpoint: saved.append(checkpoint.to_json()), **options)
    assert len(saved) >= 3
    for text in saved[:-1]:
        resumed = swept(resume=SweepCheckpoint.from_json(text), **{**options, "budget": None})
        pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
        assert resumed.stats.passes < whole.stats.passes


def test_a_checkpoint_keeps_nan_and_refuses_another_sweep() -> None:
    done = swept(budget=300).checkpoint
    odd = replace(done, scores=(("kl", -1, 2, math.nan),))
    back = SweepCheckpoint.from_json(odd.to_json())
    assert math.isnan(back.scores[0][3])
    assert "NaN" not in odd.to_json()
    with pytest.raises(InputError, match="other candidates, prompts"):
        swept(resume=replace(done, key="0"))
    with pytest.raises(InputError, match="cannot be read"):
        SweepCheckpoint.from_json("{}")


# ------------------------------------------------------------------ lazy


def outcome(table: pd.DataFrame, n_layers: int, rule: Thresholds) -> Any:
    """What the rule takes, or what it says when it takes nothing."""
    try:
        choice = select(table, n_layers, rule)
    except NoCandidateError as error:
        return str(error)
    return choice.position, choice.layer


def same_choice(one: pd.DataFrame, other: pd.DataFrame, n_layers: int, rule: Thresholds) -> bool:
    """Whether both tables lead to the same choice, or to the same error."""
    return outcome(one, n_layers, rule) == outcome(other, n_layers, rule)


class Scripted(SweepEngine):
    """An engine whose scores are given: only the plan is at work."""

    def __init__(self, rows: pd.DataFrame, n_layers: int) -> None:
        self.truth = {(r["position"], r["layer"]): r for r in rows.to_dict("records")}
        self.n_layers = n_layers
        self.scores, self.known = CandidateScores(), CandidateScores()
        self.positive, self.negative, self.kl = [0], [1], [1]
        self.path = SimpleNamespace(skips=True, prefix=0)
        self.evaluations = dict.fromkeys(NAMES, 0)
        self.count, self.noise = Count(), set()

    def batches(self, prompts: Any, members: int) -> list[Any]:
        return []

    def bands(self, layers: Any, batches: Any) -> list[list[int]]:
        return [list(layers)]

    def advance_units(self, band: Any, batches: Any) -> float:
        return 0.0

    def units(self, batches: Any, members: int, blocks: int) -> float:
        return members * blocks

    def block_size(self, batches: Any, wanted: int) -> int:
        return 7

    def advance_to(self, layer: int, band: Any, batches: Any) -> None:
        pass

    def induce(self, layer: int, block: Any, batches: Any, *, threshold: float | None) -> None:
        for candidate in block:
            assert candidate[1] == layer
            value = self.truth[candidate]["induce"]
            if threshold is not None and value < threshold - 5:
                self.scores.skipped[candidate] = "induce surely less"
            else:
                self._found("induce", candidate)

    def ablate(self, block: Any, batches: Any, names: Sequence[str]) -> None:
        for candidate in block:
            for name in names:
                self._found(name, candidate)

    def _found(self, name: str, candidate: Any) -> None:
        assert not self.scores.has(name, candidate)
        self.scores.values[name][candidate] = self.truth[candidate][name]
        self.evaluations[name] += 1

    def run(self, plan: Any) -> pd.DataFrame:
        for task in plan:
            assert task.units >= 0
            assert task.rest() >= 0
            task.do()
        return pd.DataFrame(
            {
                "position": p,
                "layer": layer,
                **{name: self.scores.get(name, (p, layer)) for name in NAMES},
                "skipped": self.scores.skipped.get((p, layer), ""),
            }
            for p, layer in self.truth
        )


def scripted(rows: pd.DataFrame, n_layers: int, rule: Thresholds) -> tuple[Scripted, pd.DataFrame]:
    engine = Scripted(rows, n_layers)
    return engine, engine.run(lazy(engine, list(engine.truth), rule))


def random_scores(seed: int) -> pd.DataFrame:
    draw = random.Random(seed)

    def value(low: float, high: float) -> float:
        return math.nan if draw.random() < 0.1 else round(draw.uniform(low, high), 1)

    rows = [
        (p, layer, value(-9, 3), value(-12, draw.choice([2, 8])), value(0, draw.choice([0.2, 3])))
        for p in range(-3, 0)
        for layer in range(10)
    ]
    return pd.DataFrame(rows, columns=["position", "layer", *NAMES])


def test_lazy_chooses_the_same_on_any_table() -> None:
    failures = 0
    for seed in range(120):
        rows = random_scores(seed)
        rule = Thresholds(induce_threshold=[0.0, 7.0, 99.0][seed % 3])
        _, some = scripted(rows, 10, rule)
        assert same_choice(rows, some, 10, rule), seed
        failures += not math.isfinite(some["kl"].max()) or rule.induce_threshold == 99.0
    assert failures > 30


def test_lazy_leaves_out_what_is_not_needed_and_says_why() -> None:
    rows = random_scores(3)
    rule = Thresholds()
    engine, some = scripted(rows, 10, rule)
    judged = select(some, 10).table
    assert engine.evaluations["induce"] <= 24
    assert engine.evaluations["kl"] < engine.evaluations["bypass"] < engine.evaluations["induce"]
    unknown = judged[some[list(NAMES)].isna().any(axis=1) & ~judged["passes"]]
    assert unknown["reason"].str.contains("not needed|layer >=|NaN").all()
    assert {text.split()[0] for text in some["skipped"] if text} == {"layer", "induce", "one"}


def test_exhaustive_scores_everything_once() -> None:
    rows = random_scores(1)
    engine = Scripted(rows, 10)
    table = engine.run(exhaustive(engine, list(engine.truth)))
    pd.testing.assert_frame_equal(table[rows.columns], rows, check_dtype=False)


@pytest.mark.published
@pytest.mark.parametrize("run", ["qwen-1_8b-chat", "gemma-2b-it", "meta-llama-3-8b-instruct"])
def test_lazy_chooses_what_the_reference_selected_with_a_third_of_its_evaluations(run: str) -> None:
    folder = PUBLISHED / run
    evaluations = json.loads((folder / "select_direction/direction_evaluations.json").read_text())
    names = {"refusal_score": "bypass", "steering_score": "induce", "kl_div_score": "kl"}
    rows = pd.DataFrame(evaluations).rename(columns=names)
    n_layers = int(rows["layer"].max()) + 1
    engine, some = scripted(rows, n_layers, Thresholds())
    choice = select(some, n_layers)
    chosen = json.loads((folder / "direction_metadata.json").read_text())
    assert (choice.position, choice.layer) == (chosen["pos"], chosen["layer"])
    assert sum(engine.evaluations.values()) < 0.4 * 3 * len(rows)


@pytest.mark.parametrize("quantile", [0.2, 0.7])
@pytest.mark.parametrize("kl_threshold", [0.0, 0.5, 10.0])
def test_lazy_chooses_the_same_on_a_model(quantile: float, kl_threshold: float) -> None:
    everything = expected(QWEN)
    rule = Thresholds(kl_threshold, float(everything["induce"].quantile(quantile)) - 1e-4, 0.3)
    found = swept(mode="lazy", rule=rule, budget=300)
    full = swept(budget=300).table
    assert same_choice(full, found.table, kit.LAYERS, rule)
    known = found.table[list(NAMES)].notna()
    gap = (found.table[list(NAMES)] - full[list(NAMES)]).abs()[known].max().max()
    assert gap < 1e-5


def test_a_candidate_that_cannot_pass_is_given_up_early_and_only_then() -> None:
    # The metric of a prompt is at most 18.42, so four prompts must average at least 18.4.
    rule = Thresholds(kl_threshold=10.0, induce_threshold=18.4)
    found = swept(mode="lazy", rule=rule, budget=1)
    full = swept(budget=300).table
    # Nothing passes: all admissible candidates are scored after all, for the reasons.
    inside = full["layer"] < rule.layer_bound(kit.LAYERS)
    assert largest_gap(found.table[inside], full[inside]) < 1e-5
    assert same_choice(full, found.table, kit.LAYERS, rule)


def test_nan_scores_are_kept_and_never_chosen() -> None:
    of, good = model(NEOX), candidates(NEOX)
    huge = good.mean_positive.clone()
    huge[-1, 1] = 3e38
    bad = Candidates(huge, good.mean_negative, good.places, good.names)
    asked = {"positive": POSITIVE, "negative": NEGATIVE, "behaviour": FirstTokens(REFUSAL), "budget": 300}
    everything = score_candidates(of, bad, **asked)
    row = everything[(everything["position"] == -1) & (everything["layer"] == 1)].iloc[0]
    assert math.isnan(row["induce"])
    assert math.isfinite(row["bypass"])
    rule = Thresholds(kl_threshold=99.0, induce_threshold=-99.0, prune_layers=0.0)
    some = score_candidates(of, bad, mode="lazy", rule=rule, **asked)
    assert same_choice(everything, some, kit.LAYERS, rule)


# ------------------------------------------------------------------ progress, errors, batches


@pytest.mark.parametrize("mode", ["exhaustive", "lazy"])
def test_progress_starts_at_nothing_and_ends_at_all(mode: str) -> None:
    said: list[tuple[int, int]] = []
    rule = Thresholds(kl_threshold=10.0, induce_threshold=-20.0)
    swept(mode=mode, rule=rule, budget=100, on_progress=lambda _, *now: said.append(now))
    done = [d for d, _ in said]
    assert done[0] == 0
    assert done == sorted(done)
    if mode == "exhaustive":
        assert said[-1][0] == said[-1][1]
        assert len({total for _, total in said}) == 1


def test_bad_requests_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="no rule"):
        swept(mode="lazy")
    with pytest.raises(InputError, match="need at least 1"):
        swept(budget=0)


def test_nan_logits_of_the_unedited_model_are_an_error() -> None:
    of = ChatModel.load(str(kit.folder("qwen2")))
    found = candidates(QWEN)
    with torch.no_grad():
        of.hf.get_input_embeddings().weight[of.tokenizer.convert_tokens_to_ids("z")] = math.nan
    with pytest.raises(InputError, match="NaN or infinity"):
        sweep(of, found, positive=["zzz"], negative=["zz"], behaviour=FirstTokens(REFUSAL), budget=300)


def test_batches_hold_every_prompt_once_within_the_budget() -> None:
    draw = random.Random(0)
    prompts = [torch.tensor([1, 2, 3] + [4] * draw.randint(1, 30)) for _ in range(40)]
    assert common_prefix(prompts) == 4
    for tokens in (1, 64, 10**6):
        for overhead, pad_id in ((0.0, 0), (200.0, 0), (200.0, None)):
            size = PassSize(tokens, overhead)
            batches = make_batches(
                [Row(p) for p in prompts], range(40), size, members=6, skip=2, pad_id=pad_id, at_most=5
            )
            assert sorted(i for batch in batches for i in batch.rows) == list(range(40))
            for batch in batches:
                assert len(batch.rows) <= 5
                assert batch.tokens <= tokens or len(batch.rows) == 1
                for row, i in enumerate(batch.rows):
                    real = (
                        batch.ids[row]
                        if batch.mask is None
                        else batch.ids[row][batch.mask[row] > 0]
                    )
                    assert torch.equal(real, prompts[i][2:])
            if pad_id is None or overhead == 0:
                assert all(batch.mask is None for batch in batches)


def test_lengths_merge_only_where_padding_costs_less_than_passes() -> None:
    prompts = [Row(torch.ones(n, dtype=torch.long)) for n in (10, 11, 40)]
    few = make_batches(prompts, range(3), PassSize(1000, 15.0), members=1, pad_id=0)
    assert [batch.rows for batch in few] == [(2,), (0, 1)]
    many = make_batches(prompts, range(3), PassSize(1000, 15.0), members=20, pad_id=0)
    assert [batch.rows for batch in many] == [(2,), (1,), (0,)]
