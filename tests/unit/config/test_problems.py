"""Every problem of every file in one run: its place, its key, its cause and its fix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.config_files import SERVER, load_text, told


def test_a_problem_is_a_document_of_the_command_line(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, SERVER.replace("app =", "ap =")).problems[:1]
    document = problem.to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["name"] == "web"
    assert document["bind"] == "127.0.0.1:8080"
    assert (document["code"], document["error"]) == (1322, "ErrorPoolValidate")
    assert (document["line"], document["column"], document["key"]) == (4, 1, "server[0].ap")
    assert "did you mean 'app'?" in document["hint"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("binf", "did you mean 'bind'?"),
        ("evn", "did you mean 'env'?"),
        ("Start-Timeout", "did you mean 'start_timeout'?"),
        ("ind", "similar keys: bind"),
        ("timeout", "similar keys: stop_timeout, start_timeout, drain_timeout"),
        ("zzz", "`poolctl schema` lists every key"),
        ("pre_start", 'another tool; write hooks = { before_start = ["prog", "argument"] }'),
        ("before_start", "write hooks = { before_start ="),
        ("ExecStartPre", "write hooks = { before_start ="),
        ("post_stop", "write hooks = { after_stop ="),
        ("ExecStopPost", "write hooks = { after_stop ="),
        ("schedule", 'another tool; write every = "0 3 * * *", and job = true'),
        ("cron", 'every = "0 3 * * *"'),
        ("OnCalendar", 'every = "0 3 * * *"'),
        ("cron_restart", "take it out: a crontab may call `poolctl restart NAME`"),
        ("autorestart", 'write restart = "always"'),
        ("numprocs", "write workers = N"),
        ("scalability", ""),
    ],
)
def test_unknown_key_is_given_the_key_that_was_meant_or_a_few_near_ones(
    tmp_path: Path, key: str, hint: str
) -> None:
    problem = told(tmp_path, f"{SERVER}{key} = 1\n")
    assert hint in problem
    assert problem.count(",") <= 6
    assert ("did you mean" in problem) == hint.startswith("did you mean")


WRONG: list[tuple[str, str, str]] = [
    # line to add, what the problem names, what the fix says
    ("binf = 1", "'binf'", "bind"),
    ("Workers = 1", "'Workers'", "did you mean 'workers'?"),
    ("start-timeout = 1", "'start-timeout'", "start_timeout"),
    ("depends-on = []", "'depends-on'", "depends_on"),
    ("address = 1", "'address'", "take it out"),
    ("base_dir = 'x'", "'base_dir'", "take it out"),
    ("workers = 2\nscale = { min = 2 }", "both", "keep one"),
    ("scale = { min = 3, max = 2 }", "scale.max", "raise"),
    ("restart = { polcy = 'no' }", "restart.polcy", "policy"),
    ("http = { http2 = true }", "http.http2", 'implementation = "zttp"'),
    ("tls = { cert = 'c', client_auth = 'required' }", "tls.client_auth", "add ca"),
    ('user = "a:b:c"', "user", "name[:group]"),
    ('user = ""', "user", "www-data"),
    ("depends_on = ['nobody']", "'nobody'", "name a server"),
    ("depends_on = ['wab']", "'wab'", "'web'"),
    ("depends_on = ['web']", "depends on itself", "take out"),
    ("notify = true", "notify", "command"),
    ("job = true", "job", "address"),
    ("command = 'run me'", "command", '["run", "me"]'),
    ("command = ['x']", "both 'app' and 'command'", "keep one"),
    ("command = []", "command", "keep one"),
    ("command = ['']", "command[0]", "prog"),
    ("expose = ''", "expose", "http://HOST:PORT"),
    ("expose = 'a b'", "expose", "http://HOST:PORT"),
    ("expose = 'ftp://x'", "expose", "http://HOST:PORT"),
    ("expose = 'http://[::g]:80'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://[bad'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://::1:80'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://a]b'", "expose", "http://[::1]:PORT"),
    ("expose = 'http://:80'", "has no host", "http://HOST:PORT"),
    ("expose = '/etc/passwd'", "has no host", "http://HOST:PORT"),
    ("expose = 'http://?x'", "has no host", "http://HOST:PORT"),
    ("expose = 'http://a:8x?y'", "port 8x", "1 to 65535"),
    ("health = { readiness = { http = '/', tcp = true } }", "health.readiness", "keep one"),
    ('env = { A = "a\\u0000b" }', "NUL", "take it out"),
]  # fmt: skip


def test_unknown_dependency_of_a_server_with_another_problem_is_reported_too(tmp_path: Path) -> None:
    other = SERVER.replace("web", "other").replace("8080", "8081")
    text = told(
        tmp_path, other + "workers = 'x'\n" + SERVER + "workers = 'x'\ndepends_on = ['nobody', 'other']\n"
    )
    assert "there is no server 'nobody'" in text
    assert "'other'" not in text
    text = told(tmp_path, SERVER + "workers = 'x'\ndepends_on = [{ name = 'wab' }]\n")
    assert "did you mean 'web'?" in text


@pytest.mark.parametrize(("line", "named", "fix"), WRONG)
def test_wrong_value_is_named_with_its_fix(tmp_path: Path, line: str, named: str, fix: str) -> None:
    text = told(tmp_path, SERVER + line + "\n")
    assert named in text
    assert fix in text
    assert "pool.toml:5:" in text or "pool.toml:6:" in text


@pytest.mark.parametrize(
    ("app", "fix"),
    [
        ("app.py:app", '"app:app"'),
        ("./shop/users.py:app", '"shop.users:app"'),
        ("shop/users:app", '"shop.users:app"'),
        ("shop.users", '"shop.users:app"'),
        ("shop:create()", "factory = true"),
        ("a:b:c", "module:attribute"),
        ("1a:b", "module:attribute"),
        ("a:b\n", "module:attribute"),
        ("", "module:attribute"),
    ],
)
def test_an_app_that_is_none_says_what_to_write(tmp_path: Path, app: str, fix: str) -> None:
    text = told(tmp_path, SERVER.replace('"hello:app"', json.dumps(app)))
    assert "server[0].app" in text
    assert fix in text


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("server = 3\n", "not a list of tables"),
        ("[server]\nname = 'web'\n", "two brackets"),
        ("server = [3]\n", "a server is a table"),
        ("[servers]\n", "did you mean 'server'?"),
        ("pool = 3\n", "not a table"),
        ("[defaults]\nname = 'x'\n", "cannot be a default"),
        ("[pool]\nport_range = '9-1'\n", "port_range"),
        ("[pool]\nport_range = 'all'\n", "FIRST-LAST"),
        ("[pool]\nport_range = '1-65536'\n", "1-65535"),
        ("[pool]\nport_range = 8000\n", "FIRST-LAST"),
        ("[pool]\nname = 'a b'\n", "letters"),
        ("[pool]\nhandlers = 'apps'\n", "module:function"),
        ("[[server]]\nbind = ':1'\napp = 'a:b'\n", "'name' is missing"),
        ("[[server]]\nname = 3\nbind = ':1'\napp = 'a:b'\n", "server[0].name"),
        ("[[server]]\nname = 'a'\napp = 'a:b'\n", "'bind' is missing"),
        ("[[server]]\nname = 'a'\nbind = 8080\napp = 'a:b'\n", 'bind = ":8080"'),
        ("[[server]]\nname = 'a'\nbind = 'job:a'\napp = 'a:b'\n", "job = true"),
        ("[[server]]\nname = 'a'\nbind = ':1'\n", "nothing to serve"),
        ("[[server]]\nname = 'a'\njob = true\n", "needs a command"),
        ("[[server]]\nname = 'a'\njob = true\ncommand = ['x']\nworkers = 2\n", "a job runs once"),
        ("[[server]]\nname = 'a'\nbind = 'unix:" + "x" * 200 + "'\napp = 'a:b'\n", "107 bytes"),
        ("[[server]]\nname = 'a'\nbind = 'unix:a'\ncommand = ['x', '{port}']\n", "{fd}"),
        ("[[server]]\nname = 'a'\nbind = ':1'\ncommand = ['x', '{port}']\nworkers = 2\n", "workers = 1"),
        (
            "[[server]]\nname = 'a'\nbind = 'unix:a'\ncommand = ['x']\nenv = { AT = '{port}' }\n",
            "server[0].env.AT: unix:",
        ),
        (
            "[[server]]\nname = 'a'\nbind = 'fd:3'\ncommand = ['x']\nsocket = 'program'\n",
            'socket = "program" is for a host and port, and this is fd:3',
        ),
        (
            "[[server]]\nname = 'a'\nbind = ':1'\ncommand = ['x']\nenv = { AT = '{port}' }\nworkers = 2\n",
            "2 processes cannot all bind",
        ),
        (SERVER + "socket = 'program'\n", 'socket = "program" needs a command'),
        ("[[server]]\nname = 'a'\nbind = ':1'\ncommand = ['x']\ntls = { cert = 'c' }\n", "TLS"),
        ("[[server]]\nname = 'a'\nbind = ':1'\ncommand = ['x']\nhandler_key = 'k'\n", "no handler"),
        ("[[server]]\nname = 'a'\nbind = ':1'\ncommand = []\n", "not empty"),
        ("[[server]]\nname = 'a'\nbind = ':1'\nfactory = true\n", "needs an app"),
    ],
)
def test_wrong_file_is_reported(tmp_path: Path, text: str, named: str) -> None:
    assert named in told(tmp_path, text)


@pytest.mark.parametrize(
    "line",
    [
        "health = {}",
        'recovery = { strategy = "restart" }',
        "limits = { open_files = 1024 }",
    ],
)
def test_a_table_that_says_what_is_so_anyway_is_no_problem(tmp_path: Path, line: str) -> None:
    assert told(tmp_path, SERVER + line + "\n") == ""


@pytest.mark.parametrize(
    "line",
    [
        "scale = { min = 2, max = 2 }",
        "scale = { min = 2 }",
        "scale = { min = 1, max = 3 }",
        "scale = { min = 0 }",
        "scale = { min = 0, max = 1 }",
        'scale = { min = 0, max = 4, idle = "5m" }',
        'scale = { idle = "5m" }',
    ],
)
def test_workers_may_be_a_range_and_none_without_requests(tmp_path: Path, line: str) -> None:
    assert told(tmp_path, SERVER + line + "\n") == ""


@pytest.mark.parametrize(
    ("lines", "named", "fix"),
    [
        ('bind = ":1"\ncommand = ["x", "{port}"]\nscale = { min = 0 }', "scale.min", "{fd}"),
        ('bind = ":1"\ncommand = ["x", "{fd}"]\nscale = { min = 0, idle = 1 }', "scale.idle", "idle = 0"),
        ('command = ["x"]\njob = true\nscale = { min = 0 }', "scale.min", "workers = 1"),
    ],
)
def test_server_that_cannot_sleep_is_reported(tmp_path: Path, lines: str, named: str, fix: str) -> None:
    (found,) = told(tmp_path, f'[[server]]\nname = "web"\n{lines}\n').splitlines()
    assert named in found
    assert fix in found


def test_two_servers_of_one_name_name_both_places(tmp_path: Path) -> None:
    text = told(tmp_path, SERVER + SERVER.replace("8080", "8081"))
    assert "pool.toml:6:1: server[1].name: the name 'web' is taken" in text
    assert "pool.toml:2:1" in text
    assert "Web" in told(tmp_path, SERVER + SERVER.replace("8080", "8081").replace("web", "Web"))


def test_a_name_is_taken_also_by_a_server_with_problems(tmp_path: Path) -> None:
    text = told(tmp_path, SERVER + "bogus = 1\n" + SERVER + "bogus = 1\n")
    assert "the name 'web' is taken" in text
    assert "the address 127.0.0.1:8080 is taken" in text
    assert text.count("unknown key 'bogus'") == 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("127.0.0.1:80", ":80"),
        ("[::]:80", "0.0.0.0:80"),
        ("localhost:80", "[::1]:80"),
        ("127.0.0.1:http", "http://127.0.0.1:80"),
        ("unix:a", "unix:./x/../a"),
        ("fd:3", "fd:03"),
    ],
)
def test_overlapping_addresses_name_both_places(tmp_path: Path, one: str, other: str) -> None:
    text = told(
        tmp_path,
        f"[[server]]\nname = 'a'\napp = 'a:b'\nbind = '{one}'\n[[server]]\nname = 'b'\napp = 'a:b'\nbind = '{other}'\n",
    )
    assert text.startswith(f"{tmp_path}/pool.toml:8:1: server[1].bind: ")
    assert f"{tmp_path}/pool.toml:4:1" in text
    assert "'a'" in text


def test_automatic_ports_do_not_collide(tmp_path: Path) -> None:
    server = "[[server]]\nname = '{}'\napp = 'a:b'\nbind = '127.0.0.1:auto'\n"
    assert told(tmp_path, server.format("a") + server.format("b")) == ""


def test_each_circle_of_dependencies_is_reported_once(tmp_path: Path) -> None:
    server = "[[server]]\nname = '{0}'\napp = 'a:b'\nbind = ':{1}'\ndepends_on = [{2}]\n"
    text = told(
        tmp_path,
        server.format("a", 1, "'b'")
        + server.format("b", 2, "'c'")
        + server.format("c", 3, "'a'")
        + server.format("d", 4, "'a', 'e'")
        + server.format("e", 5, "'d'"),
    )
    assert len(text.splitlines()) == 2
    assert "a → b → c → a" in text
    assert "d → e → d" in text


def test_a_long_chain_of_dependencies_is_no_circle(tmp_path: Path) -> None:
    server = "[[server]]\nname = 's{0}'\napp = 'a:b'\nbind = ':{1}'\ndepends_on = [{2}]\n"
    chain = "".join(server.format(n, n + 1, f"'s{n + 1}'" if n < 4999 else "") for n in range(5000))
    assert told(tmp_path, chain) == ""


def test_completed_is_for_jobs(tmp_path: Path) -> None:
    job = '[[server]]\nname = "job"\njob = true\ncommand = ["x"]\n'
    line = 'depends_on = [{ name = "job", condition = "completed" }]\n'
    assert told(tmp_path, SERVER + line + job) == ""
    assert "no job" in told(tmp_path, SERVER + line + SERVER.replace("web", "job").replace("8080", "1"))


def test_depending_on_a_server_with_problems_is_no_second_problem(tmp_path: Path) -> None:
    bad = '[[server]]\nname = "bad"\nbind = ":x y"\napp = "a:b"\n'
    assert len(told(tmp_path, SERVER + 'depends_on = ["bad"]\n' + bad).splitlines()) == 1


def test_bad_default_is_reported_once_and_not_for_each_server(tmp_path: Path) -> None:
    others = "".join(SERVER.replace("web", f"s{n}").replace("8080", str(9000 + n)) for n in range(50))
    lines = told(tmp_path, '[defaults]\nrestart = "sometimes"\nhttp = { loop = "x" }\n' + others).splitlines()
    assert len(lines) == 2
    assert all(": defaults." in line for line in lines)


def test_valid_servers_are_there_next_to_the_problems(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + '[[server]]\nname = "bad"\nbind = "x"\napp = "a:b"\n')
    assert [server.name for server in config] == ["web"]
    assert len(config.problems) == 1
    assert repr(config) == "<PoolConfig 1 server, 1 problem>"


@pytest.mark.parametrize("value", [None, [], {}, "x" * 10_000, 10**1000, -1.5, True])
def test_found_value_of_any_kind_is_shown_on_one_short_line(tmp_path: Path, value: Any) -> None:
    servers = [
        {"name": "a", "bind": ":1", "app": "a:b", key: value} for key in ("tags2", "scale", "user", "bind")
    ]
    text = told(tmp_path, json.dumps(servers), "pool.json")
    assert all(len(line) < 1000 for line in text.splitlines())
