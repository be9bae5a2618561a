"""Configuration files that parse, and the place, cause and fix for those that do not."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import PoolConfig
from poolctl.config import Problem
from poolctl.config.files.parsers import parse, positions
from poolctl.errors import PoolValidateError
from tests.unit.config.documents import keys, paths, trees

TOML = '''# a comment
[pool]
name = "x" # another
[defaults.tls]
cert="a"
[[server]]
name = """a
b = 1"""
env = { A.b = "1", "x y" = [1, {z=2}] }
tags = [
  "a", # ]
  'b',
]
text = \'\'\'
[[no]]
\'\'\'
[server.http]
loop = "x\\"y"
[[server]]
"na\\u006de" = 1
'lit.eral'.loop = 3
[[server.probe]]
a = 1
[[server.probe]]
a = 1979-05-27T07:32:00Z
'''


def test_toml_positions() -> None:
    found = positions(TOML, "toml")
    assert found[("pool", "name")] == (3, 1)
    assert found[("defaults", "tls", "cert")] == (5, 1)
    assert found[("server", 0)] == (6, 1)
    assert found[("server", 0, "env")] == (9, 1)
    assert found[("server", 0, "env", "A", "b")] == (9, 11)
    assert found[("server", 0, "env", "x y", 1, "z")] == (9, 33)
    assert found[("server", 0, "tags", 1)] == (12, 3)
    assert found[("server", 0, "http", "loop")] == (18, 1)
    assert found[("server", 1)] == (19, 1)
    assert found[("server", 1, "name")] == (20, 1)
    assert found[("server", 1, "lit.eral", "loop")] == (21, 12)
    assert found[("server", 1, "probe", 1, "a")] == (25, 1)
    assert ("no",) not in found


def test_json_positions() -> None:
    found = positions('{"a": [1, {"b": []}, []], "c": {},\n "d\\n": "x]", "e": [[]]}', "json")
    assert found == {
        ("a",): (1, 2),
        ("a", 0): (1, 8),
        ("a", 1): (1, 11),
        ("a", 1, "b"): (1, 12),
        ("a", 2): (1, 22),
        ("c",): (1, 27),
        ("d\n",): (2, 2),
        ("e",): (2, 15),
        ("e", 0): (2, 21),
    }


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return json.dumps(value).replace("\x7f", "\\u007f")


@given(st.dictionaries(keys, trees, max_size=4))
def test_every_json_key_has_its_place(tree: dict[str, Any]) -> None:
    for text in (json.dumps(tree), json.dumps(tree, indent=2)):
        assert parse(text, "json") == tree
        assert positions(text, "json").keys() == paths(tree)


@given(st.dictionaries(st.from_regex(r"[ -~]{1,8}", fullmatch=True), trees, max_size=4))
def test_every_toml_key_has_its_place(tree: dict[str, Any]) -> None:
    text = "".join(f"{json.dumps(key)} = {toml(value)} # {{\n" for key, value in tree.items())
    try:
        read = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # JSON writes half surrogate pairs, TOML has none.
    assert positions(text, "toml").keys() == paths(read)


HEAD = '[[server]]\nname = "web"\nbind = ":8080"\n'

BROKEN_TOML = [
    # text, line, column, what the message says, what the fix says
    (HEAD + 'tags = ["x",\napp = "m:a"\n', 4, 8, "list that begins here is not closed", "]"),
    (HEAD + 'tags = ["x",\n  "y"\n[defaults]\n', 4, 8, "list that begins here is not closed", "]"),
    (HEAD + 'tags = ["x", "y"', 4, 8, "list that begins here is not closed", "]"),
    (HEAD + 'tags = ["x" "y"]\n', 4, 13, "comma is missing", "before it"),
    (HEAD + 'tags = ["x # no", # a [\n  "y" "z"]\n', 5, 7, "comma is missing", "before it"),
    (HEAD + "scale = { min = 1\n", 4, 9, "table that begins here is not closed", "}"),
    (HEAD + "scale = { min = 1 max = 2 }\n", 4, 19, "comma is missing", "before it"),
    (HEAD + "scale = { min = 1, }\n", 4, 20, "comma", "take it out"),
    (HEAD + "env = { A = 'x', ", 4, 7, "table that begins here is not closed", "}"),
    ('[[server]]\nname = "web\nbind = ":1"\n', 2, 12, "string is not closed", "quote"),
    ("[[server]]\nname = 'web\nbind = ':1'\n", 2, 12, "string is not closed", "quote"),
    ('[[server]]\nname = """web', 2, 14, "string is not closed", "quote"),
    ("[[server]]\nname = web\n", 2, 8, "'web' is no value", 'quotes: "web"'),
    ("[[server]]\nbind = :8080 # c\n", 2, 8, "':8080' is no value", 'quotes: ":8080"'),
    ("[[server]]\nbind = 127.0.0.1:8080\n", 2, 8, "'127.0.0.1:8080' is no value", '"127.0.0.1:8080"'),
    ("[[server]]\nbind = localhost:8080, x\n", 2, 8, "is no value", '"localhost:8080"'),
    ("[[server]]\ndisabled = True\n", 2, 12, "'True' is no value", "write true"),
    ("[[server]]\ndisabled = off\n", 2, 12, "'off' is no value", "write false"),
    ("[[server]]\nuser = None\n", 2, 8, "'None' is no value", "leave the key out"),
    ("[[server]]\nname =\n", 2, 7, "no value behind", "write one"),
    ("[[server]]\nname = # later\n", 2, 8, "no value behind", "write one"),
    ('[[server]]\nname: "a"\n', 2, 5, "':' where '=' belongs", 'name = "a"'),
    (HEAD + 'app = "a:b"\napp = "c:d"\n', 5, 1, "key 'app' is there twice", "keep one"),
    (HEAD + "scale = { min = 1, min = 2 }\n", 4, 20, "key 'min' is there twice", "keep one"),
    ('[pool]\nname = "x"\n[pool]\n', 3, 1, "[pool] is there twice", "under one of them"),
    (
        "[[route]]\n[route]\n",
        2,
        1,
        "[route] and [[route]] are both there",
        "write [[route]], with two brackets",
    ),
    (
        "[route]\n[[route]]\n",
        2,
        1,
        "[route] and [[route]] are both there",
        "write [[route]], with two brackets",
    ),
    ("[server]\n[server]\n", 2, 1, "[server] is there twice", "write [[server]], with two brackets"),
]
JSON = [
    ('{"server": [{"name": "a",}]}', 1, 25, "comma", "take it out"),
    ('{"server": ["a",]}', 1, 16, "comma", "take it out"),
    ("{server: []}", 1, 2, "'server' is no key", 'double quotes: "server"'),
    ('{"server": [{"name": "a"}', 1, 26, "ends before", "]}"),
    ('{"server": [{"name": "a" "bind": ":1"}]}', 1, 26, "comma is missing", "before it"),
    ('{"server": [{"disabled": True}]}', 1, 26, "'True' is no value", "write true"),
    ('{"server": [{"user": None}]}', 1, 22, "'None' is no value", "write null"),
    ('{"server": [{"name": web}]}', 1, 22, "'web' is no value", 'quotes: "web"'),
    ('{"server": [{"name": "web}]}', 1, 22, "string is not closed", "quote"),
    ('{"server": [{"name": "NaN", "start_timeout": NaN}]}', 1, 46, "NaN", "number"),
    ("", 1, 1, "file is empty", "{"),
]


