"""Files become servers: formats, defaults, overriding, paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from poolctl import PoolConfig
from poolctl.config import Surroundings, added_server, load
from poolctl.config.model.pool_tables import MetricsTable
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


def test_golibs_list_loads_as_it_is(tmp_path: Path) -> None:
    golib = [
        {
            "name": "api",
            "listen": ":8080",
            "expose": "http://localhost:8080",
            "handler_key": "a",
            "disabled": False,
        },
        {"name": "admin", "listen": "127.0.0.1:9000", "expose": "http://localhost:9000", "disabled": True},
    ]
    config = load_text(tmp_path, json.dumps(golib), "pool.json")
    assert len(config) == 2
    assert all("nothing to serve" in str(problem) for problem in config.problems)
    (tmp_path / "handlers.toml").write_text('[pool]\nhandlers = "apps:handlers"\n')
    both = PoolConfig.load([tmp_path / "pool.json", tmp_path / "handlers.toml"], {})
    assert both.problems == []
    assert [(s.handler_key, s.handlers, s.disabled) for s in both] == [
        ("a", "apps:handlers", False),
        ("", "apps:handlers", True),
    ]


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


def test_a_directory_without_configuration_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PoolValidateError) as caught:
        PoolConfig.load(tmp_path, {})
    assert "no configuration file in this directory" in str(caught.value)


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


def test_asking_for_a_certificate_without_one_is_a_problem(tmp_path: Path) -> None:
    assert "no default certificate" in told(tmp_path, SERVER + "tls = true\n")


def test_a_job_has_no_address(tmp_path: Path) -> None:
    (job,) = load_text(tmp_path, '[[server]]\nname = "migrate"\njob = true\ncommand = ["true"]\n')
    assert (job.bind, job.key, job.expose, job.address.kind) == ("job:migrate", "job:migrate", "", "job")


def test_the_environment_chooses_the_interpreter(tmp_path: Path) -> None:
    for name in ("env", ".venv"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").symlink_to("/bin/sh")
    (server,) = load_text(tmp_path, SERVER, env={"VIRTUAL_ENV": str(tmp_path / "env")})
    assert server.python == str(tmp_path / "env" / "bin" / "python")
    (server,) = load_text(tmp_path, SERVER)
    assert server.python == str(tmp_path / ".venv" / "bin" / "python")


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
    assert (made.cwd, made.origin) == (str(tmp_path / "more" / "work"), None)
    with pytest.raises(PoolValidateError) as caught:
        added_server(surroundings, {"name": "new", "bind": "x", "binf": 1}, str(tmp_path), {})
    text = str(caught.value.exceptions)
    assert "binf" in text
    assert all(problem.name == "new" for problem in caught.value.exceptions)


def test_defaults_that_a_server_cannot_have_are_left_out(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[defaults]\nhealth = "/ready"\ndrain_timeout = 3\nenv = { AT = "{bind}", A = "1" }\n'
        "scale = { min = 0, idle = 5 }\n"
        '[[server]]\nname = "q"\ncommand = ["sleep", "1"]\n'
        '[[server]]\nname = "web"\nbind = ":1"\napp = "a:b"\n',
    )
    assert config.problems == []
    queue, web = config
    assert (queue.health.readiness, queue.env, queue.scale.min) == (None, {"A": "1"}, 1)
    assert web.health.readiness is not None
    assert (web.scale.min, web.scale.idle) == (0, 5.0)


def test_settings_and_tables_that_are_invalid_are_reported_with_their_places(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[pool]\nname = "a b"\n[metrics]\nbind = "x"\n' + SERVER)
    assert [str(each).split(": ")[1] for each in config.problems] == ["pool.name", "metrics.bind"]
    assert (config.settings.name, config.tables.get(MetricsTable), len(config)) == (None, None, 1)


def test_address_of_a_table_that_a_server_has_is_a_problem_of_the_table(tmp_path: Path) -> None:
    text = told(tmp_path, '[metrics]\nbind = "127.0.0.1:8080"\n' + SERVER)
    assert "metrics.bind: the address 127.0.0.1:8080 is taken by 'web'" in text
    assert len(text.splitlines()) == 1
