"""Chat templates that never end, or write without end, are one clear line within seconds."""

from __future__ import annotations

import pytest
import templates
from templates import STYLES
from transformers import PreTrainedTokenizerBase

from refusal_lens.chat import ChatFormat, bounds, template
from refusal_lens.errors import InputError

BIG = "range(99999)"
LOOP = "{% for a in " + BIG + " %}"
ENDLESS = {
    "a long loop": "{% for i in range(10**9) %}x{% endfor %}",
    "loops in loops": LOOP * 4 + "{% endfor %}" * 4,
    "loops that need no call": "{% set r = range(99999) | list %}"
    "{% for a in r %}{% for b in r %}{% for c in r %}{% endfor %}{% endfor %}{% endfor %}",
    "loops that write": LOOP + "{{ 'x' * 100000 }}{% endfor %}",
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long text that is never written": "{% if false %}{{ 'a' * 10**10 }}{% endif %}"
    "{% set x = 'ab' * 10**10 %}",
    "a long list": "{% set x = [1] * 10**9 %}",
    "a long number": "{{ 10 ** (10 ** 9) }}",
    "a number that grows": "{% set n = namespace(x=3) %}"
    + LOOP
    + "{% set n.x = n.x * n.x %}{% endfor %}",
    "a text that doubles": "{% set n = namespace(x='ab') %}"
    + LOOP
    + "{% set n.x = n.x + n.x %}{% endfor %}",
    "a text that doubles by ~": "{% set n = namespace(x='ab') %}"
    + LOOP
    + "{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a block that doubles": "{% set n = namespace(x='ab') %}"
    + LOOP
    + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "a list that doubles": "{% set n = namespace(x=[1]) %}"
    + LOOP
    + "{% set n.x = n.x + n.x %}{% endfor %}",
    "replacing": "{% set n = namespace(x='aa') %}"
    + LOOP
    + "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "replacing by a filter": "{% set n = namespace(x='aa') %}"
    + LOOP
    + "{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
    "joining": "{{ ('x' * 1000000).join('y' * 1000000) }}",
    "joining by a filter": "{{ range(99999) | join('x' * 1000000) }}",
    "joining what is lazy": "{{ range(99999) | map('string') | join('x' * 1000000) }}",
    "joining letters": "{{ ('y' * 1000000) | join('x' * 1000000) }}",
    "padding": "{{ 'a'.ljust(10000000000) }}",
    "padding by a filter": "{{ 'a' | center(10000000000) }}",
    "padding by a format": "{{ '%10000000000d' % 1 }}",
    "padding by a format's argument": "{{ '%*d' % (10000000000, 1) }}",
    "padding by format": "{{ '{:>10000000000}'.format(1) }}",
    "padding by format's argument": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "tabs": "{{ ('\t' * 1000).expandtabs(1000000000) }}",
    "bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if a %}" * 3000 + "{% endif %}" * 3000,
    "deep loops": "{% for a in 'x' %}" * 40 + "{% endfor %}" * 40,
    "a source of megabytes": "{# " + "x" * 3_000_000 + " #}",
    "a source of many nodes": "{{ a }}" * 5_000,
    "division by zero": "{{ 1 // 0 }}",
    "no such attribute": "{{ messages.nothing.more }}",
    "an include": "{% include 'x' %}",
}


def tokenizer(source: str) -> PreTrainedTokenizerBase:
    made = templates.tokenizer("qwen")
    made.chat_template = source
    return made


@pytest.mark.parametrize("name", ENDLESS)
def test_what_never_ends_is_one_line(name: str) -> None:
    source = ENDLESS[name] + templates.CHATML
    if name == "a source of many nodes":
        # It is long, but it ends.
        ChatFormat.from_tokenizer(tokenizer(source))
    else:
        with pytest.raises(InputError, match="chat template of") as failed:
            ChatFormat.from_tokenizer(tokenizer(source))
        assert "\n" not in str(failed.value)
        assert len(str(failed.value)) < 400


