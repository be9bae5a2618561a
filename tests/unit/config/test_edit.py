"""Changing configuration files: which file, what stays, what is refused, and how it is written."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from poolctl.config.edit import Draft, FileChanged, replace_file_content
from poolctl.errors import PoolValidateError
from tests.descriptors import no_descriptor_left
from tests.sandbox import RENAME, run_without

POOL = """\
#:schema ./pool.schema.json
# The shop. Everything is here.

[pool]
name = "shop"

# Who buys.
# And who looks.
[[server]]
name = "users"              # unique
bind = "127.0.0.1:8081"
app = "hello:app"
http.keep_alive = "5s"
  [server.env]              # for the app
  LEVEL = "info"

# --- inner ones ---

[[server]]
name = "orders"
bind = "127.0.0.1:8082"
app = "hello:app"
tags = [
  "api",   # public
  "v1",
]
disabled = true             # until the migration
# workers = 2
"""


def drafted(path: Path, *more: Path) -> Draft:
    return Draft([str(path), *map(str, more)], {})


def written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


A = '[[server]]\nname = "a"\n'
_BEFORE, _, _REST = POOL.partition("# Who buys.")
_INNER = _REST[_REST.index("# --- inner") :]


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        pytest.param(
            {"pool.toml": POOL},
            [("set", "orders", ("disabled",), False), ("set", "users", ("env", "LEVEL"), "debug")],
            {"pool.toml": POOL.replace("disabled = true ", "disabled = false ").replace('"info"', '"debug"')},
            id="a value is replaced in its place, and its comment stays",
        ),
        pytest.param(
            {"pool.toml": POOL},
            [
                ("scale", "users", 3), ("set", "users", ("env", "B"), "1"),
                ("set", "users", ("http", "root_path"), "/x"), ("set", "orders", ("log", "keep"), 2),
            ],
            {
                "pool.toml": POOL.replace('"5s"\n', '"5s"\nhttp.root_path = "/x"\nworkers = 3\n')
                .replace('"info"\n', '"info"\n  B = "1"\n')
                .replace("until the migration\n", "until the migration\nlog = { keep = 2 }\n")
            },
            id="a new key is written behind the keys of its table",
        ),
        pytest.param(
            {"pool.toml": POOL}, [("remove", "USERS")], {"pool.toml": _BEFORE + _INNER},
            id="a server goes with its comments",
        ),
        pytest.param(
            {"pool.toml": _BEFORE + _INNER}, [("remove", "orders")],
            {"pool.toml": f"{_BEFORE}# --- inner ones ---\n"}, id="a comment that is not of the server stays",
        ),
        pytest.param(
            {"pool.toml": f"# About this file.\n{A}"}, [("remove", "a")],
            {"pool.toml": "# About this file.\n"}, id="the comment that a file begins with stays",
        ),
        pytest.param(
            {"pool.toml": f"[pool]\n#:schema ./pool.schema.json\n{A}"}, [("remove", "a")],
            {"pool.toml": "[pool]\n#:schema ./pool.schema.json\n"}, id="the schema stays",
        ),
        pytest.param(
            {"pool.toml": POOL}, [("add", {"name": "new", "bind": ":9", "env": {"A": "x"}})],
            {"pool.toml": f'{POOL}\n[[server]]\nname = "new"\nbind = ":9"\nenv = {{ A = "x" }}\n'},
            id="a new server has the layout of the file",
        ),
        pytest.param(
            {
                "pool.toml": f'{A}scale = {{ min = 0, max = 2, idle = "5m" }}  # sleeps\n[[server]]\nname = "b"\n'
                'scale.min = 2   # two\nscale.max = 2\n[[server]]\nname = "c"\n'
            },
            [("scale", "a", 4), ("scale", "b", 4), ("scale", "c", 4)],
            {
                "pool.toml": f'{A}scale = {{ min = 0, max = 4, idle = "5m" }}  # sleeps\n[[server]]\nname = "b"\n'
                'scale.min = 4   # two\nscale.max = 4\n[[server]]\nname = "c"\nworkers = 4\n'
            },
            id="other keys of scale stay",
        ),
        pytest.param(
            {"pool.toml": 'server = [{ name = "a" }, { name = "b" }, { name = "c" }]\n'},
            [("remove", "a"), ("remove", "b")], {"pool.toml": 'server = [{ name = "c" }]\n'},
            id="several servers of a list in brackets are removed",
        ),
        pytest.param(
            {"pool.toml": 'server = [{ name = "a", env.X = "1" }, # first\n  { name = "b" }]\n'},
            [("set", "a", ("disabled",), True)],
            {"pool.toml": 'server = [{ name = "a", env.X = "1", disabled = true}, # first\n  { name = "b" }]\n'},
            id="a server in braces is changed",
        ),
        pytest.param(
            {"pool.toml": f'{A}[pool]\nname = "p"\n[[server]]\nname = "b"\n'},
            [("set", "a", ("disabled",), True)],
            {"pool.toml": f'{A}disabled = true\n[pool]\nname = "p"\n[[server]]\nname = "b"\n'},
            id="a server before other tables is changed",
        ),
        pytest.param(
            {"pool.toml": f"{A}disabled = true\n"}, [("reset", "a", "disabled", False)], {"pool.toml": A},
            id="a key is taken out for its default",
        ),
        pytest.param(
            {"pool.toml": f"{A}disabled = true # for now\n"}, [("reset", "a", "disabled", False)],
            {"pool.toml": f"{A}disabled = false # for now\n"}, id="a key with a comment gets its default",
        ),
        pytest.param(
            {"pool.toml": f"[defaults]\ndisabled = true\n{A}disabled = true\n"},
            [("reset", "a", "disabled", False)],
            {"pool.toml": f"[defaults]\ndisabled = true\n{A}disabled = false\n"},
            id="a key of [defaults] gets its default",
        ),
        pytest.param(
            {"1.toml": f"{A}disabled = true\n", "2.toml": f"{A}disabled = true\n"},
            [("reset", "a", "disabled", False)], {"2.toml": f"{A}disabled = false\n"},
            id="a key of two files gets its default in the last",
        ),
        *(
            pytest.param(
                {"pool.toml": text}, [("add", {"name": "n"})], {"pool.toml": added},
                id=f"a new server is set apart from {text!r}",
            )
            for text, added in (
                ("", '[[server]]\nname = "n"\n'),
                ("# pool", '# pool\n\n[[server]]\nname = "n"\n'),
                (A[:-1], f'{A}\n[[server]]\nname = "n"\n'),
                (f"{A}\n", f'{A}\n[[server]]\nname = "n"\n\n'),
                (f'{A}[pool]\nname = "p"\n', f'{A}\n[[server]]\nname = "n"\n\n[pool]\nname = "p"\n'),
            )
        ),
        pytest.param(
            {"1.toml": POOL, "2.toml": '[[server]]\nname = "users"\ndisabled = false\nenv = { LEVEL = "x" }\n'},
            [
                ("set", "users", ("disabled",), True), ("set", "users", ("bind",), "127.0.0.1:9"),
                ("set", "users", ("env", "NEW"), "y"), ("set", "users", ("workers",), 2),
            ],
            {
                "1.toml": POOL.replace("127.0.0.1:8081", "127.0.0.1:9"),
                "2.toml": '[[server]]\nname = "users"\ndisabled = true\nenv = { LEVEL = "x", NEW = "y"}\n'
                "workers = 2\n",
            },
            id="the last of several files that has the key is changed",
        ),
        pytest.param(
            {"1.toml": POOL, "2.toml": '[[server]]\nname = "users"\n'},
            [("set", "users", ("http", "max_requests"), 5)],
            {"1.toml": POOL.replace('"5s"\n', '"5s"\nhttp.max_requests = 5\n')},
            id="a new key goes into the file that has its table",
        ),
        pytest.param(
            {"1.toml": f'{A}\n[[server]]\nname = "x"\n', "2.toml": f"[pool]\n{A}", "3.yaml": "pool: {name: p}\n"},
            [("remove", "a"), ("add", {"name": "new"})],
            {"1.toml": '[[server]]\nname = "x"\n', "2.toml": '[pool]\n\n[[server]]\nname = "new"\n'},
            id="a server is removed from every file, and added to the last one with servers",
        ),
        pytest.param(
            {"pyproject.toml": f"[project]\n\n{A.replace('server', 'tool.poolctl.server')}\n[tool.x]  # after it\n"},
            [("scale", "a", 2), ("add", {"name": "b"})],
            {
                "pyproject.toml": '[project]\n\n[[tool.poolctl.server]]\nname = "a"\nworkers = 2\n\n'
                '[[tool.poolctl.server]]\nname = "b"\n\n[tool.x]  # after it\n'
            },
            id="a pyproject.toml is changed",
        ),
    ],
)  # fmt: skip
def test_change_leaves_what_it_does_not_change(
    tmp_path: Path, before: dict[str, str], changes: list[tuple[Any, ...]], after: dict[str, str]
) -> None:
    draft = drafted(*(written(tmp_path, name, text) for name, text in before.items()))
    for method, *arguments in changes:
        getattr(draft, method)(*arguments)
    assert {*draft.write()} == {str(tmp_path / name) for name in after}
    assert {name: (tmp_path / name).read_text() for name in before} == before | after


def test_file_of_the_server_in_a_directory_is_changed(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    one, two = written(tmp_path, "conf/1.toml", POOL), written(tmp_path, "conf/2.toml", A)
    draft = drafted(tmp_path / "conf")
    draft.scale("a", 2)
    assert draft.write() == [str(two)]
    assert (one.read_text(), two.read_text()) == (POOL, f"{A}workers = 2\n")


@pytest.mark.slow
def test_tomlkit_is_imported_only_to_change_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", POOL)
    program = (
        "import sys\n"
        "from poolctl.config import Draft, load\n"
        f"load({str(file)!r}, {{}})\n"
        f"draft = Draft([{str(file)!r}], {{}})\n"
        "draft.set('users', ('disabled',), True)\n"
        "before = 'tomlkit' in sys.modules\n"
        "draft.write()\n"
        "print(before, 'tomlkit' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_change_of_a_table_apart_from_its_server_is_refused_with_its_place(tmp_path: Path) -> None:
    text = '[[server]]\nname = "a"\n[pool]\nname = "p"\n[server.env]\nX = "1"\n'
    file = written(tmp_path, "pool.toml", text)
    draft = drafted(file)
    draft.set("a", ("env", "Y"), "2")
    with pytest.raises(PoolValidateError) as caught:
        draft.write()
    assert "by hand" in str(caught.value)
    assert caught.value.to_list()[0]["line"] >= 1
    assert file.read_text() == text


def test_changed_configuration_is_checked_before_it_is_written(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", POOL)
    draft = drafted(file)
    draft.add({"name": "x", "bind": "127.0.0.1:8081", "app": "a:b"})
    with pytest.raises(PoolValidateError) as caught:
        draft.load_validated()
    assert "pool.toml:32:1: " in str(caught.value)
    assert "is taken" in str(caught.value)
    draft = drafted(file)
    draft.scale("users", 2)
    assert draft.load_validated()[0].workers == 2
    assert "+workers = 2" in draft.difference()
    assert file.read_text() == POOL


def test_line_ends_and_the_byte_order_mark_stay(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_bytes(b"\xef\xbb\xbf" + POOL.replace("\n", "\r\n").encode())
    draft = drafted(file)
    draft.scale("orders", 2)
    draft.add({"name": "new", "bind": ":9"})
    draft.write()
    raw = file.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbf#")
    assert raw.count(b"\r\n") == raw.count(b"\n") == POOL.count("\n") + 5


def test_mode_link_and_neighbours_stay_when_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    file = written(tmp_path, "real/pool.toml", POOL)
    file.chmod(0o640)
    link = tmp_path / "pool.toml"
    link.symlink_to("real/pool.toml")
    with no_descriptor_left():
        replace_file_content(str(link), POOL, "x = 1\n")
    assert link.is_symlink()
    assert file.read_text() == "x = 1\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert os.listdir(tmp_path / "real") == ["pool.toml"]


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", POOL)
    draft = drafted(file)
    draft.scale("users", 2)
    draft.load_validated()
    file.write_text("[pool]\n")
    with pytest.raises(FileChanged, match="meanwhile"):
        draft.write()
    assert file.read_text() == "[pool]\n"
    assert os.listdir(tmp_path) == ["pool.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_owner_stays_when_a_file_is_replaced(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", POOL)
    os.chown(file, 12345, 54321)
    replace_file_content(str(file), POOL, "x = 1\n")
    assert (file.stat().st_uid, file.stat().st_gid) == (12345, 54321)


def test_problem_of_a_change_is_reported_at_its_line_in_the_file(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "pool.toml",
        """\
        [[server]]
        name = "db"
        bind = "127.0.0.1:8081"
        app = "hello:app"

        [[server]]
        name = "api"
        bind = "127.0.0.1:8082"
        app = "hello:app"
        depends_on = ["db"]
        """,
    )
    draft = drafted(file)
    draft.remove("db")
    with pytest.raises(PoolValidateError) as raised:
        draft.load_validated()
    (problem,) = raised.value.exceptions
    assert (getattr(problem, "line", None), "db" in str(problem)) == (10, True)


YAML = """\
pool: {name: p}
server:
  # about a
  - name: a
    bind: ":1"   # inner
    disabled: true
    scale:
      min: 0
      max: 2
  - {name: b, bind: ":2", env: {X_TOKEN: "t0ken"}}
