"""Tables as files have them become the tables that are validated: references, short forms, paths, derived values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import ServerConfig
from poolctl.config.model.section import checked
from poolctl.config.model.server_keys import normalised, relocated
from poolctl.config.values.normalise import (
    absolute,
    add_derived_values,
    interpolate,
    merged,
    misspelt_placeholders,
    nul_findings,
    required_variables,
)
from poolctl.config.values.problems import Finding
from poolctl.config.values.toml_text import escaped
from poolctl.errors import PoolValidateError
from tests.config_files import SERVER, assert_named_with_its_fix, load_text, told

ENV = {"WHO": "me", "PORT": "8099", "EMPTY": "", "NESTED": "${WHO}", "TRUE": "true", "FLOAT": "1.5"}


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${WHO}", "me"),
        ("a${WHO}b${PORT}", "ameb8099"),
        ("${NOPE:-x}", "x"),
        ("${NOPE:-}", ""),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY}", ""),
        ("${WHO:-x}", "me"),
        ("${NOPE:-a:-b}", "a:-b"),
        ("${NESTED}", "${WHO}"),
        ("$${WHO}", "${WHO}"),
        ("$WHO $ {WHO}", "$WHO $ {WHO}"),
        ("$$", "$$"),
    ],
)
def test_references_are_replaced_once(tmp_path: Path, written: str, value: str) -> None:
    config = load_text(tmp_path, SERVER + f"env = {{ X = '{written}' }}\n", env=ENV)
    assert config.problems == []
    assert config[0].env["X"] == value


@pytest.mark.parametrize(
    "written", ["${}", "${1A}", "${A-B}", "${WHO", "${A B}", "${NOPE:-${WHO}}", "${WHÖ}"]
)
def test_invalid_reference_is_reported(tmp_path: Path, written: str) -> None:
    text = told(tmp_path, SERVER + f"env = {{ X = '{written}' }}\n", env=ENV)
    assert "server[0].env.X" in text
    assert "${VAR:-default}" in text
    assert ":5:9:" in text


def test_unset_variable_is_reported_once_with_the_fix(tmp_path: Path) -> None:
    text = told(tmp_path, SERVER.replace("hello:app", "${NOPE}"))
    assert len(text.splitlines()) == 1
    assert "pool.toml:4:1: server[0].app: the environment variable NOPE is not set" in text
    assert "${NOPE:-…}" in text


def test_references_work_in_every_format_and_every_place(tmp_path: Path) -> None:
    text = "server:\n- name: ${WHO}\n  bind: :${PORT}\n  app: h:a\n  tags: [a, '${WHO}']\n"
    (server,) = load_text(tmp_path, text, "pool.yaml", ENV)
    assert (server.name, server.bind, server.tags) == ("me", "0.0.0.0:8099", ("a", "me"))
    (server,) = load_text(tmp_path, "[defaults]\ntags = ['${WHO}']\n" + SERVER, env=ENV)
    assert server.tags == ("me",)


def test_a_number_or_a_truth_value_may_come_from_the_environment(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        SERVER
        + 'workers = "${W}"\ndisabled = "${TRUE}"\nlimits.open_files = "${PORT}"\nlog.max_size = "${PORT}"\n'
        + 'restart.backoff.factor = "${FLOAT}"\ntls = "${F}"\n',
        env={**ENV, "W": "3", "F": "false"},
    )
    assert config.problems == []
    (server,) = config
    assert (server.workers, server.disabled, server.limits.open_files) == (3, True, 8099)
    assert (server.log.max_size, server.restart.backoff.factor, server.tls) == (8099, 1.5, False)


def test_variable_that_holds_no_number_is_reported(tmp_path: Path) -> None:
    assert "server[0].workers: 'me'" in told(tmp_path, SERVER + 'workers = "${WHO}"\n', env=ENV)
    assert "disabled" in told(tmp_path, SERVER + 'disabled = "${WHO}"\n', env=ENV)


def test_a_string_that_looks_like_a_number_is_none(tmp_path: Path) -> None:
    assert "whole number" in told(tmp_path, SERVER + 'workers = "3"\n')


def test_variable_of_broken_text_is_reported(tmp_path: Path) -> None:
    assert "UTF-8" in told(tmp_path, SERVER + "env.X = '${BAD}'\n", env={"BAD": "a\udcff"})
    broken = '[{"name": "a", "bind": ":1", "app": "a:b", "cwd": "\\ud800"}]'
    assert "surrogate" in told(tmp_path, broken, "pool.json")


def test_text_that_cannot_be_used_is_reported_at_its_place_without_it() -> None:
    for text, env in (
        ("a\0${WHO}", ENV),
        ("a\ud800${WHO}", ENV),
        ("a${BAD}${WHO}", {"BAD": "\udcff", **ENV}),
    ):
        findings: list[Finding] = []
        found = interpolate(["x", {"key": text}], env, findings, ("server", 0))
        assert [each.path for each in findings] == [("server", 0, 1, "key")]
        assert found == ["x", {"key": "a?${WHO}" if env is ENV else "a?me"}]


@pytest.mark.slow
@given(
    st.recursive(st.text("a$${}:-"), lambda inner: st.lists(inner) | st.dictionaries(st.just("key"), inner))
)
def test_escaped_text_is_interpolated_to_itself(value: Any) -> None:
    findings: list[Finding] = []
    assert interpolate(escaped(value), {}, findings) == value
    assert findings == []


@pytest.mark.parametrize(
    ("key", "written", "value"),
    [
        ("cwd", "a/../b", "/base/b"),
        ("app_dir", "/x/./y", "/x/y"),
        ("cwd", "", ""),
        ("cwd", 5, 5),
        ("cwd", "~", os.path.expanduser("~")),
        ("cwd", "~/a", os.path.expanduser("~/a")),
        ("cwd", "~a", "/base/~a"),
        ("python", "venv", "/base/venv"),
        ("python", 5, 5),
        ("bind", "unix:run/sock", "unix:/base/run/sock"),
        ("bind", " UNIX:run/sock", "unix:/base/run/sock"),
        ("bind", ":8080", ":8080"),
        ("bind", 8080, 8080),
        ("bind", "unix:", "unix:"),
        ("restart", False, {"policy": "no"}),
        ("restart", "always", {"policy": "always"}),
        ("restart", {"policy": "no"}, {"policy": "no"}),
        ("restart", 0, 0),
        ("recovery", "restart", {"strategy": "restart"}),
        ("recovery", {}, {}),
        ("health", "/live", {"readiness": {"http": "/live"}}),
        ("health", {"liveness": {}}, {"liveness": {}}),
        ("depends_on", ["a", {"name": "b"}], [{"name": "a"}, {"name": "b"}]),
        ("depends_on", "a", "a"),
        ("env_file", ["a", "/b"], ["/base/a", "/b"]),
        ("env_file", "a", "/base/a"),
        ("env_file", "", ""),
        ("env_file", 5, 5),
        (
            "tls",
            {"cert": "c", "key": "k", "ca": "a", "ciphers": "x"},
            {"cert": "/base/c", "key": "/base/k", "ca": "/base/a", "ciphers": "x"},
        ),
        ("tls", True, True),
        ("log", {"path": "l", "keep": 3}, {"path": "/base/l", "keep": 3}),
        ("log", {"keep": 3}, {"keep": 3}),
        ("log", "l", "l"),
        (
            "watch",
            {"include": ["*.py", "src/*.py", "src/", ""], "debounce": 1},
            {"include": ["/base/**/*.py", "/base/src/*.py", "/base/**/src", ""], "debounce": 1},
        ),
        ("watch", True, True),
        ("labels", {"a": 1}, {"a": 1}),
        (
            "labels",
            {"a": 1, "route": {"host": "h", "to": {"x": 2}}},
            {"a": 1, "route.host": "h", "route.to.x": 2},
        ),
    ],
)
def test_short_form_is_written_out_and_paths_are_those_of_the_file(
    key: str, written: Any, value: Any
) -> None:
    findings: list[Finding] = []
    assert normalised({key: written}, "/base", findings) == {key: value}
    assert findings == []


def test_python_of_a_directory_is_that_of_its_virtual_environment(tmp_path: Path) -> None:
    assert normalised({"python": "."}, str(tmp_path), []) == {"python": str(tmp_path / "bin" / "python")}


def test_workers_are_a_scale_with_both_limits() -> None:
    findings: list[Finding] = []
    for workers in (1, 3):
        assert normalised({"workers": workers}, "/", findings) == {"scale": {"min": workers, "max": workers}}
    assert findings == []


@pytest.mark.parametrize(
    ("table", "said", "hint"),
    [
        ({"workers": 0}, "0 is not allowed here", "allowed is"),
        ({"workers": 10**6}, "1000000 is not allowed here", "allowed is"),
        ({"workers": True}, "not allowed here", "expected a whole number"),
        ({"workers": "x"}, "not allowed here", "expected a whole number"),
        ({"workers": 2, "scale": {}}, "both 'workers' and 'scale'", "keep one"),
        ({"listen": ":1", "bind": ":2"}, "both 'listen' and 'bind'", "keep 'bind'"),
    ],
)
def test_contradiction_of_short_forms_has_its_fix(table: dict[str, Any], said: str, hint: str) -> None:
    findings: list[Finding] = []
    found = normalised(table, "/", findings)
    (finding,) = findings
    assert said in finding.message
    assert hint in finding.hint
    assert not {"workers", "listen"} & found.keys()
    assert found.get("bind") in (None, ":2")


def test_listen_is_another_name_of_bind() -> None:
    assert normalised({"listen": ":1"}, "/", []) == {"bind": ":1"}


def test_key_of_the_model_alone_is_unknown_in_a_file() -> None:
    findings: list[Finding] = []
    assert normalised({"base_dir": "/x", "cwd": "/y"}, "/", findings) == {"cwd": "/y"}
    assert [(each.path, each.message, each.found) for each in findings] == [
        (("base_dir",), "unknown key 'base_dir'", "'/x'")
    ]


def test_text_with_a_nul_is_named_by_its_path() -> None:
    assert nul_findings({"a": ["x", "y\0"], "b": 5, "c": "z"}) == [
        Finding(("a", 1), "contains a NUL byte", "remove it")
    ]


def test_merging_is_deep_for_tables_and_takes_anything_else_whole() -> None:
    under: Any = {"a": {"x": 1, "y": {"p": 1}}, "b": [1], "c": {"x": 1}, "d": 1}
    over: Any = {"a": {"y": {"q": 2}}, "b": [2], "c": 3, "e": 4}
    assert merged(under, over) == {"a": {"x": 1, "y": {"p": 1, "q": 2}}, "b": [2], "c": 3, "d": 1, "e": 4}


def test_server_that_moves_to_another_directory_keeps_its_paths() -> None:
    table: Any = {"name": "web", "app": "a:b", "env_file": "x.env", "python": "${PY}"}
    assert relocated(table, "/old", "/old/.") == table
    moved = relocated(table, "/old", "/new")
    assert moved == {
        **table, "env_file": "/old/x.env", "cwd": "/old", "app_dir": "/old",
    }  # fmt: skip
    program = relocated({"command": ["x"], "cwd": "sub"}, "/old", "/new")
    assert program == {"command": ["x"], "cwd": "/old/sub"}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"bind": 8080}, 'write bind = ":8080"'),
        ({"bind": 0}, 'write bind = "127.0.0.1:8080"'),
        ({"bind": 65536}, 'write bind = "127.0.0.1:8080"'),
        ({"bind": True}, 'write bind = "127.0.0.1:8080"'),
        ({"bind": ":1", "job": True}, "take out 'bind', or 'job'"),
        ({"bind": "job:web"}, "write job = true instead of 'bind'"),
        ({"bind": "process:web"}, "take out 'bind'"),
        ({"bind": "unix:/" + "x" * 200}, "choose a shorter one"),
        ({"bind": ":1", "expose": ""}, 'write "http://HOST:PORT"'),
        ({"bind": ":1", "expose": "http://"}, 'write "http://HOST:PORT"'),
        ({"bind": ":1", "expose": "a b"}, 'write "http://HOST:PORT"'),
        ({"bind": ":1", "expose": "ftp://a"}, 'write "http://HOST:PORT"'),
        ({"bind": ":1", "expose": "http://:1"}, 'write "http://HOST:PORT"'),
        ({"bind": ":1", "expose": "http://a:0"}, "ports are 1 to 65535"),
        ({"bind": ":1", "expose": "http://a:65536"}, "ports are 1 to 65535"),
    ],
)
def test_address_that_cannot_be_is_a_finding_with_its_fix(table: dict[str, Any], said: str) -> None:
    assert any(said in fix for _, fix in found_in({"app": "a:b"} | table))


def test_path_of_a_socket_may_be_as_long_as_the_system_allows() -> None:
    for length, allowed in ((107, True), (108, False)):
        findings: list[Finding] = []
        path = "/" + "x" * (length - 1)
        address = add_derived_values({"name": "web", "app": "a:b", "bind": f"unix:{path}"}, "/", findings)
        assert (address is not None and address.path == path, findings == []) == (allowed, allowed)


@pytest.mark.parametrize(
    ("keys", "named"),
    [("bind = ':1'\napp = 'a:b'", "'name' is missing"), ("name = 'a'\njob = true", "needs a command")],
)
def test_missing_key_is_named(tmp_path: Path, keys: str, named: str) -> None:
    assert named in told(tmp_path, f"[[server]]\n{keys}\n")


def test_server_without_a_readable_address_has_none() -> None:
    table: Any = {"name": "web", "app": "a:b", "bind": "?:?"}
    findings: list[Finding] = []
    assert add_derived_values(table, "/", findings) is None
    assert [(each.path, each.found, each.allowed) for each in findings] == [
        (("bind",), "'?:?'", "an address")
    ]
    assert not {"bind", "expose", "address"} & table.keys()
    for job, kind in ((True, "job"), (False, "process")):
        address = add_derived_values({"name": "web", "command": ["x"], "job": job}, "/", [])
        assert (address and address.kind, address and address.name) == (kind, "web")


@pytest.mark.parametrize(
    ("scale", "found"),
    [
        ({"min": 0}, {"min": 0, "max": 1}),
        ({"min": 2}, {"min": 2, "max": 2}),
        ({"min": 2, "max": 5}, None),
        ({}, None),
    ],
)
def test_scale_without_a_maximum_is_its_minimum_but_at_least_one(scale: Any, found: Any) -> None:
    table: Any = {"name": "web", "app": "a:b", "bind": ":1", "scale": scale}
    add_derived_values(table, "/", [])
    assert table["scale"] == (scale if found is None else found)


@pytest.mark.parametrize(
    "expose",
    [
        "http://a",
        "http://a:1",
        "https://a:65535",
        "a:1",
        "http://[::1]:80",
        "unix:/a",
        "http://a:auto",
        "http+unix://%2Fa",
        "fd:3",
        "http://[::1]:80/x?y#z",
        "https://user:secret@shop.example:8443",
        "http://bücher.example",
        "shop_1.example",
        "example.org/path",
        "http://a?x=:",
        ":8080",
        "HTTP://a:auto",
    ],
)
def test_address_for_clients_may_be_any_of_these(expose: str) -> None:
    assert found_in({"app": "a:b", "bind": ":1", "expose": expose}) == []


def test_derived_values_follow_from_the_address_and_the_file() -> None:
    table: Any = {"name": "web", "app": "a:b", "bind": ":80", "scale": {"min": 0}}
    address = add_derived_values(table, "/base", [])
    assert address is not None
    assert (address.port, table["bind"], table["cwd"], table["app_dir"]) == (
        80,
        address.key,
        "/base",
        "/base",
    )
    assert table["derived_expose"] is True
    assert absolute("x", "/base") == "/base/x"


WRONG: list[tuple[str, str, str]] = [
    # line to add, what the problem names, what the fix says
    ('user = ""', "user", "www-data"),
    ("command = 'run me'", "command", '["run", "me"]'),
    ("command = []", "command", "not empty"),
    ("expose = 'http://[::g]:80'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://[bad'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://::1:80'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://a]b'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://:80'", "has no host", "http://HOST:PORT"),
    ("expose = '/etc/passwd'", "has no host", "http://HOST:PORT"),
    ("expose = 'http://?x'", "has no host", "http://HOST:PORT"),
    ("expose = 'http://a:8x?y'", "port 8x", "1 to 65535"),
]


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    assert_named_with_its_fix(tmp_path, line, named, fix)


async def app(scope: Any, receive: Any, send: Any) -> None: ...


@pytest.mark.parametrize(
    ("scale", "key", "message"),
    [
        ({"min": 0, "awake": ["* 24 * * *"]}, "scale.awake", "'24' is no hour; allowed is 0 to 23"),
        ({"min": 0, "asleep": [5]}, "scale.asleep", "5 is not allowed here"),
        ({"min": 0, "timezone": "Europe/Atlantis"}, "scale.timezone", "is no time zone of this machine"),
    ],
)
def test_windows_are_for_servers_that_can_sleep(scale: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(name="web", bind=":1", app="a:b", scale=scale)
    (problem,) = caught.value.exceptions
    assert message in str(problem)
    assert key in str(problem)


def test_windows_are_kept_as_they_are_written() -> None:
    scale = {"min": 0, "awake": ["* 8-17 * * MON-FRI"], "asleep": (), "timezone": "UTC"}
    made = ServerConfig(name="web", bind=":1", app="a:b", scale=scale).scale
    assert (made.awake, made.asleep, made.timezone) == (("* 8-17 * * MON-FRI",), (), "UTC")


@pytest.mark.parametrize("value", [3, object(), [], "no app"])
def test_object_that_is_no_app_is_reported(value: object) -> None:
    with pytest.raises(PoolValidateError, match="problem"):
        ServerConfig(name="a", bind=":1", app=value)


@pytest.mark.parametrize(
    "given", [{"command": ["x\0"]}, {"env": {"A": "x\0"}}, {"cwd": "x\0"}, {"name": "a\0"}]
)
def test_no_text_may_hold_a_nul(given: dict[str, Any]) -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(**{"name": "a", "bind": ":1", **given})
    assert "NUL" in str(caught.value)


PROGRAM: dict[str, Any] = {"command": ["x"]}
APP: dict[str, Any] = {"app": "a:b", "bind": ":1"}


def found_in(table: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Path and fix of each finding about the keys of a server."""
    findings: list[Finding] = []
    table = {"name": "web"} | table
    add_derived_values(table, "/", findings)
    checked(ServerConfig, table, findings)
    return [(each.path, f"{each.message}: {each.hint}") for each in findings]


