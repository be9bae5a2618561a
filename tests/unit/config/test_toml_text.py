"""Values written as TOML are read back unchanged, also after interpolation."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.config.values.toml_text import escaped, key_text, table_text, value_text

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
SIMPLE = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT, st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_table_written_as_toml_is_read_back_unchanged(table: dict[str, Any]) -> None:
    assert tomllib.loads(table_text("[t]", table))["t"] == table


def test_unset_values_are_left_out() -> None:
    assert table_text("[t]", {"a": None, "b": 1}) == "[t]\nb = 1\n"
    assert value_text({"a": None}) == "{}"
    assert value_text((1.0, 2.5)) == "[1, 2.5]"
    assert value_text("\udcff") == '"?"'


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("${A} $${B} ${server.a.url}", "$${A} $$${B} ${server.a.url}"),
        ({"a": ["${A}", 5, None]}, {"a": ["$${A}", 5, None]}), (("${A}",), ["$${A}"]), (True, True),
    ],
)  # fmt: skip
def test_value_is_escaped_wherever_it_holds_strings(value: object, found: object) -> None:
    assert escaped(value) == found


@pytest.mark.parametrize(
    ("key", "text"), [("a-b_C1", "a-b_C1"), ("a.b", '"a.b"'), ("", '""'), ("é", '"é"'), ('a"\x7f', '"a\\"\\u007f"')]
)  # fmt: skip
def test_key_is_quoted_unless_it_is_bare(key: str, text: str) -> None:
    assert key_text(key) == text
