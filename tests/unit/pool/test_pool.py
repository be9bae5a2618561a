"""Pool as a keyed, ordered collection of servers, and its hot reload: contract §6, what contract tests leave open."""

from __future__ import annotations

import asyncio
import re
import threading
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from poolctl import (
    Field,
    Pool,
    PoolAddError,
    PoolConfig,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    PoolValidateError,
    Server,
    ServerConfig,
    State,
    Status,
)
from poolctl.address import canonical, overlaps, parse
from poolctl.runners.stack_report import WorkerStacks
from tests.asgi_apps import hello
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.examples import examples
from tests.unit.pool.test_server import config as scripted
from tests.unit.pool.test_server import made, on_loop
from tests.unit.runners.scripted_runner import FAILS, NEVER, ScriptedRunner


def config(name: str, bind: str, **keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": name, "bind": bind, "app": "m:app"} | keys)


@pytest.fixture
def pool() -> Pool:
    return Pool([config("a", "127.0.0.1:1"), config("b", ":2"), config("c", "unix:/run/C.sock")])


def test_a_pool_says_how_many_run(pool: Pool) -> None:
    assert repr(pool) == "<Pool 3 servers, 0 running>"
    assert repr(pool.filter(Field.NAME, "a")) == "<Pool view of 1 server, 0 running>"
    assert repr(pool["*:2"]) == "<Server b 0.0.0.0:2 stopped>"
    assert repr(pool.monitor()[0]) == "<Monitor a ko, up 0.0% (stopped)>"


def test_join_raises_an_error_of_each_server_that_could_not_be_ended() -> None:
    runner = ScriptedRunner()
    runner.deaf, may_stop = {"a", "b"}, asyncio.Event()
    runner.may_stop = may_stop
    pool = made(runner, scripted("a", stop_timeout=0), scripted("b", stop_timeout=0))
    pool.start_sync()
    servers = list(pool.values())

    async def clean_and_join() -> None:
        pool.clean()
        joining = asyncio.ensure_future(pool.join())
        await asyncio.sleep(0)  # it has begun
        on_loop(may_stop.set)
        await joining

    with pytest.raises(PoolStopError, match="2 servers did not stop") as caught:
        asyncio.run(clean_and_join())
    assert sorted(error.name for error in caught.value.exceptions) == ["a", "b"]
    runner.deaf.clear()
    for server in servers:
        server.stop_sync()


def test_a_server_that_never_ran_has_nothing_to_say(pool: Pool) -> None:
    server = pool["127.0.0.1:1"]
    assert (server.name, server.bind, server.expose) == ("a", "127.0.0.1:1", "http://127.0.0.1:1")
    assert (server.state, server.health, server.ready) == (State.STOPPED, Status.UNKNOWN, False)
    assert (server.pids, server.endpoints, server.message, server.stale) == ([], [], "", False)
    assert server.config.app == "m:app"


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
    view = pool.filter(Field.NAME, "s101")
    with pytest.raises(PoolAddError):
        view.store_new(config("all", "0.0.0.0:101"))
    view.store_new(config("all", "0.0.0.0:102"))  # whose server is not in the view
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


@pytest.mark.parametrize(
    "arguments",
    [("colour", "a"), (Field.NAME, None), (Field.NAME, "", 3), (Field.NAME, "", "["), (None, "a")],
)
def test_a_bad_parameter_of_a_filter_is_named(pool: Pool, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(PoolParamError) as caught:
        pool.filter(*arguments)
    assert caught.value.exceptions[0].code == 1320


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


# The rest.


@pytest.mark.slow
def test_a_server_costs_the_pool_at_most_150_bytes() -> None:
    base = config("s", "127.0.0.1:1")
    many = [
        base.at(base.address.with_port(port)).model_copy(update={"name": f"s{port}"})
        for port in range(1, 5_001)
    ]
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


def test_health_of_servers_of_one_name_is_numbered() -> None:
    twins = Pool([config("a", "127.0.0.1:1"), config("a", "127.0.0.1:2"), config("b", "127.0.0.1:3")])
    for found in (twins.health_info(), twins.health_info_without_detail(), twins.health_info_simple()):
        assert list(found) == ["a", "a~2", "b"]


# What a pool asks of its runner when it is brought to another list of servers.


def states(pool: Pool) -> dict[str, str]:
    return {server.name: str(server.state) for server in pool.values()}


def failures(pool: Pool, configs: Any) -> dict[str, str]:
    with pytest.raises(PoolRestartError) as caught:
        pool.apply_sync(configs)
    return {error.name: error.message for error in caught.value.exceptions}


def test_only_what_differs_is_touched() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("same"), scripted("other"), scripted("gone"))
    pool.start_sync()
    same, other, gone = pool.values()
    runner.log.clear()
    pool.apply_sync([scripted("new"), scripted("same"), scripted("other", stop_timeout=7)])
    assert [server.name for server in pool.values()] == ["new", "same", "other"]
    assert states(pool) == dict.fromkeys(["new", "same", "other"], "running")
    pool.join_sync()
    assert sorted(runner.log) == [
        f"close {gone.bind}", "drain other.1.0", "open new", "place new.1.0", "place other.2.0", "stop gone.1.0 10",
        "stop other.1.0 10",
    ]  # fmt: skip
    assert (pool[same.bind], pool[other.bind]) == (same, other)
    assert not any(server.stale for server in pool.values())
    assert gone.state is State.STOPPED
    runner.log.clear()
    pool.apply_sync([scripted("new"), scripted("same"), scripted("other", stop_timeout=7)])
    assert runner.log == []
    pool.stop_sync()


def test_apply_inside_a_loop_starts_new_servers_after_those_whose_address_they_get() -> None:
    runner = ScriptedRunner()

    async def scenario() -> None:
        async with made(runner, scripted("old")) as pool:
            await pool.apply([scripted("new", bind=scripted("old").bind)])
            assert states(pool) == {"new": "running"}

    asyncio.run(scenario())
    assert runner.log[:4] == ["open old", "place old.1.0", "stop old.1.0 10", "place new.1.0"]


def test_pool_that_does_not_run_gets_its_servers_and_starts_none() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"))
    pool.apply_sync([scripted("a", stop_timeout=1), scripted("b")])
    assert (runner.log, states(pool)) == ([], {"a": "stopped", "b": "stopped"})
    assert pool[scripted("a").bind].config.stop_timeout == 1


def test_pool_that_was_started_empty_starts_what_it_gets() -> None:
    pool = made(ScriptedRunner())
    pool.start_sync()
    pool.apply_sync([scripted("a")])
    assert states(pool) == {"a": "running"}
    pool.stop_sync()
    pool.apply_sync([scripted("a"), scripted("b")])
    assert states(pool) == {"a": "stopped", "b": "stopped"}


def test_stopped_server_stays_stopped_and_a_failed_one_is_tried_again_when_it_differs() -> None:
    runner = ScriptedRunner(failed=FAILS, hopeless=FAILS)
    servers = [scripted("stopped"), scripted("failed"), scripted("hopeless"), scripted("runs")]
    pool = made(runner, *servers)
    with pytest.raises(PoolStartError):
        pool.start_sync()
    pool[servers[0].bind].stop_sync()
    runner.script.clear()
    runner.log.clear()
    pool.apply_sync(
        [
            servers[0].model_copy(update={"stop_timeout": 1}),
            servers[1].model_copy(update={"stop_timeout": 1}),
            *servers[2:],
        ]
    )
    assert states(pool) == {
        "stopped": "stopped",
        "failed": "running",
        "hopeless": "failed",
        "runs": "running",
    }
    assert runner.log == ["open failed", "place failed.1.0"]
    pool.stop_sync()


def test_workers_take_over_what_needs_no_new_process() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a", workers=1))
    pool.start_sync()
    pool.apply_sync([scripted("a", workers=3, tags=["x"])])
    (server,) = pool.values()
    assert list(runner.running) == ["a.1.0", "a.1.1", "a.1.2"]
    assert (server.config.tags, server.stale) == (("x",), False)
    pool.apply_sync([scripted("a", tags=["x"])])
    wait_until(lambda: list(runner.running) == ["a.1.0"])
    pool.stop_sync()


def test_worker_that_a_live_change_adds_and_that_fails_leaves_the_others() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"))
    pool.start_sync()
    runner.script["a.1.1"] = FAILS
    said = failures(
        pool, [scripted("a", workers=2, restart={"backoff": {"initial": 60}}), scripted("b", workers=2)]
    )
    assert list(said) == ["a"]
    assert "a.1.0" in runner.running
    assert "b.1.1" in runner.running
    pool.stop_sync()


def test_failed_replacement_leaves_the_old_worker_and_does_not_keep_others_from_changing() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"), scripted("gone"))
    pool.start_sync()
    runner.script = {"a": FAILS, "new": FAILS}
    newer = [scripted("a", stop_timeout=1), scripted("b", stop_timeout=1), scripted("new")]
    assert failures(pool, newer) == {
        "a": "exited with status 3 before it was ready; the old instance serves on",
        "new": "exited with status 3 before it was ready",
    }
    pool.join_sync()
    assert sorted(runner.running) == ["a.1.0", "b.2.0"]
    (a, *_) = pool.values()
    assert (a.state, a.stale) == (State.RUNNING, True)
    assert "a" in failures(pool, newer), "it still differs"
    runner.script.clear()
    pool.apply_sync([scripted("a"), scripted("b", stop_timeout=1), scripted("new", stop_timeout=1)])
    assert not a.stale
    assert "a.1.0" in runner.running, "it runs as it should"
    pool.stop_sync()


def test_invalid_servers_stay_as_they_are_and_the_others_change() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"), scripted("c"))
    pool.start_sync()
    invalid = {"name": "a", "bind": scripted("a").bind, "app": "m:app", "workers": "many"}
    taken = scripted("c", bind=scripted("a").bind)
    said = failures(pool, [invalid, scripted("b", stop_timeout=1), taken])
    assert list(said) == ["a", "c"]
    assert said["c"] == f"the address {scripted('a').bind} is taken by 'a'"
    pool.join_sync()
    assert sorted(runner.running) == ["a.1.0", "b.2.0", "c.1.0"]
    assert {server.name: server.bind for server in pool.values()} == {
        name: scripted(name).bind for name in "abc"
    }
    pool.stop_sync()


def test_problem_without_a_name_takes_no_server_out() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"))
    pool.start_sync()
    failures(pool, [scripted("a"), object()])
    assert states(pool) == {"a": "running", "b": "running"}
    pool.stop_sync()


def test_servers_may_exchange_their_addresses() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"))
    pool.start_sync()
    a, b = pool.values()
    view = pool.filter(Field.NAME, "a")
    pool.apply_sync([scripted("a", bind=scripted("b").bind), scripted("b", bind=scripted("a").bind)])
    assert (pool[scripted("b").bind], pool[scripted("a").bind]) == (a, b)
    assert a.ready
    assert b.ready
    assert runner.opened == set(pool)
    assert view.load_and_delete(scripted("a").bind) is a
    pool.stop_sync()


def test_automatic_port_is_kept() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a", bind="127.0.0.1:auto"))
    pool.start_sync()
    (bind,) = pool
    pool.apply_sync([scripted("a", bind="127.0.0.1:auto")])
    assert list(pool) == [bind]
    assert list(runner.running) == ["a.1.0"]
    pool.apply_sync(PoolConfig([scripted("a", bind="127.0.0.1:auto", stop_timeout=1)]))
    assert list(pool) == [bind]
    pool.stop_sync()


def test_server_that_is_disabled_stops_and_starts_when_it_is_enabled() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"))
    pool.start_sync()
    pool.apply_sync([scripted("a", disabled=True), scripted("b")])
    assert (states(pool), list(runner.running)) == ({"a": "disabled", "b": "running"}, ["b.1.0"])
    pool.apply_sync([scripted("a"), scripted("b")])
    assert states(pool) == {"a": "running", "b": "running"}
    pool.stop_sync()


def test_new_server_waits_for_one_that_it_depends_on_and_that_does_not_change() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("db"))
    pool.start_sync()
    pool.apply_sync([scripted("db"), scripted("web", depends_on=["db"])])
    assert states(pool) == {"db": "running", "web": "running"}
    runner.log.clear()
    pool.stop_sync()
    assert [line for line in runner.log if line.startswith("stop")] == ["stop web.1.0 10", "stop db.1.0 10"]


