"""ServerConfig: one server, validated and immutable (contract §6)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl import PoolConfig, ServerConfig, TLSConfig
from poolctl.config import Configuration, Finding, load
from poolctl.config.configuration import missing_settings, open_files_per_pool_process
from poolctl.errors import PoolParamError, PoolValidateError
from tests.certificates import certificate
from tests.config_files import SERVER, load_text


async def app(scope: Any, receive: Any, send: Any) -> None: ...


names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
variables = st.from_regex(r"[A-Z_][A-Z0-9_]{0,5}", fullmatch=True)


@given(
    name=names,
    port=st.integers(1, 65535),
    tags=st.lists(st.from_regex(r"[a-z]{1,5}", fullmatch=True), max_size=3),
    env=st.dictionaries(variables, texts, max_size=3),
    seconds=st.floats(0.001, 1e6),
    workers=st.integers(1, 100),
)
def test_a_valid_configuration_survives_being_written_down(
    name: str, port: int, tags: list[str], env: dict[str, str], seconds: float, workers: int
) -> None:
    server = ServerConfig(
        name=name,
        bind=f"127.0.0.1:{port}",
        app="a:b",
        tags=tags,
        env=env,
        start_timeout=seconds,
        workers=workers,
    )
    again = ServerConfig(**server.to_dict())
    assert again.to_dict() == server.to_dict()
    assert (again.workers, again.start_timeout, again.env) == (workers, seconds, env)


anything = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(ServerConfig.model_fields)), anything, max_size=6))
def test_any_keywords_give_a_server_or_a_list_of_problems(given: dict[str, Any]) -> None:
    try:
        server = ServerConfig(**given)
    except PoolValidateError as error:
        problems = [str(problem) for problem in error.exceptions]
    else:
        problems = [server.name]
    assert problems
    assert all(problems)


def test_valid_servers_are_there_next_to_the_problems(tmp_path: Path) -> None:
    config = load_text(tmp_path, SERVER + '[[server]]\nname = "bad"\nbind = "x"\napp = "a:b"\n')
    assert [server.name for server in config] == ["web"]
    assert len(config.problems) == 1
    assert repr(config) == "<PoolConfig 1 server, 1 problem>"


def command(name: str, **keys: Any) -> ServerConfig:
    return ServerConfig(
        **{"name": name, "bind": f"127.0.0.1:{sum(map(ord, name))}", "command": ["sleep", "1"], **keys}
    )


def warnings_of(*servers: ServerConfig) -> list[str]:
    return [str(each) for each in Configuration(servers).warnings]


def test_configuration_is_a_sequence_of_its_servers() -> None:
    a, b = command("a"), command("b")
    config = Configuration([a, b])
    assert (len(config), config[0], config[-1], config[:1], [*config]) == (2, a, b, [a], [a, b])
    assert (repr(config), repr(Configuration([a]))) == (
        "<Configuration 2 servers>",
        "<Configuration 1 server>",
    )
    assert (config.is_empty, Configuration().is_empty, repr(Configuration())) == (
        False, True, "<Configuration 0 servers>",
    )  # fmt: skip
    assert config.problems == Configuration([ServerConfig(name="a", bind=":1")]).problems == []


def test_waiting_for_a_disabled_server_is_a_warning() -> None:
    db, api = command("db", disabled=True), command("api", depends_on=["db"])
    (warning,) = Configuration([db, api]).warnings
    assert "'db' is disabled, and this server waits for it" in str(warning)
    assert (warning.name, warning.hint) == ("api", "enable it, or take it out")
    assert (
        warnings_of(db, api.model_copy(update={"disabled": True}))
        == warnings_of(db.model_copy(update={"disabled": False}), api)
        == []
    )


def test_masked_secret_is_a_warning() -> None:
    (warning,) = warnings_of(command("a", env={"KEY": "********", "OTHER": "x"}))
    assert "env.KEY" in warning


def test_outside_checks_the_named_servers_and_warns_of_the_others(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[[server]]\nname = "a"\nbind = ":1"\ncommand = ["no-such-one"]\n'
        '[[server]]\nname = "b"\nbind = ":2"\ncommand = ["no-such-other"]\n',
        env={"PATH": os.environ["PATH"]},
    )
    assert [each.name for each in config.check_external()] == ["a", "b"]
    (only,) = config.check_external(names=["b"])
    assert (only.name, "no-such-other" in str(only)) == ("b", True)
    assert config.check_external(names=[]) == []


def test_journal_that_cannot_be_written_is_a_warning_where_the_pool_runs_already(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = load_text(
        tmp_path, f'[events]\npath = "{tmp_path}/file/events.jsonl"\n{SERVER.replace("app", "# app")}'
    )
    assert any("events.path" in str(each) for each in config.check_external())
    assert not any("events.path" in str(each) for each in config.warnings)
    assert config.check_external(names=[]) == []
    assert any("events.path" in str(each) for each in config.warnings)


def test_certificate_of_the_defaults_that_is_missing_is_one_problem(tmp_path: Path) -> None:
    server = '[[server]]\nname = "{0}"\nbind = ":{1}"\nhandler_key = "k"\ntls = true\n'
    config = load_text(
        tmp_path,
        '[pool]\nhandlers = "a:b"\n[defaults.tls]\ncert = "gone.pem"\n'
        + server.format("a", 1)
        + server.format("b", 2),
    )
    assert config.problems == []
    assert sum("gone.pem" in str(each) for each in config.check_external()) == 1


def needed(*servers: ServerConfig, count: int = 1) -> int:
    return open_files_per_pool_process((each, count) for each in servers)


def test_open_files_grow_with_listeners_workers_and_restarts() -> None:
    idle = open_files_per_pool_process([])
    one = command("a")
    assert idle == 64
    # A listener, two of the worker of a program, and three for one that replaces it.
    assert needed(one) == idle + 1 + 2 + 3
    assert needed(ServerConfig(name="a", bind="127.0.0.1:1", app="a:b")) == idle + 1 + 3 + 2 + 3
    assert needed(one.replace(bind=":1")) == needed(one.replace(bind="localhost:1")) == needed(one) + 1
    assert needed(ServerConfig(name="a", command=["x"])) == needed(one) - 1
    assert needed(one.replace(command=["x", "{port}"])) == needed(one) - 1
    assert needed(one.replace(health="/ready")) == needed(one) + 1
    assert needed(one, count=0) == idle + 1
    assert needed(one, count=20) == idle + 1 + 2 * 20 + 3 * 16


def test_server_needs_something_to_serve_and_a_certificate_if_it_asks_for_one(tmp_path: Path) -> None:
    plain = ServerConfig(name="a", bind=":1")
    assert [each.path for each in missing_settings(plain)] == [("app",)]
    assert (
        [*missing_settings(plain, handler=True)]
        == [*missing_settings(plain.model_copy(update={"app": "a:b"}))]
        == []
    )
    assert [*missing_settings(plain.model_copy(update={"command": ("x",)}))] == []
    with_handlers = '[pool]\nhandlers = "a:b"\n[[server]]\nname = "a"\nbind = ":1"\n'
    assert [*missing_settings(load_text(tmp_path, with_handlers)[0])] == []
    asking = ServerConfig(name="a", bind=":1", app="a:b", tls=True)
    assert [each.path for each in missing_settings(asking)] == [("tls",)]
    assert [*missing_settings(asking, tls=True)] == []


def test_servers_are_equal_wherever_they_stand_in_a_file(tmp_path: Path) -> None:
    one, other = load_text(tmp_path, SERVER), load_text(tmp_path, "# moved\n" + SERVER)
    assert one[0] == other[0]


def test_warnings_outside_the_files_are_those_of_servers_that_are_not_named_too(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, days=3)
    config = load_text(
        tmp_path,
        f'[pool]\nhandlers = "a:b"\n[[server]]\nname = "soon"\nbind = ":1"\n'
        f'tls = {{ cert = "{cert}", key = "{key}" }}\n'
        '[[server]]\nname = "b"\nbind = ":2"\ncommand = ["sleep", "1"]\n',
        env={"PATH": os.environ["PATH"]},
    )
    assert config.warnings == []
    assert config.check_external(names=["b"]) == []
    (warning,) = config.warnings
    assert (warning.name, "the certificate expires on" in str(warning)) == ("soon", True)


# PoolConfig: the servers of a pool, and what is wrong with the others (contract §6).


def server(name: str = "a", bind: str = ":1", **more: Any) -> ServerConfig:
    return ServerConfig(name=name, bind=bind, **{"app": app, **more})


@pytest.mark.parametrize("given", [(), [], None, 3, "text", [3], [None], [{}], [{1: 2}], iter([])])
def test_making_one_never_raises(given: Any) -> None:
    config = PoolConfig(given)
    assert len(config) == 0
    assert bool(config.problems) == (given not in ((), []) and not hasattr(given, "__next__"))


def test_pool_config_holds_the_valid_servers_and_the_problems_of_the_others() -> None:
    config = PoolConfig(
        [
            server("a", ":1"),
            {"name": "b", "bind": "x", "app": app},
            server("a", ":2"),
            server("c", "127.0.0.1:1"),
            server("d", ":4", depends_on=["nobody"]),
            server("e", ":5", depends_on=["b"]),
            server("f", ":6", depends_on=["f"]),
        ]
    )
    assert [each.name for each in config] == ["a", "e"]
    assert sorted({problem.name for problem in config.problems}) == ["a", "b", "c", "d", "f"]
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    assert len(caught.value.exceptions) == len(config.problems) == 5


@pytest.mark.parametrize(
    "more", [{"bind": ":1"}, {"name": "a"}, {"depends_on": ["c"]}, {"depends_on": ["x"]}]
)
def test_problem_between_servers_made_in_python_hides_none_of_what_they_refer_to(
    more: dict[str, Any],
) -> None:
    other = {"name": "c", "bind": ":2", "app": None, "cwd": "/nowhere"} | more
    config = PoolConfig([server("a", ":1"), other])
    assert [each.name for each in config] == ["a"]
    (between,) = config.problems
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    problems = [problem.message for problem in caught.value.exceptions]
    assert problems[0] == between.message
    assert len(problems) == 3
    assert any("nothing to serve" in problem for problem in problems)
    assert "/nowhere is not there" in problems


def test_a_list_without_apps_gets_its_handler_later() -> None:
    config = PoolConfig([ServerConfig(name="a", bind=":1")])
    assert config.problems == []
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    assert "nothing to serve" in str(caught.value)
    config.set_handler(lambda: {"": app})
    config.validate()


def test_a_file_without_apps_is_a_problem_until_it_has_a_handler(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[[server]]\nname = "a"\nbind = ":1"\n')
    assert len(config) == 1
    (problem,) = config.problems
    assert "pool.toml:1:1: server[0].app: nothing to serve" in str(problem)
    config.set_handler(lambda: {"": app})
    assert config.problems == []


def test_the_default_certificate_is_for_those_that_ask(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    config = PoolConfig([server("a", ":1", tls=True), server("b", ":2")])
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    assert "no default certificate" in str(caught.value)
    config.set_default_tls(TLSConfig(cert=str(cert), key=str(key)))
    config.validate()
    config.set_default_tls({"cert": str(tmp_path / "gone.pem")})
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    assert "gone.pem" in str(caught.value)
    assert len(caught.value.exceptions) == 1


@pytest.mark.parametrize("value", [3, "handler", {}])
def test_invalid_handler_is_refused(value: Any) -> None:
    with pytest.raises(PoolParamError):
        PoolConfig().set_handler(value)


def test_file_that_is_no_certificate_is_refused() -> None:
    with pytest.raises(PoolParamError):
        PoolConfig().set_default_tls(3)  # type: ignore[arg-type]
    with pytest.raises(PoolValidateError):
        PoolConfig().set_default_tls({"crt": "x"})


def test_a_program_that_binds_itself_is_worth_a_warning(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[[server]]\nname = "a"\nbind = ":1"\ncommand = ["true", "{port}"]\n')
    assert config.problems == []
    (warning,) = config.warnings
    assert "pool.toml:4:1" in str(warning)
    assert "a restart cannot overlap" in str(warning)
    assert 'write socket = "program" to accept that' in str(warning)


def test_program_that_is_said_to_bind_itself_is_no_warning(tmp_path: Path) -> None:
    text = '[[server]]\nname = "a"\nbind = ":1"\ncommand = ["true", "{port}"]\nsocket = "program"\n'
    assert load_text(tmp_path, text).warnings == []


@pytest.mark.parametrize(
    ("key", "named"),
    [
        (
            'command = ["x", "{prot}"]',
            "command[1]: {prot} is no placeholder, and is passed on as it is; write {port}",
        ),
        ('command = ["x", "-p{PORT}"]', "command[1]: {PORT} is no placeholder"),
        ('command = ["x", "{ host }"]', "write {host} if you mean that"),
        ('command = ["x", "{FD}"]', "write {fd} if you mean that"),
        ('command = ["x"]\nenv = { AT = "{binds}" }', "env.AT: {binds} is no placeholder"),
        (
            'app = "a:b"\nhealth.liveness.exec = ["x", "{prot}"]',
            "health.liveness.exec[1]: {prot} is no placeholder",
        ),
        ('app = "a:b"\nhooks.after_stop = ["x", "{nmae}"]', "hooks.after_stop[1]: {nmae} is no placeholder"),
        ("command = [\"awk\", '{print}', '{print $1}', '{\"a\": {}}']", ""),
        ('command = ["x"]\nenv = { FORMAT = "{name} {level} {message}", P = "{}" }', ""),
    ],
)
def test_near_miss_of_a_placeholder_is_a_warning_with_place_and_fix(
    tmp_path: Path, key: str, named: str
) -> None:
    config = load_text(tmp_path, f'[[server]]\nname = "a"\nbind = ":1"\n{key}\n')
    assert config.problems == []
    assert [("pool.toml:" in str(each), named in str(each)) for each in config.warnings] == [
        (True, True)
    ] * bool(named)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            'bind = "unix:/run/a.sock"\nhealth.startup.exec = ["x", "{host}:{port}"]',
            "health.startup.exec: unix:/run/a.sock has no host and port for {port} and {host}; take it out, or double",
        ),
        (
            'bind = "unix:/run/a.sock"\nhooks.before_start = ["x", "{port}"]',
            "hooks.before_start: unix:/run/a.sock has",
        ),
        (
            'hooks.after_stop = ["x", "{bind}"]',
            "hooks.after_stop: process:a has no host and port for {bind}; take it out",
        ),
        ('bind = "unix:/run/a.sock"\nhooks.before_start = ["x", "{bind}", "{{port}}"]', ""),
        ('bind = ":1"\nhooks.before_start = ["x", "{host}"]', ""),
    ],
)
def test_probe_or_hook_that_asks_for_a_missing_port_is_a_problem(
    tmp_path: Path, keys: str, message: str
) -> None:
    config = load_text(tmp_path, f'[[server]]\nname = "a"\ncommand = ["x"]\n{keys}\n')
    assert [message in str(each) for each in config.problems] == [True] * bool(message)


def test_probes_and_hooks_of_the_defaults_that_need_an_address_are_for_servers_with_one(
    tmp_path: Path,
) -> None:
    text = """
