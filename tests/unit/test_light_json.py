"""JSON without the module `json`: the same values and the same text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import light_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_a_value_is_written_and_read_as_json_does_it(value: object) -> None:
    text = light_json.dumps(value)
    assert text == json.dumps(value)
    assert light_json.loads(text) == light_json.loads(f" {text}\n".encode()) == value


@pytest.mark.parametrize("text", ["", " ", "{", '{"a": }', "[1] 2", "nul", '"\n"', b"\xff", b'"\xff"'])
def test_invalid_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)
    with pytest.raises(ValueError, match=r"."):
        light_json.loads(text)


def test_value_without_a_json_form_takes_that_of_the_default() -> None:
    assert light_json.dumps([{1}], default=sorted) == "[[1]]"
    with pytest.raises(TypeError, match="a set has no form in JSON"):
        light_json.dumps({1})
