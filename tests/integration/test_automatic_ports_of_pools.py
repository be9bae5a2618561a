"""Automatic ports of pools in Python programs: others may take them, and have them when they are not used any more."""

from __future__ import annotations

import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poolctl import Field, Pool, PoolAddError, PoolConfig, PoolStartError, Server, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.asgi_apps import hello
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port

REPOSITORY = Path(__file__).parents[2]
APP = "tests.asgi_apps:hello"


def config_of(name: str, **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": name, "bind": "127.0.0.1:auto", "app": APP} | keys)


def taken(bind: str) -> closing[socket.socket]:
    """The address of a stopped server, as another program has it."""
    return closing(socket.create_server(("127.0.0.1", int(bind.rpartition(":")[2]))))


def test_a_pool_serves_elsewhere_if_its_automatic_port_was_taken(
    runner_of_any_kind: ProcessRunner | None,
) -> None:
    pool = Pool([config_of("web"), config_of("api")], runner=runner_of_any_kind)
    view = pool.filter(Field.NAME, "web")
    web, api = pool
    with taken(web):
        pool.start_sync()
        moved = pool.list(Field.NAME, Field.BIND, "web")[0]
        assert moved != web
        assert ([*pool], [*view]) == ([moved, api], [moved])
        assert [get(bind).text for bind in pool] == ["hello", "hello"]
        assert pool.load(web) is None
        pool.stop_sync()
    pool.start_sync()
    assert [*pool] == [moved, api], "a restart keeps the port"
    pool.stop_sync()


def test_a_server_of_a_view_or_by_itself_serves_elsewhere_too() -> None:
    pool = Pool([config_of("web"), config_of("api")])
    web, api = pool.values()
    for start, server in ((pool.filter(Field.NAME, "web").start_sync, web), (api.start_sync, api)):
        before = server.bind
        with taken(before):
            start()
        assert (server.is_running, server.bind != before, pool.load(server.bind)) == (True, True, server)
    pool.stop_sync()


def test_a_port_that_is_taken_during_the_start_is_chosen_anew() -> None:
    rivals: list[socket.socket] = []

    def take_port_once() -> dict[str, object]:
        if not rivals:
            rivals.append(socket.create_server(("127.0.0.1", int(web.rpartition(":")[2]))))
        return {"": hello}

    pool = Pool([config_of("web", app=None)], handler=take_port_once)
    (web,) = pool
    pool.start_sync()
    (moved,) = pool
    assert (moved != web, get(moved).text) == (True, "hello")
    pool.stop_sync()
    rivals[0].close()


def test_a_server_that_refers_to_another_is_told_its_new_port(
    tmp_path: Path, process_runner: ProcessRunner
) -> None:
    first = claim_port(3)
    (tmp_path / "pool.toml").write_text(
        f"""
        [pool]
        port_range = "{first}-{first + 2}"
        [[server]]
        name = "api"
        bind = "127.0.0.1:auto"
        app = "{APP}"
        app_dir = "{REPOSITORY}"
        [[server]]
        name = "user"
        command = ["{sys.executable}", "-c", "import os; open('said', 'a').write(os.environ['API'] + '\\\\n'); input()"]
        stdin = "open"
        env = {{ API = "${{server.api.url}}" }}
        """
    )
    pool = PoolConfig.load(tmp_path / "pool.toml").pool(runner=process_runner)
    (tmp_path / "said").touch()
    said = []
    for _ in range(2):
        # The second time it has been stopped.
        with taken(next(iter(pool))):
            pool.start_sync()
            said.append(pool.list(Field.NAME, Field.EXPOSE, "api")[0])
            wait_until(lambda: (tmp_path / "said").read_text().splitlines() == said)
            pool.stop_sync()
    assert len(set(said)) == 2


def configuration(directory: Path, first: int, last: int) -> PoolConfig:
    """A server with an automatic port of this range, and one with the last of these ports."""
    (directory / "pool.toml").write_text(
        f"""
        [pool]
        port_range = "{first}-{last}"
        [[server]]
        name = "web"
        bind = "127.0.0.1:auto"
        app = "{APP}"
        app_dir = "{REPOSITORY}"
        [[server]]
        name = "fixed"
        bind = "127.0.0.1:{first + 1}"
        app = "{APP}"
        disabled = true
        """
    )
    return PoolConfig.load(directory / "pool.toml")


def test_a_port_is_free_for_the_next_pool_when_no_server_uses_it(tmp_path: Path) -> None:
    first = claim_port(2)
    config = configuration(tmp_path, first, first)
    never_started = config.pool()
    assert len(never_started) == 2
    del never_started
    stopped = config.pool()
    stopped.start_sync()
    stopped.stop_sync()
    second = config.pool()
    second.start_sync()
    with pytest.raises(PoolStartError, match="did not start") as caught:
        stopped.start_sync()
    assert "in use" in caught.value.exceptions[0].message
    second.stop_sync()
    stopped.start_sync()
    stopped.stop_sync()


def test_an_automatic_port_is_none_that_another_server_has_been_given(tmp_path: Path) -> None:
    first = claim_port(2)
    config = configuration(tmp_path, first, first + 1)
    for pool in (config.pool(), Pool([*config])):
        assert f"127.0.0.1:{first + 1}" in pool
    with taken(f":{first}"), pytest.raises(PoolAddError) as caught:
        config.pool()
    assert caught.value.exceptions[0].message == f"no port is free in {first}-{first + 1}"


def test_an_automatic_port_is_none_of_the_servers_that_are_given_or_there() -> None:
    fixed = config_of("fixed", bind=Server(config_of("x")).bind)  # which the next choice would be
    dictionary = {"name": "web", "bind": "127.0.0.1:auto", "app": APP}
    pools = [Pool([Server(fixed), config_of("web")]), Pool([fixed, dictionary])]  # type: ignore[list-item]
    pools.append(Pool([fixed]))
    pools[-1].store_new(dictionary)
    assert [[server.name for server in pool.values()] for pool in pools] == [["fixed", "web"]] * 3


def refers(name: str, *to: str) -> ServerConfig:
    """A program with an automatic port and references to these servers."""
    env = {other.upper(): f"${{server.{other}.url}}" for other in to}
    command = [sys.executable, "-m", "http.server", "{port}", "--bind", "127.0.0.1"]
    return config_of(name, app=None, command=command, env=env)


def test_a_changed_copy_of_a_configuration_still_follows_the_port() -> None:
    pool = Pool([refers("web", "api"), config_of("api")])
    pool = Pool([server.config.replace(tags=("x",)) for server in pool.values()])
    web, api = pool.values()
    with taken(before := api.bind):
        api.start_sync()
    assert (api.bind != before, pool.url("api", ""), web.config.env["API"]) == (
        True, f"http://{api.bind}", f"http://{api.bind}",
    )  # fmt: skip
    pool.stop_sync()


def test_a_reference_to_a_server_that_has_left_the_pool_outlasts_a_new_port() -> None:
    pool = Pool([refers("web", "api"), config_of("api"), config_of("other")])
    web, api, other = pool.values()
    subset = Pool([web, config_of("another")])
    another = next(each for each in subset.values() if each is not web)
    pool.delete(api.bind)
    for each in (other, another):
        with taken(each.bind):
            each.start_sync()
        assert web.config.env["API"] == api.expose
        each.stop_sync()


def test_a_change_restarts_running_servers_that_refer_to_one_with_a_new_port(
    process_runner: ProcessRunner,
) -> None:
    pool = Pool([refers("web", "api"), refers("api").replace(disabled=True)], runner=process_runner)
    web, api = pool.values()
    with pool:
        with taken(api.bind):
            pool.apply_sync([refers("web", "api"), refers("api")])
        assert not web.stale
        environment = Path(f"/proc/{web.pids[0]}/environ").read_text()
        assert f"API={api.expose}\0" in environment


def test_only_what_a_new_port_concerns_is_started_again() -> None:
    rivals: list[socket.socket] = []
    attempts: list[str] = []

    def take_port_once() -> dict[str, object]:
        if not rivals:
            rivals.append(socket.create_server(("127.0.0.1", web.address.port or 0)))
        return {"": hello}

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        attempts.append(scope["type"])
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    def depends(name: str, *on: str) -> ServerConfig:
        return config_of(name, app=hello, depends_on=on)

    servers = [depends("last", "user"), depends("user", "web"), depends("both", "web", "broken")]
    pool = Pool(
        [*servers, config_of("web", app=None), config_of("broken", app=fails)],
        handler=take_port_once,
    )
    last, user, both, web, _ = pool.values()
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert [each.name for each in caught.value.exceptions] == ["both", "broken"]
    assert (last.is_running, user.is_running, both.is_running, len(attempts)) == (True, True, False, 1)
    pool.stop_sync()
    rivals[0].close()