@pytest.mark.parametrize(
    ("name", "text", "line", "column", "said", "fix"),
    [
        *(("pool.toml", *case) for case in BROKEN_TOML),
        *(("pool.json", *case) for case in JSON),
    ],
)
def test_a_common_mistake_is_reported_with_its_place_and_its_fix(
    tmp_path: Path, name: str, text: str, line: int, column: int, said: str, fix: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PoolValidateError) as raised:
        PoolConfig.load(tmp_path / name, {})
    (problem,) = raised.value.exceptions
    assert isinstance(problem, Problem)
    assert problem.line == line
    if column:
        assert problem.column == column
    assert said in problem.message
    assert fix in problem.hint


@pytest.mark.parametrize(
    ("name", "text", "line", "said", "fix"),
    [
        ("pool.toml", "// a pool\n", 1, "Invalid statement", "# comment"),
        ("pool.json", '// x\n{"server": []}', 1, "Expecting value", "no comments"),
        ("pool.json", "{'server': []}", 1, "Expecting property name", "double quotes"),
        ("pool.json", '{"server": []} x', 1, "Extra data", "double quotes"),
    ],
)
def test_any_other_mistake_has_the_parsers_words_and_the_formats_rules(
    tmp_path: Path, name: str, text: str, line: int, said: str, fix: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PoolValidateError) as raised:
        PoolConfig.load(tmp_path / name, {})
    (problem,) = raised.value.exceptions
    assert isinstance(problem, Problem)
    assert problem.line == line
    assert said in problem.message
    assert fix in problem.hint