[defaults]
health = { liveness = { exec = ["check", "{port}"] }, readiness = { exec = ["ready"] } }
hooks = { before_start = ["prepare", "{bind}"], after_stop = ["clear"] }
[[server]]
name = "a"
command = ["x"]
[[server]]
name = "b"
bind = ":1"
command = ["x"]
"""
    config = load_text(tmp_path, text)
    assert config.problems == []
    a, b = config
    assert (a.health.liveness, b.health.liveness.exec) == (None, ("check", "{port}"))
    assert (a.hooks.before_start, a.hooks.after_stop, b.hooks.before_start) == (
        None, ("clear",), ("prepare", "{bind}"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["/opt/venv/bin/gunicorn", "shop:app"], "gunicorn"),
        (["python3", "-m", "http.server"], "http.server"),
        (["uv", "run", "uvicorn", "shop:app"], "uvicorn"),
        (["celery", "--app", "shop"], ""),
        (["tail", "-F", "/var/log/nginx"], ""),
    ],
)
def test_program_that_is_known_to_listen_is_a_warning_without_bind(command: list[str], named: str) -> None:
    config = PoolConfig([{"name": "a", "command": command}])
    message = (
        f"a: command: {named} listens on a port, which the pool does not know without 'bind'; add bind = "
    )
    assert [str(each).startswith(message) for each in config.warnings] == [True] * bool(named)


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["/opt/venv/bin/gunicorn", "--bind", "fd://{fd}", "shop:app"], "fd://{fd}"),
        (["gunicorn", "-b", "fd://3", "shop:app"], "fd://3"),
        (["python3", "-m", "gunicorn", "--bind=fd://3", "shop:app"], "--bind=fd://3"),
        (["uv", "run", "gunicorn", "-bfd://{fd}", "shop:app"], "-bfd://{fd}"),
    ],
)
def test_gunicorn_with_bind_to_the_inherited_socket_is_a_problem(command: list[str], word: str) -> None:
    (problem,) = PoolConfig([{"name": "a", "bind": "127.0.0.1:1", "command": command}]).problems
    assert (problem.message, problem.hint) == (
        f"gunicorn takes the socket from LISTEN_FDS, and {word!r} would pass it a second time",
        "leave out its --bind",
    )


@pytest.mark.parametrize("command", [["gunicorn", "shop:app"], ["granian", "--fd", "{fd}", "shop:app"]])
def test_program_that_gets_the_socket_once_is_none(command: list[str]) -> None:
    config = PoolConfig([{"name": "a", "bind": "127.0.0.1:1", "command": command}])
    assert (config.problems, config.warnings) == ([], [])


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (["esbuild", "app.js", "--watch"], "esbuild"),
        (["node_modules/.bin/esbuild", "--watch", "app.js"], "esbuild"),
        (["npx", "@tailwindcss/cli", "-i", "a.css", "--watch"], "@tailwindcss/cli"),
        (["sh", "-c", "cd web && npx tailwindcss --watch"], ""),
        (["esbuild", "app.js", "--watch=forever"], ""),
        (["esbuild", "app.js"], ""),
        (["mkcli", "--watch"], ""),
    ],
)
def test_program_that_watches_until_the_end_of_its_input_is_warned_of(
    command: list[str], program: str
) -> None:
    config = PoolConfig([{"name": "a", "command": command}])
    warned = [f"{program} --watch ends at the end of its input, and that is /dev/null"] if program else []
    assert [each.message for each in config.warnings] == warned
    assert all(each.hint == 'add stdin = "open"' for each in config.warnings)


UWSGI = 'socket = "program"\ncommand = ["uwsgi", "--http-socket", ":{port}"'


@pytest.mark.parametrize(
    ("keys", "warned"),
    [
        ('app = "a:b"\nlimits.memory = 512', 'again and again; write "512MiB"; a number without a unit is bytes'),
        ('app = "a:b"\nlimits.memory = "8MB"', "a limit of 7.6MiB, and is replaced again and again; allow at least"),
        ('app = "a:b"\nlimits.memory = "16MiB"', ""),
        ('app = "a:b"\nstart_timeout = 30000', 'only after 8h20m; write "30s"; a number without a unit is seconds'),
        ('app = "a:b"\nstart_timeout = "1h"', ""),
        (f"{UWSGI}]", 'instead of ending, unless it is told die-on-term; add stop_signal = "SIGINT"'),
        (f'{UWSGI}]\nstop_signal = "SIGQUIT"', ""),
        (f'{UWSGI}, "--die-on-term"]', ""),
    ],
)  # fmt: skip
def test_value_that_is_surely_meant_otherwise_is_warned_of(tmp_path: Path, keys: str, warned: str) -> None:
    config = load_text(tmp_path, f'[[server]]\nname = "a"\nbind = ":1"\n{keys}\n')
    assert config.problems == []
    assert [warned in str(each) for each in config.warnings] == [True] * bool(warned)


def test_workers_auto_names_the_number_for_this_machine(tmp_path: Path) -> None:
    (problem,) = load_text(tmp_path, f'{SERVER}workers = "auto"\n').problems
    assert f"is workers = {len(os.sched_getaffinity(0))}" in str(problem)


@pytest.mark.parametrize(
    ("users", "warned"),
    [
        (["www-data", "www-data", "www-data"], []),
        (["daemon", "nobody", None], []),
        (
            ["nobody", "daemon", "nobody:daemon"],
            ["it shares the user 'nobody' with 2: they are not isolated from each other"],
        ),
        (
            ["nobody", "nobody", "nobody", None],
            ["it shares the user 'nobody' with 1 and 1 more: they are not"],
        ),
        (["nobody", "nobody", "daemon", "daemon"], ["'nobody' with 1", "'daemon' with 3"]),
    ],
)
def test_servers_that_share_a_user_are_a_warning_when_other_servers_have_another(
    users: list[str | None], warned: list[str]
) -> None:
    servers = [
        {"name": str(index), "bind": f"127.0.0.1:{index + 1}", "app": "a:b"}
        | ({"user": user} if user else {})
        for index, user in enumerate(users)
    ]
    found = [warning.message for warning in PoolConfig(servers).warnings]
    assert len(found) == len(warned)
    assert all(part in message for part, message in zip(warned, found, strict=True))


def test_one_missing_default_is_one_problem_however_many_use_it(tmp_path: Path) -> None:
    servers = SERVER + SERVER.replace("web", "b").replace("8080", "8081")
    config = load_text(tmp_path, '[defaults]\nenv_file = "gone.env"\n' + servers)
    assert config.problems == []
    (problem,) = config.check_external()
    assert "pool.toml:2:" in str(problem)
    assert "defaults.env_file" in str(problem)


def test_server_that_clashes_with_another_is_looked_at_outside_as_well(tmp_path: Path) -> None:
    config = load_text(
        tmp_path,
        '[[server]]\nname = "a"\nbind = ":1"\ncommand = ["true"]\n'
        '[[server]]\nname = "b"\nbind = ":1"\ncommand = ["no-such-one"]\n',
        env={"PATH": os.environ["PATH"]},
    )
    assert [server.name for server in config] == ["a"]
    (found,) = config.check_external()
    assert "no-such-one" in str(found)


def test_environment_files_that_cannot_be_read_are_problems_of_servers_that_run(tmp_path: Path) -> None:
    (tmp_path / "there.env").write_text("A=1\n")
    text = "".join(
        f'[[server]]\nname = "{name}"\nbind = ":{port}"\napp = "a:b"\nenv_file = ["there.env", "{file}"]\n{more}'
        for name, port, file, more in (
            ("a", 1, "gone.env", ""), ("b", 2, "there.env", ""), ("c", 3, "gone.env", "disabled = true\n"),
        )
    )  # fmt: skip
    file = tmp_path / "pool.toml"
    file.write_text(text)
    (problem,) = load(file, {}).env_file_problems()
    assert str(problem).startswith(
        f"{file}:5:26: server[0].env_file[1]: {tmp_path}/gone.env: there is no such file"
    )
    file.write_text(SERVER)
    assert load(file, {}).env_file_problems() == []


def test_findings_get_the_places_of_their_servers_and_tables(tmp_path: Path) -> None:
    config = load_text(tmp_path, '[metrics]\nbind = "127.0.0.1:9"\n' + SERVER)
    found = [
        (config[0], Finding(("bind",), "is odd", "fix it")),
        (None, Finding(("metrics", "bind"), "is odd", "fix it")),
    ]
    file = tmp_path / "pool.toml"
    assert [str(each) for each in config.located(found)] == [
        f"{file}:5:1: server[0].bind: is odd; fix it", f"{file}:2:1: metrics.bind: is odd; fix it",
    ]  # fmt: skip
    assert [str(each) for each in PoolConfig([]).located(found[1:])] == ["metrics.bind: is odd; fix it"]


def test_size_of_a_log_that_is_printed_is_a_warning_and_no_origin(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        "[defaults]\nlog.keep = 3\n"
        '[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\nlog = { path = "/dev/stdout", max_size = "1MB" }\n'
        '[[server]]\nname = "b"\nbind = ":2"\napp = "a:b"\nlog = { path = "b.log", max_size = "1MB" }\n'
    )
    config = load([str(tmp_path / "pool.toml")], {})
    (warning,) = config.warnings
    assert str(warning).startswith(f"{tmp_path}/pool.toml:7:")
    assert "max_size has no effect: a log that is printed keeps 2 MiB" in str(warning)
    printed, filed = (
        {*(config.origin_of(each) or {})} & {"log.path", "log.max_size", "log.keep"} for each in config
    )
    assert printed == {"log.path"}
    assert filed == {"log.path", "log.max_size", "log.keep"}


def test_size_in_the_defaults_is_a_warning_if_the_logs_of_all_servers_are_printed(tmp_path: Path) -> None:
    (tmp_path / "pool.toml").write_text(
        '[defaults]\nlog = { path = "-", keep = 3 }\n[[server]]\nname = "a"\nbind = ":1"\napp = "a:b"\n'
    )
    (warning,) = load([str(tmp_path / "pool.toml")], {}).warnings
    assert str(warning).partition(";")[0].endswith("keep has no effect: a log that is printed keeps 2 MiB")


def test_log_whose_path_is_null_is_a_file_of_its_size(tmp_path: Path) -> None:
    (tmp_path / "pool.yaml").write_text(
        'defaults: { log: { path: "-" } }\n'
        'server: [{ name: a, bind: ":1", app: "a:b", log: { path: null, max_size: 1MB } }]\n'
    )
    config = load([str(tmp_path / "pool.yaml")], {})
    assert (config[0].log.max_size, config.warnings) == (10**6, [])