def test_certificate_that_has_changed_is_given_to_the_worker(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    cert, key = certificate(tmp_path)
    servers = PoolConfig([scripted("a", tls=True), scripted("b")])
    servers.set_default_tls({"cert": str(cert), "key": str(key)})
    pool = servers.pool(runner=runner)
    pool.start_sync()
    pool.apply_sync(servers)
    assert not any(line.startswith("tls") for line in runner.log)
    (tmp_path / "other").mkdir()
    cert, key = certificate(tmp_path / "other")
    servers.set_default_tls({"cert": str(cert), "key": str(key)})
    pool.apply_sync(servers)
    assert list(runner.running) == ["a.1.0", "b.1.0"]
    assert runner.log.count("tls a.1.0") == 1
    pool.apply_sync(servers)
    assert runner.log.count("tls a.1.0") == 1
    certificate(tmp_path / "other")  # other files of the same names
    pool.apply_sync(servers)
    assert runner.log.count("tls a.1.0") == 2
    pool.stop_sync()


def test_server_that_cannot_be_ended_is_among_the_failures() -> None:
    runner = ScriptedRunner()
    runner.deaf = {"gone"}
    pool = made(runner, scripted("a"), scripted("gone", stop_timeout=0.01))
    pool.start_sync()
    gone = pool[scripted("gone").bind]
    assert list(failures(pool, [scripted("a")])) == ["gone"]
    assert list(pool) == [scripted("a").bind]
    runner.deaf.clear()
    gone.stop_sync()
    pool.stop_sync()


def test_second_apply_undoes_one_that_is_under_way() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"))
    pool.start_sync()
    runner.script["a.2.0"] = NEVER
    thread = threading.Thread(target=_quietly(pool, [scripted("a", stop_timeout=1)]))
    thread.start()
    wait_until(lambda: "place a.2.0" in runner.log)
    pool.apply_sync([scripted("a")])
    thread.join(60)
    (server,) = pool.values()
    assert (server.ready, server.stale) == (True, False)
    assert "a.2.0" not in runner.running
    pool.stop_sync()


def _quietly(pool: Pool, configs: list[ServerConfig]) -> Any:
    def run() -> None:
        try:
            pool.apply_sync(configs)
        except PoolRestartError:
            pass

    return run


def test_views_and_what_is_no_list_are_refused() -> None:
    pool = made(ScriptedRunner(), scripted("a"))
    with pytest.raises(PoolParamError, match="view"):
        pool.filter(Field.NAME, "a").apply_sync([])
    with pytest.raises(PoolParamError, match="no list of servers"):
        pool.apply_sync(7)  # type: ignore[arg-type]
    assert len(pool) == 1


def test_the_blocking_twin_refuses_the_pools_own_loop() -> None:
    pool = made(ScriptedRunner(), scripted("a"))
    with pytest.raises(RuntimeError, match="would block"):
        on_loop(lambda: pool.apply_sync([]))


def test_stacks_of_servers_in_this_process_are_those_of_its_thread(free_port: Callable[[], int]) -> None:
    there = ServerConfig(name="here", bind=f"127.0.0.1:{free_port()}", app=hello)
    pool = Pool([there, config("idle", "127.0.0.1:2")])
    assert pool.stacks() == []
    pool.filter(Field.NAME, "here").start_sync()
    try:
        (found,) = pool.stacks()
        assert (found.name, found.source, found.problem) == ("here", "python", "")
        assert found.threads[0].main
        assert found.threads[0].frames
        assert found.tasks
    finally:
        pool.stop_sync()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"servers": config("a", ":1")}, "a pool takes a list of servers"),
        ({"servers": 3}, "a pool takes a list of servers, and this is 3"),
        ({"context": {}}, "{} is no PoolContext"),
        ({"runner": object}, "is no runner"),
    ],
)
def test_argument_of_another_kind_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(PoolParamError) as caught:
        Pool(**given)
    assert problem in str(caught.value)