def test_a_template_that_is_slow_every_time_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.2)
    monkeypatch.setattr(template, "SECONDS_EACH", 0.0)
    slow = "{% for a in range(5000) %}{% endfor %}" + templates.CHATML
    with pytest.raises(InputError, match=r"more than 0.2 seconds"):
        ChatFormat.from_tokenizer(tokenizer(slow)).render(["hello"] * 2000)


def test_the_time_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SECONDS", 0.01)
    slow = "{% for a in range(60000) %}{% endfor %}" + templates.CHATML
    with pytest.raises(InputError, match=r"more than 0.01 seconds"):
        ChatFormat.from_tokenizer(tokenizer(slow))


@pytest.mark.parametrize("name", [n for n, style in STYLES.items() if style.template])
def test_what_is_rendered_is_what_transformers_renders(name: str) -> None:
    made = templates.tokenizer(name)
    messages = [
        {"role": "user", "content": "  hello <b>sea</b> "},
        {"role": "assistant", "content": "hi\n"},
        {"role": "user", "content": "x"},
    ]
    wanted = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    shared = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    assert bounds.render(made.chat_template, {**made.special_tokens_map, **shared}) == wanted


FEATURES = {
    "loop variables": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    "{{ loop.previtem is defined and loop.previtem.role }}{{ loop.cycle(1, 2) }} {% endfor %}",
    "dictionaries": "{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}"
    "{% for k in messages[0] %}{{ k }}{% endfor %}",
    "filtered loops": "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}"
    "{% else %}none{% endfor %}",
    "lazy filters": "{{ messages | map(attribute='role') | join(', ') | upper }}"
    "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ m.content | trim }}{% endfor %}",
    "slices": "{% for m in messages[::-1] %}{{ m.role }}{% endfor %}{{ messages[0].content[1:3] }}",
    "macros": "{% macro f(m, n=2) %}{{ m.content * n }}{{ caller() if caller }}{% endmacro %}"
    "{{ f(messages[0]) }}{% call f(messages[0], n=1) %}in{% endcall %}",
    "blocks of text": "{% set x %}a{{ messages[0].role }}b{% endset %}{{ x ~ 1 ~ none }}{{ x | length }}",
    "json": "{{ messages | tojson(indent=2) }}{{ {'é': 1} | tojson }}",
    "formats": "{{ '%s-%03d' % ('a', 7) }}{{ '{:>5}|{}'.format('x', 'y') }}{{ 'a %s' | format('b') }}",
    "methods": "{{ messages[0].content.split(' ')[0].upper().replace('H', 'J').ljust(9) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}"
    "{% endfor %}",
    "recursion": "{% for m in [[1, [2, [3]]]] recursive %}{% if m is iterable %}({{ loop(m) }}){% else %}"
    "{{ m }}{% endif %}{% endfor %}",
    "generation": "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "arithmetic": "{{ 2 ** 10 }}{{ 7 % 4 }}{{ 1 + 2.5 }}{{ 'ab' + 'c' }}{{ [1] + [2] }}{{ '=' * 10 }}",
    "namespaces": "{% set n = namespace(x='') %}{% for m in messages %}{% set n.x = n.x + m.role %}"
    "{% endfor %}{{ n.x }}",
    "sorting": "{{ messages | groupby('role') | length }}{{ [3, 1] | sort | first }}{{ 5 | default(1700000000) }}",
    "characters": "{% for c in 'abc' %}{{ c }}{{ loop.index0 }}{% endfor %}",
    "dict": "{{ dict(a=1) }}{{ range(3) | list }}{{ 'x' is string }}{{ nothing is defined }}",
}


@pytest.mark.parametrize("name", FEATURES)
def test_counting_changes_nothing_that_templates_use(name: str) -> None:
    messages = [
        {"role": "user", "content": " hello sea"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "x"},
    ]
    made = tokenizer(FEATURES[name])
    wanted = made.apply_chat_template(messages, tokenize=False)
    assert bounds.render(made.chat_template, {"messages": messages}) == wanted
