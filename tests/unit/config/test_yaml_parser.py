"""YAML: values, the places of keys and elements, and mistakes with their fix."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st

from poolctl import PoolConfig
from poolctl.config import Problem
from poolctl.config.files.parsers import parse, positions
from poolctl.config.files.yaml_parser import parse_yaml
from poolctl.config.values.problems import ParseError
from poolctl.errors import PoolValidateError
from tests.unit.config.documents import keys, paths, trees


def test_yaml_positions() -> None:
    text = "a: &x {b: [1, 2]}\nserver:\n  - name: x\n    <<: *x\n    1: [*x]\n  - 'name': y\n"
    found = positions(text, "yaml")
    assert found[("a", "b", 1)] == (1, 15)
    assert found[("server", 0)] == (3, 5)
    assert found[("server", 0, "name")] == (3, 5)
    assert found[("server", 0, "1")] == (5, 5)
    assert found[("server", 1, "name")] == (6, 5)
    assert ("server", 0, "<<") not in found


@pytest.mark.slow
@given(st.dictionaries(keys, trees, max_size=4))
@example({" ": [], "\x85": []})
def test_yaml_reads_as_pyyaml_reads_it(tree: dict[str, Any]) -> None:
    for style in (None, True, False):
        text = yaml.safe_dump(tree, allow_unicode=True, default_flow_style=style)
        read = yaml.load(text, Loader=yaml.CSafeLoader)
        # PyYAML writes U+0085 as a line break, which is read as a space: a key may be there twice then, and is refused.
        assume(len(paths(read)) == len(paths(tree)))
        assert parse(text, "yaml") == read
        assert positions(text, "yaml").keys() == paths(read)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: yes", True), ("a: Off", False), ("a: ~", None), ("a:", None), ("a: 12", 12), ("a: -1.5e3", -1500.0),
        ("a: 0x1F", 31), ("a: 0o17", 15), ("a: 010", "010"), ("a: 1:30", "1:30"), ("a: '12'", "12"),
        ("a: .inf", float("inf")),
        ("a: 127.0.0.1:80", "127.0.0.1:80"), ("a: 1_000", "1_000"), ("a: 2020-01-01", "2020-01-01"),
        ("a: !!str 12", "12"),
        ("a: .", "."), ("a: +", "+"), ("a: |\n  x\n", "x\n"), ("a: ''", ""), ("a: '~'", "~"),
    ],
)  # fmt: skip
def test_yaml_scalars_are_what_they_look_like(text: str, value: object) -> None:
    assert parse(text, "yaml") == {"a": value}


def test_a_key_of_yaml_is_its_text() -> None:
    assert parse("NO: 1\n80: 2\n~: 3\n'q': 4\n1e3: 5\n", "yaml") == {
        "NO": 1,
        "80": 2,
        "~": 3,
        "q": 4,
        "1e3": 5,
    }
    assert parse("a: 1e3", "yaml") == {"a": 1000.0}


def test_yaml_merges_tables() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc:\n  <<: [*a, *b]\n  x: 3\nd: {<<: *a}\ne: *a\n"
    read = parse(text, "yaml")
    assert read == yaml.safe_load(text)


def test_a_quoted_merge_key_is_a_word_like_any_other() -> None:
    assert parse("\"<<\": [1]\n'a': &b {c: 1}\nd: {<<: *b}\n", "yaml") == {
        "<<": [1],
        "a": {"c": 1},
        "d": {"c": 1},
    }


MISTAKES = [
    ("server:\n  - name: a\n    tags: [a, b\n    bind: ':1'\n", 3, 11, "list", "]"),
    ("server:\n  - name: a\n    http: {loop: auto\n", 3, 11, "table", "}"),
    ('server:\n  - name: "a\n', 2, 11, "string is not closed", "quote"),
    ("server:\n  - name: a: b\n", 2, 0, "a second ':'", "quotes"),
    ("server:\n  - name: @a\n", 2, 11, "cannot begin with '@'", "quotes"),
]


@pytest.mark.parametrize(("text", "line", "column", "said", "fix"), MISTAKES)
def test_a_common_mistake_is_reported_with_its_place_and_its_fix(
    text: str, line: int, column: int, said: str, fix: str
) -> None:
    with pytest.raises(ParseError) as raised:
        parse_yaml(text)
    error = raised.value
    assert error.line == line
    if column:
        assert error.column == column
    assert said in error.message
    assert fix in error.hint


@pytest.mark.parametrize(
    ("text", "line", "said", "fix"),
    [
        ("server:\n\t- name: a\n", 2, "\\t", "with spaces only"),
        ("server:\n  - name: a\n   bind: ':8080'\n", 3, "block", "alike"),
    ],
)
def test_any_other_mistake_has_the_parsers_words_and_the_formats_rules(
    tmp_path: Path, text: str, line: int, said: str, fix: str
) -> None:
    (tmp_path / "pool.yaml").write_text(text)
    with pytest.raises(PoolValidateError) as raised:
        PoolConfig.load(tmp_path / "pool.yaml", {})
    (problem,) = raised.value.exceptions
    assert isinstance(problem, Problem)
    assert problem.line == line
    assert said in problem.message
    assert fix in problem.hint


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("true True TRUE yes Yes YES on On ON", True),
        ("false False FALSE no No NO off Off OFF", False),
        ("~ null Null NULL", None),
    ],
)
def test_words_of_yaml_1_1_have_their_values_in_every_spelling(words: str, value: object) -> None:
    for word in words.split():
        assert parse_yaml(f"a: {word}") == {"a": value}
        assert parse_yaml(f"a: '{word}'") == {"a": word}
    assert parse_yaml("a: tRUE") == {"a": "tRUE"}
    assert parse_yaml("a:") == {"a": None}


def test_place_of_a_problem_counts_from_1() -> None:
    with pytest.raises(ParseError) as caught:
        parse_yaml("a: 1\nb:\n  c: !x 1\n")
    assert (caught.value.line, caught.value.column) == (3, 6)


NO_ANCHOR = "the alias *x has no anchor before it, or is within what it names"
NOT_CLOSED = "the {} that begins here is not closed, or lacks a comma"
TOO_DEEP = ("nested more than 100 levels deep", "a configuration needs five")
QUOTES = 'put it in quotes: "…"'


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("a: *x\n", 1, 4, NO_ANCHOR, "put &x where its value is"),
        ("a: &x [*x]\n", 1, 8, NO_ANCHOR, "put &x where its value is"),
        ("a: !x 1\n", 1, 4, "the tag '!x' is not allowed", "take it out"),
        ("a: !x [1]\n", 1, 4, "the tag '!x' is not allowed", "take it out"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document", "keep one document in a file: take out the ---"),
        ("? [a]\n: 1\n", 1, 5, "a table or a list cannot be a key", "write a word"),
        ("a: 1\na: 2\n", 2, 1, "the key 'a' is there twice", "keep one of them"),
        ("a: 1\n<<: 1\n", 2, 5, "<< merges tables, and this is none", "write << : *NAME"),
        ("<<: [1]\n", 1, 7, "<< merges tables, and this is none", "write << : *NAME"),
        (f"a: {'1' * 301}\n", 1, 4, "a number of too many digits", "write a smaller one"),
        (f"a: {'[' * 100}{']' * 100}\n", 1, 103, *TOO_DEEP),
        ("a: b: c\n", 1, 5, "a second ':' in one line",
         'put the text in quotes: "…", or indent what follows the first one'),
        ('a: "x\n', 1, 4, "the string is not closed", "put a quote at its end"),
        ("a: 'x\n", 1, 4, "the string is not closed", "put a quote at its end"),
        ("a: [1\n", 1, 4, NOT_CLOSED.format("list"), "put a ] at its end"),
        ("a: [1 2\n", 1, 4, NOT_CLOSED.format("list"), "put a ] at its end"),
        ("a: {b: 1\n", 1, 4, NOT_CLOSED.format("table"), "put a } at its end"),
        ("a: @x\n", 1, 4, "a text cannot begin with '@'", QUOTES),
        ("b: 1\na:   %x\n", 2, 6, "a text cannot begin with '%'", QUOTES),
        ("a:\n\t- b\n", 2, 1, "a text cannot begin with '\\t'", ""),
    ],
)  # fmt: skip
def test_mistake_is_reported_at_its_place(text: str, line: int, column: int, message: str, hint: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse_yaml(text)
    error = raised.value
    assert (error.line, error.column, error.message, error.hint) == (line, column, message, hint)


def test_values_that_aliases_repeat_are_limited() -> None:
    row = ", ".join(["1"] * 999)
    rows = ", ".join(["*a"] * 297)
    text = f"a: &a [{row}]\nb: [{rows}]\n"  # 2 × 3 keys, lists and tables beside the numbers
    assert len(parse_yaml(text)["b"]) == 297
    assert len(parse_yaml(f"{text}c: &c [1]\nd: *c\n")) == 4, "a late alias counts no more than an early one"
    with pytest.raises(ParseError) as raised:
        parse_yaml(text + f"c: [{', '.join(['*a'] * 4)}]\n")
    assert (raised.value.message, raised.value.hint) == (
        "more than 300,000 values, aliases counted as what they repeat", "split it",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: !!str 5\n", {"a": "5"}), (f"a: {'1' * 300}\n", {"a": int("1" * 300)}),
        ("NO: 1\nyes: 2\n", {"NO": 1, "yes": 2}),
        ("a: .inf\nb: -.INF\nc: 0x10\nd: 1e3\ne: 0o17\nf: '5'\n",
         {"a": math.inf, "b": -math.inf, "c": 16, "d": 1000.0, "e": 15, "f": "5"}),
        ("a: 012\nb: 1_000\nc: +5\nd: .5\ne: 1.\n", {"a": "012", "b": "1_000", "c": 5, "d": 0.5, "e": 1.0}),
        ("a: &x {p: 1}\nb: &y {p: 9, q: 2}\nc: {<<: [*x, *y], r: 3}\n",
         {"a": {"p": 1}, "b": {"p": 9, "q": 2}, "c": {"p": 1, "q": 2, "r": 3}}),
        ("x: &a [1]\ny: &a [2]\nz: *a\n", {"x": [1], "y": [2], "z": [2]}), ("a: &v 5\nb: *v\n", {"a": 5, "b": 5}),
        ("", None), ("a", "a"), ("a: 2026-01-01\n", {"a": "2026-01-01"}),
        (f"{'[' * 100}{']' * 100}\n", ...),
    ],
)  # fmt: skip
def test_text_has_its_value(text: str, value: object) -> None:
    found = parse_yaml(text)
    assert found == value or value is ...