@pytest.mark.parametrize(
    ("table", "path", "named"),
    [
        (APP | {"notify": True}, ("notify",), "notify = true needs a command"),
        (APP | {"socket": "program"}, ("socket",), 'socket = "program" needs a command'),
        (APP | {"stdin": "open"}, ("stdin",), 'stdin = "open" needs a command'),
        (APP | {"stop_signal": "SIGINT"}, ("stop_signal",), "is for a command"),
        (APP | {"stop_group": "after"}, ("stop_group",), "is for a command"),
        (APP | {"ready_after": 1}, ("ready_after",), "an app is ready when it has started: take it out"),
        (PROGRAM | {"bind": ":1", "ready_after": 1}, ("ready_after",), "with an address"),
        (PROGRAM | {"job": True, "ready_after": 1}, ("ready_after",), "a job"),
        (PROGRAM | {"notify": True, "ready_after": 1}, ("ready_after",), "with notify"),
        (
            PROGRAM | {"health": {"startup": {"exec": ["a"]}}, "ready_after": 1},
            ("ready_after",),
            "with a startup or readiness probe",
        ),
        (PROGRAM | {"ready_line": "x", "ready_after": 1}, ("ready_after",), "with ready_line"),
        (APP | {"ready_line": "x"}, ("ready_line",), "is for a command"),
        (PROGRAM | {"job": True, "ready_line": "x"}, ("ready_line",), "a job is ready when it has ended"),
        (PROGRAM | {"notify": True, "ready_line": "x"}, ("ready_line",), "keep one of them"),
        (PROGRAM | {"ready_line": "x("}, ("ready_line",), "missing ), unterminated subpattern at position 1"),
        (PROGRAM | {"ready_line": ""}, ("ready_line",), "not empty"),
        ({"bind": ":1", "factory": True}, ("factory",), "needs an app"),
        (APP | {"every": "0 3 * * *"}, ("every",), ', and command = ["prog", …] instead of an app'),
        (PROGRAM | {"every": "0 3 * * *"}, ("every",), "add job = true"),
        (
            PROGRAM | {"every": "0 3 * * *", "job": True, "hooks": {"after_stop": ["y"]}},
            ("hooks",),
            "take hooks out",
        ),
        (
            PROGRAM | {"every": "0 3 * * *", "job": True, "mandatory": True},
            ("mandatory",),
            "take mandatory out",
        ),
        (APP | {"user": "a:b:c"}, ("user",), 'write "www-data"'),
        (PROGRAM | {"app": "a:b"}, ("command",), "keep one of them"),
        (PROGRAM | {"handler_key": "k"}, ("handler_key",), "a command has no handler"),
        (PROGRAM | {"bind": ":1", "tls": True}, ("tls",), "take tls out"),
        ({"command": ["", "x"]}, ("command",), "name is empty"),
        ({"bind": ":1", "command": ["gunicorn", "a:b", "--bind", "fd://3"]}, ("command", 3), "LISTEN_FDS"),
        ({"bind": ":1", "command": ["uv", "run", "/x/gunicorn", "{fd}"]}, ("command", 3), "LISTEN_FDS"),
        (PROGRAM | {"job": True, "scale": {"min": 2}}, ("scale",), "a job runs once, and this is 2 workers"),
        (PROGRAM | {"job": True, "scale": {"min": 0}}, ("scale", "min"), "a job is not woken"),
        (PROGRAM | {"scale": {"min": 0}}, ("scale", "min"), "a program without 'bind' is not woken"),
        (
            {"bind": ":1", "command": ["x", "{port}"], "scale": {"min": 0, "idle": 0}},
            ("scale", "min"),
            "has no listener while it sleeps",
        ),
        (PROGRAM | {"bind": ":1", "scale": {"min": 0, "idle": 5}}, ("scale", "idle"), "write idle = 0"),
        ({"bind": ":1", "command": ["x", "{port}"], "scale": {"min": 2}}, ("scale",), "2 processes cannot"),
        ({"bind": "unix:/a", "command": ["x", "{bind}"]}, ("command",), "has no host and port"),
        ({"bind": "unix:/a", "command": ["x"], "env": {"P": "{port}"}}, ("env", "P"), "has no host and port"),
        (PROGRAM | {"bind": "unix:/a", "socket": "program"}, ("socket",), "is for a host and port"),
        (APP | {"scale": {"min": 3, "max": 2}}, ("scale", "max"), "scale.max = 2 is below scale.min = 3"),
        (
            APP | {"scale": {"min": 1, "awake": ["* 8 * * *"]}},
            ("scale", "awake"),
            "write min = 0, or take awake out",
        ),
        (APP | {"scale": {"asleep": ["* 8 * * *"]}}, ("scale", "asleep"), "scale.min is 1"),
        (
            APP | {"tls": {"cert": "x", "client_auth": "optional"}},
            ("tls", "client_auth"),
            "'optional' needs ca",
        ),
        (
            APP | {"tls": {"cert": "x", "client_auth": "required"}},
            ("tls", "client_auth"),
            "'required' needs ca",
        ),
        (APP | {"http": {"root_path": "a"}}, ("http", "root_path"), 'write "/a"'),
        (APP | {"http": {"root_path": "/a/"}}, ("http", "root_path"), 'write "/a"'),
        (APP | {"http": {"root_path": "/"}}, ("http", "root_path"), 'write ""'),
        (APP | {"health": {"liveness": {}}}, ("health", "liveness"), 'none: add http = "/path"'),
        (
            APP | {"health": {"readiness": {"http": "/", "tcp": True}}},
            ("health", "readiness"),
            "http and tcp: keep one",
        ),
        (
            APP | {"health": {"startup": {"tcp": True, "body": "x"}}},
            ("health", "startup", "body"),
            "instead of tcp",
        ),
        (
            APP | {"health": {"liveness": {"exec": ["x"], "method": "GET"}}},
            ("health", "liveness", "method"),
            "this is one with exec",
        ),
        (
            APP | {"health": {"liveness": {"http": "/", "status": "200,399-300"}}},
            ("health", "liveness", "status"),
            'write "300-399"',
        ),
        (APP | {"health": {"liveness": {"http": "/", "body": "("}}}, ("health", "liveness", "body"), "("),
        ({"bind": ":1", "app": "shop.users"}, ("app",), 'write "shop.users:app"'),
        ({"bind": ":1", "app": "./shop/users.py:api"}, ("app",), '"shop.users:api"'),
        ({"bind": ":1", "app": "shop.py"}, ("app",), '"shop:app"'),
        ({"bind": ":1", "app": "shop:make()"}, ("app",), 'write app = "shop:make" and factory = true'),
        *(
            ({"bind": ":1", "app": app}, ("app",), 'write "module:attribute"')
            for app in (":x", "a:b:c", "1a:b", "a:b\n")
        ),
    ],
)
def test_contradiction_is_found_at_its_key_with_its_fix(
    table: dict[str, Any], path: tuple[str | int, ...], named: str
) -> None:
    ((at, text),) = found_in(table)
    assert at == path
    assert named in text