"""
JSON = """\
{"server": [
  {"name": "a", "bind": ":1", "disabled": true, "scale": {"min": 0, "max": 2}},
  {"name": "b", "bind": ":2", "env": {"X_TOKEN": "t0ken"}}
]}
"""
NEW = {"name": "new", "bind": ":3", "command": ["x", "--password", "hunter2"], "env": {"A": "yes"}}


@pytest.mark.parametrize(
    ("name", "text", "instructions"),
    [
        (
            "pool.yaml",
            YAML,
            [
                'pool.yaml:7:5: server[0].scale: write this:\n    scale: {"min": 0, "max": 4}',
                "pool.yaml:6:5: server[0].disabled: remove this key",
                'pool.yaml:10:27: server[1].env: write this:\n    env: {"X_TOKEN": ********, "NEW": "1"}',
                "pool.yaml:10:5: server[1].workers: write this:\n    workers: 4",
                (
                    "pool.yaml:10:5: server[1]: write this after the server:\n"
                    '  - name: "new"\n    bind: ":3"\n'
                    '    command: ["x", "--password", "********"]\n    env: {"A": "yes"}'
                ),
            ],
        ),
        (
            "pool.json",
            JSON,
            [
                'pool.json:2:49: server[0].scale: write this:\n    "scale": {"min": 0, "max": 4}',
                "pool.json:2:31: server[0].disabled: remove this key",
                'pool.json:3:31: server[1].env: write this:\n    "env": {"X_TOKEN": ********, "NEW": "1"}',
                'pool.json:3:3: server[1].workers: write this:\n    "workers": 4',
                (
                    "pool.json:3:3: server[1]: write this after the server:\n"
                    '    {"name": "new", "bind": ":3", "command": ["x", "--password", "********"],'
                    ' "env": {"A": "yes"}}'
                ),
            ],
        ),
    ],
)
def test_changes_to_other_files_than_toml_are_instructions_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, instructions: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, name, text)
    draft = drafted(file)
    draft.scale("a", 4)
    draft.reset("a", "disabled", False)
    draft.set("b", ("env", "NEW"), "1")
    draft.scale("b", 4)
    draft.add(NEW)
    assert [*map(str, draft.manual_changes())] == instructions
    with pytest.raises(PoolValidateError, match="only TOML files are changed"):
        draft.write()
    draft = drafted(file)
    draft.remove("b")
    (gone,) = draft.manual_changes()
    assert (gone.line, gone.message) == (10 if name == "pool.yaml" else 3, "remove this server")
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("name", "text", "place", "message"),
    [
        ("pool.yaml", "[{name: a}]\n", (1, 2), 'after the server:\n    {"name": "b", "bind": ":2"}'),
        ("pool.yaml", "- name: a\n", (1, 3), 'after the server:\n- name: "b"\n  bind: ":2"'),
        ("pool.yaml", "pool: {}\n", (1, 1), 'into the file:\n    server: [{"name": "b", "bind": ":2"}]'),
        ("pool.json", "{}\n", (1, 1), 'into the file:\n    "server": [{"name": "b", "bind": ":2"}]'),
    ],
)
def test_a_new_server_is_shown_as_the_file_writes_servers(
    tmp_path: Path, name: str, text: str, place: tuple[int, int], message: str
) -> None:
    draft = drafted(written(tmp_path, name, text))
    draft.add({"name": "b", "bind": ":2"})
    (problem,) = draft.manual_changes()
    assert (problem.line, problem.column) == place
    assert problem.message == f"write this {message}"


def test_changes_to_toml_files_are_shown_together_with_those_to_others(tmp_path: Path) -> None:
    base = written(tmp_path, "base.toml", POOL)
    local = written(tmp_path, "local.yaml", "- {name: users, disabled: true}\n")
    draft = drafted(base, local)
    draft.set("users", ("bind",), ":9")
    assert draft.manual_changes() == []
    draft.remove("orders")
    draft.set("users", ("disabled",), False)
    assert [(each.file, each.line, each.message) for each in draft.manual_changes()] == [
        (str(base), 11, 'write this:\n    bind = ":9"'),
        (str(base), 19, "remove this server"),
        (str(local), 1, "write this:\n  disabled: false"),
    ]
    draft = drafted(local, base)
    draft.add({"name": "new", "bind": ":9"})
    draft.remove("users")
    assert (
        draft.manual_changes()[-1].message
        == 'write this after the server:\n[[server]]\nname = "new"\nbind = ":9"'
    )


def test_changes_are_applied_again_to_files_that_have_changed_meanwhile(tmp_path: Path) -> None:
    first, second = written(tmp_path, "a.toml", POOL), tmp_path / "b.toml"
    second.write_text('[[server]]\nname = "more"\nbind = ":1"\napp = "a:b"\n')
    draft = drafted(first, second)
    draft.set("users", ("disabled",), True)
    draft.set("more", ("disabled",), True)
    second.write_text('[[server]]\nname = "more"\nbind = ":2"\napp = "a:b"\n')
    with pytest.raises(FileChanged) as changed:
        draft.write()
    assert (changed.value.path, str(changed.value)) == (
        str(second), f"{second} has been changed by another process meanwhile",
    )  # fmt: skip
    assert draft.written == [str(first)]
    rebased = draft.rebase()
    assert rebased.write() == [str(first), str(second)], "the first one has been written before"
    assert second.read_text() == '[[server]]\nname = "more"\nbind = ":2"\napp = "a:b"\ndisabled = true\n'
    assert drafted(first, second).rebase().write() == []
    second.write_text("")
    with pytest.raises(KeyError):
        draft.rebase()


def test_every_kind_of_change_is_applied_again(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", POOL)
    added = {"name": "new", "bind": ":3", "app": "a:b"}
    draft = drafted(file)
    draft.set("users", ("app",), "other:app")
    draft.reset("users", "http", {})
    draft.scale("users", 3)
    draft.remove("orders")
    draft.add(added)
    rebased = draft.rebase().rebase()
    assert rebased.difference() == draft.difference()
    for line in (
        '+app = "other:app"',
        "-http.keep_alive",
        "+workers = 3",
        '-name = "orders"',
        '+name = "new"',
    ):
        assert f"\n{line}" in rebased.difference()


def test_file_that_cannot_be_read_is_not_changed(tmp_path: Path) -> None:
    with pytest.raises(PoolValidateError, match="a configuration file cannot be read") as caught:
        drafted(tmp_path / "none.toml")
    assert len(caught.value.exceptions) == 1


def test_difference_names_the_file_and_masks_secrets(tmp_path: Path) -> None:
    file = written(
        tmp_path, "pool.toml", '[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\nenv.PASSWORD = "x"\n'
    )
    draft = drafted(file)
    assert draft.difference() == ""
    draft.set("a", ("disabled",), True)
    lines = draft.difference().splitlines()
    assert lines[:2] == [f"--- {file}", f"+++ {file}"]
    assert [line for line in lines if line.startswith("+")][1:] == ["+disabled = true"]
    assert '"x"' not in draft.difference()


def test_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    file = written(tmp_path, "pool.toml", "a = 1\n")
    with no_descriptor_left(), pytest.raises(PermissionError):
        run_without({RENAME: errno.EACCES}, lambda: replace_file_content(str(file), "a = 1\n", "a = 2\n"))
    assert (file.read_text(), os.listdir(tmp_path)) == ("a = 1\n", ["pool.toml"])
