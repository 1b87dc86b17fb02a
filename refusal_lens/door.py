"""The door of public functions: each argument must be what its annotation says, or it is one line.

A decorator, `checked`, and the two questions behind it: does a value fit an annotation, and what is the
annotation in words. Types are looked at when a function is first called, so that importing costs nothing.

Stricter than isinstance where Python is lax: a text is no list of texts, a bool no number, and NaN none
either. NumPy's numbers count as numbers, and every item of a list is looked at.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import math
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import InputError

T = TypeVar("T", bound=Callable[..., Any])

LISTS = (collections.abc.Sequence, list, tuple)
"""Annotations of things in an order."""
LARGEST = 2**63
"""Whole numbers of this size and more fit no tensor, seed or count."""
LONGEST_NAME = 255
"""Bytes that file systems take for one name of a path."""


def checked(public: T) -> T:
    """A function or a dataclass whose arguments are compared with their annotations when it is called.

    Raises InputError for one that does not fit, naming it, what it got and what it needs. Axes that two
    tensors name alike must be of one length. Missing and unknown arguments stay Python's TypeError.

    >>> @checked
    ... def repeat(text: str, times: int = 2) -> str:
    ...     return text * times
    >>> repeat("ab", times=3)
    'ababab'
    >>> repeat("ab", times="3")
    Traceback (most recent call last):
    refusal_lens.errors.InputError: times of repeat: got '3', need a whole number
    """
    if isinstance(public, type):
        public.__init__ = _guarded(public.__init__, public.__qualname__, public)  # type: ignore[misc]
        return public
    return typing.cast(T, _guarded(public, public.__qualname__, public))


def _guarded(fn: Callable[..., Any], name: str, hinted: Any) -> Callable[..., Any]:
    signature = inspect.signature(fn)

    @functools.cache
    def hints() -> dict[str, Any]:
        return get_type_hints(inspect.unwrap(hinted))

    @functools.wraps(fn)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return fn(*args, **kwargs)
        with _one_meaning_per_axis():
            for parameter, value in bound.arguments.items():
                if parameter not in hints():
                    continue
                hint, kind = hints()[parameter], signature.parameters[parameter].kind
                for one in _each(value, kind):
                    _check(one, hint, f"{parameter} of {name}")
                bound.arguments[parameter] = pythonic(value, hint)
        return fn(*bound.args, **bound.kwargs)

    guarded.hints = hints  # type: ignore[attr-defined]
    return guarded


def _one_meaning_per_axis() -> AbstractContextManager[Any]:
    """Where an axis keeps the length that it is first seen with; light where no shapes are known."""
    if "jaxtyping" not in sys.modules:
        return nullcontext()
    from jaxtyping import jaxtyped

    return typing.cast(AbstractContextManager[Any], jaxtyped("context"))


def _each(value: Any, kind: Any) -> Iterable[Any]:
    """An argument, or those of ``*args`` and ``**kwargs``."""
    if kind is inspect.Parameter.VAR_POSITIONAL:
        return tuple(value)
    return tuple(value.values()) if kind is inspect.Parameter.VAR_KEYWORD else (value,)


def _check(value: Any, hint: Any, what: str) -> None:
    if fits(value, hint):
        return
    with _one_meaning_per_axis():
        if fits(value, hint):
            raise InputError(
                f"{what}: got {as_given(value)}, need {in_words(hint)} with axes as long as elsewhere in the call"
            )
    at, item = _culprit(value, hint)
    raise InputError(
        f"{what}: got {as_given(item)}{at}, need {in_words(hint)}{_advice(item, hint, at)}"
    )


def _advice(value: Any, hint: Any, at: str) -> str:
    """What to try, where it is plain from what was given."""
    if isinstance(value, numbers.Integral) and abs(int(value)) >= LARGEST:
        return " below 2^63"
    if any(map(_is_of_paths, _alternatives(hint))) and isinstance(value, (str, Path)):
        return f" that the system can write: no NUL, names of at most {LONGEST_NAME} bytes"
    if at or not any((get_origin(one) or one) in LISTS for one in _alternatives(hint)):
        return ""
    if isinstance(value, str):
        return "; try [...]"
    if isinstance(value, Iterable) and not isinstance(value, (*LISTS, Mapping, bytes)):
        return "; try list(...)"
    return ""


def at_least(least: int, **counts: int | None) -> None:
    """Raise InputError for a count below the least one; None, where nothing was asked for, is none.

    >>> at_least(1, batch_size=0)
    Traceback (most recent call last):
    refusal_lens.errors.InputError: batch_size: got 0, need at least 1
    """
    for name, count in counts.items():
        if count is not None and count < least:
            raise InputError(f"{name}: got {count}, need at least {least}")


def at_most(most: int, **counts: int) -> None:
    """Raise InputError for a count beyond what can be held or done.

    >>> at_most(1000, n_sets=10**12)
    Traceback (most recent call last):
    refusal_lens.errors.InputError: n_sets: got 1000000000000, need at most 1000
    """
    for name, count in counts.items():
        if count > most:
            raise InputError(f"{name}: got {count}, need at most {most}")


# ------------------------------------------------------------------------------- does it fit


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation asks for.

    >>> fits(["a", "b"], Sequence[str]), fits("ab", Sequence[str]), fits(["a", 1], Sequence[str])
    (True, False, False)
    >>> fits(True, int), fits(3, float), fits(math.nan, float)
    (False, True, False)
    """
    origin = get_origin(hint)
    if hint is Any or isinstance(hint, TypeVar) or hint is object:
        return True
    if hint is None or hint is type(None):
        return value is None
    if origin in (Union, types.UnionType):
        if any(map(_is_of_paths, get_args(hint))) and isinstance(value, (str, Path)):
            return _can_be_a_path(value)
        return any(fits(value, one) for one in get_args(hint))
    if hint is Path:
        return isinstance(value, Path) and _can_be_a_path(value)
    if origin is Literal:
        return any(isinstance(value, type(one)) and value == one for one in get_args(hint))
    if hint is int:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        return whole and abs(int(value)) < LARGEST
    if hint is float:
        return fits(value, int) or (isinstance(value, numbers.Real) and _is_float(value))
    if origin in LISTS or hint in LISTS:
        return _fits_list(value, origin or hint, get_args(hint))
    if origin is collections.abc.Mapping or origin is dict:
        keys, values = get_args(hint)
        return isinstance(value, Mapping) and all(
            fits(key, keys) and fits(one, values) for key, one in value.items()
        )
    if isinstance(value, type) and getattr(hint, "_is_protocol", False):
        return False  # a class has its objects' methods, but is none of them
    return isinstance(value, origin or hint)


