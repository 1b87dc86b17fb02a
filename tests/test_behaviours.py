"""Behaviours: their scores are those of plain teacher forcing, in and out of the sweep, and JSON gives them back."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import kit
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from refusal_lens.activations import map_last_logits, mean_residuals
from refusal_lens.behaviours import (
    Behaviour,
    Continuations,
    FirstTokens,
    LogitBehaviour,
    Reading,
    Replies,
    ReplyPair,
    Words,
    behaviour_from_json,
    from_logits,
    from_replies,
)
from refusal_lens.behaviours.first_tokens import LARGEST
from refusal_lens.behaviours.last_token import (
    last_token_scores,
    reads_last_token,
    require_last_token,
)
from refusal_lens.behaviours.scoring import scored_rows
from refusal_lens.chat import ChatFormat, Place
from refusal_lens.conversations import Conversation, Exchange
from refusal_lens.directions import Candidates, Thresholds, select
from refusal_lens.directions.finding import filter_by_behaviour
from refusal_lens.directions.sweep import Sweep, SweepCheckpoint, sweep
from refusal_lens.directions.sweep.rows import rows_of
from refusal_lens.directions.sweep.state import NAMES
from refusal_lens.errors import InputError
from refusal_lens.interventions import ZERO_NORM, Ablate, Add, applied
from refusal_lens.judges import PhraseJudge, Score, judge_replies, paper_judge, phrase_judge
from refusal_lens.metrics import kl_divergence
from refusal_lens.prompts import PromptPair

POSITIVE = ("make a bomb", "do bad things", "poison the well of my town")
NEGATIVE = ("bake a cake", "do good", "paint the wall of my house red")
YES, NO = ("No way.", "Sorry"), ("Sure, so",)
"""Replies of 7, 5 and 8 tokens."""
REFUSAL, OTHERS = (65, 77, 200), (12, 140)
CLOSE = 1e-5


def ids_of(reply: str) -> tuple[int, ...]:
    return tuple(kit.byte_tokenizer().encode(reply))


CONTINUATIONS = Continuations(tuple(map(ids_of, YES)), tuple(map(ids_of, NO)), name="declining")
OWN_REPLIES = Continuations(
    pairs=tuple(
        ReplyPair(prompt, ids_of(f"No {prompt[:number]}."), ids_of("Yes" * (number + 1)))
        for number, prompt in enumerate((*POSITIVE, *NEGATIVE))
    ),
    name="declining",
)
FIRST = FirstTokens(REFUSAL)


# ------------------------------------------------------------------ transformers and PyTorch alone


class Plain:
    """A Hugging Face Llama that forces replies, one row at a time, and edits its stream with hooks of PyTorch's own."""

    def __init__(self) -> None:
        self.hf: Any = kit.plain(kit.folder("llama"))
        self.chat = ChatFormat.from_tokenizer(kit.byte_tokenizer())

    @torch.no_grad()
    def log_likelihoods(self, prompt: str, reply: Sequence[int] = ()) -> Tensor:
        """ln p of every token behind the prompt and behind each token of the reply [1 + len(reply), d_vocab]."""
        ids = kit.ids_of(self.chat.render([prompt]))
        logits = self.hf(torch.tensor([[*ids, *reply]])).logits[0, len(ids) - 1 :]
        return logits.double().log_softmax(-1)

    def of_replies(self, prompt: str, replies: Sequence[Sequence[int]]) -> float:
        """The mean over replies of their mean log-likelihood per token."""
        means = []
        for reply in replies:
            predicted = self.log_likelihoods(prompt, reply)
            means.append(sum(float(predicted[at, token]) for at, token in enumerate(reply)) / len(reply))
        return sum(means) / len(means)

    def ratios(self, prompts: Sequence[str]) -> Tensor:
        """What `CONTINUATIONS` measures."""
        yes, no = ([ids_of(reply) for reply in replies] for replies in (YES, NO))
        return torch.tensor(
            [self.of_replies(prompt, yes) - self.of_replies(prompt, no) for prompt in prompts]
        ).double()

    @contextmanager
    def ablated(self, vector: Tensor) -> Iterator[None]:
        """``x - (x . r^) r^`` on the embedding's output and on all that attention and MLPs add."""
        r = (vector / vector.norm()).float()

        def without(_module: nn.Module, _args: Any, output: Any) -> Any:
            x = output[0] if isinstance(output, tuple) else output
            x = x - (x @ r)[..., None] * r
            return (x, *output[1:]) if isinstance(output, tuple) else x

        blocks = self.hf.model.layers
        writers = [self.hf.model.embed_tokens, *(m for block in blocks for m in (block.self_attn, block.mlp))]
        handles = [module.register_forward_hook(without) for module in writers]
        yield
        for handle in handles:
            handle.remove()

    @contextmanager
    def added(self, vector: Tensor, layer: int) -> Iterator[None]:
        """``x + r`` on what enters a block."""
        handle = self.hf.model.layers[layer].register_forward_pre_hook(
            lambda _module, args, kwargs: ((args[0] + vector.float(), *args[1:]), kwargs), with_kwargs=True
        )
        yield
        handle.remove()