def test_pool_that_does_not_run_has_no_uptime_and_no_stacks(pool: Pool) -> None:
    assert (pool.is_running, pool.uptime, pool.stacks()) == (False, timedelta(), [])
    assert Pool().uptime == timedelta()
    assert pool.monitor_names() == [server.name for server in pool.values()]
    assert [each.name for each in pool.monitor()] == pool.monitor_names()
    pool.join_sync()


def test_metrics_of_servers_of_one_name_are_numbered() -> None:
    twins = Pool([config("a", "127.0.0.1:1"), config("a", "127.0.0.1:2")])
    text = twins.metrics()
    assert 'server="a"' in text
    assert 'server="a~2"' in text
    assert 'poolctl_servers{state="stopped"} 2' in text


def test_metrics_count_what_a_server_has_done_while_it_runs_and_afterwards() -> None:
    pool = made(ScriptedRunner(), scripted("a"), scripted("idle"))
    for _ in range(2):
        pool.filter(Field.NAME, "a").restart_sync()
    text = pool.metrics()
    assert 'poolctl_servers{state="running"} 1' in text
    assert re.search(r'poolctl_server_restarts_total{.*server="a".*} 1', text)
    pool.stop_sync()
    text = pool.metrics()
    assert 'poolctl_servers{state="running"} 0' in text
    assert re.search(r'poolctl_server_restarts_total{.*server="a".*} 1', text)


