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
    assert found[("server",)] == found[("server", 0)] == (6, 1)
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


def test_positions_of_json_that_is_too_deep_are_those_that_were_reached() -> None:
    found = positions('{"a": 1,\n"b": ' + "[" * 100_000 + "]" * 100_000 + "}", "json")
    assert (found[("a",)], found[("b",)]) == ((1, 2), (2, 1))


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


@pytest.mark.slow
@given(st.dictionaries(keys, trees, max_size=4))
def test_every_json_key_has_its_place(tree: dict[str, Any]) -> None:
    for text in (json.dumps(tree), json.dumps(tree, indent=2)):
        assert parse(text, "json") == tree
        assert positions(text, "json").keys() == paths(tree)


@pytest.mark.slow
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
    # text, line, column, message, hint
    ('[[server]]\nname = "web"\nbind = ":8080"\ntags = ["x",\napp = "m:a"\n', 4, 8,
     "the list that begins here is not closed", "put a ] behind its last value"),
    ('[[server]]\nname = "web"\nbind = ":8080"\ntags = ["x",\n  "y"\n[defaults]\n', 4, 8,
     "the list that begins here is not closed", "put a ] behind its last value"),
    ('[[server]]\nname = "web"\nbind = ":8080"\ntags = ["x", "y"', 4, 8,
     "the list that begins here is not closed", "put a ] behind its last value"),
    ('[[server]]\nname = "web"\nbind = ":8080"\ntags = ["x" "y"]\n', 4, 13,
     "a comma is missing", "put one before it"),
    ('[[server]]\nname = "web"\nbind = ":8080"\ntags = ["x # no", # a [\n  "y" "z"]\n', 5, 7,
     "a comma is missing", "put one before it"),
    ('[[server]]\nname = "web"\nbind = ":8080"\nscale = { min = 1\n', 4, 9,
     "the table that begins here is not closed in its line", "write it on one line, with a } at its end"),
    ('[[server]]\nname = "web"\nbind = ":8080"\nscale = { min = 1 max = 2 }\n', 4, 19,
     "a comma is missing", "put one before it"),
    ('[[server]]\nname = "web"\nbind = ":8080"\nscale = { min = 1, }\n', 4, 20,
     "a comma before the }", "take it out"),
    ('[[server]]\nname = "web"\nbind = ":8080"\nenv = { A = \'x\', ', 4, 7,
     "the table that begins here is not closed in its line", "write it on one line, with a } at its end"),
    ('[[server]]\nname = "web\nbind = ":1"\n', 2, 12, 'the string is not closed', 'put a quote at its end'),
    ("[[server]]\nname = 'web\nbind = ':1'\n", 2, 12, 'the string is not closed', 'put a quote at its end'),
    ('[[server]]\nname = """web', 2, 14, 'the string is not closed', 'put a quote at its end'),
    ('[[server]]\nname = web\n', 2, 8, "'web' is no value", 'put it in quotes: "web"'),
    ('[[server]]\nbind = :8080 # c\n', 2, 8, "':8080' is no value", 'put it in quotes: ":8080"'),
    ("[[server]]\nbind = 127.0.0.1:8080\n", 2, 8,
     "'127.0.0.1:8080' is no value", 'put it in quotes: "127.0.0.1:8080"'),
    ("[[server]]\nbind = localhost:8080, x\n", 2, 8,
     "'localhost:8080' is no value", 'put it in quotes: "localhost:8080"'),
    ('[[server]]\ndisabled = True\n', 2, 12, "'True' is no value", 'write true'),
    ('[[server]]\ndisabled = off\n', 2, 12, "'off' is no value", 'write false'),
    ('[[server]]\nuser = None\n', 2, 8, "'None' is no value", 'leave the key out'),
    ('[[server]]\nname =\n', 2, 7, 'there is no value behind the =', 'write one, or take the key out'),
    ('[[server]]\nname = # later\n', 2, 8, 'there is no value behind the =', 'write one, or take the key out'),
    ('[[server]]\nname: "a"\n', 2, 5, "':' where '=' belongs", 'write name = "a"'),
    ('[[server]]\nname = "web"\nbind = ":8080"\napp = "a:b"\napp = "c:d"\n', 5, 1,
     "the key 'app' is there twice", "keep one of them"),
    ('[[server]]\nname = "web"\nbind = ":8080"\nscale = { min = 1, min = 2 }\n', 4, 20,
     "the key 'min' is there twice", "keep one of them"),
    ('[pool]\nname = "x"\n[pool]\n', 3, 1, '[pool] is there twice', 'write its keys under one of them'),
    ("[[route]]\n[route]\n", 2, 1,
     "[route] and [[route]] are both there", "write [[route]], with two brackets, each time"),
    ("[route]\n[[route]]\n", 2, 1,
     "[route] and [[route]] are both there", "write [[route]], with two brackets, each time"),
    ('[server]\n[server]\n', 2, 1, '[server] is there twice', 'write [[server]], with two brackets, each time'),
    ('a = 5__0\n', 1, 5, "'5__0' is no value", 'put it in quotes: "5__0"'),
    ('a.b = 1\na.c = 2\n[a]\n', 3, 1, '[a] is there twice', 'write its keys under one of them'),
    ('x = 1\nx.y = 2\n', 2, 1, "the key 'x.y' is there twice", 'keep one of them'),
    ('[[server]]\nname = 12"\n', 2, 8, "'12' is no value", 'put it in quotes: "12"'),
    ('a = 0x\n', 1, 5, "'0x' is no value", 'put it in quotes: "0x"'),
    ('[a]\nb = 1\n[a.b]\n', 3, 1, '[a.b] is there twice', 'write its keys under one of them'),
    ('a = null\n', 1, 5, "'null' is no value", 'leave the key out'),
    ('a = Yes\n', 1, 5, "'Yes' is no value", 'write true'),
    ("a = 'x' # c\na = 'y'\n", 2, 1, "the key 'a' is there twice", 'keep one of them'),
    ('[[a]]\n[a]\n', 2, 1, '[a] and [[a]] are both there', 'write [[a]], with two brackets, each time'),
    ("a = {,}\n", 1, 5,
     "the table that begins here is not closed in its line", "write it on one line, with a } at its end"),
    ("env = { A = 1,\n B = 2 }\n", 1, 7,
     "the table that begins here is not closed in its line", "write it on one line, with a } at its end"),
    ('a = @x\n', 1, 5, "'@x' is no value", 'put it in quotes: "@x"'),
]  # fmt: skip
JSON = [
    ('{"server": [{"name": "a",}]}', 1, 25, 'a comma before the }', 'take it out'),
    ('{"server": ["a",]}', 1, 16, 'a comma before the ]', 'take it out'),
    ('{server: []}', 1, 2, "'server' is no key", 'put it in double quotes: "server"'),
    ('{"server": [{"name": "a"}', 1, 26, 'the file ends before all is closed', 'write ]} at its end'),
    ('{"server": [{"name": "a" "bind": ":1"}]}', 1, 26, 'a comma is missing', 'put one before it'),
    ('{"server": [{"disabled": True}]}', 1, 26, "'True' is no value", 'write true'),
    ('{"server": [{"user": None}]}', 1, 22, "'None' is no value", 'write null'),
    ('{"server": [{"name": web}]}', 1, 22, "'web' is no value", 'put it in quotes: "web"'),
    ('{"server": [{"name": "web}]}', 1, 22, 'the string is not closed', 'put a quote at its end'),
    ('{"server": [{"name": "NaN", "start_timeout": NaN}]}', 1, 46,
     "NaN is not a number of JSON", "write a number, or leave the key out"),
    ('', 1, 1, 'the file is empty', 'write { "server": [ … ] }'),
    ('{"a": 1', 1, 8, 'the file ends before all is closed', 'write } at its end'),
    ('[', 1, 2, 'the file ends before all is closed', 'write ] at its end'),
    ('{"a": [1, {"b": 2', 1, 18, 'the file ends before all is closed', 'write }]} at its end'),
    ('{"a": yes}', 1, 7, "'yes' is no value", 'write true'),
    ('{"a": undefined}', 1, 7, "'undefined' is no value", 'write null'),
    ('{"a": 1, "a": 2}', 1, 10, "the key 'a' is there twice", 'keep one of them'),
    ('{"x": [{"b": 1, "c": 2, "b": 3}]}', 1, 25, "the key 'b' is there twice", 'keep one of them'),
    ('{"a": -Infinity}', 1, 7, '-Infinity is not a number of JSON', 'write a number, or leave the key out'),
    ('{"a": "b', 1, 7, 'the string is not closed', 'put a quote at its end'),
    ('{"a": tru}', 1, 7, "'tru' is no value", 'put it in quotes: "tru"'),
    ('[1 2]', 1, 4, 'a comma is missing', 'put one before it'),
    ('{,}', 1, 2, 'a comma before the }', 'take it out'),
    ('   ', 1, 1, 'the file is empty', 'write { "server": [ … ] }'),
    ('{"a": [1, 2,\n]}', 1, 12, 'a comma before the ]', 'take it out'),
    ('{"a": web:1}', 1, 7, "'web' is no key", 'put it in double quotes: "web"'),
    ('{1: 2}', 1, 2, "'1' is no key", 'put it in double quotes: "1"'),
]  # fmt: skip


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
    assert (problem.line, problem.column) == (line, column)
    assert (problem.message, problem.hint) == (said, fix)


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


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        ("pool.toml", "a." + "b." * 99 + "c = 1\n", (1, 1), "a key of more than 100 parts"),
        ("pool.toml", "\nx = 1\na = " + "1" * 5000 + "\n", (3, 5), "a number of too many digits"),
        ("pool.json", '{"a": ' + "1" * 5000 + "}", (0, 0), "a number of too many digits"),
        ("pool.toml", "a = " + "[" * 2000 + "\n", (0, 0), "nested too deeply"),
        ("pool.json", "[" * 3000, (0, 0), "nested too deeply"),
        ("pool.json", "[" + "1," * 300_001 + "1]", (0, 0), "more than 300,000 lines and values"),
        ("pool.toml", "\n" * 300_001, (0, 0), "more than 300,000 lines and values"),
    ],
)  # fmt: skip
def test_text_that_would_take_too_long_is_refused(
    tmp_path: Path, name: str, text: str, place: tuple[int, int], message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PoolValidateError) as raised:
        PoolConfig.load(tmp_path / name, {})
    (problem,) = raised.value.exceptions
    assert isinstance(problem, Problem)
    assert ((problem.line, problem.column), problem.message) == (place, message)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        ("toml", "a." + "b." * 97 + "c = 1\n", None),
        ("json", '{"a": [1, "x", null, true, 1.5]}', {"a": [1, "x", None, True, 1.5]}),
        ("toml", "", {}),
        ("yaml", "a: [1]\n", {"a": [1]}),
    ],
)
def test_text_of_each_kind_has_its_value(kind: str, text: str, value: object) -> None:
    found = parse(text, kind)
    assert found == value if value is not None else isinstance(found, dict)


def test_largest_number_of_values_is_read() -> None:
    assert len(parse("[" + "1," * 300_000 + "1]", "json")) == 300_001


def test_place_of_a_key_with_escapes_has_its_plain_name() -> None:
    text = '"a\\tb" = 1\n"c\\U0001F600" = 2\n\'d\\\\\' = 3\n'
    assert positions(text, "toml") == {("a\tb",): (1, 1), ("c\U0001f600",): (2, 1), ("d\\\\",): (3, 1)}
