"""Pool as a keyed, ordered collection of servers: contract §6, what contract tests leave open."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

import poolctl.pool
from poolctl import (
    Field,
    Pool,
    PoolAddError,
    PoolConfig,
    PoolContext,
    PoolParamError,
    PoolStartError,
    PoolValidateError,
    Server,
    ServerConfig,
    State,
    Status,
)
from poolctl.pool.server import Monitor


def config(name: str, bind: str, **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": name, "bind": bind, "app": "m:app"} | keys)


@pytest.fixture
def pool() -> Pool:
    return Pool([config("a", "127.0.0.1:1"), config("b", ":2"), config("c", "unix:/run/C.sock")])


def test_a_pool_says_how_many_run(pool: Pool) -> None:
    assert repr(pool) == "<Pool 3 servers, 0 running>"
    assert repr(pool.filter(Field.NAME, "a")) == "<Pool view of 1 server, 0 running>"
    assert repr(pool["*:2"]) == "<Server b 0.0.0.0:2 stopped>"
    assert repr(PoolContext({"a": 1})) == "<PoolContext live, 1 values>"


def test_a_server_that_never_ran_has_nothing_to_say(pool: Pool) -> None:
    server = pool["127.0.0.1:1"]
    assert (server.name, server.bind, server.expose) == ("a", "127.0.0.1:1", "http://127.0.0.1:1")
    assert (server.state, server.health, server.ready) == (State.STOPPED, Status.UNKNOWN, False)
    assert (server.pids, server.endpoints, server.message, server.stale) == ([], [], "", False)
    assert server.config.app == "m:app"


def test_every_spelling_of_an_address_finds_its_server(pool: Pool) -> None:
    for spelling in (":2", "*:2", "0.0.0.0:2", "http://0.0.0.0:2", " :2 "):
        assert pool.load(spelling) is pool["0.0.0.0:2"]
        assert spelling in pool
    assert pool["unix:///run/../run/C.sock"].name == "c"


@pytest.mark.parametrize("nonsense", [None, 3, [], object(), "", ":", "a b", "127.0.0.1", "x" * 9999, "\0:1"])
def test_invalid_address_is_just_absent(pool: Pool, nonsense: Any) -> None:
    assert pool.load(nonsense) is None
    assert not pool.has(nonsense)
    assert nonsense not in pool
    pool.delete(nonsense)
    assert pool.load_and_delete(nonsense) is None
    with pytest.raises(KeyError):
        pool[nonsense]


def test_iteration_is_over_a_snapshot_of_the_pool(pool: Pool) -> None:
    for bind in pool:
        pool.delete(bind)
    assert len(pool) == 0
    pool.store_new(config("a", "127.0.0.1:1"))
    for view in (pool.keys(), pool.values(), pool.items()):
        pool.clean()
        assert len(view) == 1
        pool.store_new(config("a", "127.0.0.1:1"))


def test_replacing_keeps_the_place_and_removing_does_not(pool: Pool) -> None:
    pool.store_new(config("x", "127.0.0.1:1"))
    assert [server.name for server in pool.values()] == ["x", "b", "c"]
    pool.store(pool.load_and_delete("127.0.0.1:1"))  # type: ignore[arg-type]
    assert [server.name for server in pool.values()] == ["b", "c", "x"]


def test_stored_value_must_be_a_server_or_become_one(pool: Pool) -> None:
    for thing in (None, "127.0.0.1:9", config("x", ":9"), {}):
        with pytest.raises(PoolParamError) as caught:
            pool.store(thing)  # type: ignore[arg-type]
        assert (caught.value.code, caught.value.error) == (1320, "ErrorParamEmpty")
    for thing in (None, "x"):
        with pytest.raises(PoolParamError):
            pool.store_new(thing)  # type: ignore[arg-type]
        with pytest.raises(PoolParamError):
            Server(thing)  # type: ignore[arg-type]
    with pytest.raises(PoolValidateError):
        pool.store_new({"name": "x", "bind": "nowhere"})
    assert pool.store_new({"name": "x", "listen": ":9", "app": "m:app"}).bind == "0.0.0.0:9"
    assert len(pool) == 4


@pytest.mark.parametrize(
    ("present", "late"),
    [
        ("127.0.0.1:80", "0.0.0.0:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("[::]:80", "0.0.0.0:80"),
        (":80", "[::1]:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("[::1]:80", "localhost:80"),
        ("example.org:80", "[::]:80"),
        ("[fe80::1%eth0]:80", "[fe80::1]:80"),
    ],
)
def test_an_address_that_overlaps_is_refused_and_changes_nothing(present: str, late: str) -> None:
    pool = Pool([config("present", present)])
    with pytest.raises(PoolAddError) as caught:
        pool.store(Server(config("late", late)))
    (error,) = caught.value.exceptions
    assert (error.code, error.name) == (1321, "late")
    assert "overlaps with that of 'present'" in error.message
    assert [server.name for server in pool.values()] == ["present"]


@pytest.mark.parametrize(
    ("present", "late"),
    [
        ("127.0.0.1:80", "127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("0.0.0.0:80", "[::1]:80"),
        ("[fe80::1%eth0]:80", "[fe80::1%eth1]:80"),
        ("unix:/a", "unix:/b"),
        ("fd:3", "0.0.0.0:80"),
    ],
)
def test_addresses_that_do_not_overlap_live_side_by_side(present: str, late: str) -> None:
    assert len(Pool([config("present", present), config("late", late)])) == 2


def test_wildcards_are_checked_in_large_pools_too_while_servers_come_and_go() -> None:
    pool = Pool(config(f"s{port}", f"127.0.0.1:{port}") for port in range(1, 201))
    for port in (300, 301):
        pool.store_new(config("all", f"0.0.0.0:{port}"))
    with pytest.raises(PoolAddError):
        pool.store_new(config("all", "0.0.0.0:100"))
    pool.delete("127.0.0.1:100")
    pool.store_new(config("all", "0.0.0.0:100"))
    with pytest.raises(PoolAddError):
        pool.store_new(config("s100", "127.0.0.1:100"))
    pool.delete("0.0.0.0:300")
    pool.store_new(config("s300", "127.0.0.1:300"))
    with pytest.raises(PoolAddError):
        pool.store_new(config("all", "[::]:300"))
    pool.clean()
    pool.store_new(config("all", "0.0.0.0:1"))


def test_a_pool_of_overlapping_servers_tells_all_and_holds_the_others() -> None:
    with pytest.raises(PoolAddError) as caught:
        Pool(
            [config(f"s{n}", bind) for n, bind in enumerate([":1", "127.0.0.1:1", "127.0.0.1:2", "[::1]:1"])]
        )
    assert [error.name for error in caught.value.exceptions] == ["s1", "s3"]
    assert [server.name for server in caught.value.pool.values()] == ["s0", "s2"]


# Filters.


def test_a_pattern_is_folded_and_canonicalised(pool: Pool) -> None:
    def names(field: Any, pattern: str = "", regex: str = "") -> list[str]:
        return pool.list(field, Field.NAME, pattern, regex)

    assert names(Field.NAME, "A") == ["a"]
    assert names(Field.BIND, ":2") == ["b"]
    assert names(Field.BIND, "UNIX:/RUN/C.SOCK") == ["c"]
    assert names(Field.BIND, "nonsense") == []
    assert names(Field.EXPOSE, "localhost:2") == ["b"]
    assert names(Field.EXPOSE, "HTTP://localhost:2") == ["b"]
    assert names(Field.EXPOSE, "localhost") == []
    assert names(Field.EXPOSE, "ocalhost:2") == []
    assert names(Field.EXPOSE, "nothing", "^http") == ["a", "b"]
    assert names(Field.EXPOSE, "127.0.0.1:1", "localhost") == ["a", "b"]
    assert names("name", "a") == ["a"]
    assert names(Field.NAME, regex="") == []
    assert pool.list(Field.NAME, Field.BIND, regex=".") == ["127.0.0.1:1", "0.0.0.0:2", "unix:/run/C.sock"]


@pytest.mark.parametrize(
    "arguments",
    [("colour", "a"), (Field.NAME, None), (Field.NAME, "", 3), (Field.NAME, "", "["), (None, "a")],
)
def test_a_bad_parameter_of_a_filter_is_named(pool: Pool, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PoolParamError) as caught:
        pool.filter(*arguments)
    assert caught.value.exceptions[0].code == 1320


def test_a_bad_expression_shows_the_place(pool: Pool) -> None:
    with pytest.raises(PoolParamError) as caught:
        pool.filter(Field.NAME, regex="ab(c")
    assert str(caught.value) == (
        "invalid regular expression 'ab(c': missing ), unterminated subpattern at position 2"
    )
    assert caught.value.exceptions[0].hint == "ab(c\n  ^"
    with pytest.raises(PoolParamError):
        pool.filter(Field.NAME, regex="(" * 50_000 + ")" * 50_000)


def test_a_bad_target_is_a_parameter_error_even_if_nothing_matches(pool: Pool) -> None:
    with pytest.raises(PoolParamError):
        pool.list(Field.NAME, "colour", "nothing")  # type: ignore[arg-type]


def test_a_view_of_a_view_and_what_is_stored_in_it_stay_there(pool: Pool) -> None:
    view = pool.filter(Field.NAME, regex="[ab]")
    assert view.filter(Field.NAME, "b")["*:2"] is pool["*:2"]
    view.store_new(config("x", "127.0.0.1:9"))
    assert "127.0.0.1:9" not in pool
    whole = pool.filter(Field.NAME, regex=".")
    whole.clean()
    assert len(pool) == 3


# Clone and merge.


def test_a_clone_shares_nothing_that_changes() -> None:
    context = PoolContext({"db": 1})
    pool = Pool([config("a", ":1")], handler=dict, context=context)
    twin = pool.clone()
    pool.merge(Pool([config("renamed", ":1")]))
    context.cancel()
    twin.handler(lambda: {"": None})
    assert [server.name for server in twin.values()] == ["a"]
    assert twin._shared.context is not None
    assert (twin._shared.context.cancelled, twin._shared.context.values) == (False, {"db": 1})
    assert pool._shared.handler is dict


def test_merging_adds_the_very_servers_and_tells_those_that_overlap(pool: Pool) -> None:
    other = Pool([config("b2", "0.0.0.0:2"), config("x", "127.0.0.1:9"), config("all", "[::]:1")])
    with pytest.raises(PoolAddError) as caught:
        pool.merge(other)
    assert [error.name for error in caught.value.exceptions] == ["all"]
    assert caught.value.pool is pool
    assert [server.name for server in pool.values()] == ["a", "b2", "c", "x"]
    assert pool["127.0.0.1:9"] is other["127.0.0.1:9"]
    assert pool["*:2"] is not other["*:2"]
    pool.merge(pool)
    with pytest.raises(PoolParamError):
        pool.merge([config("x", ":9")])  # type: ignore[arg-type]


def test_filters_see_what_a_merge_has_changed(pool: Pool) -> None:
    pool.merge(Pool([config("renamed", "127.0.0.1:1", expose="https://new")]))
    assert pool.list(Field.EXPOSE, Field.NAME, "new") == ["renamed"]


def test_a_handler_must_be_callable(pool: Pool) -> None:
    with pytest.raises(PoolParamError):
        pool.handler({"": object()})  # type: ignore[arg-type]


def test_none_is_no_handler_and_takes_one_away(free_port: Callable[[], int]) -> None:
    pool = Pool([config("a", f"127.0.0.1:{free_port()}", app=None)], handler=dict)
    pool.handler(None)
    with pytest.raises(PoolStartError) as failed:
        pool.start_sync()
    assert "no handler" in str(failed.value.to_list())


# Automatic ports.


def test_range_without_a_free_port_is_an_error_with_a_fix(free_port: Callable[[], int]) -> None:
    port = free_port()
    made = PoolConfig([config("a", "127.0.0.1:auto"), config("b", "127.0.0.1:auto")])
    made.settings = type(made.settings)(port_range=f"{port}-{port}")
    with pytest.raises(PoolAddError) as caught:
        made.pool()
    (error,) = caught.value.exceptions
    assert (error.name, error.message) == ("b", f"no port is free in {port}-{port}")
    assert "port_range" in error.hint
    assert list(caught.value.pool) == [f"127.0.0.1:{port}"]


def test_the_derived_expose_follows_the_chosen_port() -> None:
    server = Server(config("a", "127.0.0.1:auto"))
    assert server.expose == f"http://{server.bind}"
    assert 20000 <= (server.config.address.port or 0) <= 29999


# The rest.


def test_a_server_is_not_pickled_silently() -> None:
    with pytest.raises(TypeError, match="pickle its config"):
        pickle.dumps(Server(config("a", ":1")))


def test_a_monitor_does_not_change(pool: Pool) -> None:
    monitor = pool.monitor()[0]
    assert isinstance(monitor, Monitor)
    assert repr(monitor) == "<Monitor a ko, up 0.0% (stopped)>"
    with pytest.raises(AttributeError):
        monitor.status = Status.OK  # type: ignore[misc]


def test_the_package_gives_what_it_promises_and_nothing_else() -> None:
    for name in poolctl.__all__:
        assert getattr(poolctl, name) is not None
    assert poolctl.__version__.count(".") >= 2
    assert set(poolctl.__all__) <= set(dir(poolctl))
    with pytest.raises(AttributeError):
        poolctl.nothing  # noqa: B018
    assert poolctl.pool.Pool is Pool
    with pytest.raises(AttributeError):
        poolctl.pool.nothing  # noqa: B018


@pytest.mark.parametrize("name", poolctl.pool.__all__)
def test_names_of_the_package_are_those_of_the_api(name: str) -> None:
    assert getattr(poolctl.pool, name) is getattr(poolctl, name)


def test_a_server_costs_the_pool_at_most_150_bytes() -> None:
    base = config("s", "127.0.0.1:1")
    many = [base.at(base.address.with_port(port)).but(name=f"s{port}") for port in range(1, 20_001)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        pool = Pool(many)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(pool) <= 150


def test_health_of_a_server_that_should_not_run_is_unknown(pool: Pool) -> None:
    assert pool.health_info_simple() == {"a": "unknown", "b": "unknown", "c": "unknown"}
    found = pool.health_info_without_detail()["a"]
    assert (found["status"], found["uptime_seconds"], found["latency_seconds"]) == ("unknown", 0.0, None)
    assert "detail" not in found
    assert "detail" in pool.health_info()["a"]
