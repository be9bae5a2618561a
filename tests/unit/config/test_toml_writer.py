from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from poolctl.config.edit.toml_writer import table_text, value_text

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
SIMPLE = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT, st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, VALUES, max_size=4))
def test_table_written_as_toml_is_read_back_unchanged(table: dict[str, Any]) -> None:
    assert tomllib.loads(table_text("[t]", table))["t"] == table


def test_unset_values_are_left_out() -> None:
    assert table_text("[t]", {"a": None, "b": 1}) == "[t]\nb = 1\n"
    assert value_text({"a": None}) == "{}"
    assert value_text((1.0, 2.5)) == "[1, 2.5]"
    assert value_text("\udcff") == '"?"'