class StackRunner(ScriptedRunner):
    """Knows where each of its workers is."""

    async def stacks(self, placement_id: str, timeout_seconds: float) -> WorkerStacks:
        return WorkerStacks(name="its", worker=placement_id, pid=7, place=f"within {timeout_seconds > 0}")

    async def pass_queue_or_refuse(self, stacks: list[WorkerStacks]) -> None:
        """Not needed here."""


def test_stacks_of_workers_come_from_the_runner_under_the_servers_name() -> None:
    pool = made(StackRunner(), scripted("a", workers=2), scripted("b"), scripted("idle"))
    for name in ("a", "b"):
        pool.filter(Field.NAME, name).start_sync()
    found = [(each.name, each.worker, each.pid, each.place, each.problem) for each in pool.stacks()]
    assert found == [
        ("a", "a.1.0", 7, "within True", ""),
        ("a", "a.1.1", 7, "within True", ""),
        ("b", "b.1.0", 7, "within True", ""),
    ]
    pool.stop_sync()


def test_join_in_a_loop_waits_for_replaced_workers() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"))
    pool.start_sync()
    pool.restart_sync()
    asyncio.run(pool.join())
    assert list(runner.running) == ["a.2.0"]
    pool.stop_sync()


async def test_asynchronous_context_stops_the_pool_whatever_happens() -> None:
    runner = ScriptedRunner()
    pool = Pool([config("a", "127.0.0.1:1")], runner=runner)
    async with pool as entered:
        assert (entered, pool.is_running) == (pool, True)
    assert not pool.is_running
    failing = Pool([config("a", "127.0.0.1:1"), config("b", "127.0.0.1:2")], runner=ScriptedRunner(b=FAILS))
    with pytest.raises(PoolStartError):
        async with failing:
            raise AssertionError("it has begun")
    assert not failing.is_running
    await pool.join()


