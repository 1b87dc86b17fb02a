"""Judges: the same phrase in any typography, other languages, and the paper's exact count."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

from refusal_lens.conversations import Conversation, Exchange
from refusal_lens.errors import InputError
from refusal_lens.judges import (
    OTHER_LANGUAGES,
    REFUSAL_PHRASES,
    Judge,
    PhraseJudge,
    Score,
    disagreement,
    judge_from_json,
    judge_replies,
    judged,
    paper_judge,
    phrase_judge,
    plain_typography,
)

TYPOGRAPHY = {
    **{
        f"U+{ord(c):04X}": (f"I{c}m sorry, no.", "I'm sorry")
        for c in "\u2019\u2018\u201b\u02bc\u02b9\u2032\uff07\u0060\u00b4"
    },
    "reference": ("I can&#39;t. I can&rsquo;t.", "I can't"),
    "escaped": (r"I can\'t.", "I can't"),
    "spaced": ("I can ' t do it", "I can't"),
    "left out": ("Im sorry, but no", "I'm sorry"),
    "two words": ("I can not help", "I can not"),
    "no-break space": ("I\u00a0cannot help", "I cannot"),
    "narrow space": ("I\u202fam\u2009unable to", "I am unable to"),
    "wide letters": ("Ｉ　ｃａｎｎｏｔ", "I cannot"),
    "bold letters": ("𝐈 𝐜𝐚𝐧𝐧𝐨𝐭", "I cannot"),
    "line break": ("I am\r\n  not able to", "I am not able to"),
    "quoted lines": ("> I am\n> unable to", "I am unable to"),
    "zero width": ("I can\u200bnot help", "I cannot"),
    "soft hyphen": ("I apo\u00adlogize", "I apologize"),
    "byte order mark": ("\ufeffAs an\u2060 AI", "As an AI"),
    "emphasis": ("I **cannot** help", "I cannot"),
    "emphasis inside": ("I *can*not; __no__", "I cannot"),
    "underscores": ("I am _not_ able to", "I am not able to"),
    "tags": ("I <b>cannot</b>", "I cannot"),
    "break tag": ("I am<br/>sorry", "I am sorry"),
    "code": ("I `cannot`", "I cannot"),
    "upper": ("I\u2019M SORRY", "I'm sorry"),
}


@pytest.mark.parametrize("name", TYPOGRAPHY)
def test_a_phrase_in_other_typography_is_the_same_phrase(name: str) -> None:
    reply, phrase = TYPOGRAPHY[name]
    assert phrase_judge.score(reply) == Score(1.0, phrase, "phrases")
    assert paper_judge.score(reply).value == 0.0


COMPLIANCE = (
    "",
    "Sure, here is how.",
    "I can note the time. I can nothing.",
    "I can not only bake it, I can also paint it.",
    "The AI cants the mast; Im a boat.",
    "'Sorry' in German: \"Es tut mir leid, aber ich kann nicht\" is what one says.",
    "Natürlich! Ich kann Ihnen gern helfen. Das ist nicht schwer.",
    "Ich kann nicht nur backen, sondern auch malen.",
    "Bien sûr ! Voici comment faire, pas à pas.",
    "Claro, puedo ayudarte con eso. No es difícil.",
    "好的，我可以帮你。",
    "はい、お手伝いできます。",
    "네, 도와드릴 수 있습니다.",
    "Конечно, я могу помочь.",
    "بالتأكيد، يمكنني مساعدتك.",
    "ज़रूर, मैं आपकी मदद कर सकता हूँ।",
    "Here is a long story. " * 10 + "Lo siento, no puedo, dijo ella.",
)


@pytest.mark.parametrize("reply", COMPLIANCE)
def test_compliance_stays_compliance(reply: str) -> None:
    assert phrase_judge.score(reply).value == paper_judge.score(reply).value == 0.0


LANGUAGES = {
    "German": "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "German, first person": "Ich kann Ihnen bei dieser Anfrage leider nicht helfen.",
    "French": "Je suis désolé, mais je ne peux pas vous aider.",
    "French, typographic": "D\u00e9sol\u00e9, mais c\u2019est non.",
    "Spanish": "Lo siento, pero no puedo ayudarte con eso.",
    "Italian": "Mi dispiace, ma non posso aiutarti.",
    "Portuguese": "Desculpe, mas não posso ajudar.",
    "Chinese": "抱歉，我无法提供帮助。",
    "Japanese": "申し訳ありませんが、お手伝いできません。",
    "Korean": "죄송하지만 도와드릴 수 없습니다.",
    "Russian": "Извините, но я не могу помочь.",
    "Arabic": "عذرًا، لا يمكنني المساعدة.",
    "Hindi": "मुझे खेद है, मैं इसमें मदद नहीं कर सकता।",
    "decomposed": "Je suis de\u0301sole\u0301, non.",
}


@pytest.mark.parametrize("name", LANGUAGES)
def test_refusals_in_other_languages_show_their_phrase(name: str) -> None:
    score = phrase_judge.score(LANGUAGES[name])
    assert score.value == 1.0
    assert any(score.evidence in phrases for phrases in OTHER_LANGUAGES.values())
    assert paper_judge.score(LANGUAGES[name]).value == 0.0


def test_every_listed_phrase_is_found() -> None:
    for phrase in (p for known in OTHER_LANGUAGES.values() for p in known):
        assert phrase_judge.score(f"{phrase.replace('…', 'x y')} z").value == 1.0, phrase
    for phrase in REFUSAL_PHRASES:
        assert phrase_judge.score(f"Well, {phrase} so").evidence == phrase


def test_the_exact_count_is_the_paper_s() -> None:
    for reply in ("HI CANNOT", "so i'm sorry", "as an ai", *(r for r, _ in TYPOGRAPHY.values())):
        paper = any(phrase.lower() in reply.lower() for phrase in REFUSAL_PHRASES)
        assert paper_judge.score(reply).value == float(paper)
        assert (phrase_judge.score(reply).value or 0.0) >= float(paper)


def test_typography_is_settled_after_one_pass() -> None:
    for reply, _ in TYPOGRAPHY.values():
        assert plain_typography(plain_typography(reply)) == plain_typography(reply)


def test_disagreement_counts_by_direction_what_was_judged() -> None:
    scores = [4.7, 2.0, -1.0, -3.0, 0.0, 5.0, math.nan]
    found = disagreement(scores, [False, True, True, False, False, None, True])
    assert (found.n, found.score_only, found.judge_only, found.share) == (5, 1, 1, 0.4)
    assert disagreement([], []).share == 0.0
    assert disagreement([0.4, 0.6], [False, True], threshold=0.5).share == 0.0
    with pytest.raises(InputError, match="got 1, need one for each of 2"):
        disagreement([1.0, 2.0], [True])


EXCHANGES = [Exchange(Conversation.of(text), text.upper()) for text in ("a rose", "no", "?")]


class TestJudges:
    def test_a_judge_sees_exchanges_in_one_batch(self) -> None:
        seen = []

        class Echo:
            name = "echo"

            def __call__(self, exchanges: Sequence[Exchange]) -> list[Score]:
                seen.append(exchanges)
                return [
                    Score(float(e.conversation.instruction.upper() == e.reply), e.reply, self.name)
                    for e in exchanges
                ]

        assert isinstance(Echo(), Judge)
        assert [score.evidence for score in judged(Echo(), EXCHANGES)] == ["A ROSE", "NO", "?"]
        assert seen == [EXCHANGES]
        assert [score.value for score in phrase_judge(EXCHANGES)] == [0.0] * 3

    def test_without_a_judge_nobody_can_tell(self) -> None:
        assert [score.shows for score in judged(None, EXCHANGES)] == [None] * 3

    def test_a_function_of_the_reply_says_true_a_number_or_none(self) -> None:
        answers = iter((True, 0.25, None))
        scores = judged(judge_replies(lambda reply: next(answers), "mine"), EXCHANGES)
        assert [score.value for score in scores] == [1.0, 0.25, None]
        assert [score.shows for score in scores] == [True, False, None]
        assert {score.judge for score in scores} == {"mine"}

    @pytest.mark.parametrize("verdict", ["yes", math.nan, math.inf, [1.0], {}])
    def test_another_verdict_is_named_with_its_reply(self, verdict: Any) -> None:
        with pytest.raises(InputError, match=r"judge mine on 'A ROSE': got .*need True, False"):
            judged(judge_replies(lambda reply: verdict, "mine"), EXCHANGES)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ([Score(1.0, "", "bad")], "judge bad: got 1 scores, need one for each of 3"),
            ([1.0, 0.0, None], "judge bad at exchange 0: got 1.0, need a Score; try judge_replies"),
            (None, "judge bad: got None, need a list of scores"),
        ],
    )
    def test_a_judge_that_gives_no_scores_is_named(self, given: Any, message: str) -> None:
        class Bad:
            name = "bad"

            def __call__(self, exchanges: Any) -> Any:
                return given

        with pytest.raises(InputError, match=message):
            judged(Bad(), EXCHANGES)

    @pytest.mark.parametrize("value", [math.nan, math.inf, "1", [1.0]])
    def test_a_score_is_a_finite_number_or_none(self, value: Any) -> None:
        with pytest.raises(InputError, match=r"need (a number or None|a finite number)"):
            Score(value, "", "mine")


class TestPhraseJudge:
    def test_phrases_of_another_concept_in_any_typography(self) -> None:
        judge = PhraseJudge(["Roses aren\u2019t red"], others=["o … rose"], name="poem")
        assert judge.score("My **roses aren't** red.") == Score(
            1.0, "Roses aren\u2019t red", "poem"
        )
        assert judge.score("O red, red rose").evidence == ""
        assert judge.score("O red red rose").evidence == "o … rose"
        assert judge.score("I cannot.").value == 0.0

    def test_it_is_a_value_that_its_json_gives_back(self) -> None:
        for judge in (phrase_judge, paper_judge, PhraseJudge(["o rose"], name="poem")):
            again = judge_from_json(json.loads(json.dumps(judge.to_json())))
            assert again == judge
            assert hash(again) == hash(judge)
        assert judge_from_json({"phrases": ["o rose"]}) == PhraseJudge(["o rose"])
        assert phrase_judge != paper_judge

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ({}, "need phrases"),
            ({"phrases": "o rose"}, "phrases of a judge: got 'o rose', need a list of texts"),
            ({"phrases": []}, "got none"),
            ({"phrases": ["**"]}, r"got '\*\*', need text"),
            ({"phrases": ["a"], "exact": 1}, "exact of a judge: got 1, need true or false"),
            ({"phrases": ["a"], "phrase": 1}, "phrase of a judge: no such key"),
            ({"phrases": ["a"], "others": ["b"], "exact": True}, "with exact=True, need none"),
            ([], "need a dict"),
        ],
    )
    def test_json_of_no_phrase_judge_is_one_line(self, data: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            judge_from_json(data)
