"""JSON without the module `json`: the same values and the same text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import poolctl
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
    assert light_json.dumps_compact(value) == json.dumps(value, separators=(",", ":"))


@pytest.mark.parametrize("text", ["", " ", "{", '{"a": }', "[1] 2", "nul", '"\n"', b"\xff", b'"\xff"'])
def test_invalid_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads(text)
    with pytest.raises(ValueError, match=r"."):
        light_json.loads(text)


def test_invalid_json_is_a_value_error_where_the_module_json_is_not_imported() -> None:
    # Up to Python 3.12 the C scanner returns an error without setting one there.
    code = """
import sys
from poolctl import light_json
for text in sys.argv[1:]:
    try:
        light_json.loads(text)
    except ValueError:
        continue
    sys.exit(f"{text} was read")
"""
    texts = ["{", '{"a" 1}', "[1,", '"abc', '"\x01"', "nul"]
    done = subprocess.run([sys.executable, "-c", code, *texts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_keeper_and_logger_start_without_the_modules_that_take_longest() -> None:
    root = str(Path(poolctl.__file__).parents[1])
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import poolctl.keeper.__main__, poolctl.logs.__main__
found = {"json", "re", "traceback", "typing", "asyncio", "dataclasses", "logging"} & set(sys.modules)
assert not found, found
"""
    # Without `site`: what an environment's own start files import is not ours.
    command = [sys.executable, "-I", "-S", "-c", code, root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_compact_json_of_a_value_that_contains_itself_is_an_error() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        light_json.dumps_compact(endless)


def test_value_without_a_json_form_takes_that_of_the_default() -> None:
    assert light_json.dumps([{1}], default=sorted) == "[[1]]"
    with pytest.raises(TypeError, match="a set has no form in JSON"):
        light_json.dumps({1})
