"""Judges: the same phrase in any typography, other languages, and the paper's exact count."""

from __future__ import annotations

import pytest

from refusal_lens.errors import InputError
from refusal_lens.judges import (
    OTHER_LANGUAGES,
    REFUSAL_PHRASES,
    disagreement,
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
    assert phrase_judge(reply) == type(phrase_judge(""))(1.0, phrase, "phrases")
    assert paper_judge(reply).value == 0.0


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
    assert phrase_judge(reply).value == phrase_judge(reply, exact=True).value == 0.0


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
    score = phrase_judge(LANGUAGES[name])
    assert score.value == 1.0
    assert any(score.evidence in phrases for phrases in OTHER_LANGUAGES.values())
    assert paper_judge(LANGUAGES[name]).value == 0.0


def test_every_listed_phrase_is_found() -> None:
    for phrase in (p for known in OTHER_LANGUAGES.values() for p in known):
        assert phrase_judge(f"{phrase.replace('…', 'x y')} z").value == 1.0, phrase
    for phrase in REFUSAL_PHRASES:
        assert phrase_judge(f"Well, {phrase} so").evidence == phrase


def test_the_exact_count_is_the_paper_s() -> None:
    for reply in ("HI CANNOT", "so i'm sorry", "as an ai", *(r for r, _ in TYPOGRAPHY.values())):
        paper = any(phrase.lower() in reply.lower() for phrase in REFUSAL_PHRASES)
        assert paper_judge(reply).value == float(paper)
        assert (phrase_judge(reply).value or 0.0) >= float(paper)


def test_typography_is_settled_after_one_pass() -> None:
    for reply, _ in TYPOGRAPHY.values():
        assert plain_typography(plain_typography(reply)) == plain_typography(reply)


def test_disagreement_counts_by_direction() -> None:
    found = disagreement([4.7, 2.0, -1.0, -3.0, 0.0], [False, True, True, False, False])
    assert (found.n, found.metric_only, found.judge_only, found.share) == (5, 1, 1, 0.4)
    assert disagreement([], []).share == 0.0
    with pytest.raises(InputError, match="got 1, need one for each of 2"):
        disagreement([1.0, 2.0], [True])
