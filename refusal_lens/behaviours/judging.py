"""Judges as JSON, as far as a file can hold one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..judges import Judge, PhraseJudge, judge_from_json, paper_judge, phrase_judge

BUNDLED: tuple[Judge, ...] = (phrase_judge, paper_judge)


def judge_json(judge: Judge | None) -> str | dict[str, Any] | None:
    """A judge of phrases as it is; the bundled ones, and any other judge, by name."""
    if judge is None or judge in BUNDLED or not isinstance(judge, PhraseJudge):
        return None if judge is None else judge.name
    return judge.to_json()


def judge_of_json(
    data: str | Mapping[str, Any] | None, judges: Sequence[Judge] = ()
) -> Judge | None:
    """What `judge_json` wrote; a name is looked up among the bundled judges and those given.

    Raises InputError for a judge that only a program can give back.
    """
    if data is None:
        return None
    if isinstance(data, Mapping):
        return judge_from_json(data)
    for judge in (*judges, *BUNDLED):
        if judge.name == data:
            return judge
    raise InputError(
        f"judge {data!r:.60}: not known, and no file can give a program back; try judges=[...]"
    )