def _is_of_paths(hint: Any) -> bool:
    return hint is Path or get_origin(hint) is os.PathLike


def _can_be_a_path(value: str | Path) -> bool:
    """Whether the system can write it; whether it is there is for the function to say."""
    try:
        names = [os.fsencode(name) for name in Path(value).parts]
    except UnicodeEncodeError:
        return False
    return not any(b"\0" in name or len(name) > LONGEST_NAME for name in names)


def _is_float(value: numbers.Real) -> bool:
    return not isinstance(value, numbers.Integral) and not math.isnan(value)


def _fits_list(value: Any, kind: Any, items: tuple[Any, ...]) -> bool:
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, kind):
        return False
    if not items:
        return True
    if kind is tuple and Ellipsis not in items:
        return len(value) == len(items) and all(map(fits, value, items))
    if items[0] is str:
        return all(isinstance(one, str) for one in value)
    if items[0] is int and all(type(one) is int and abs(one) < LARGEST for one in value):
        return True
    return all(fits(one, items[0]) for one in value)


def pythonic(value: Any, hint: Any) -> Any:
    """A value that fits, with Python's numbers for NumPy's: torch, JSON and random take no others.

    >>> import numpy as np
    >>> pythonic(np.int64(3), int), pythonic([np.int64(3), 4], Sequence[int]), pythonic("a", str)
    (3, [3, 4], 'a')
    """
    if type(value) in (str, int, float, bool) or value is None:
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if type(value) in (list, tuple) and any(_of_numbers(one) for one in _alternatives(hint)):
        return type(value)(pythonic(one, Any) for one in value)
    return value