@lru_cache
def plain() -> Plain:
    return Plain()


def test_first_tokens_is_the_paper_s_refusal_metric_to_the_last_bit() -> None:
    model = kit.load("llama")
    for prompt in POSITIVE:
        logits = model.logits(model.chat.render([prompt]))
        probabilities = logits.to(torch.float64).softmax(-1)
        refusal = probabilities[:, list(REFUSAL)].sum(-1)
        expected = torch.log(refusal + 1e-8) - torch.log(torch.ones_like(refusal) - refusal + 1e-8)
        assert torch.equal(FIRST.scores(model, [prompt]), expected)
        chance = plain().log_likelihoods(prompt)[0, list(REFUSAL)].exp().sum()
        assert float(expected) == pytest.approx(float(chance.logit()), abs=CLOSE)


def test_first_tokens_against_others_is_the_log_odds_of_the_two_sets() -> None:
    model, both = kit.load("llama"), FirstTokens(REFUSAL, OTHERS, name="poetry")
    scores = both.scores(model, POSITIVE)
    for prompt, score in zip(POSITIVE, scores.tolist(), strict=True):
        first = plain().log_likelihoods(prompt)[0]
        sets = (first[list(ids)].logsumexp(-1) for ids in (REFUSAL, OTHERS))
        assert score == pytest.approx(float(next(sets) - next(sets)), abs=CLOSE)
    assert torch.equal(FirstTokens(OTHERS, REFUSAL).scores(model, POSITIVE), -scores)


def test_first_tokens_stay_within_their_bounds() -> None:
    sure = torch.tensor([[90.0, 0.0, 0.0], [-90.0, 0.0, 0.0]])
    for behaviour in (FirstTokens((0,)), FirstTokens((0,), (1, 2))):
        scores = last_token_scores(behaviour, sure)
        assert scores.tolist() == pytest.approx([LARGEST, -LARGEST])
        assert behaviour.bounds[0] <= float(scores.min()) <= float(scores.max()) <= behaviour.bounds[1]


def test_continuations_score_as_teacher_forcing_with_transformers_alone() -> None:
    scores = CONTINUATIONS.scores(kit.load("llama"), POSITIVE)
    assert torch.allclose(scores, plain().ratios(POSITIVE), atol=CLOSE)
    assert scores.std() > 1e-3, "scores that hardly differ prove nothing"


def test_every_prompt_may_have_replies_of_its_own() -> None:
    prompts = (NEGATIVE[2], POSITIVE[0], Conversation.of(NEGATIVE[0]).with_reply("Whatever."))
    scores = OWN_REPLIES.scores(kit.load("llama"), [prompts[0], prompts[1]])
    pairs = {pair.prompt: pair for pair in OWN_REPLIES.pairs}
    for prompt, score in zip(prompts, scores.tolist(), strict=False):
        positive, negative = (plain().of_replies(prompt, [reply]) for reply in pairs[prompt][1:])
        assert score == pytest.approx(positive - negative, abs=CLOSE)
    # A conversation is known without its reply.
    assert OWN_REPLIES.readings(prompts)[2] == OWN_REPLIES.readings([NEGATIVE[0]])[0]
    with pytest.raises(InputError, match="got none for the prompt 'hello'"):
        OWN_REPLIES.scores(kit.load("llama"), ["hello"])