@pytest.mark.parametrize(
    ("table", "paths"),
    [
        (APP | {"name": 5, "notify": True}, [("name",), ("notify",)]),
        (
            APP | {"health": {"liveness": {"interval": "x", "tcp": True, "http": "/"}}},
            [("health", "liveness", "interval"), ("health", "liveness")],
        ),
        (APP | {"tls": {"client_auth": "required"}, "notify": True}, [("tls", "cert"), ("notify",)]),
        ({"command": 5, "notify": True, "bind": ":1"}, [("command",)]),
    ],
)
def test_contradiction_is_found_beside_invalid_keys_that_it_does_not_concern(
    table: dict[str, Any], paths: list[tuple[str, ...]]
) -> None:
    assert [path for path, _ in found_in(table)] == paths


@pytest.mark.parametrize(
    "table",
    [
        APP
        | {
            "scale": {"min": 0, "max": 3, "idle": 5, "awake": ["* 8 * * *"]},
            "user": "www-data:web",
            "stop_timeout": 1,
        },
        APP | {"scale": {"min": 1, "max": 3, "idle": 300}},
        APP | {"scale": {"min": 2, "max": 2}},
        APP | {"tls": {"cert": "x", "client_auth": "required", "ca": "x"}},
        APP | {"tls": {"cert": "x", "client_auth": "none"}},
        APP | {"http": {"implementation": "h11", "root_path": "/a"}},
        APP | {"health": {"liveness": {"http": "/", "status": "200-299,304", "body": "ok", "tcp": False}}},
        APP | {"health": {"liveness": {"tcp": True}, "readiness": {"exec": ["x"]}}},
        PROGRAM,
        PROGRAM | {"bind": ":1", "scale": {"min": 0, "idle": 0}},
        PROGRAM | {"bind": ":1", "scale": {"min": 3, "max": 3}, "notify": True, "stop_signal": "SIGINT"},
        PROGRAM | {"job": True, "every": "0 3 * * *", "hooks": {"before_start": None}},
        {"bind": ":1", "command": ["x", "{port}"], "socket": "program", "env": {"A": "{host}"}},
        {"bind": ":1", "command": ["gunicorn", "a:b"]},
        {"bind": ":1", "command": ["x", "y", "z", "gunicorn", "{fd}"]},
        {"bind": "unix:/a", "command": ["x", "{fd}"]},
        {"bind": ":1", "app": "py:app"},
    ],
)
def test_keys_that_fit_together_are_no_finding(table: dict[str, Any]) -> None:
    assert found_in(table) == []


