"""Judges: from exchanges to scores that show their evidence."""

from __future__ import annotations

from .judge import Disagreement, Judge, Score, disagreement, judge_replies, judged
from .matching import PhraseJudge, judge_from_json, paper_judge, phrase_judge
from .phrases import OTHER_LANGUAGES, REFUSAL_PHRASES
from .typography import plain_typography

__all__ = [
    "OTHER_LANGUAGES",
    "REFUSAL_PHRASES",
    "Disagreement",
    "Judge",
    "PhraseJudge",
    "Score",
    "disagreement",
    "judge_from_json",
    "judge_replies",
    "judged",
    "paper_judge",
    "phrase_judge",
    "plain_typography",
]