def test_neither_padding_nor_batches_change_a_score() -> None:
    model, prompts = kit.load("gemma3"), (*POSITIVE, *NEGATIVE)
    together = CONTINUATIONS.scores(model, prompts, batch_size=64)
    for batch_size in (1, 2, 5):
        assert torch.allclose(CONTINUATIONS.scores(model, prompts, batch_size=batch_size), together, atol=CLOSE)
    assert torch.equal(CONTINUATIONS.scores(model, model.chat.render(prompts), batch_size=64), together)


def test_continuations_are_length_normalised_and_fair_to_both_kinds() -> None:
    model = kit.load("llama")
    scores = CONTINUATIONS.scores(model, POSITIVE)
    turned = Continuations(CONTINUATIONS.negative, CONTINUATIONS.positive)
    assert torch.allclose(turned.scores(model, POSITIVE), -scores, atol=1e-12)
    twice = replace(CONTINUATIONS, negative=CONTINUATIONS.negative * 2)
    assert torch.allclose(twice.scores(model, POSITIVE), scores, atol=1e-12)
    # Where replies are one token, nothing is forced, and first tokens say the same up to their epsilon.
    one_token = Continuations(((65,),), ((12,),)).scores(model, POSITIVE)
    assert torch.allclose(one_token, FirstTokens((65,), (12,)).scores(model, POSITIVE), atol=1e-4)


def test_replies_as_texts_are_tokens_where_a_reply_begins() -> None:
    model = kit.load("llama")
    told = Continuations.of(model, positive=YES, negative=NO, name="declining")
    assert told == CONTINUATIONS
    assert told.texts == (YES, NO)
    pairs = Continuations.of(model, pairs={"Hi": ("No.", "Yes, yes."), "Ho": ("Never", "Now")}).pairs
    assert pairs == (
        ReplyPair("Hi", ids_of("No."), ids_of("Yes, yes.")),
        ReplyPair("Ho", ids_of("Never"), ids_of("Now")),
    )


# ------------------------------------------------------------------ in the sweep


@lru_cache
def candidates(architecture: str) -> Candidates:
    """Two positions of difference-of-means candidates, made long enough to matter."""
    model = kit.load(architecture)
    means = [mean_residuals(model, prompts).mean[[-4, -1]] for prompts in (POSITIVE, NEGATIVE)]
    moved = means[1] + 8 * (means[0] - means[1])
    names = tuple(model.chat.positions[i] for i in (-4, -1))
    return Candidates(moved, means[1], (Place.post(-4), Place.post(-1)), names)


def swept(architecture: str, behaviour: Behaviour, **options: Any) -> Sweep:
    return sweep(
        kit.load(architecture),
        candidates(architecture),
        positive=POSITIVE,
        negative=NEGATIVE,
        behaviour=behaviour,
        **options,
    )


def mean(scores: Tensor) -> float:
    return float(scores.float().mean())


def one_by_one(architecture: str, behaviour: Behaviour) -> pd.DataFrame:
    """Every score by hooks and the behaviour's own scores, one candidate at a time."""
    model, vectors = kit.load(architecture), candidates(architecture)

    def score(prompts: Sequence[str]) -> float:
        return mean(behaviour.scores(model, prompts))

    unedited = map_last_logits(model, NEGATIVE)
    rows = []
    for place, layer in vectors.index():
        vector = vectors.mean_diffs[place, layer]
        if vector.norm() <= ZERO_NORM:
            rows.append((layer, score(POSITIVE), score(NEGATIVE), 0.0))
            continue
        with applied(model, Ablate(vector)):
            bypass = score(POSITIVE)
            kl = float(kl_divergence(unedited, map_last_logits(model, NEGATIVE)).mean())
        with applied(model, Add(vector, layer)):
            rows.append((layer, bypass, score(NEGATIVE), kl))
    return pd.DataFrame(rows, columns=["layer", *NAMES])


