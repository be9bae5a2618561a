"""YAML: values, the places of keys and elements, and mistakes with their fix."""

from __future__ import annotations

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
