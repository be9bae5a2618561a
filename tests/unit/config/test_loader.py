"""Files become servers: formats, defaults, overriding, paths."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig
from poolctl.config import Surroundings, TLSConfig, added_server, load
from poolctl.config.model.pool_tables import MetricsTable
from poolctl.config.values.problems import MAX_SUGGESTIONS, similar
from poolctl.errors import PoolValidateError
from tests.config_files import SERVER, load_text, told

FORMS = {
    "pool.toml": SERVER + "workers = 2\nenv = { PORT = 80 }\n",
    "pool.yaml": "server:\n- {name: web, bind: '127.0.0.1:8080', app: 'hello:app', workers: 2, env: {PORT: 80}}\n",
    "pool.yml": "- name: web\n  bind: 127.0.0.1:8080\n  app: hello:app\n  workers: 2\n  env:\n    PORT: 80\n",
    "pool.json": json.dumps(
        [{"name": "web", "bind": "127.0.0.1:8080", "app": "hello:app", "workers": 2, "env": {"PORT": 80}}]
    ),
    "pyproject.toml": "[project]\nname = 'x'\n"
    + (SERVER + "workers = 2\nenv = { PORT = 80 }\n").replace("[[server]]", "[[tool.poolctl.server]]"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(tmp_path: Path, name: str) -> None:
    for text in (FORMS[name], "\ufeff" + FORMS[name], FORMS[name].replace("\n", "\r\n")):
        config = load_text(tmp_path, text, name)
        assert config.problems == []
        (server,) = config
        assert (server.name, server.bind, server.app) == ("web", "127.0.0.1:8080", "hello:app")
        assert (server.workers, server.env, server.cwd) == (2, {"PORT": "80"}, str(tmp_path))
        assert (server.expose, server.app_dir) == ("http://127.0.0.1:8080", str(tmp_path))


def test_an_empty_file_is_a_pool_without_servers(tmp_path: Path) -> None:
    for name in ("pool.toml", "pool.yaml"):
        config = load_text(tmp_path, "", name)
        assert (len(config), config.problems) == (0, [])


@pytest.mark.parametrize(
    ("key", "value", "fix"),
    [
        ("monitor", {"interval": "5s"}, "health"),
        ("tls", {"inherit_default": True}, "tls = true"),
        ("tls", {"inheritDefault": True}, "tls = true"),
        ("tls", {"certs": [{"key": "a", "pub": "b"}]}, "cert"),
        ("tls_mandatory", True, "take it out"),
        ("idle_timeout", "5s", "keep_alive"),
        ("logger", {}, "log ="),
    ],
)
def test_golibs_other_tables_name_the_fix(tmp_path: Path, key: str, value: object, fix: str) -> None:
    server = {"name": "api", "listen": ":8080", "app": "a:b", key: value}
    text = told(tmp_path, json.dumps([server]), "pool.json")
    assert key in text
    assert fix in text


def test_a_servers_own_way_of_being_served_displaces_the_default(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[defaults]\napp = "hello:make"\nfactory = true\n[[server]]\nname = "a"\nbind = ":1"\n'
        '[[server]]\nname = "b"\nbind = ":2"\ncommand = ["b"]\n',
    )
    assert config.problems == []
    assert [(s.app, s.factory, s.command) for s in config] == [
        ("hello:make", True, None),
        (None, False, ("b",)),
    ]
    config = load_text(
        tmp_path,
        '[defaults]\ncommand = ["x"]\nnotify = true\n[[server]]\nname = "a"\nbind = ":1"\n'
        '[[server]]\nname = "b"\nbind = ":2"\napp = "h:b"\n',
    )
    assert config.problems == []
    assert [(s.app, s.notify, s.command) for s in config] == [(None, True, ("x",)), ("h:b", False, None)]


def test_the_default_certificate_is_for_those_that_ask(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[defaults.tls]\ncert = "c.pem"\nkey = "k.pem"\nmin_version = "1.3"\n'
        '[[server]]\nname = "plain"\nbind = ":1"\napp = "h:a"\n'
        '[[server]]\nname = "asks"\nbind = ":2"\napp = "h:a"\ntls = true\n'
        '[[server]]\nname = "own"\nbind = ":3"\napp = "h:a"\ntls = { cert = "own.pem" }\n'
        '[[server]]\nname = "no"\nbind = ":4"\napp = "h:a"\ntls = false\n',
    )
    assert config.problems == []
    plain, asks, own, no = config
    assert (plain.tls, no.tls, plain.expose) == (False, False, "http://localhost:1")
    assert asks.tls is not True
    assert asks.tls
    assert (asks.tls.cert, asks.expose) == (str(tmp_path / "c.pem"), "https://localhost:2")
    assert own.tls is not True
    assert own.tls
    # A key belongs to its certificate, the rest merges.
    assert (own.tls.cert, own.tls.key, own.tls.min_version) == (str(tmp_path / "own.pem"), None, "1.3")


def test_the_environment_chooses_the_interpreter(tmp_path: Path) -> None:
    def environment(place: Path) -> str:
        (place / "bin").mkdir(parents=True)
        (place / "bin" / "python").symlink_to("/bin/sh")
        (place / "pyvenv.cfg").touch()
        return str(place)

    def found(env: dict[str, str]) -> str | None:
        (server,) = load(file, env)
        return server.python and server.python.removesuffix("/bin/python")

    pool = tmp_path / "pool"
    tox, other, conda = (
        environment(each) for each in (pool / ".tox/py", tmp_path / "env", tmp_path / "conda")
    )
    file = str(pool / "pool.toml")
    Path(file).write_text(SERVER)
    assert found({}) is None
    assert found({"VIRTUAL_ENV": other}) == other
    assert found({"CONDA_PREFIX": conda}) == conda
    assert found({"VIRTUAL_ENV": other, "CONDA_PREFIX": conda}) == other
    (tmp_path / "conda" / "pyvenv.cfg").rename(tmp_path / "conda" / "conda-meta")
    assert found({"CONDA_PREFIX": conda}) is None
    (tmp_path / "conda" / "conda-meta").unlink()
    (tmp_path / "conda" / "conda-meta").mkdir()
    assert found({"CONDA_PREFIX": conda}) == conda
    (tmp_path / "conda" / "condabin").mkdir()
    assert found({"CONDA_PREFIX": conda}) is None, "the base"
    beside = environment(pool / ".venv")
    assert found({}) == found({"VIRTUAL_ENV": other}) == found({"CONDA_PREFIX": conda}) == beside
    assert found({"VIRTUAL_ENV": tox}) == tox
    assert [each.python for each in load(file, {}, python="/p")] == ["/p"]


def test_a_broken_environment_is_one_problem_that_names_it(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    file = tmp_path / "pool.toml"
    file.write_text(SERVER + '[[server]]\nname = "work"\ncommand = ["true"]\n')

    def told(env: dict[str, str]) -> list[str]:
        return [str(each) for each in load(str(file), env).problems]

    again = f"python3 -m venv --clear {tmp_path}/.venv"
    broken = f"the environment {tmp_path}/.venv is broken: bin/python"
    (problem,) = told({"VIRTUAL_ENV": "/gone"})
    assert f"{broken} is not there; make it again: {again}" in problem
    (tmp_path / ".venv/bin/python").symlink_to("/removed/python3")
    (problem,) = told({})
    assert f"{broken} is a link to /removed/python3, which is not there; make it again" in problem
    (tmp_path / ".venv").rename(tmp_path / "moved")
    (problem,) = told({"VIRTUAL_ENV": "/gone"})
    assert "the active environment /gone is not there" in problem
    assert told({}) == []
    file.write_text(SERVER + 'python = "/bin/sh"\n')
    assert told({"VIRTUAL_ENV": "/gone"}) == []


def test_variables_come_from_the_environment_and_then_from_env_beside_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text(SERVER + 'env_file = []\nenv = { A = "${A}", B = "${B:-b}", C = "${C}" }\n')
    (tmp_path / ".env").write_text("A=1\nB='2'\nC=3\n")
    (server,) = load(str(file), {"A": "", "C": "outside"})
    assert server.env == {"A": "", "B": "2", "C": "outside"}
    problems = [str(each) for each in load(str(file), {"C": ""}, env_files=False).problems]
    assert ["variable A is not set" in each for each in problems] == [True]
    (tmp_path / ".env").write_text('A="1\n')
    (problem, *_) = load(str(file), {"C": ""}).problems
    assert f"{tmp_path}/.env:1: " in str(problem)
    if os.geteuid() == 0:
        (tmp_path / ".env").write_text("A=1\n")
        os.chown(tmp_path / ".env", 1234, -1)
        assert load(str(file), {"C": ""}).problems
        assert load(str(file), {"C": "", "SUDO_UID": "1234"}).problems == []


def test_a_server_written_as_a_file_loads_as_itself(tmp_path: Path) -> None:
    text = (
        SERVER
        + 'tags = ["a"]\ntls = { cert = "c.pem" }\ndepends_on = ["db"]\nrestart = "always"\n'
        + ('[[server]]\nname = "db"\njob = true\ncommand = ["x"]\n')
    )
    first = load_text(tmp_path, text)
    again = load_text(tmp_path, json.dumps([server.to_dict() for server in first]), "pool.json")
    assert again.problems == []
    assert [server.to_dict() for server in again] == [server.to_dict() for server in first]


def test_relative_names_and_strings_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pool.toml").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    assert PoolConfig.load("pool.toml").files == [str(tmp_path / "pool.toml")]


def test_access_log_is_a_default_that_files_overrule(tmp_path: Path) -> None:
    pool = tmp_path / "pool.toml"
    server = '[[server]]\nname = "{0}"\nbind = "127.0.0.1:808{1}"\napp = "a:app"\nhttp = {{ {2} }}\n'
    pool.write_text(server.format("a", 1, "") + server.format("b", 2, "access_log = false"))
    assert [each.http.access_log for each in load(pool, {})] == ["errors", False]
    assert [each.http.access_log for each in load(pool, {}, access_log=True)] == [True, False]
    pool.write_text("[defaults.http]\naccess_log = false\n" + server.format("a", 1, "keep_alive = 5"))
    assert [each.http.access_log for each in load(pool, {}, access_log=True)] == [False]
    pool.write_text(server.format("a", 1, 'access_log = "${LOG}"'))
    for written, value in (("errors", "errors"), ("true", True)):
        assert [each.http.access_log for each in load(pool, {"LOG": written})] == [value]
    (problem,) = load(pool, {"LOG": "error"}).problems
    assert str(problem).endswith("'error' is not allowed here; allowed is true, false, or \"errors\"")


def test_bad_default_is_reported_once_and_not_for_each_server(tmp_path: Path) -> None:
    others = "".join(SERVER.replace("web", f"s{n}").replace("8080", str(9000 + n)) for n in range(50))
    lines = told(tmp_path, '[defaults]\nrestart = "sometimes"\nhttp = { loop = "x" }\n' + others).splitlines()
    assert len(lines) == 2
    assert all(": defaults." in line for line in lines)


def test_server_that_is_added_has_the_defaults_of_the_files(tmp_path: Path) -> None:
    surroundings = Surroundings({"stop_timeout": 3, "env": {"A": "1"}}, str(tmp_path), "apps:all")
    table = {"name": "new", "bind": "127.0.0.1:1", "app": "a:b", "cwd": "work", "env": {"B": "${X}"}}
    made = added_server(surroundings, table, str(tmp_path / "more"), {"X": "2"})
    assert (made.stop_timeout, made.env) == (3.0, {"A": "1", "B": "2"})
    assert made.cwd == str(tmp_path / "more" / "work")
    with pytest.raises(PoolValidateError) as caught:
        added_server(surroundings, {"name": "new", "bind": "x", "binf": 1}, str(tmp_path), {})
    text = str(caught.value.exceptions)
    assert "binf" in text
    assert all(problem.name == "new" for problem in caught.value.exceptions)


def test_settings_and_tables_that_are_invalid_are_reported_with_their_places(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[pool]\nname = "a b"\n[metrics]\nbind = "x"\n' + SERVER)
    assert [str(each).split(": ")[1] for each in config.problems] == ["pool.name", "metrics.bind"]
    assert (config.settings.name, config.tables.get(MetricsTable), len(config)) == (None, None, 1)


def test_address_of_a_table_that_a_server_has_is_a_problem_of_the_table(tmp_path: Path) -> None:
    text = told(tmp_path, '[metrics]\nbind = "127.0.0.1:8080"\n' + SERVER)
    place = f"{tmp_path}/pool.toml"
    assert text.startswith(
        f"{place}:2:1: metrics.bind: the address 127.0.0.1:8080 is taken by 'web', {place}:5:1;"
    )
    assert len(text.splitlines()) == 1


def test_each_load_suggests_words_anew(tmp_path: Path) -> None:
    for number in range(MAX_SUGGESTIONS):
        similar(f"word {number}", (), 1, 0.5)
    assert "did you mean 'bind'?" in told(tmp_path, table("a", 1, "binf = 1\n"))


def test_tables_of_the_defaults_are_shared_by_the_servers_that_have_no_own(tmp_path: Path) -> None:
    text = '[defaults]\nhttp = { keep_alive = 5 }\ntls = { cert = "c.pem" }\n'
    first, second = load_text(tmp_path, text + table("a", 1, "tls = true\n") + table("b", 2, "tls = true\n"))
    assert first.http is second.http
    assert first.tls is second.tls


def table(name: str, port: int, more: str = "") -> str:
    """Five lines or more of a server."""
    return f'[[server]]\nname = "{name}"\nbind = "127.0.0.1:{port}"\napp = "a:b"\n{more}'


NO_SERVER = "there is no server {!r}; name a server of this pool"
A_RANGE = 'allowed is "FIRST-LAST", ports from 1 to 65535'
SET_IT = "set it, or give a default: ${{NOT_SET:-…}}"
NOT_WHOLE = "'x' is not allowed here; expected a whole number"
NOT_TLS = (
    '12:1: server[1].tls: 7 is not allowed here; allowed is true, false, or {{ cert = "FILE", key = "FILE" }}'
)
NOT_SOON = (
    '\'soon\' is not a duration; write a number of seconds, or a string such as "500ms", "5s", "1m30s", "2h"'
)


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (table("a", 1) + table("b", 1),
         ["7:1: server[1].bind: the address 127.0.0.1:1 is taken by 'a', {place}:3:1; choose another address"]),
        (table("a", 1) + table("a", 2),
         ["6:1: server[1].name: the name 'a' is taken, {place}:2:1; choose another name"]),
        (table("a", 1, 'depends_on = ["b"]\n') + table("b", 2, 'depends_on = ["a"]\n'),
         ["5:1: server[0].depends_on: depends on itself: a → b → a; take out one of these dependencies"]),
        (table("a", 1, 'depends_on = ["c", "b"]\n') + table("b", 2, 'workers = "x"\n'),
         [f"5:15: server[0].depends_on[0]: {NO_SERVER.format('c')}", f"10:1: server[1].workers: {NOT_WHOLE}"]),
        (table("a", 1, 'depends_on = ["x"]\nworkers = "x"\n'),
         [f"5:15: server[0].depends_on[0]: {NO_SERVER.format('x')}", f"6:1: server[0].workers: {NOT_WHOLE}"]),
        ('[defaults]\ndepends_on = ["x"]\n' + table("a", 1, 'workers = "x"\n'),
         [f"2:15: defaults.depends_on[0]: {NO_SERVER.format('x')}", f"7:1: server[0].workers: {NOT_WHOLE}"]),
        (table("a", 1, 'env = { U = "${server.b.url}" }\n') + table("b", 2), []),
        (table("a", 1, 'env = { U = "${server.c.url}" }\n') + table("b", 2),
         [f"5:9: server[0].env.U: {NO_SERVER.format('c')}"]),
        ('[defaults]\nenv = { U = "${server.c.url}" }\n' + table("b", 2),
         [f"2:9: defaults.env.U: {NO_SERVER.format('c')}"]),
        ('[pool]\nname = 5\nport_range = "x"\n' + table("a", 1),
         ['2:1: pool.name: 5 is not allowed here; expected a string: put it in quotes: "…"',
          f"3:1: pool.port_range: 'x' is not a range of ports; {A_RANGE}"]),
        ('[defaults]\nstop_timeout = "soon"\ntls = { cert = 5 }\n' + table("a", 1),
         [f"2:1: defaults.stop_timeout: {NOT_SOON}",
          '3:9: defaults.tls.cert: 5 is not allowed here; expected a string: put it in quotes: "…"']),
        ("[defaults.tls]\ncert = 5\n" + table("a", 1, "tls = true\n") + table("b", 2, 'tls = { ca = "ca.pem" }\n'),
         ['2:1: defaults.tls.cert: 5 is not allowed here; expected a string: put it in quotes: "…"']),
        ("[defaults.tls]\ncert = 5\n" + table("a", 1, 'tls = { cert = "a.pem" }\n') + table("b", 2, "tls = 7\n"),
         ['2:1: defaults.tls.cert: 5 is not allowed here; expected a string: put it in quotes: "…"', NOT_TLS]),
        ('[defaults]\nstdin = "open"\nstop_signal = "SIGINT"\nstop_group = "together"\nready_line = "x"\n'
         + table("a", 1), []),
        ('[defaults]\ncommand = ["x"]\nscale = { min = 0 }\n[[server]]\nname = "a"\nbind = ":1"\n', []),
        ('[defaults]\nscale = { min = 2 }\n' + table("a", 1, "scale = { max = 1 }\n"),
         ["7:11: server[0].scale.max: scale.max = 1 is below scale.min = 2; raise scale.max, or lower scale.min"]),
        (table("a", 1, 'env = { A = "${NOT_SET}" }\n'),
         [f"5:9: server[0].env.A: the environment variable NOT_SET is not set; {SET_IT}"]),
        (table("b", 5) + table("a", 3, "tags = 5\n") + table("c", 3),
         ['9:1: server[1].tags: 5 is not allowed here; expected a list: put it in brackets: ["…"]',
          "12:1: server[2].bind: the address 127.0.0.1:3 is taken by 'a', {place}:7:1; choose another address"]),
    ],
)  # fmt: skip
def test_problems_of_a_file_are_reported_in_its_order_with_their_fixes(
    tmp_path: Path, text: str, problems: list[str]
) -> None:
    place = str(tmp_path / "pool.toml")
    assert told(tmp_path, text).splitlines() == [f"{place}:{each.format(place=place)}" for each in problems]


def test_servers_without_problems_are_there_and_others_are_not(tmp_path: Path) -> None:
    text = table("a", 1) + table("b", 1) + table("c", 2, "tags = 5\n") + table("d", 3, 'depends_on = ["d"]\n')
    assert [server.name for server in load_text(tmp_path, text)] == ["a"]


def test_server_with_its_own_certificate_inherits_nothing_of_an_invalid_one(tmp_path: Path) -> None:
    defaults = '[defaults.tls]\ncert = "c.pem"\nmin_version = "1.1"\n'
    text = table("a", 1, "tls = true\n") + table("b", 2, 'tls = { cert = "b.pem" }\n') + table("c", 3)
    config = load_text(tmp_path, defaults + text)
    assert [str(each).split(": ")[1] for each in config.problems] == ["defaults.tls.min_version"]
    assert [each.tls for each in config] == [False, TLSConfig(cert=str(tmp_path / "b.pem")), False]


@pytest.mark.parametrize(
    ("defaults", "own", "certificate"),
    [
        ("tls = true\n", "", None),
        ('tls = { cert = "c.pem" }\n', "", None),
        ('tls = { cert = "c.pem", key = "k.pem" }\n', "tls = true\n", ("c.pem", "k.pem")),
        ('tls = { cert = "c.pem", key = "k.pem" }\n', 'tls = { key = "l.pem" }\n', ("c.pem", "l.pem")),
        ('tls = { cert = "c.pem", key = "k.pem" }\n', 'tls = { cert = "d.pem" }\n', ("d.pem", None)),
        ('tls = { cert = "c.pem", key = "k.pem" }\n', "tls = false\n", None),
    ],
)
def test_certificate_of_a_server_is_merged_with_that_of_the_defaults(
    tmp_path: Path, defaults: str, own: str, certificate: tuple[str, str | None] | None
) -> None:
    config = load_text(tmp_path, f"[defaults]\n{defaults}" + table("a", 1, own))
    if defaults == "tls = true\n":
        assert "no default certificate" in str(config.problems[0])
        return
    (server,) = config
    tls: Any = server.tls
    found = (tls.cert, tls.key) if tls else None
    assert found == (certificate and tuple(each and str(tmp_path / each) for each in certificate))


def test_programs_of_the_defaults_keep_their_keys_for_programs_alone(tmp_path: Path) -> None:
    text = (
        '[defaults]\ncommand = ["x"]\nstop_signal = "SIGINT"\nstop_group = "leader"\nnotify = true\n'
        'stdin = "open"\n'
        '[[server]]\nname = "a"\nbind = ":1"\n' + table("b", 2)
    )
    first, second = load_text(tmp_path, text)
    keys = ("command", "stop_signal", "stop_group", "notify", "stdin")
    assert [getattr(first, key) for key in keys] == [("x",), "SIGINT", "leader", True, "open"]
    assert [getattr(second, key) for key in keys] == [None, None, "after", False, "null"]


def test_scheduled_job_inherits_neither_hooks_nor_mandatory(tmp_path: Path) -> None:
    text = (
        '[defaults]\nmandatory = true\nhooks = { before_start = ["x"] }\n' + table("a", 1)
        + '[[server]]\nname = "j"\njob = true\nevery = "5 4 * * *"\ncommand = ["true"]\n'
    )  # fmt: skip
    config = load_text(tmp_path, text)
    assert config.problems == []
    app, job = config
    assert (app.mandatory, job.mandatory) == (True, False)
    assert (app.hooks is not None, job.hooks) == (True, None)


def test_files_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    for count, words in (
        (1, "1 configuration file cannot be read"),
        (2, "2 configuration files cannot be read"),
    ):
        with pytest.raises(PoolValidateError) as caught:
            load([tmp_path / f"{at}.toml" for at in range(count)], {})
        assert caught.value.message.startswith(words)
        assert len(caught.value.exceptions) == count


def test_problem_that_another_file_may_solve_is_not_reported_while_one_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(
        '[[server]]\nname = "a"\napp = "a:b"\ndepends_on = ["x"]\nworkers = "x"\n'
    )
    with pytest.raises(PoolValidateError) as caught:
        load([tmp_path / "a.toml", tmp_path / "b.toml"], {})
    _, *others = map(str, caught.value.exceptions)
    assert others == [f"{tmp_path}/a.toml:5:1: server[0].workers: {NOT_WHOLE}"]