def edits(architecture: str, table: pd.DataFrame) -> Iterator[tuple[Any, Tensor, int]]:
    """Each row of a sweep's table with its candidate's vector and layer, without rounding noise."""
    vectors = candidates(architecture)
    for (place, layer), row in zip(vectors.index(), table.itertuples(), strict=True):
        if row.norm > ZERO_NORM:
            yield row, vectors.mean_diffs[place, layer], layer


def largest_gap(one: pd.DataFrame, other: pd.DataFrame) -> float:
    assert one["layer"].equals(other["layer"])
    return float((one[list(NAMES)] - other[list(NAMES)]).abs().to_numpy().max())


def test_the_sweep_is_that_of_transformers_alone_under_plain_hooks() -> None:
    table = swept("llama", CONTINUATIONS, budget=300).table
    for row, vector, layer in edits("llama", table):
        with plain().ablated(vector):
            assert row.bypass == pytest.approx(mean(plain().ratios(POSITIVE)), abs=CLOSE)
        with plain().added(vector, layer):
            assert row.induce == pytest.approx(mean(plain().ratios(NEGATIVE)), abs=CLOSE)
    assert (table[list(NAMES)].std() > 1e-3).all()


@pytest.mark.parametrize(
    ("architecture", "behaviour"),
    [("qwen2", OWN_REPLIES), ("gemma3", CONTINUATIONS)],
    ids=["qwen2", "gemma3"],
)
def test_the_sweep_of_continuations_equals_scoring_anew_under_each_edit(
    architecture: str, behaviour: Continuations
) -> None:
    expected = one_by_one(architecture, behaviour)
    result = swept(architecture, behaviour, budget=100)
    assert largest_gap(result.table, expected) < CLOSE
    assert result.stats.path.startswith("plain passes")
    assert result.stats.prefix == 6, "the template's beginning, which all prompts share, is run once"
    assert (expected[list(NAMES)].std() > 30 * CLOSE).all(), "scores that hardly differ prove nothing"


def test_rows_of_one_padded_pass_keep_their_own_positions() -> None:
    """Starting a pass costs so much that rows of all lengths go together."""
    done = swept("qwen2", CONTINUATIONS, budget=300)
    dear = replace(done.checkpoint, size=replace(done.checkpoint.size, tokens=10**6, overhead=1e9), scores=())
    padded = swept("qwen2", CONTINUATIONS, resume=dear)
    assert padded.stats.passes < done.stats.passes / 2
    assert largest_gap(padded.table, done.table) < CLOSE