def test_variables_without_a_default_are_those_that_a_file_needs() -> None:
    text = "a = '${A} ${B:-x} ${C:-} $${D} ${1} ${E'\n  # ${F}\nb = '${G}${A}' # ${H}\n"
    assert [*required_variables(text)] == ["A", "G", "A", "H"]


@pytest.mark.parametrize(
    ("path", "value", "kept", "named"),
    [
        (("server", 0, "env", "X"), "a${server.db.port}", "a${server.db.port}", ""),
        (("server", 0, "command", 1), "${server.db.port}", "${server.db.port}", ""),
        (("defaults", "env", "X"), "${server.db.port}", "${server.db.port}", ""),
        ((0, "env", "X"), "$${server.db.port}", "$${server.db.port}", ""),
        (
            ("server", 0, "cwd"),
            "${server.db.port}",
            "${server.db.port}",
            "can be used in 'env' and 'command' only",
        ),
        (("server", 0, "cwd"), "$${server.db.port}", "${server.db.port}", ""),
        (("server", 0, "env", "X"), "${HIDDEN}", "$${server.db.port}", ""),
        (("server", 0, "cwd"), "${HIDDEN}", "${server.db.port}", ""),
    ],
)
def test_reference_to_a_server_is_kept_where_its_address_can_be_used(
    path: tuple[str | int, ...], value: str, kept: str, named: str
) -> None:
    findings: list[Finding] = []
    assert interpolate(value, {"HIDDEN": "${server.db.port}"}, findings, path) == kept
    assert [each.path for each in findings] == ([path] if named else [])
    assert all(named in each.message for each in findings)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("prot", "port"), ("por", "port"), ("ort", "port"), ("pot", "port"), ("portt", "port"), ("poort", "port"),
        ("xport", "port"), ("pxrt", "port"), ("PORT", "port"), (" port ", "port"), ("bnid", "bind"), ("nmae", "name"),
        ("opert", None), ("pxxt", None), ("po", None), ("ports2", None), ("FD", "fd"), (" fd", "fd"), ("fdx", None),
        ("other", None), ("potr", "port"), ("optr", None), ("trop", None), ("prrt", "port"), ("pprt", "port"),
    ],
)  # fmt: skip
def test_word_in_braces_is_misspelt_if_one_letter_or_two_swapped_ones_differ(
    word: str, meant: str | None
) -> None:
    found = [(each.message, each.hint) for each in misspelt_placeholders([f"x{{{word}}}"], {})]
    message = f"{{{word}}} is no placeholder, and is passed on as it is"
    assert found == ([] if meant is None else [(message, f"write {{{meant}}} if you mean that")])
