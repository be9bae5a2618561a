"""Text that no parser accepts: the place, what is wrong, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Problem
from poolctl.errors import PoolValidateError

HEAD = '[[server]]\nname = "web"\nbind = ":8080"\n'

TOML = [
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
    ("[stream]\n[stream]\n", 2, 1, "[stream] is there twice", "write [[stream]], with two brackets"),
]
YAML = [
    ("server:\n  - name: a\n    tags: [a, b\n    bind: ':1'\n", 3, 11, "list", "]"),
    ("server:\n  - name: a\n    http: {loop: auto\n", 3, 11, "table", "}"),
    ('server:\n  - name: "a\n', 2, 11, "string is not closed", "quote"),
    ("server:\n  - name: a: b\n", 2, 0, "a second ':'", "quotes"),
    ("server:\n  - name: @a\n", 2, 11, "cannot begin with '@'", "quotes"),
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
        *(("pool.toml", *case) for case in TOML),
        *(("pool.yaml", *case) for case in YAML),
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
        ("pool.yaml", "server:\n\t- name: a\n", 2, "\\t", "with spaces only"),
        ("pool.yaml", "server:\n  - name: a\n   bind: ':8080'\n", 3, "block", "alike"),
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