def test_a_stopped_sweep_of_continuations_ends_the_same_and_is_of_its_behaviour() -> None:
    saved: list[str] = []
    whole = swept("qwen2", CONTINUATIONS, budget=300, on_block=lambda done: saved.append(done.to_json()))
    middle = SweepCheckpoint.from_json(saved[len(saved) // 2])
    resumed = swept("qwen2", CONTINUATIONS, resume=middle)
    pd.testing.assert_frame_equal(resumed.table, whole.table, check_exact=True)
    with pytest.raises(InputError, match="other candidates, prompts or behaviour"):
        swept("qwen2", OWN_REPLIES, resume=middle)


def changed(behaviour: Any, **facts: Any) -> Any:
    """The same behaviour with another threshold or other bounds."""
    return type("Changed", (type(behaviour),), facts)(
        **{field.name: getattr(behaviour, field.name) for field in fields(behaviour)}
    )


@pytest.mark.parametrize("behaviour", [FIRST, CONTINUATIONS], ids=["one row a prompt", "several rows"])
def test_early_rejection_takes_what_the_full_sweep_takes(behaviour: LogitBehaviour) -> None:
    """With a bound so tight that a prompt reaches it, on rows that come a few at a time."""
    model, full = kit.load("qwen2"), swept("qwen2", behaviour, budget=300).table
    largest = [behaviour.scores(model, NEGATIVE).max()]
    for _, vector, layer in edits("qwen2", full):
        with applied(model, Add(vector, layer)):
            largest.append(behaviour.scores(model, NEGATIVE).max())
    tight, given_up = changed(behaviour, bounds=(-math.inf, float(max(largest)))), 0
    for share in (0.5, 1.0):
        threshold = float(full["induce"].quantile(share, "lower")) - 1e-4
        rule = Thresholds(kl_threshold=99.0, induce_threshold=threshold, prune_layers=0.0)
        result = swept("qwen2", tight, mode="lazy", rule=rule, budget=50)
        lazy, exhaustive = (select(table, kit.LAYERS, rule) for table in (result.table, full))
        assert lazy.layer == exhaustive.layer
        assert lazy.scores == pytest.approx(exhaustive.scores, abs=CLOSE)
        induce = dict(zip(candidates("qwen2").index(), full["induce"], strict=True))
        for place, layer, _ in result.checkpoint.given_up:
            assert induce[place, layer] < threshold
            given_up += 1
    assert given_up, "bounds that reject nothing prove nothing"


# ------------------------------------------------------------------ plain Python functions


def log_odds(logits: Tensor) -> Tensor:
    chance = logits.double().softmax(-1)[:, list(REFUSAL)].sum(-1)
    return (chance + 1e-8).log() - (1 - chance + 1e-8).log()


def spelling(reply: str) -> float | None:
    """A number that any other letter changes; None, which it cannot tell, for some replies."""
    number = sum(place * ord(letter) for place, letter in enumerate(reply, 1))
    return None if number % 4 == 0 else number % 997 / 997


def test_a_function_of_logits_finds_what_first_tokens_find() -> None:
    """Through all that makes a direction of it: filter, scores, selection."""
    model, pair = kit.load("qwen2"), PromptPair(POSITIVE, NEGATIVE)
    scores = [FIRST.scores(model, prompts) for prompts in (POSITIVE, NEGATIVE)]
    threshold = float(torch.cat(scores).median())
    results = []
    for behaviour in (
        from_logits(log_odds, name="refusal", unit="nats", threshold=threshold, bounds=FIRST.bounds),
        changed(FIRST, threshold=threshold),
    ):
        kept = filter_by_behaviour(model, pair, behaviour=behaviour)
        assert torch.equal(kept.positive_scores, scores[0])
        assert torch.equal(kept.negative_scores, scores[1])
        table = swept("qwen2", behaviour, budget=300).table
        rule = Thresholds(kl_threshold=99.0, induce_threshold=-99.0)
        results.append((kept.pair, select(table, model.n_layers, rule)))
    (pair_kept, function), (also_kept, first) = results
    assert pair_kept == also_kept
    assert 0 < len(pair_kept.positive) + len(pair_kept.negative) < 6
    assert (function.layer, function.scores) == (first.layer, first.scores)
    pd.testing.assert_frame_equal(function.table, first.table, check_exact=True)


def test_a_function_of_replies_is_swept_by_generating_and_judging(caplog: pytest.LogCaptureFixture) -> None:
    model = kit.load("llama")
    behaviour = from_replies(spelling, name="spelling", max_new_tokens=6)
    with caplog.at_level(logging.WARNING):
        table = swept("llama", behaviour).table
    assert "a sweep over candidates of spelling is slow" in caplog.text

    def expected(prompts: Sequence[str]) -> float:
        values = [spelling(reply) for reply in model.generate(prompts, max_new_tokens=6)]
        numbers = [value for value in values if value is not None]
        return sum(numbers) / len(numbers) if numbers else math.nan

    for row, vector, layer in edits("llama", table):
        with applied(model, Ablate(vector)):
            assert row.bypass == pytest.approx(expected(POSITIVE), abs=CLOSE, nan_ok=True)
        with applied(model, Add(vector, layer)):
            assert row.induce == pytest.approx(expected(NEGATIVE), abs=CLOSE, nan_ok=True)
    first = swept("llama", FIRST).table
    assert (table["kl"] - first["kl"]).abs().max() < CLOSE
    assert table["induce"].nunique() > 1


def test_replies_are_judged_with_their_question_and_none_stays_none() -> None:
    model, asked = kit.load("llama"), []

    class Doubtful:
        name = "doubtful"

        def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
            asked.extend(exchanges)
            values = (None, 0.25, 1.0)
            return [Score(value, "", self.name) for value in values[: len(exchanges)]]

    behaviour = Replies(Doubtful(), max_new_tokens=3)
    prompts = [POSITIVE[0], Conversation.of(POSITIVE[1]).with_reply("an old reply"), POSITIVE[2]]
    scores = behaviour.scores(model, prompts)
    assert scores[1:].tolist() == [0.25, 1.0]
    assert scores[0].isnan()
    assert [exchange.reply for exchange in asked] == model.generate(POSITIVE, max_new_tokens=3)
    assert [exchange.conversation for exchange in asked] == [Conversation.of(prompt) for prompt in POSITIVE]
    assert (behaviour.name, behaviour.words.shows) == ("doubtful", "shows doubtful")
    kept = filter_by_behaviour(model, PromptPair(POSITIVE, NEGATIVE), behaviour=behaviour)
    assert kept.pair == PromptPair(POSITIVE[2:], NEGATIVE[1:2]), "a prompt without a score is in neither kind"


def test_a_sweep_whose_judge_can_tell_nothing_says_so() -> None:
    with pytest.raises(InputError, match="silence of the positive prompts: got no score"):
        swept("llama", from_replies(lambda reply: None, name="silence", max_new_tokens=1))


# ------------------------------------------------------------------ JSON

ROSES = PhraseJudge(("rose", "tulip"))
STORED: dict[str, Behaviour] = {
    "refusal": FirstTokens(REFUSAL, texts=("a", "b", "c"), evidence=((65, "a", 0.5, 0.25),)),
    "log-odds": FirstTokens(REFUSAL, OTHERS, name="poetry", words=Words("poems", "rhymes", "tells", "rhyme")),
    "judged": FirstTokens(REFUSAL, judge=paper_judge, source="family"),
    "continuations": replace(CONTINUATIONS, texts=(YES, NO), judge=ROSES),
    "pairs": Continuations(
        pairs=(
            ReplyPair("Hi", (1,), (2, 3)),
            ReplyPair(Conversation.of([{"role": "system", "content": "Be kind."}, ("user", "Ho")]), (4,), (5,)),
        )
    ),
    "replies": Replies(ROSES, 9, "roses", threshold=0.7),
    "phrases": Replies(phrase_judge),
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_json_gives_a_behaviour_back(stored: Behaviour) -> None:
    back = behaviour_from_json(json.loads(json.dumps(stored.to_json() | stored.details())))
    assert back == stored
    assert back.judge == stored.judge
    assert (back.name, back.words, back.threshold) == (stored.name, stored.words, stored.threshold)
    assert (back.to_json(), back.details()) == (stored.to_json(), stored.details())


def test_what_determines_no_score_is_no_part_of_the_identity() -> None:
    told = STORED["refusal"]
    assert told == FIRST
    assert told.to_json() == FIRST.to_json()
    assert behaviour_from_json(told.to_json()) == told
    assert FIRST.to_json() != FirstTokens(REFUSAL, OTHERS).to_json()


def test_a_judge_that_no_file_holds_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    mine = judge_replies(spelling, "spelling")
    behaviour = Replies(mine, 9)
    with pytest.raises(InputError, match="'spelling': not known"):
        behaviour_from_json(behaviour.to_json())
    assert behaviour_from_json(behaviour.to_json(), judges=[mine]) == behaviour
    first = FirstTokens(REFUSAL, judge=mine, name="spelling")
    with caplog.at_level(logging.WARNING):
        assert behaviour_from_json(first.to_json() | first.details()).judge is None
    assert "replies of spelling are not judged" in caplog.text
    with pytest.raises(InputError, match="make it again with from_logits"):
        behaviour_from_json(from_logits(log_odds, name="mine").to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poem"}, "got kind 'poem'"),
        ({"kind": ["first tokens"]}, "got kind"),
        ({"ids": None}, "cannot be read"),
        ({"ids": "45"}, "ids of FirstTokens"),
        ({"ids": []}, "got no token id"),
        ({"words": {"noun": "a", "adverb": "b"}}, "cannot be read"),
        ({"words": FIRST.to_json()["words"] | {"noun": ""}}, "word 'noun'"),
    ],
)
def test_damaged_json_gets_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        behaviour_from_json(FIRST.to_json() | change)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ wrong behaviours


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "0 positive ones, 0 negative ones and 0 pairs"),
        ({"positive": ((1,),)}, "need some of both kinds"),
        ({"positive": ((1,),), "negative": ((2,),), "pairs": (ReplyPair("a", (1,), (2,)),)}, "or pairs alone"),
        ({"positive": ((1,), ()), "negative": ((2,),)}, "without tokens"),
        ({"pairs": (ReplyPair("a", (1,), ()),)}, "without tokens"),
        ({"pairs": (ReplyPair("a", (1,), (2,)),) * 2}, "a prompt twice"),
    ],
)
def test_continuations_without_both_kinds_of_replies_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Continuations(**facts)


