"""Contract §6: Pool and Server in this process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

import poolctl
from poolctl import (
    Field,
    Monitor,
    Pool,
    PoolAddError,
    PoolConfig,
    PoolParamError,
    Server,
    ServerConfig,
    Status,
)

EXPORTED = [
    "Pool", "PoolConfig", "Server", "ServerConfig", "Field", "PoolContext", "TLSConfig", "Monitor", "Status", "State",
    "connect", "PoolError", "ServerError", "PoolParamError", "PoolAddError", "PoolValidateError", "PoolStartError",
    "PoolStopError", "PoolRestartError", "PoolMonitorError", "PoolClient", "Runner", "ProcessRunner",
]  # fmt: skip


def make(name: str, port: int, **keys: Any) -> ServerConfig:
    keys.setdefault("app", hello)
    return ServerConfig(name=name, bind=f"127.0.0.1:{port}", **keys)


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send(
        {"type": "http.response.body", "body": str(scope.get("state", {}).get("colour", "hello")).encode()}
    )


async def broken(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})


@pytest.fixture
def pool() -> Pool:
    return Pool(
        [make("users-api", 8081), make("orders-api", 8082), make("admin", 9000, expose="https://adm.local")]
    )


def test_everything_promised_is_exported() -> None:
    for name in EXPORTED:
        assert getattr(poolctl, name) is not None
        assert name in dir(poolctl)
    with pytest.raises(AttributeError):
        poolctl.nonsense  # noqa: B018


def test_a_pool_is_a_mapping_in_order_of_insertion(pool: Pool) -> None:
    assert isinstance(pool, Mapping)
    assert list(pool) == ["127.0.0.1:8081", "127.0.0.1:8082", "127.0.0.1:9000"]
    assert len(pool) == 3
    assert pool["127.0.0.1:9000"].name == "admin"
    assert "127.0.0.1:8081" in pool
    assert "http://127.0.0.1:8081" in pool, "any spelling"
    assert [server.name for server in pool.values()] == ["users-api", "orders-api", "admin"]
    with pytest.raises(KeyError):
        pool["127.0.0.1:1"]


def test_load_takes_any_spelling_and_returns_none_for_the_rest(pool: Pool) -> None:
    assert pool.load("127.0.0.1:8081") is pool["127.0.0.1:8081"]
    assert pool.load("http://127.0.0.1:8081") is pool["127.0.0.1:8081"]
    assert pool.load("[::ffff:127.0.0.1]:8081") is pool["127.0.0.1:8081"]
    for absent in ("127.0.0.1:1", "no address at all", ""):
        assert pool.load(absent) is None
        assert not pool.has(absent)
    assert pool.has("127.0.0.1:8081")


def test_delete_of_an_absent_address_is_no_error(pool: Pool) -> None:
    pool.delete("127.0.0.1:1")
    pool.delete("http://127.0.0.1:8081")
    assert not pool.has("127.0.0.1:8081")
    server = pool.load_and_delete("127.0.0.1:8082")
    assert server is not None
    assert server.name == "orders-api"
    assert pool.load_and_delete("127.0.0.1:8082") is None
    pool.clean()
    assert len(pool) == 0


def test_store_replaces_the_server_of_that_address_in_its_place(pool: Pool) -> None:
    stored = pool.store_new(make("renamed", 8081))
    assert isinstance(stored, Server)
    assert pool.load("127.0.0.1:8081") is stored
    assert len(pool) == 3
    other = Server(make("again", 8082))
    pool.store(other)
    assert pool["127.0.0.1:8082"] is other


def test_an_overlapping_address_is_a_pool_add_error(pool: Pool) -> None:
    with pytest.raises(PoolAddError) as caught:
        pool.store_new(ServerConfig(name="all", bind="0.0.0.0:8081", app=hello))
    assert caught.value.code == 1321
    assert caught.value.error == "ErrorPoolAdd"
    assert len(pool) == 3


def test_walk_is_over_a_snapshot_and_false_stops(pool: Pool) -> None:
    seen: list[str] = []
    assert pool.walk(lambda bind, server: seen.append(server.name)) is True, "None goes on, too"
    assert seen == ["users-api", "orders-api", "admin"]
    seen.clear()
    assert pool.walk(lambda bind, server: bool(seen.append(server.name))) is False
    assert seen == ["users-api"]

    def remove(bind: str, server: Server) -> bool:
        pool.delete(bind)
        return True

    assert pool.walk(remove) is True
    assert len(pool) == 0


def test_walk_limit_visits_the_named_and_skips_the_unknown(pool: Pool) -> None:
    seen: list[str] = []

    def visit(bind: str, server: Server) -> bool:
        seen.append(server.name)
        return True

    assert pool.walk_limit(visit, "127.0.0.1:9000", "127.0.0.1:1", "http://127.0.0.1:8081") is True
    assert sorted(seen) == ["admin", "users-api"]
    seen.clear()
    pool.walk_limit(visit)
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("field", "pattern", "regex", "names"),
    [
        (Field.NAME, "ADMIN", "", ["admin"]),
        (Field.NAME, "", "-api$", ["users-api", "orders-api"]),
        (Field.NAME, "admin", "^users", ["users-api", "admin"]),
        (Field.NAME, "adm", "", []),
        (Field.NAME, "", "", []),
        (Field.NAME, "", "API", []),
        (Field.BIND, "127.0.0.1:8081", "", ["users-api"]),
        (Field.BIND, "http://127.0.0.1:8081", "", ["users-api"]),
        (Field.BIND, "", ":80", ["users-api", "orders-api"]),
        (Field.EXPOSE, "adm.local", "", ["admin"]),
        (Field.EXPOSE, "https://ADM.local", "", ["admin"]),
        (Field.EXPOSE, "http://adm.local", "", []),
    ],
)
def test_filter_matches_pattern_or_regex(
    pool: Pool, field: Field, pattern: str, regex: str, names: list[str]
) -> None:
    chosen = pool.filter(field, pattern, regex)
    assert [server.name for server in chosen.values()] == names
    assert pool.list(field, Field.NAME, pattern, regex) == names


def test_an_invalid_regex_is_a_parameter_error(pool: Pool) -> None:
    with pytest.raises(PoolParamError) as caught:
        pool.filter(Field.NAME, regex="(")
    assert caught.value.code == 1320
    with pytest.raises(PoolParamError):
        pool.list(Field.NAME, Field.BIND, regex="(")


def test_a_view_shares_servers_and_removing_from_it_removes_nothing_here(pool: Pool) -> None:
    view = pool.filter(Field.NAME, regex="api")
    assert view["127.0.0.1:8081"] is pool["127.0.0.1:8081"]
    view.delete("127.0.0.1:8081")
    view.clean()
    assert len(pool) == 3


def test_a_clone_is_independent(pool: Pool) -> None:
    clone = pool.clone()
    assert [*clone] == [*pool]
    assert clone["127.0.0.1:8081"] is not pool["127.0.0.1:8081"]
    clone.delete("127.0.0.1:8081")
    assert len(pool) == 3
    assert not clone.is_running


def test_merge_adds_and_takes_the_others_configuration(pool: Pool) -> None:
    pool.merge(Pool([make("renamed", 8081), make("new", 8083)]))
    assert [server.name for server in pool.values()] == ["renamed", "orders-api", "admin", "new"]


def test_monitors_are_frozen_snapshots(pool: Pool) -> None:
    assert len(pool.monitor_names()) == 3
    monitors = pool.monitor()
    assert all(isinstance(monitor, Monitor) for monitor in monitors)
    for name in ("status", "latency", "uptime", "downtime", "rise", "fall", "sli", "message"):
        assert hasattr(monitors[0], name)
    with pytest.raises((AttributeError, TypeError)):
        monitors[0].status = Status.OK


def test_any_method_from_any_thread(pool: Pool) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(50):
                port = 20_000 + number * 100 + turn
                pool.store_new(make(f"s{port}", port))
                assert pool.load(f"127.0.0.1:{port}") is not None
                pool.filter(Field.NAME, regex="^s")
                pool.walk(lambda bind, server: True)
                assert pool.load_and_delete(f"127.0.0.1:{port}") is not None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(pool) == 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: Pool(None),  # type: ignore[arg-type]
        lambda: Pool(ServerConfig(name="a", bind="127.0.0.1:8081")),  # type: ignore[arg-type]
        lambda: Pool(["a"]),  # type: ignore[list-item]
        lambda: Pool(handler=3),  # type: ignore[arg-type]
        lambda: Pool(context=3),  # type: ignore[arg-type]
        lambda: Pool(runner=3),  # type: ignore[arg-type]
        lambda: PoolConfig.load("pool.toml", "production.toml"),  # type: ignore[arg-type]
    ],
)
def test_value_of_another_type_is_a_parameter_error(make: Any) -> None:
    with pytest.raises(PoolParamError) as caught:
        make()
    assert caught.value.code == 1320


def test_config_makes_a_pool_of_its_valid_servers_and_names_the_others() -> None:
    config = PoolConfig([make("a", 8081), {"name": "b", "bind": "127.0.0.1:8082", "bogus": 1}])
    with pytest.raises(PoolAddError) as caught:
        config.pool()
    assert [*caught.value.pool] == ["127.0.0.1:8081"]
    assert copy.copy(config) is not None


def test_two_servers_of_a_list_with_one_address_are_an_error_of_both(free_port: Callable[[], int]) -> None:
    port = free_port()
    with pytest.raises(PoolAddError) as caught:
        Pool(
            [
                ServerConfig(name="users", bind=f":{port}", app="a:b"),
                ServerConfig(name="other", bind="127.0.0.1:auto", app="a:b"),
                ServerConfig(name="orders", bind=f"*:{port}", app="a:b"),
            ]
        )
    assert [each.name for each in caught.value.exceptions] == ["users", "orders"]
    assert all(f"0.0.0.0:{port}" in each.message for each in caught.value.exceptions)
    assert caught.value.pool is not None
    assert [each.name for each in caught.value.pool.values()] == ["other"]


def test_package_shows_its_public_names_alone() -> None:
    assert dir(poolctl) == sorted(poolctl.__all__)