def test_with_statement_stops_the_pool_whatever_happens() -> None:
    with made(ScriptedRunner(), scripted("a")) as pool:
        assert pool.is_running
        assert pool.url("a", "ready") == f"http://{scripted('a').bind}/ready"
        for wrong in ((None,), ("a", None)):
            with pytest.raises(PoolParamError, match="None"):
                pool.url(*wrong)
    assert not pool.is_running
    with pytest.raises(ZeroDivisionError), pool:
        raise ZeroDivisionError
    assert not pool.is_running
    failing = made(ScriptedRunner(b=FAILS), scripted("a"), scripted("b"))
    with pytest.raises(PoolStartError), failing:
        raise AssertionError("it has begun")
    assert not failing.is_running


API = "${server.api.url}"


def test_references_of_servers_in_a_list_become_addresses_in_any_order() -> None:
    words = ("x", "--api=${server.api.host}:${server.api.port}", "$${server.api.url}")
    user = scripted("user", app=None, command=words, env={"API": f"{API}/v1", "ME": "${server.user.port}"})
    pool = Pool([user, ServerConfig(name="api", bind="127.0.0.1:auto", app="m:app")])
    (api,) = pool.filter(Field.NAME, "api").values()
    for each in (pool, pool.clone(), PoolConfig([server.config for server in pool.values()]).pool()):
        config = each[user.bind].config
        assert config.env == {"API": f"{api.expose}/v1", "ME": str(user.address.port)}
        assert config.command == ("x", f"--api={api.address.key}", "$${server.api.url}"), (
            "unescaped at a start"
        )


