"""Chat templates as programs from elsewhere: run in a sandbox that ends by time, steps and length.

A template may loop for ever, recurse, or write gigabytes. It is compiled here into code that counts: every
turn of a loop and every call is a step, everything that is made has a length, and both are limited.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template

SOURCE = 2**18
"""Characters of a template; the longest known ones have 50,000."""
SECONDS = 3.0
STEPS = 2**16
"""Turns of loops and calls, beside eight for every character that is given."""
LENGTH = 2**22
"""Characters of any one text that a template makes, beside what it is given."""
MADE = 2**26
"""Characters of all texts that one rendering makes, given ones not counted."""
DIGITS = 2**14
"""Bits of a whole number."""
KEPT = 64
"""Compiled templates."""

_WIDTH = re.compile(r"\d{7,}")
_PASSES = "jinja_pass_arg"
_SIZED = ("center", "indent", "batch", "slice", "wordwrap", "round", "tojson", "truncate")


def render(source: str, variables: Mapping[str, Any]) -> str:
    """What a chat template writes, as transformers would render it.

    Raises LimitError past a limit, and whatever else the template raises.
    """
    return _environment().render(source, variables)


@lru_cache
def _environment() -> Bounded:
    return Bounded(_compile_jinja_template("").environment)


class LimitError(Exception):
    """A template went past a limit; the message says which."""


class _Budget(threading.local):
    """What is left of one rendering."""

    def __init__(self) -> None:
        self.start(0)

    def start(self, given: int) -> None:
        self.until = time.thread_time() + SECONDS
        self.steps, self.length = STEPS + 8 * given, LENGTH + 4 * given
        self.made = MADE + 64 * given

    def step(self) -> None:
        self.steps -= 1
        if self.steps < 0:
            raise LimitError("more steps than a template needs")
        if self.steps % 4 == 0 and time.thread_time() > self.until:
            raise LimitError(f"more than {SECONDS:g} seconds")

    def allow(self, size: int) -> None:
        """Before something of this size is made."""
        self.step()
        if size > self.length:
            raise LimitError(f"a text of more than {self.length:,} characters")
        self.made -= size
        if self.made < 0:
            raise LimitError("more text than it is allowed to make on its way")


class _Counting(CodeGenerator):
    """Compiles ``~`` into a joining that is counted."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 (jinja looks it up)
        self.write("environment.joined((")
        for inner in node.nodes:
            self.visit(inner, frame)
            self.write(", ")
        self.write("))")


