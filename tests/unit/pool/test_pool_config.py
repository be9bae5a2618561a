"""PoolConfig: the servers of a pool, and what is wrong with the others (contract §6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from poolctl import PoolConfig, ServerConfig, TLSConfig
from poolctl.errors import PoolAddError, PoolParamError, PoolValidateError
from tests.certificates import certificate
from tests.config_files import SERVER, load_text


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def server(name: str = "a", bind: str = ":1", **more: Any) -> ServerConfig:
    return ServerConfig(name=name, bind=bind, **{"app": app, **more})


def test_pool_config_is_a_sequence_of_its_servers() -> None:
    a, b = server("a", ":1"), server("b", ":2")
    config = PoolConfig([a, {"name": "b", "listen": ":2", "app": app}])
    assert isinstance(config, Sequence)
    assert len(config) == 2
    assert (config[0], config[-1], config[0:1]) == (a, b, [a])
    assert list(config) == [a, b]
    assert a in config
    assert config.index(b) == 1
    assert config.problems == []
    assert repr(config) == "<PoolConfig 2 servers>"


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


def test_walking_stops_at_false_only() -> None:
    config = PoolConfig([server("a", ":1"), server("b", ":2"), server("c", ":3")])
    seen: list[str] = []
    assert config.walk(lambda each: seen.append(each.name))
    assert seen == ["a", "b", "c"]
    assert not config.walk(lambda each: each.name != "b")
    assert PoolConfig().walk(lambda each: False)


def test_a_pool_is_made_of_the_valid_servers() -> None:
    pool = PoolConfig([server("a", "127.0.0.1:1"), server("b", "127.0.0.1:2")]).pool()
    assert list(pool) == ["127.0.0.1:1", "127.0.0.1:2"]
    with pytest.raises(PoolAddError) as caught:
        PoolConfig([server("a", ":1"), {"name": "b"}, server("c", ":3", tls=True)]).pool()
    assert caught.value.code == 1321
    assert list(caught.value.pool) == ["0.0.0.0:1"]
    assert {child.name for child in caught.value.exceptions} == {"b", "c"}  # type: ignore[union-attr]


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
    (problem,) = config.outside()
    assert "pool.toml:2:" in str(problem)
    assert "defaults.env_file" in str(problem)


def test_settings_have_defaults() -> None:
    settings = PoolConfig().settings
    assert (settings.name, settings.handlers, settings.port_range) == (None, None, (20000, 29999))
    assert settings.to_dict() == {"port_range": "20000-29999"}


def test_waiting_for_a_disabled_server_is_worth_a_warning() -> None:
    config = PoolConfig([server("a", ":1", depends_on=["b"]), server("b", ":2", disabled=True)])
    assert config.problems == []
    (warning,) = config.warnings
    assert (
        str(warning)
        == "a: depends_on[0]: 'b' is disabled, and this server waits for it; enable it, or take it out"
    )