def test_reference_to_an_unknown_server_is_refused_wherever_it_is_given() -> None:
    wrong = scripted("user", env={"API": "${server.apj.url}"})
    list_ = [scripted("api"), wrong]
    config = PoolConfig(list_)
    for refused in (lambda: Pool(list_), config.pool, lambda: Pool([scripted("api")]).store_new(wrong)):
        with pytest.raises(PoolAddError) as caught:
            refused()
        (problem,) = caught.value.exceptions
        assert (problem.name, problem.message, problem.hint) == (
            "user", "there is no server 'apj'", "did you mean 'api'?",
        )  # fmt: skip
    with pytest.raises(PoolValidateError):
        config.validate(import_apps=False)
    assert [server.name for server in config] == ["api"]
    with pytest.raises(PoolStartError) as alone:
        Server(wrong).start_sync()
    assert [each.message for each in alone.value.exceptions] == ["there is no server 'apj'"]


def test_server_whose_reference_has_another_address_is_restarted_by_apply() -> None:
    runner = ScriptedRunner()
    user = scripted("user", env={"API": API})
    with made(runner, scripted("api"), user) as pool:
        pool.apply_sync([scripted("api"), user])
        assert {*runner.running} == {"api.1.0", "user.1.0"}
        pool.apply_sync([scripted("api", bind="127.0.0.1:39999"), user])
        assert pool[user.bind].config.env["API"] == "http://127.0.0.1:39999"
        pool.join_sync()
        assert {*runner.running} == {"api.2.0", "user.2.0"}
        problems = failures(pool, [{"name": "api", "bind": "127.0.0.1:39998", "workers": "many"}, user])
        assert list(problems) == ["api"], "it stays where it is, so that its address is known"
        problems = failures(pool, [scripted("user", env={"API": "${server.none.url}"})])
        assert problems == {"user": "there is no server 'none'"}
        assert pool[user.bind].config.env["API"] == "http://127.0.0.1:39999"


def test_part_of_a_configuration_that_is_of_another_kind_is_refused() -> None:
    made = PoolConfig([config("a", "127.0.0.1:1")])
    with pytest.raises(PoolParamError, match="3 is no handler"):
        made.set_handler(3)  # type: ignore[arg-type]
    with pytest.raises(PoolParamError, match="is no TLSConfig"):
        made.set_default_tls(3)  # type: ignore[arg-type]
    with pytest.raises(PoolParamError, match="is no PoolContext"):
        made.set_context({})  # type: ignore[arg-type]
    with pytest.raises(PoolParamError, match="an environment is a mapping"):
        PoolConfig.load("pool.toml", "other.toml")  # type: ignore[arg-type]


def test_configuration_made_in_python_says_what_is_wrong_with_it() -> None:
    made = PoolConfig([config("a", "127.0.0.1:1"), config("b", ":1"), config("c", ":2", depends_on=["gone"])])
    assert [server.name for server in made] == ["a"]
    assert [problem.name for problem in made.problems] == ["b", "c"]
    with pytest.raises(PoolValidateError, match="the configuration has"):
        made.validate(import_apps=False)
    assert "is no list of servers" in str(PoolConfig(3).problems[0])  # type: ignore[arg-type]
    seen: list[str] = []

    def visit(server: ServerConfig) -> bool:
        seen.append(server.name)
        return False

    assert not made.walk(visit)
    assert PoolConfig([]).walk(visit)
    assert seen == ["a"]


# Pool against a dictionary that does the same, over random histories; filters against their definition.

BINDS = [
    "127.0.0.1:1", "127.0.0.1:2", "127.0.0.2:1", "localhost:1", "[::1]:1", "0.0.0.0:1", ":2", "[::]:3", "*:3",
    "example.org:1", "unix:/run/a", "unix:/run/A", "http://127.0.0.1:1", "[0::1]:1", "fd:3", "[::ffff:127.0.0.1]:2",
]  # fmt: skip
NAMES = ["a", "A", "b", "api-1", "api-2", "web"]

binds = st.sampled_from(BINDS)
names = st.sampled_from(NAMES)