class Bounded(ImmutableSandboxedEnvironment):
    """The environment that transformers renders with, but for the limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Counting

    def __init__(self, like: ImmutableSandboxedEnvironment) -> None:
        self.budget = _Budget()
        self._compiled: dict[str, Any] = {}
        super().__init__(
            trim_blocks=like.trim_blocks,
            lstrip_blocks=like.lstrip_blocks,
            extensions=[type(extension) for extension in like.extensions.values()],
        )
        self.globals.update({k: v for k, v in like.globals.items() if k != "lipsum"})
        self.globals.pop("lipsum", None)
        self.tests.update(like.tests)
        self.filters.update({k: self._counted(k, v) for k, v in like.filters.items()})
        self.filters["_steps"] = self._stepping

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text that a template writes. Raises LimitError, or whatever the template raises."""
        self.budget.start(_size(variables))
        template = self._load(source)
        return template.render(**variables)

    def _load(self, source: str) -> Any:
        if len(source) > SOURCE:
            raise LimitError(f"a source of {len(source):,} characters, more than {SOURCE:,}")
        compiled = self._compiled.get(source)
        if compiled is None:
            if len(self._compiled) >= KEPT:
                self._compiled.clear()
            compiled = self._compiled[source] = self.from_string(source)
        return compiled

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(
                loop.iter, "_steps", [], [], None, None, lineno=loop.iter.lineno
            )
        return tree

    def _stepping(self, items: Any) -> Any:
        """What a loop goes over, counting; sized things stay sized for ``loop.length``."""
        if isinstance(items, (list, tuple, str, dict, range)):
            return _Stepped(items, self.budget)
        return self._one_by_one(items)

    def _one_by_one(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.step()
            yield item

    # ---------------------------------------------------------------- what makes things

    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override]
        """Join what a template, a macro or a block wrote."""
        kept, length = [], 0
        for piece in pieces:
            length += len(piece)
            if length > self.budget.length:
                break
            kept.append(piece)
        self.budget.allow(length)
        return "".join(kept)

    def joined(self, parts: Iterable[Any]) -> str:
        """``a ~ b``."""
        return self.concat(map(str, parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """``+ * ** %``, their results measured before they are made."""
        if operator == "+":
            self.budget.allow(_size(left) + _size(right) if _grows(left) else 0)
        elif operator == "%" and isinstance(left, (str, bytes)):
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "*":
            for thing, times in ((left, right), (right, left)):
                if _grows(thing) and isinstance(times, int):
                    self.budget.allow(_size(thing) * max(0, times))
            self._check_bits(_bits(left) + _bits(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(_bits(left) * abs(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, called: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method, macro or function."""
        self.budget.step()
        method = getattr(called, "__wrapped__", called)
        if isinstance(method, BuiltinMethodType):
            self._check_method(method.__self__, method.__name__, (*args, *kwargs.values()))
        result = super().call(context, called, *args, **kwargs)
        self.budget.allow(_size(result) if _grows(result) else 0)
        return result

    def _counted(self, name: str, function: Any) -> Any:
        """A filter that is a step, with its sizes checked."""

        def run(*args: Any, **kwargs: Any) -> Any:
            # Some filters get a context or environment before the value.
            before, given = args[:offset], list(args[offset:])
            more = (*given[1:], *kwargs.values())
            self.budget.step()
            if name in _SIZED:
                self._check_widths(more)
            elif name == "format" and given:
                self._check_format(given[0], more)
            elif name == "replace" and given:
                self._check_replace(given[0], more)
            elif name == "join" and given:
                given[0] = list(given[0])
                self._check_join(more, given[0])
            result = function(*before, *given, **kwargs)
            self.budget.allow(_size(result) if _grows(result) else 0)
            return result

        offset = int(hasattr(function, _PASSES))
        if offset:
            setattr(run, _PASSES, getattr(function, _PASSES))
        return run

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        self._check_widths(args)
        if not isinstance(owner, (str, bytes)):
            return
        if name == "replace":
            self._check_replace(owner, args)
        elif name == "join" and args:
            self._check_join(owner, args[0])
        elif name in ("format", "format_map"):
            self._check_format(owner, args)
        elif name == "expandtabs":
            # As if all were tabs.
            self.budget.allow(len(owner) * max(8, *(a for a in args if isinstance(a, int)), 0))

    def _check_replace(self, text: Any, args: tuple[Any, ...]) -> None:
        old, new, *_ = (*(_size(argument) for argument in args[:2]), 1, 1)
        self.budget.allow(_size(text) + (_size(text) // max(1, old) + 1) * new)

    def _check_join(self, glue: Any, items: Any) -> None:
        n = len(items) if hasattr(items, "__len__") else STEPS
        self.budget.allow(_size(items) + _size(glue) * n)

    def _check_format(self, form: Any, args: tuple[Any, ...]) -> None:
        self._check_widths(args)
        if not isinstance(form, (str, bytes)):
            return
        if _WIDTH.search(form if isinstance(form, str) else str(form)):
            raise LimitError("a text padded to millions of characters")
        fields = sum(str(form).count(mark) for mark in "%{")
        self.budget.allow(len(form) + fields * max(map(_size, args), default=0))

    def _check_widths(self, args: tuple[Any, ...]) -> None:
        if any(isinstance(argument, int) and abs(argument) >= 10**6 for argument in args):
            raise LimitError("a text padded to millions of characters")

    def _check_bits(self, bits: int) -> None:
        if bits > DIGITS:
            raise LimitError("a number of thousands of digits")


class _Stepped:
    """A sized sequence whose items are counted as they are taken."""

    def __init__(self, items: Any, budget: _Budget) -> None:
        self._items, self._budget = items, budget

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item in self._items:
            self._budget.step()
            yield item


def _bits(number: Any) -> int:
    return number.bit_length() if isinstance(number, int) else 0


def _grows(thing: Any) -> bool:
    return isinstance(thing, (str, bytes, list, tuple, dict))


def _size(thing: Any, depth: int = 4) -> int:
    """Characters of a text, eight for every item of a list, and what the items hold."""
    if isinstance(thing, (str, bytes)):
        return len(thing)
    if isinstance(thing, Mapping):
        thing = list(thing.values())
    if isinstance(thing, (list, tuple)):
        size = 8 * len(thing)
        return size + (sum(_size(item, depth - 1) for item in thing[:1000]) if depth else 0)
    return 1
