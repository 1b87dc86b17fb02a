"""Conversations of several turns in a model: reads at places, edits by when, replies, suffixes, candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import kit
import pandas as pd
import pytest
import torch
from torch import Tensor

from refusal_lens.activations import cache_residuals, map_last_logits, mean_residuals
from refusal_lens.attribution import attribute
from refusal_lens.behaviours import Behaviour, FirstTokens, from_logits
from refusal_lens.behaviours.last_token import last_token_scores
from refusal_lens.chat import Place
from refusal_lens.conversations import Conversation, Exchange, Prompt
from refusal_lens.direction import Direction
from refusal_lens.directions import Candidates, Thresholds, score_candidates, select
from refusal_lens.directions.finding import extract_candidates
from refusal_lens.errors import InputError
from refusal_lens.evaluation import Completion, complete
from refusal_lens.interventions import add, applied
from refusal_lens.judges import Score
from refusal_lens.model import ChatModel, Site
from refusal_lens.prompts import PromptPair
from refusal_lens.studies.suffix import study_suffix

TALK = Conversation.of(
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Elbe."},
        {"role": "user", "content": "And a sea?"},
    ]
)
ANSWERED = TALK.with_reply("No sea, sorry!")
TEXT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a river.<|im_end|>\n"
    "<|im_start|>assistant\nThe Elbe.<|im_end|>\n<|im_start|>user\nAnd a sea?<|im_end|>\n<|im_start|>assistant\n"
)
POST = "<|im_end|>\n<|im_start|>assistant\n"
BEHAVIOUR = FirstTokens((40, 41))


@lru_cache
def model() -> ChatModel:
    return kit.load("qwen2")


def ids(text: str) -> list[int]:
    return [int(token) for token in model().tokenizer(text).input_ids]


@lru_cache
@torch.no_grad()
def streams(text: str) -> Tensor:
    """resid_pre [layer pos d_model] of the plain Hugging Face model, one text without padding."""
    plain = kit.plain(kit.folder("qwen2"))
    return torch.stack(plain(torch.tensor([ids(text)]), output_hidden_states=True).hidden_states[:-1])[:, 0]


def near(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=1e-5)


class TestReading:
    def test_a_conversation_is_read_as_the_plain_model_reads_its_text(self) -> None:
        """In a batch whose other rows need other padding."""
        at = ["t_inst", "post[-1]", "instruction.mean", "last"]
        prompts = ["Wake!", TALK, "x" * 150]
        found = cache_residuals(model(), prompts, places=at)[1].transpose(0, 1)
        after, message = len(ids(POST)), len(ids("And a sea?"))
        plain = streams(TEXT)[: model().n_layers]
        mean = plain[:, -after - message : -after].mean(1)
        near(found, torch.stack([plain[:, -after - 1], plain[:, -1], mean, plain[:, -1]], 1))
        usual = cache_residuals(model(), prompts)
        near(usual[1].transpose(0, 1), plain[:, -after:])
        near(usual[1], cache_residuals(model(), [TALK])[0])

    def test_a_reply_is_read_teacher_forced(self) -> None:
        at = ["reply.first", "reply.mean", "reply[-1]", "last", "post[-1]"]
        prompts = [ANSWERED, Conversation.of("Wake!").with_reply("I did, long ago, and slept again.")]
        found = cache_residuals(model(), prompts, places=at)[0].transpose(0, 1)
        plain = streams(TEXT + "No sea, sorry!<|im_end|>\n")[: model().n_layers]
        start, stop = len(ids(TEXT)), len(ids(TEXT + "No sea, sorry!"))
        reply = plain[:, start:stop]
        last, post = plain[:, -1], plain[:, start - 1]
        near(found, torch.stack([reply[:, 0], reply.mean(1), reply[:, -1], last, post], 1))
        means = mean_residuals(model(), prompts, places=at)
        each = cache_residuals(model(), prompts, places=at).double()
        near(means.mean, each.mean(0))
        assert means.names == ("reply.first", "reply.mean", "reply[-1]", "last", "\n")

    def test_what_is_read_behind_the_prompt_alone_sees_no_reply(self) -> None:
        assert torch.equal(cache_residuals(model(), [ANSWERED]), cache_residuals(model(), [TALK]))

    @pytest.mark.parametrize("place", ["reply.mean", "reply.first", "reply[-1]"])
    def test_prompts_without_reply_have_no_such_place(self, place: str) -> None:
        with pytest.raises(InputError, match=rf"place {place[:5]}.* at prompt 1: .*try prompts with replies"):
            cache_residuals(model(), [ANSWERED, TALK], places=[place])

    def test_attribution_of_a_conversation_adds_up(self) -> None:
        r = kit.direction()
        found = attribute(model(), [ANSWERED, ANSWERED], r, places=["t_inst", "reply.mean"])
        read = cache_residuals(model(), [ANSWERED, ANSWERED], places=["t_inst", "reply.mean"])[:, :, r.layer]
        near(found.projection, read.double() @ r.unit)
        assert found.relative_error < 1e-5


class TestEdits:
    @pytest.mark.parametrize("when", ["all", "prompt", "reply"])
    def test_earlier_turns_belong_to_the_prompt(self, when: str) -> None:
        r = kit.direction()
        batch = model().chat.render([ANSWERED, "Wake!", TALK])
        site = Site("resid_pre", r.layer)
        before = model().read(batch, [site])[site]
        with applied(model(), add(r), when=when):  # type: ignore[arg-type]
            after = model().read(batch, [site])[site]
        edited = {"all": batch.mask.bool(), "reply": batch.reply_mask, "prompt": batch.mask.bool() & ~batch.reply_mask}
        expected = edited[when][..., None] * r.vector.float()
        real = batch.mask.bool()
        near((after - before)[real], expected.expand_as(after)[real])
        start, stop = batch.answer[0].tolist()
        assert batch.ids[0, start:stop].tolist() == ids("No sea, sorry!")

    @pytest.mark.parametrize("when", ["all", "prompt", "reply"])
    def test_a_cache_changes_no_reply_to_a_conversation(self, when: str) -> None:
        with applied(model(), add(kit.direction(layer=1), strength=4.0), when=when):  # type: ignore[arg-type]
            cached, plain = (
                model().replies([TALK, "Wake!"], max_new_tokens=6, stop=False, use_cache=use) for use in (True, False)
            )
        assert cached == plain
        assert cached[0].ids != model().replies([TALK], max_new_tokens=6, stop=False)[0].ids


class TestReplies:
    def test_a_completion_is_of_the_conversation(self) -> None:
        seen: list[Exchange] = []

        class Listener:
            name = "listener"

            def __call__(self, exchanges: list[Exchange]) -> list[Score]:
                seen.extend(exchanges)
                return [Score(1.0, "", self.name)] * len(exchanges)

        first, second = complete(
            model(), [ANSWERED, "Wake!"], behaviour=BEHAVIOUR, judge=Listener(), max_new_tokens=5
        )
        plain = kit.plain(kit.folder("qwen2"))
        tokens = torch.tensor([ids(TEXT)])
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": list(model().chat.stop_ids)}
        wanted = plain.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
        reply = [i for i in wanted[0, tokens.shape[1] :].tolist() if i not in model().chat.stop_ids]
        assert list(first.reply_ids) == reply
        assert [exchange.conversation for exchange in seen] == [TALK, Conversation.of("Wake!")]
        assert first.prompt == TALK
        assert first.instruction == "And a sea?"
        assert first.to_row()["messages"] == TALK.to_json()
        assert "messages" not in second.to_row()
        assert [Completion.from_row(done.to_row()) for done in (first, second)] == [first, second]
        with torch.no_grad():
            logits = plain(tokens).logits[:, -1]
        near(torch.tensor([first.score]), last_token_scores(BEHAVIOUR, logits))


def telling_apart(positive: Sequence[Prompt], negative: Sequence[Prompt]) -> Behaviour:
    """A logit, or its opposite, that is above zero on the positive prompts alone."""
    one, other = (map_last_logits(model(), prompts) for prompts in (positive, negative))
    gaps = torch.stack([one.amin(0) - other.amax(0), other.amin(0) - one.amax(0)])
    sign, token = divmod(int(gaps.argmax()), gaps.shape[1])
    assert gaps[sign, token] > 0
    sign = (1, -1)[sign]
    middle = float(sign * (one[:, token].mean() + other[:, token].mean()) / 2)
    return from_logits(lambda logits: sign * logits[:, token] - middle, name="told apart")


class TestSuffix:
    def test_the_suffix_goes_to_the_last_message(self) -> None:
        odd, plain = [TALK, ANSWERED], [TALK.with_instruction("And a hill?"), "Sing."]
        study = study_suffix(
            model(),
            kit.direction(),
            prompts={"odd": odd, "plain": plain},
            suffix=" now!",
            behaviour=telling_apart(odd, plain),
            n_random_sets=1,
            max_new_tokens=2,
        )
        last = [c.prompt for c in study.conditions[study.names.adversarial].completions]
        longer = TALK.with_instruction("And a sea? now!")
        assert last == [longer, longer]
        assert longer.turns == TALK.turns
        assert longer.system == TALK.system
        measured = study.conditions[study.names.adversarial]
        assert measured.n_suffix_tokens == (5, 5)
        plain = streams(TEXT.replace("And a sea?", "And a sea? now!"))[:, -1].double()
        near(measured.cosine[0], torch.cosine_similarity(plain, kit.direction().vector[None], dim=-1))


def sides() -> tuple[list[Prompt], list[Prompt]]:
    """Conversations with replies, of both kinds."""
    users = (["Paint it.", "Wake!", "Do good."], ["Sing a song.", "Rest.", "Say no."])
    positive, negative = (
        [Conversation.of(user).with_reply(f"{user} Sure{n * '!'}") for n, user in enumerate(kind)] for kind in users
    )
    return [ANSWERED, *positive], [TALK.with_instruction("And a hill?").with_reply("Yes."), *negative]


@lru_cache
def candidates(*places: str) -> Candidates:
    pair = PromptPair(*map(tuple, sides()))
    return extract_candidates(model(), pair, data_sha256="0" * 64, places=places or None)


def scored(found: Candidates, **options: Any) -> pd.DataFrame:
    positive, negative = sides()
    return score_candidates(
        model(), found, positive=positive, negative=negative, behaviour=BEHAVIOUR, budget=300, **options
    )


class TestCandidates:
    PLACES = ("t_inst", "instruction.mean", "reply.mean", "post[-2]", "post[-1]")

    def test_they_are_differences_of_means_at_the_places_asked_for(self, tmp_path: Path) -> None:
        found = candidates(*self.PLACES)
        assert tuple(map(str, found.places)) == self.PLACES
        means = [cache_residuals(model(), side, places=self.PLACES).double().mean(0) for side in sides()]
        near(found.mean_diffs, means[0] - means[1])
        loaded = Candidates.load(found.save(tmp_path / "candidates.safetensors"))
        assert (loaded.places, loaded.names) == (found.places, found.names)
        assert torch.equal(loaded.mean_diffs, found.mean_diffs)

    def test_those_of_post_instruction_tokens_are_scored_and_listed_as_ever(self) -> None:
        usual, some = scored(candidates()), scored(candidates(*self.PLACES))
        assert usual["position"].tolist() == sorted(usual["position"].tolist())
        assert usual["position"].dtype == "int64"
        assert usual["place"].tolist() == [f"post[{p}]" for p in usual["position"]]
        keys = ["position", "position_name", "layer"]
        shared = some[some["position"].notna()].astype({"position": "int64"}).reset_index(drop=True)
        wanted = usual[usual["position"] >= -2].reset_index(drop=True)
        pd.testing.assert_frame_equal(shared[keys], wanted[keys])
        numbers = ["norm", "bypass", "induce", "kl"]
        pd.testing.assert_frame_equal(shared[numbers], wanted[numbers], rtol=0, atol=1e-5)
        others = some[some["position"].isna()]
        assert others["position_name"].tolist() == others["place"].tolist()
        assert set(others["place"]) == {"t_inst", "instruction.mean", "reply.mean"}

    def test_the_rule_takes_one_of_any_place_and_lazily_the_same(self, tmp_path: Path) -> None:
        found = candidates("reply.mean", "t_inst")
        rule = Thresholds(kl_threshold=1e3, induce_threshold=-1e3, prune_layers=0.0)
        table = scored(found)
        selection = select(table, model().n_layers, rule)
        assert selection.position is None
        assert selection.scores["bypass"] == table["bypass"].min()
        direction = found.direction(selection.place, selection.layer)
        assert direction.place in (Place("reply"), Place.parse("t_inst"))
        loaded = Direction.load(direction.save(tmp_path / "direction.safetensors"), model())
        assert (loaded.place, loaded.position) == (direction.place, None)
        table.to_csv(tmp_path / "candidates.csv", index=False)
        again = select(pd.read_csv(tmp_path / "candidates.csv"), model().n_layers, rule)
        assert (again.place, again.layer) == (selection.place, selection.layer)
        lazily = select(scored(found, mode="lazy", rule=rule), model().n_layers, rule)
        assert (lazily.place, lazily.layer) == (selection.place, selection.layer)

    def test_a_place_that_some_prompt_lacks_is_one_line(self) -> None:
        positive, negative = sides()
        pair = PromptPair(tuple(positive), (*negative, "no reply here"))
        with pytest.raises(InputError, match=r"place reply.mean at prompt 4: .*try prompts with replies"):
            extract_candidates(model(), pair, data_sha256="0" * 64, places=["reply.mean"])
        found = candidates("t_inst")
        with pytest.raises(InputError, match=r"candidate at post\[-1\], layer 0: not there, need a place of t_inst"):
            found.direction("post[-1]", 0)
        with pytest.raises(InputError, match="places of candidates: got 1 different ones"):
            replace(found, places=(*found.places, *found.places))
