"""Contract §6: ServerConfig and PoolConfig."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from poolctl import PoolConfig, PoolError, PoolParamError, PoolValidateError, ServerConfig, ServerError
from poolctl.errors import ControlError
from tests.real_pool import RealPool


async def hello(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError


def test_a_server_config_is_immutable_and_knows_its_defaults() -> None:
    config = ServerConfig(name="web", listen=":8080", app=hello, start_timeout=timedelta(seconds=7))
    assert config.name == "web"
    assert config.handler_key == ""
    assert config.disabled is False
    assert config.tls is False
    assert config.workers == 1
    assert config.start_timeout == 7.0
    assert config.expose == "http://localhost:8080"
    with pytest.raises((AttributeError, TypeError, ValueError)):
        config.name = "other"


def test_a_bad_value_raises_with_every_problem_of_it() -> None:
    with pytest.raises(PoolValidateError) as caught:
        ServerConfig(name="a b", bind="nowhere", app=hello, workers=-1, bogus=True)
    assert (caught.value.code, caught.value.error) == (1322, "ErrorPoolValidate")
    text = "\n".join(str(problem) for problem in caught.value.exceptions)
    for word in ("name", "bind", "workers", "bogus"):
        assert word in text
    assert len(caught.value.exceptions) >= 4


def test_pool_config_never_raises_and_keeps_the_valid_ones() -> None:
    config = PoolConfig([
        ServerConfig(name="a", bind="127.0.0.1:1", app=hello),
        {"name": "b", "listen": "127.0.0.1:2", "app": "hello:app"},
        {"name": "c"},
        {"name": "d", "bind": "127.0.0.1:1", "app": "hello:app"},
        {"name": "a", "bind": "127.0.0.1:5", "app": "hello:app"},
    ])  # fmt: skip
    assert [server.name for server in config][:2] == ["a", "b"]
    assert config[0].name == "a"
    assert len(config) == len([*config])
    assert all(isinstance(problem, ServerError) for problem in config.problems)
    assert len(config.problems) >= 3
    with pytest.raises(PoolValidateError) as caught:
        config.validate()
    assert len(caught.value.exceptions) >= 3
    PoolConfig([]).validate()


def test_walk_over_a_config_stops_at_false() -> None:
    config = PoolConfig(
        [ServerConfig(name=name, bind=f"127.0.0.1:{n + 1}", app=hello) for n, name in enumerate("abc")]
    )
    seen: list[str] = []
    assert config.walk(lambda server: seen.append(server.name) is None) is True
    assert seen == ["a", "b", "c"]
    seen.clear()
    assert config.walk(lambda server: bool(seen.append(server.name))) is False
    assert seen == ["a"]


def test_validate_looks_at_the_outside_world(tmp_path: Any) -> None:
    with pytest.raises(PoolValidateError):
        ServerConfig(name="a", bind="127.0.0.1:1", app="no_such_module_anywhere:app").validate()
    missing = ServerConfig(
        name="a",
        bind="127.0.0.1:1",
        app=hello,
        tls={"cert": str(tmp_path / "no.pem"), "key": str(tmp_path / "no.key")},
    )
    with pytest.raises(PoolValidateError) as caught:
        missing.validate()
    assert "no.pem" in str([str(problem) for problem in caught.value.exceptions])


def test_load_raises_only_for_files_that_cannot_be_read_or_parsed(real_pool: RealPool) -> None:
    with pytest.raises(PoolValidateError):
        PoolConfig.load(str(real_pool.directory / "missing.toml"))
    with pytest.raises(PoolValidateError):
        PoolConfig.load(str(real_pool.write("broken.toml", "[[server")))
    path = real_pool.write("pool.toml", '[[server]]\nname = "a"\nbind = "127.0.0.1:1"\nbogus = 1\n')
    config = PoolConfig.load(path)
    assert config.problems
    assert "pool.toml:4" in str(config.problems[0])


def test_the_error_family() -> None:
    alone = PoolParamError("nothing given")
    assert (alone.code, alone.error, len(alone.exceptions)) == (1320, "ErrorParamEmpty", 1)
    child = ServerError("is broken", name="a", bind="127.0.0.1:1", hint="mend it")
    group = PoolValidateError("two problems", [child, ServerError("too")])
    assert isinstance(group, PoolError)
    assert isinstance(group, ExceptionGroup)
    chosen, rest = group.split(lambda error: getattr(error, "name", "") == "a")
    assert isinstance(chosen, PoolValidateError)
    assert isinstance(rest, PoolValidateError)
    assert chosen.exceptions[0].hint == "mend it"


def test_connect_starts_a_supervisor_where_none_runs(
    real_pool: RealPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import poolctl

    monkeypatch.setenv("POOLCTL_RUNTIME_DIR", str(real_pool.runtime))
    real_pool.write_hello("a")
    file = real_pool.directory / "pool.toml"
    with pytest.raises(ControlError) as none:
        poolctl.connect(file)
    assert none.value.exit_code == 6
    with poolctl.connect(file, start=True) as client:
        assert [item["state"] for item in client.list()["items"]] == ["stopped"]
        client.start()
    assert real_pool.items()["a"]["ready"], "it goes on"
    with poolctl.connect(file, start=True) as again:
        assert again.ping()["supervisor_pid"] == client.ping()["supervisor_pid"]
        again.stop()
    file.write_text(file.read_text().replace("app =", "ap ="))
    with pytest.raises(PoolValidateError, match="unknown key 'ap'"):
        poolctl.connect(file, start=True)
    with pytest.raises(ControlError):
        poolctl.connect(file)