def _of_numbers(hint: Any) -> bool:
    items = get_args(hint) if get_origin(hint) in LISTS else ()
    return any(one in (int, float) for item in items for one in _alternatives(item))


def _culprit(value: Any, hint: Any) -> tuple[str, Any]:
    """What does not fit, and where: an item of a list or of a dict, else the value itself."""
    for one in _alternatives(hint):
        origin, items = get_origin(one), get_args(one)
        if origin in LISTS and items and not isinstance(value, (str, bytes)):
            if isinstance(value, origin) and not (origin is tuple and Ellipsis not in items):
                bad = [(i, item) for i, item in enumerate(value) if not fits(item, items[0])]
                return _deeper(f" at {bad[0][0]}", bad[0][1], items[0]) if bad else ("", value)
        elif origin in (dict, collections.abc.Mapping) and isinstance(value, Mapping):
            for key, item in value.items():
                if not fits(key, items[0]):
                    return " as a key", key
                if not fits(item, items[1]):
                    return _deeper(f" at {as_given(key)}", item, items[1])
    return "", value


def _deeper(at: str, value: Any, hint: Any) -> tuple[str, Any]:
    further, culprit = _culprit(value, hint)
    return at + further.replace(" at ", ", "), culprit


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


# ------------------------------------------------------------------------------- in words

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def as_given(value: Any) -> str:
    """A value in a few words: short ones as they are, of tensors and lists what they are.

    >>> as_given(["a"] * 3), as_given(None), as_given(range), as_given(b"x" * 99)
    ('a list of 3', 'None', 'the class range', '99 bytes')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value)} bytes"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of about {int(value.bit_length() * 0.30103)} digits"
    if value is None or isinstance(value, (str, numbers.Number)):
        return _SHORT.repr(value).replace("\n", " ")
    kind = type(value).__name__
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        dtype = str(value.dtype).removeprefix("torch.")
        axes = ", ".join(str(n) for n in value.shape)
        return f"{_a('array' if kind == 'ndarray' else kind.lower())} [{axes}] of {dtype}"
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        return f"{_a(kind)} of {len(value)}"
    return _a(kind)


def _a(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


WORDS: dict[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("True or False", "bools"),
    Path: ("a path", "paths"),
    type(None): ("None", "None"),
    None: ("None", "None"),
    Any: ("anything", "anything"),
}
"""Annotations in words: one, and several."""


def in_words(hint: Any, *, several: bool = False) -> str:
    """What an annotation asks for.

    >>> in_words(Sequence[str] | None)
    'a list of texts or None'
    >>> in_words(Literal["prompt", "reply"])
    "'prompt' or 'reply'"
    """
    origin, items = get_origin(hint), get_args(hint)
    hint = Path if origin is os.PathLike else hint
    if hint in WORDS:
        return WORDS[hint][several]
    if origin in (Union, types.UnionType):
        return _or([in_words(one, several=several) for one in items])
    if origin is Literal:
        return _or([repr(one) for one in items])
    if origin is tuple and Ellipsis not in items:
        return f"{'tuples' if several else 'a tuple'} of {len(items)} ({', '.join(map(in_words, items))})"
    if origin in LISTS:
        noun = "tuple" if origin is tuple else "list"
        return f"{noun + 's' if several else 'a ' + noun} of {in_words(items[0], several=True)}"
    if origin is dict or origin is collections.abc.Mapping:
        keys, values = (in_words(one, several=True) for one in items)
        return f"{'dicts' if several else 'a dict'} of {keys} to {values}"
    if hasattr(hint, "dim_str"):
        return (
            f"{'tensors' if several else 'a tensor'} [{hint.dim_str.strip()}] of {_numbers(hint)}"
        )
    if (origin or hint) is collections.abc.Callable:
        return "functions" if several else "a function"
    if getattr(hint, "_is_protocol", False) and not several:
        first = str(inspect.getdoc(hint)).partition("\n")[0].rstrip(".")
        return first[:1].lower() + first[1:]
    name = getattr(hint, "__name__", str(hint))
    return f"{name} objects" if several else _a(name)


def _numbers(hint: Any) -> str:
    name = hint.dtype.__name__
    return {"Int": "whole numbers", "Bool": "bools", "Shaped": "any dtype"}.get(name, name.lower())


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