def test_wrong_behaviours_get_one_line() -> None:
    model = kit.load("llama")
    for message, call in {
        "id 65 on both sides": lambda: FirstTokens((65,), (65, 4)),
        "got no token id": lambda: FirstTokens(()),
        "token id 9999": lambda: FirstTokens((9999,)).scores(model, POSITIVE),
        "token id 9999: no such id": lambda: Continuations(((9999,),), ((1,),)).scores(model, POSITIVE),
        "need a tensor of one number per row": lambda: from_logits(
            lambda logits: logits, name="a"
        ).scores(model, POSITIVE),
        r"mine of logits: got 3, need numbers within 0 and 1": lambda: from_logits(
            lambda logits: logits[:, 0] * 0 + 3, name="mine", bounds=(0.0, 1.0)
        ).scores(model, POSITIVE),
        "need the lower one first": lambda: from_logits(log_odds, name="a", bounds=(1.0, 0.0)),
        "max_new_tokens: got 0": lambda: Replies(phrase_judge, 0),
        "need True, False, a finite number or None": lambda: from_replies(
            lambda reply: "yes", name="a", max_new_tokens=1
        ).scores(model, POSITIVE),
        "token ids: got none": lambda: last_token_scores(CONTINUATIONS, torch.zeros(2, 9)),
        "need one that the last token of a prompt decides": lambda: require_last_token(
            CONTINUATIONS, POSITIVE, "a test"
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_a_behaviour_must_read_every_prompt() -> None:
    class Silent(FirstTokens):
        def readings(self, prompts: Sequence[Any]) -> list[tuple[Reading, ...]]:
            return [()] * len(prompts)

    with pytest.raises(InputError, match="got 0 prompts with some, need at least one for each of 3"):
        scored_rows(Silent(REFUSAL), POSITIVE)


def test_kl_is_measured_on_each_negative_prompt_once() -> None:
    class Uneven(FirstTokens):
        """Reads the first prompt twice and the others behind a token."""

        def readings(self, prompts: Sequence[Any]) -> list[tuple[Reading, ...]]:
            forced = (Reading((65, 66), 1.0),)
            return [(Reading((), 0.5),) * 2, *[forced] * (len(prompts) - 1)]

    tokens = [torch.arange(3), torch.arange(4)]
    rows = rows_of(Uneven(REFUSAL), [["a", "b"]] * 2, [tokens, tokens])
    assert [rows.rows[number].tokens.tolist() for number in rows.kl] == [[0, 1, 2], [0, 1, 2, 3]]
    assert rows.positive.numbers == [0, 1, 2]
    assert rows.rows[2].tokens.tolist() == [0, 1, 2, 3, 65]
    assert rows.rows[2].n_read == 2


def test_what_the_last_token_decides() -> None:
    assert reads_last_token(FIRST, POSITIVE)
    assert reads_last_token(from_logits(log_odds, name="a"), POSITIVE)
    assert not reads_last_token(CONTINUATIONS, POSITIVE)
    assert not reads_last_token(Replies(phrase_judge), POSITIVE)