class PoolAgainstDict(RuleBasedStateMachine):
    """Every operation of the mapping, on a pool and on a dictionary of names by canonical address."""

    pools = Bundle("pools")

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool()
        self.model: dict[str, str] = {}

    def _in_the_way(self, bind: str) -> bool:
        address = parse(bind)
        # Whether ":2" or "0.0.0.0:2" was stored matters for overlaps, so the server's own address is asked.
        return any(
            key != address.key and overlaps(address, self.pool[key].config.address) for key in self.model
        )

    @rule(name=names, bind=binds, ready_made=st.booleans())
    def store(self, name: str, bind: str, ready_made: bool) -> None:
        key = canonical(bind)
        refused = key not in self.model and self._in_the_way(bind)
        try:
            if ready_made:
                self.pool.store(Server(config(name, bind)))
            else:
                assert self.pool.store_new(config(name, bind)) is self.pool[bind]
        except PoolAddError:
            assert refused
        else:
            assert not refused
            self.model[key] = name

    @rule(bind=binds)
    def load(self, bind: str) -> None:
        server = self.pool.load(bind)
        assert (server.name if server else None) == self.model.get(canonical(bind))
        assert self.pool.has(bind) is (bind in self.pool) is (canonical(bind) in self.model)

    @rule(bind=binds)
    def delete(self, bind: str) -> None:
        self.pool.delete(bind)
        self.model.pop(canonical(bind), None)

    @rule(bind=binds)
    def load_and_delete(self, bind: str) -> None:
        server = self.pool.load_and_delete(bind)
        assert (server.name if server else None) == self.model.pop(canonical(bind), None)

    @rule()
    def clean(self) -> None:
        self.pool.clean()
        self.model.clear()

    @rule(stop_after=st.integers(0, 4))
    def walk(self, stop_after: int) -> None:
        seen: list[str] = []

        def visit(bind: str, server: Server) -> bool:
            assert server.bind == bind
            seen.append(bind)
            return len(seen) <= stop_after

        assert self.pool.walk(visit) is (len(self.model) <= stop_after)
        assert seen == list(self.model)[: stop_after + 1]

    @rule(wanted=st.lists(binds, max_size=4))
    def walk_limit(self, wanted: list[str]) -> None:
        seen: list[str] = []
        assert self.pool.walk_limit(lambda bind, server: seen.append(bind), *wanted) is True
        known = [key for key in dict.fromkeys(map(canonical, wanted)) if key in self.model]
        assert seen == (known if wanted else list(self.model))

    @rule(regex=st.sampled_from(["a", "^127", "1$", "."]), field=st.sampled_from(Field))
    def view(self, regex: str, field: Field) -> None:
        view = self.pool.filter(field, regex=regex)
        for bind, server in view.items():
            assert self.pool[bind] is server
        view.clean()

    @rule()
    def clone(self) -> None:
        twin = self.pool.clone()
        assert {bind: server.name for bind, server in twin.items()} == self.model
        assert not {*map(id, twin.values())} & {*map(id, self.pool.values())}
        twin.clean()

    @rule(name=names, bind=binds)
    def merge(self, name: str, bind: str) -> None:
        key = canonical(bind)
        refused = key not in self.model and self._in_the_way(bind)
        try:
            self.pool.merge(Pool([config(name, bind)]))
        except PoolAddError:
            assert refused
        else:
            assert not refused
            self.model[key] = name

    @invariant()
    def both_are_equal(self) -> None:
        assert [(bind, server.name) for bind, server in self.pool.items()] == list(self.model.items())
        assert list(self.pool) == list(self.pool.keys()) == list(self.model)
        assert len(self.pool) == len(self.model)
        assert self.pool.monitor_names() == list(self.model.values())


TestPoolAgainstDict = PoolAgainstDict.TestCase
TestPoolAgainstDict.settings = examples(60, stateful_step_count=25)


members = st.lists(st.tuples(names, st.integers(1, 9)), max_size=8, unique_by=lambda pair: pair[1])
patterns = st.one_of(
    names,
    st.sampled_from(
        ["", "127.0.0.1:3", "http://127.0.0.1:3", "HTTPS://X:3", "x:3", "3", "[::ffff:127.0.0.1]:3"]
    ),
)
expressions = st.sampled_from(["", "a", "^a", "3$", "API", "(?i)API", "."])


@given(members, st.sampled_from(Field), patterns, expressions)
def test_a_filter_is_what_the_contract_says(
    given_members: list[tuple[str, int]], field: Field, pattern: str, regex: str
) -> None:
    pool = Pool(
        ServerConfig(name=name, bind=f"127.0.0.1:{port}", expose=f"https://x:{port}", app="m:app")
        for name, port in given_members
    )

    def matches(server: Server) -> bool:
        value: str = getattr(server, field.value)
        spellings = [value.casefold()]
        wanted = pattern
        if field is Field.EXPOSE:
            spellings.append(value.partition("://")[2].casefold())
        if field is Field.BIND:
            try:
                wanted = canonical(pattern)
            except ValueError:
                pass
        equal = bool(pattern) and wanted.casefold() in spellings
        return equal or (bool(regex) and re.search(regex, value) is not None)

    expected = [server for server in pool.values() if matches(server)]
    assert list(pool.filter(field, pattern, regex).values()) == expected
    for target in Field:
        values = [getattr(server, target.value) for server in expected]
        assert pool.list(field, target, pattern, regex) == values


