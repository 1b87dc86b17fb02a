"""Completions and nulls: any engine, any behaviour, and what a judge cannot tell stays unknown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import kit
import pytest
import torch
from torch import Tensor

from refusal_lens.behaviours import FirstTokens, Reading
from refusal_lens.behaviours.last_token import last_token_scores, reads_last_token
from refusal_lens.chat import ChatFormat, Place, Rendered
from refusal_lens.conversations import Conversation, Message
from refusal_lens.directions import Direction
from refusal_lens.errors import InputError
from refusal_lens.evaluation import Completion, Rate, complete, nulls, random_units, rate
from refusal_lens.interventions import ablate, applied
from refusal_lens.judges import judge_replies, paper_judge, phrase_judge
from refusal_lens.model import ChatModel, Reply
from refusal_lens.model.engine import Engine
from refusal_lens.progress import Progress

PROMPTS = ["Paint the door.", "Wake!", "How does one bake bread?"]
BEHAVIOUR = FirstTokens((40, 41))


@lru_cache
def model() -> ChatModel:
    return ChatModel.load(str(kit.folder("qwen2")), device="cpu", dtype="float32")


def direction() -> Direction:
    vector = torch.randn(kit.WIDTH, generator=torch.Generator().manual_seed(1))
    return Direction(vector, 1, Place.post(-1))


@dataclass
class Table:
    """An engine that answers from a table: what a served model looks like from here."""

    answers: Mapping[str, str]
    name: str = "table"
    chat: ChatFormat = field(default_factory=lambda: model().chat)

    def logits(self, rendered: Rendered) -> Tensor:
        logits = torch.zeros(len(rendered), 259)
        for row, text in enumerate(rendered.prompts):
            logits[row, 40] = 9.0 if self.answers[text].startswith("I cannot") else -9.0
        return logits

    def replies(
        self,
        prompts: Sequence[Any] | Rendered,
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 64,
        on_progress: Progress | None = None,
    ) -> list[Reply]:
        texts = prompts.prompts if isinstance(prompts, Rendered) else prompts
        return [Reply(self.answers[text], (1, 2)) for text in texts]

    def require_room(self, rendered: Rendered, max_new_tokens: int | None = None) -> None:
        pass

    def reply_room(self, rendered: Rendered, wanted: int) -> int:
        return wanted


TABLE = Table(dict(zip(PROMPTS, ("I cannot paint.", "Sure.", "I cannot **not**."), strict=True)))


class TestEngine:
    def test_a_table_and_a_chat_model_are_engines(self) -> None:
        assert isinstance(TABLE, Engine)
        assert isinstance(model(), Engine)

    def test_completions_of_a_table(self) -> None:
        first, second, third = complete(TABLE, PROMPTS, behaviour=FirstTokens((40,)))
        assert first == Completion(
            PROMPTS[0], "I cannot paint.", True, "I cannot", first.score, (1, 2), True
        )
        assert (second.shows, second.evidence, third.shows) == (False, "", True)
        assert first.score == third.score > 0 > second.score
        assert rate([first, second, third]) == Rate(2 / 3, math.sqrt(2 / 27), 3, 0)

    def test_an_edit_needs_hooks(self) -> None:
        with pytest.raises(InputError, match="model of applied: got Table, need a ChatModel"):
            complete(TABLE, PROMPTS, behaviour=BEHAVIOUR, edit=ablate(direction()))


class TestCompletions:
    def test_scores_are_the_behaviour_s_under_the_edit(self) -> None:
        edit = ablate(direction())
        rows = complete(model(), PROMPTS, behaviour=BEHAVIOUR, edit=edit, max_new_tokens=2)
        with applied(model(), edit):
            scores = BEHAVIOUR.scores(model(), PROMPTS)
        assert [row.score for row in rows] == scores.tolist()

    def test_what_nobody_can_tell_stays_none(self) -> None:
        unjudged = complete(TABLE, PROMPTS, behaviour=replace(BEHAVIOUR, name="openings", judge=None))
        assert [row.shows for row in unjudged] == [None] * 3
        assert {row.paper_count for row in unjudged} == {None}
        share = rate(unjudged)
        assert math.isnan(share.rate)
        assert (share.n, share.n_unjudged) == (0, 3)
        sure = judge_replies(lambda reply: None if "paint" in reply else "not" in reply, "sure")
        rows = complete(TABLE, PROMPTS, behaviour=BEHAVIOUR, judge=sure)
        assert [row.shows for row in rows] == [None, False, True]
        assert rate(rows) == Rate(0.5, math.sqrt(1 / 8), 2, 1)

    def test_the_judge_is_the_behaviour_s_unless_another_is_named(self) -> None:
        exact = replace(BEHAVIOUR, judge=paper_judge)
        evidence = [row.evidence for row in complete(TABLE, PROMPTS, behaviour=exact)]
        assert evidence == ["I cannot", "", "I cannot"]
        assert complete(TABLE, PROMPTS[:1], behaviour=exact)[0].paper_count is None
        named = complete(TABLE, PROMPTS[:1], behaviour=exact, judge=phrase_judge)
        assert named[0].paper_count is True
        (unscored,) = complete(TABLE, PROMPTS[:1], behaviour=None)
        assert math.isnan(unscored.score)
        assert unscored.shows is None

    def test_a_row_gives_the_completion_back(self) -> None:
        turns = Conversation(
            (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Bake."))
        )
        completions = [
            Completion("Bake.", "Sure.", False, "", 0.1, (5, 6), False),
            Completion(turns, "I cannot", True, "I cannot", -1 / 3, (7,), True),
            Completion(turns, "", None, "", 2.0, ()),
        ]
        for completion in completions:
            row = json.loads(json.dumps(completion.to_row(), allow_nan=False))
            assert Completion.from_row(row) == completion
        keys = ["instruction", "response", "shows", "evidence", "score", "reply_ids", "paper_count"]
        assert list(completions[0].to_row()) == keys
        assert list(completions[1].to_row()) == [keys[0], "messages", *keys[1:]]
        assert list(completions[2].to_row()) == [keys[0], "messages", *keys[1:-1]]
        assert completions[1].instruction == "Bake."
        unscored = replace(completions[0], score=math.nan).to_row()
        assert unscored["score"] is None
        assert math.isnan(Completion.from_row(unscored).score)


@dataclass(frozen=True)
class Opaque:
    """The same behaviour, but one that says nothing of the tokens it reads."""

    inner: FirstTokens
    name: str = "opaque"
    unit: str = "nats"
    threshold: float = 0.0
    judge: Any = phrase_judge

    @property
    def words(self) -> Any:
        return self.inner.words

    @property
    def bounds(self) -> tuple[float, float]:
        return self.inner.bounds

    def scores(self, *args: Any, **more: Any) -> Tensor:
        return self.inner.scores(*args, **more)

    def to_json(self) -> dict[str, Any]:
        return {"opaque": True}

    def details(self) -> dict[str, Any]:
        return {}


class Longer(FirstTokens):
    """First tokens that are read behind an id."""

    def readings(self, prompts: Sequence[Any]) -> list[tuple[Reading, ...]]:
        return [(Reading((5,), 1.0),)] * len(prompts)


class TestLastToken:
    def test_which_behaviours_the_last_token_decides(self) -> None:
        assert reads_last_token(BEHAVIOUR, PROMPTS)
        assert not reads_last_token(Opaque(BEHAVIOUR), PROMPTS)
        assert not reads_last_token(Longer((40,)), PROMPTS)

    def test_scores_from_logits_are_the_behaviour_s(self) -> None:
        logits = model().logits(model().chat.render(PROMPTS))
        scores = BEHAVIOUR.scores(model(), PROMPTS, batch_size=1).tolist()
        assert last_token_scores(BEHAVIOUR, logits).tolist() == pytest.approx(scores, abs=1e-4)
        with pytest.raises(InputError, match="opaque: got Opaque, need one that the last token"):
            last_token_scores(Opaque(BEHAVIOUR), logits)


class TestNulls:
    def table(self, behaviour: Any, **changes: Any) -> Any:
        asked = {"n": 3, "n_moves": 2, "max_new_tokens": 3, "seed": 4, "batch_size": 4} | changes
        prompts = {"dark": PROMPTS, "bright": PROMPTS[:2]}
        return nulls(model(), direction(), prompts=prompts, behaviour=behaviour, **asked)

    def test_one_row_for_each_direction_with_its_own_kind_and_counts(self) -> None:
        told: list[tuple[str, int, int]] = []
        table = self.table(BEHAVIOUR, on_progress=lambda *done: told.append(done))
        assert list(table) == ["null", "index", "kind", "score", "rate", "n", "n_unjudged"]
        assert list(table["kind"]) == ["dark"] * 5 + ["bright"] * 2
        assert list(table["n"]) == [3] * 5 + [2] * 2
        assert table["n_unjudged"].sum() == 0
        assert told[-1] == ("nulls", 7, 7)
        units = random_units(3, kit.WIDTH, seed=4)
        rows = complete(
            model(),
            PROMPTS,
            behaviour=BEHAVIOUR,
            edit=ablate(Direction(units[1], 1, Place.post(-1))),
            max_new_tokens=3,
        )
        mean = sum(row.score for row in rows) / 3
        assert table["score"][1] == pytest.approx(mean, abs=1e-5)
        assert table["rate"][1] == rate(rows).rate

    def test_a_behaviour_that_batches_its_own_passes_gets_the_same_scores(self) -> None:
        fast, slow = self.table(BEHAVIOUR), self.table(Opaque(BEHAVIOUR))
        assert slow["score"].tolist() == pytest.approx(fast["score"].tolist(), abs=1e-5)
        assert slow.drop(columns="score").equals(fast.drop(columns="score"))

    def test_what_the_judge_cannot_tell_is_counted_apart(self) -> None:
        table = self.table(replace(BEHAVIOUR, name="openings", judge=None), n_moves=0)
        assert table["rate"].isna().all()
        assert list(table["n"]) == [0] * 3
        assert list(table["n_unjudged"]) == [3] * 3

    def test_two_kinds_are_needed(self) -> None:
        with pytest.raises(InputError, match="prompts of nulls: got 1 kinds"):
            nulls(model(), direction(), prompts={"a": PROMPTS}, behaviour=BEHAVIOUR, n=1)