@pytest.mark.slow
@given(st.text(max_size=30))
def test_any_text_is_an_address_or_not_there(text: str) -> None:
    pool = Pool([config("a", "127.0.0.1:1")])
    found = pool.load(text)
    assert found is None or canonical(text) == "127.0.0.1:1"
    pool.delete(text)
    assert len(pool) == (0 if found else 1)


def test_join_waits_for_a_removed_server_that_still_runs() -> None:
    runner = ScriptedRunner()
    pool = made(runner, scripted("a"), scripted("b"))
    pool.start_sync()

    def hold() -> None:
        runner.may_stop = asyncio.Event()

    on_loop(hold)
    pool.delete(scripted("a").bind)
    joined = threading.Event()
    thread = threading.Thread(target=lambda: (pool.join_sync(), joined.set()))
    thread.start()
    wait_until(lambda: any(line.startswith("stop a.1.0") for line in runner.log))
    assert not joined.wait(0.05)
    on_loop(lambda: runner.may_stop and runner.may_stop.set())
    thread.join(60)
    assert joined.is_set()
    assert [*runner.running] == ["b.1.0"]
    pool.stop_sync()


def test_configuration_of_files_is_loaded_with_these_variables(tmp_path: Path) -> None:
    file = tmp_path / "pool.toml"
    file.write_text('[[server]]\nname = "${NAME}"\nbind = ":8000"\napp = "a:b"\n')
    found = PoolConfig.load(file, {"NAME": "web"})
    assert type(found) is PoolConfig
    assert [each.name for each in found] == ["web"]
    assert found.problems == []


# Servers that start on demand.


def demanded(*names: str, **depends_on: list[str]) -> list[ServerConfig]:
    """A server for each name, which starts on demand if its name begins with d."""
    return [scripted(name, on_demand=name[0] == "d", depends_on=depends_on.get(name, [])) for name in names]


def test_pool_starts_a_server_on_demand_for_those_alone_that_depend_on_it() -> None:
    runner = ScriptedRunner()
    pool = made(runner, *demanded("d1", "d2", "d3", "a", "b", d2=["d1"], a=["d2"]))
    pool.start_sync()
    assert states(pool) == {"d1": "running", "d2": "running", "d3": "stopped", "a": "running", "b": "running"}
    pool.restart_sync()
    assert states(pool)["d3"] == "stopped"
    idle = pool[scripted("d3").bind]
    idle.start_sync()
    pool.restart_sync()
    assert {"place d3.1.0", "place d3.2.0"} <= set(runner.log)
    idle.stop_sync()
    pool.start_sync()
    assert states(pool)["d3"] == "stopped"
    pool.stop_sync()


def test_apply_starts_a_server_on_demand_for_those_alone_that_depend_on_it() -> None:
    pool = made(ScriptedRunner(), *demanded("a"))
    pool.start_sync()
    pool.apply_sync(demanded("a", "b", "d1", "d2", "d3", a=["d1"], b=["d2"]))
    assert states(pool) == {"a": "running", "b": "running", "d1": "running", "d2": "running", "d3": "stopped"}
    pool.apply_sync([each.replace(on_demand=not each.on_demand) for each in demanded("a", "d1", "d3")])
    assert states(pool) == {"a": "running", "d1": "running", "d3": "running"}
    pool.apply_sync([scripted("a", disabled=True)])
    pool.apply_sync([scripted("a", on_demand=True)])
    assert states(pool) == {"a": "stopped"}
    pool.stop_sync()


def test_apply_leaves_a_dependency_stopped_that_was_stopped_by_itself() -> None:
    servers = [scripted("a"), scripted("b", depends_on=["a"])]
    pool = made(ScriptedRunner(), *servers)
    pool.start_sync()
    pool[servers[0].bind].stop_sync()
    assert states(pool) == {"a": "stopped", "b": "running"}
    pool.apply_sync([servers[0], scripted("b", depends_on=["a"], tags=["x"])])
    assert states(pool) == {"a": "stopped", "b": "running"}
    pool.stop_sync()
