"""What a pool asks of its runner, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

import pytest

from poolctl import (
    Monitor,
    Pool,
    PoolContext,
    PoolMonitorError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    Server,
    ServerConfig,
    ServerError,
    State,
    Status,
    TLSConfig,
)
from poolctl.pool import loop_thread
from poolctl.pool.context import Shared
from poolctl.pool.server import try_connect, with_port
from poolctl.runners.runner_protocol import Exit, Placement
from poolctl.worker import tally
from tests.deadline import until, wait_until
from tests.descriptors import free_descriptors
from tests.unit.runners.scripted_runner import BREAKS, FAILS, NEVER, ScriptedRunner


def config(name: str, **keys: Any) -> ServerConfig:
    port = 30_000 + sum(map(ord, name))
    return ServerConfig(**{"name": name, "bind": f"127.0.0.1:{port}", "app": "m:app"} | keys)


def made(runner: ScriptedRunner, *configs: ServerConfig, **options: Any) -> Pool:
    return Pool(configs, runner=runner, **options)


def on_loop(work: Any) -> Any:
    async def call() -> Any:
        return work()

    return loop_thread.run_sync(call())


async def ordered(order: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """The order, which the loop thread has got before anything that it is given later."""
    task = asyncio.ensure_future(order)
    await asyncio.sleep(0)
    return task


def only(pool: Pool) -> Server:
    (server,) = pool.values()
    return server


def test_join_awaits_the_old_generation_and_a_stop_cuts_its_drain_short() -> None:
    runner = ScriptedRunner()
    runner.may_drain = asyncio.Event()
    pool = made(runner, config("a"))
    pool.start_sync()
    pool.restart_sync()
    wait_until(lambda: "drain a.1.0" in runner.log)
    joined = threading.Event()
    thread = threading.Thread(target=lambda: (pool.join_sync(), joined.set()))
    thread.start()
    assert only(pool).is_running
    assert not joined.wait(0.05)
    pool.stop_sync()
    assert "stop a.1.0 10" in runner.log
    assert runner.running == {}
    on_loop(runner.may_drain.set)
    thread.join(60)
    assert joined.is_set()


def test_a_failed_start_leaves_no_worker_and_no_listener() -> None:
    runner = ScriptedRunner(a=FAILS, b=NEVER, c=BREAKS)
    pool = made(runner, config("a"), config("b", start_timeout=0.05), config("c"), config("d"))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert [(error.name, error.message, error.hint) for error in caught.value.exceptions] == [
        ("a", "exited with status 3 before it was ready", "look"),
        ("b", "was not ready within 50ms", "start_timeout says how long it may take"),
        ("c", "the wire is cut", ""),
    ]
    assert [type(error.__cause__).__name__ for error in caught.value.exceptions] == [
        "WorkerFailed", "TimeoutError", "OSError",
    ]  # fmt: skip
    assert str(caught.value).startswith("3 of 4 servers did not start: a: exited")
    assert list(runner.running) == ["d.1.0"]
    assert runner.opened == {pool[config("d").bind].bind}
    assert [server.state for server in pool.values()] == [State.FAILED] * 3 + [State.RUNNING]
    assert [server.health for server in pool.values()] == [Status.KO] * 3 + [Status.OK]
    pool.stop_sync()


def test_a_failed_replacement_of_a_dead_worker_is_tried_again_and_a_failed_start_is_not() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", restart={"backoff": {"initial": 0.01, "jitter": 0}}))
    pool.start_sync()
    runner.script["a"] = FAILS
    on_loop(lambda: runner.end("a.1.0", Exit.from_returncode(1)))
    wait_until(lambda: runner.log.count("place a.1.0") >= 3)
    del runner.script["a"]
    wait_until(lambda: only(pool).ready)
    pool.stop_sync()
    runner.script["a"] = FAILS
    placed = runner.log.count("place a.1.0")
    with pytest.raises(PoolStartError):
        pool.start_sync()
    assert only(pool).state is State.FAILED
    assert pool.health_info()["a"]["status"] == "error"
    assert runner.log.count("place a.1.0") == placed + 1


def test_a_server_that_may_sleep_wakes_at_a_request_and_is_stopped_asleep() -> None:
    runner = ScriptedRunner()
    # The timer that closes waiting connections after the start_timeout keeps the pool alive.
    pool = made(runner, config("a", scale={"min": 0}, start_timeout="1s"))

    def counted(what: str) -> list[str]:
        lines = pool.metrics().splitlines()
        return [
            line.rpartition(" ")[2] for line in lines if line.startswith(f"poolctl_server_{what}_total{{")
        ]

    assert (counted("wakes"), counted("restarts")) == (["0"], ["0"])
    pool.start_sync()
    assert (counted("wakes"), counted("restarts")) == (["0"], ["0"])
    monitor = only(pool).monitor()
    assert (monitor.status, monitor.latency, monitor.message) == (Status.OK, None, "sleeping")
    assert (only(pool).state, only(pool).stale) == (State.SLEEPING, False)
    assert pool.health_info_simple() == {"a": "napping"}
    on_loop(lambda: runner.ring("a"))
    wait_until(lambda: only(pool).ready)
    assert (counted("wakes"), counted("restarts")) == (["1"], ["0"])
    (worker,) = runner.running
    on_loop(lambda: runner.end(worker, Exit.from_returncode(1)))
    wait_until(lambda: counted("restarts") == ["1"] and only(pool).ready)
    assert counted("wakes") == ["1"], "no request was needed for that"
    pool.stop_sync()
    assert (only(pool).state, runner.opened) == (State.STOPPED, set())
    pool.start_sync()
    pool.stop_sync()
    assert (only(pool).state, counted("wakes")) == (State.STOPPED, ["1"])
    runner.script["a"] = NEVER
    pool.start_sync()
    on_loop(lambda: runner.ring("a"))
    wait_until(lambda: counted("wakes") == ["2"], what="a wake, whether the server becomes ready or not")
    pool.stop_sync()


def test_a_worker_that_cannot_be_ended_is_a_pool_stop_error() -> None:
    runner = ScriptedRunner()
    runner.deaf = {"a"}
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    with pytest.raises(PoolStopError) as caught:
        pool.stop_sync(timeout=0.01)
    error = caught.value.exceptions[0]
    assert (caught.value.code, error.code, error.name) == (1324, 1324, "a")
    assert (error.message, error.hint) == (
        "still running after SIGKILL (nowhere)",
        "see what it waits for",
    )
    assert pool[config("b").bind].state is State.STOPPED
    assert pool[config("a").bind].pids == [1001]
    runner.deaf.clear()
    pool.stop_sync()
    assert pool[config("a").bind].state is State.STOPPED


def test_the_timeout_of_a_stop_is_when_workers_are_killed() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", stop_timeout=20))
    for timeout in (None, 5, "1m", timedelta(seconds=3)):
        pool.start_sync()
        pool.stop_sync(timeout=timeout)
    assert [line for line in runner.log if line.startswith("stop")] == [
        "stop a.1.0 20", "stop a.1.0 5", "stop a.1.0 20", "stop a.1.0 3",
    ]  # fmt: skip


@pytest.mark.parametrize("timeout", [-1, "soon", float("nan"), object()])
def test_a_timeout_that_is_none_is_a_parameter_error(timeout: Any) -> None:
    pool = made(ScriptedRunner(), config("a"))
    for order in (pool.start_sync, pool.stop_sync, pool.restart_sync):
        with pytest.raises(PoolParamError):
            order(timeout=timeout)


def test_disabled_servers_are_passed_over_and_refused_when_meant() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", disabled=True), config("b"))
    disabled = pool[config("a").bind]
    pool.start_sync()
    pool.restart_sync()
    assert (disabled.state, disabled.ready) == (State.DISABLED, False)
    assert not any("a." in line for line in runner.log)
    with pytest.raises(PoolStartError) as caught:
        disabled.start_sync()
    assert caught.value.exceptions[0].message == "is disabled"
    pool.stop_sync()
    assert disabled.state is State.DISABLED


def test_a_server_that_was_disabled_while_it_ran_is_stopped_by_the_next_restart() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    pool.merge(made(runner, config("a", disabled=True)))
    assert only(pool).is_running
    pool.restart_sync()
    assert only(pool).state is State.DISABLED
    assert runner.running == {}


def test_dependencies_come_first_and_go_last() -> None:
    runner = ScriptedRunner()
    pool = made(
        runner, config("web", depends_on=["api"]), config("api", depends_on=["db", "cache"]),
        config("db"), config("cache"),
    )  # fmt: skip
    pool.start_sync()
    placed = [line.split()[1] for line in runner.log if line.startswith("place")]
    assert {*placed[:2]} == {"db.1.0", "cache.1.0"}
    assert placed[2:] == ["api.1.0", "web.1.0"]
    pool.stop_sync()
    stopped = [line.split()[1] for line in runner.log if line.startswith("stop")]
    assert stopped[:2] == ["web.1.0", "api.1.0"]
    for server in pool.values():  # each alone, in any order
        server.start_sync()
    pool.start_sync()
    assert not any(server.stale for server in pool.values())
    runner.log.clear()
    pool.stop_sync()
    stopped = [line.split()[1] for line in runner.log if line.startswith("stop")]
    assert stopped[:2] == ["web.1.0", "api.1.0"]


def test_servers_that_were_started_alone_are_stopped_in_the_order_of_their_dependencies() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("db"), config("web", depends_on=["db"]))
    for server in pool.values():
        server.start_sync()
    pool.stop_sync()
    stopped = [line.split()[1] for line in runner.log if line.startswith("stop")]
    assert stopped == ["web.1.0", "db.1.0"]


def test_dependencies_in_a_circle_do_not_wait_for_each_other_for_ever() -> None:
    runner = ScriptedRunner()
    pool = made(
        runner, config("a", depends_on=["b"]), config("b", depends_on=["a"]), config("c", depends_on=["c"])
    )
    pool.start_sync(timeout=10)
    assert len(runner.running) == 3
    pool.stop_sync()


def test_uptimes_and_shares_are_those_of_the_clock() -> None:
    pool = made(ScriptedRunner(), config("a"), config("b"))
    one, two = pool.values()
    begun = time.monotonic()
    one.start_sync()
    time.sleep(0.05)
    two.start_sync()
    second, first, longest = two.uptime, one.uptime, pool.uptime
    since = timedelta(seconds=time.monotonic() - begun)
    assert second + timedelta(seconds=0.05) <= first <= longest <= since
    time.sleep(0.01)
    monitor = one.monitor()
    assert first < monitor.uptime <= one.uptime
    assert monitor.sli == pytest.approx(monitor.uptime / (monitor.uptime + monitor.downtime), abs=0.001)
    assert (monitor.downtime < since, monitor.rises, monitor.falls) == (True, 1, 0)
    one.restart_sync()
    assert one.uptime < two.uptime <= pool.uptime <= two.uptime
    one.stop_sync()
    assert one.uptime == timedelta()
    pool.stop_sync()
    assert pool.uptime == timedelta()


def test_a_server_in_transit_is_between_ok_and_ko() -> None:
    pool = made(ScriptedRunner(a=NEVER), config("a"))
    thread = threading.Thread(target=_quietly(pool.start_sync))
    thread.start()
    wait_until(lambda: only(pool).state is State.STARTING)
    monitor = only(pool).monitor()
    assert (monitor.status, monitor.message) == (Status.WARN, "starting")
    assert pool.health_info_simple() == {"a": "starting"}
    assert (only(pool).health, only(pool).ready) == (Status.UNKNOWN, False)
    pool.stop_sync()
    thread.join(60)


def test_start_that_was_cut_short_ends_as_soon_as_its_worker_has_ended() -> None:
    pool = made(ScriptedRunner(a=NEVER), config("a"))
    thread = threading.Thread(target=_quietly(pool.start_sync), daemon=True)
    thread.start()
    wait_until(lambda: only(pool).state is State.STARTING)
    pool.stop_sync()
    thread.join(4)  # a killed worker is waited for at most 5 s
    assert not thread.is_alive()


def _quietly(order: Any) -> Any:
    def run() -> None:
        try:
            order()
        except (PoolStartError, PoolStopError):
            pass

    return run


def test_a_running_server_that_does_not_accept_is_ko(free_port: Callable[[], int]) -> None:
    pool = made(ScriptedRunner(), config("a", bind=f"127.0.0.1:{free_port()}"))
    pool.start_sync()
    monitor = only(pool).monitor()
    assert (monitor.status, monitor.latency) == (Status.KO, None)
    assert "refused" in monitor.message.lower()
    assert [each.name for each in pool.monitor()] == pool.monitor_names() == ["a"]
    assert pool.health_info()["a"]["status"] == "healthy", "its worker has reported to be ready"
    assert set(pool.health_info_without_detail()["a"]) == {"status", "uptime_seconds", "latency_seconds"}
    pool.stop_sync()
    assert pool.health_info_simple() == {"a": "unknown"}


def test_storing_under_a_running_address_stops_the_old_one_first() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    old = only(pool)

    async def replace() -> Server:
        new = pool.store_new(config("a2", bind=old.bind))
        await new.start()
        return new

    new = loop_thread.run_sync(replace())  # on the loop, so that the start is ordered before the stop is over
    assert (old.state, new.state) == (State.STOPPED, State.RUNNING)
    assert runner.log == [
        "open a", "place a.1.0", "stop a.1.0 10", "place a2.1.0",
    ]  # fmt: skip
    assert new.endpoints, "connections wait in the listener meanwhile"
    pool.store(new)
    assert new.is_running, "storing what is stored changes nothing"
    pool.stop_sync()


def test_runner_stays_on_its_loop_while_no_server_runs() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    loops = []
    for _ in range(2):
        pool.start_sync()
        loops.append(on_loop(asyncio.get_running_loop))
        pool.stop_sync()
    assert loops[0] is loops[1]


def test_servers_of_one_name_in_two_pools_of_a_runner_are_kept_apart() -> None:
    runner = ScriptedRunner()
    pools = made(runner, config("a")), made(runner, config("a", bind="127.0.0.1:2"))
    for pool in pools:
        pool.start_sync()
    assert list(runner.running) == ["a.1.0", "a~2.1.0"]
    for pool in pools:
        pool.stop_sync()


def test_errors_name_servers_as_their_pool_does_where_two_pools_have_the_same_names() -> None:
    runner = ScriptedRunner()
    first = made(runner, config("db"), config("a", bind="127.0.0.1:2"))
    first.start_sync()
    other = made(
        runner,
        config("db", bind="127.0.0.1:3", restart="no"),
        config("web", bind="127.0.0.1:4", depends_on=["db"]),
    )
    runner.script["db~2"] = FAILS
    with pytest.raises(PoolStartError) as raised:
        other.start_sync()
    assert "~" not in "".join(
        f"{error.name} {error.message} {error.hint}" for error in raised.value.exceptions
    )
    third = made(runner, config("a", bind="127.0.0.1:5"))
    third.start_sync()
    with pytest.raises(PoolStartError) as raised:
        made(runner, config("b", bind="127.0.0.1:5")).start_sync()
    assert "in use by 'a'" in str(raised.value.exceptions[0])
    for pool in (first, other, third):
        pool.stop_sync()


@pytest.mark.parametrize("overlap", [True, False])
def test_a_restart_that_is_cut_short_by_a_stop_says_so_and_ends_both_generations(overlap: bool) -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", overlap=overlap))
    pool.start_sync()
    runner.script["a"] = NEVER
    raised: list[BaseException] = []

    def restart() -> None:
        try:
            pool.restart_sync()
        except PoolRestartError as error:
            raised.extend(error.exceptions)

    thread = threading.Thread(target=restart)
    thread.start()
    wait_until(lambda: "place a.2.0" in runner.log)
    pool.stop_sync()
    thread.join(60)
    assert [error.args[0] for error in raised] == ["was stopped before it was ready"]
    assert (runner.running, runner.opened) == ({}, set())
    assert only(pool).state is State.STOPPED


def test_a_start_after_a_stop_was_ordered_waits_for_it() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()

    async def both() -> None:
        await asyncio.gather(pool.stop(), pool.start())

    asyncio.run(both())
    assert only(pool).is_running
    assert list(runner.running) == ["a.1.0"]
    pool.stop_sync()


async def test_a_start_after_a_stop_that_ends_no_worker_starts_another_one() -> None:
    runner = ScriptedRunner()
    runner.deaf, runner.may_stop = {"a"}, asyncio.Event()
    pool = made(runner, config("a", stop_timeout=0))
    await pool.start()
    stopping = await ordered(pool.stop())
    await until(lambda: "stop a.1.0 0" in runner.log)
    starting = await ordered(pool.start())
    on_loop(runner.may_stop.set)
    await asyncio.gather(stopping, starting, return_exceptions=True)
    assert "place a.2.0" in runner.log
    assert only(pool).is_running
    runner.deaf.clear()
    await pool.stop()


async def test_a_restart_with_another_configuration_waits_for_a_stop_under_way() -> None:
    runner = ScriptedRunner()
    runner.may_stop = asyncio.Event()
    pool = made(runner, config("a"), config("b", depends_on=["a"]))
    await pool.start()
    stopping = await ordered(pool.stop())
    await until(lambda: "stop b.1.0 10" in runner.log)
    pool.merge(made(runner, config("a", tags=["new"])))
    restarting = await ordered(pool.restart())
    on_loop(lambda: None)
    assert {server.state for server in pool.values()} == {State.STOPPING}
    on_loop(runner.may_stop.set)
    await asyncio.gather(stopping, restarting)
    assert [line for line in runner.log if line.startswith(("stop", "place"))][2:] == [
        "stop b.1.0 10", "stop a.1.0 10", "place a.1.0", "place b.1.0",
    ]  # fmt: skip
    assert all(server.is_running and not server.stale for server in pool.values())
    await pool.stop()


def test_servers_of_one_name_in_one_pool_start_and_stop() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("a", bind="127.0.0.1:2"), config("b", depends_on=["a"]))
    pool.start_sync()
    assert all(server.ready for server in pool.values())
    pool.stop_sync()
    assert (runner.running, runner.opened) == ({}, set())


def test_a_start_replaces_nothing_although_the_handler_makes_an_application_each_time() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", app=None), handler=lambda: {"": lambda scope, receive, send: None})
    pool.start_sync()
    pool.start_sync()
    assert list(runner.running) == ["a.1.0"]
    assert not only(pool).stale
    pool.restart_sync()
    assert list(runner.running) == ["a.2.0"]
    pool.stop_sync()


def test_several_starts_at_once_place_one_generation() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))

    async def many() -> None:
        await asyncio.gather(*(pool.start() for _ in range(5)))

    asyncio.run(many())
    assert list(runner.running) == ["a.1.0"]
    pool.stop_sync()


@pytest.mark.parametrize("ended_by", ["cancel", "timeout"])
@pytest.mark.parametrize("verb", ["start", "restart"])
def test_an_order_that_gives_up_leaves_the_server_to_another_one_that_waits_for_it(
    verb: str, ended_by: str
) -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    if verb == "restart":
        pool.start_sync()
    runner.may_place = asyncio.Event()
    order = getattr(pool, verb)

    async def both() -> None:
        hasty = asyncio.ensure_future(order(timeout=0.3 if ended_by == "timeout" else None))
        other = asyncio.ensure_future(order())
        while sum(line.startswith("place") for line in runner.log) < (2 if verb == "restart" else 1):
            await asyncio.sleep(0.01)
        if ended_by == "cancel":
            hasty.cancel()
        await asyncio.wait([hasty])
        assert hasty.cancelled() or isinstance(hasty.exception(), (PoolStartError, PoolRestartError))
        await asyncio.to_thread(on_loop, runner.may_place.set)  # type: ignore[union-attr]
        await other

    asyncio.run(both())
    pool.join_sync()
    assert only(pool).ready
    assert len(runner.running) == 1
    assert ("a.1.0" in runner.running) is (verb == "start")
    pool.stop_sync()
    assert (runner.running, runner.opened) == ({}, set())


async def test_a_worker_that_was_being_made_when_the_start_was_cut_short_is_ended_too() -> None:
    runner = ScriptedRunner()
    runner.may_place = asyncio.Event()
    pool = made(runner, config("a"))
    starting = await ordered(pool.start())
    await until(lambda: "place a.1.0" in runner.log)
    stopping = await ordered(pool.stop())
    on_loop(runner.may_place.set)
    await asyncio.gather(starting, stopping, return_exceptions=True)
    assert "stop a.1.0 10" in runner.log
    assert runner.running == {}
    assert only(pool).state is State.STOPPED


def test_the_first_worker_that_fails_ends_the_start_whatever_the_others_do() -> None:
    runner = ScriptedRunner()
    runner.script = {"a.1.0": NEVER, "a.1.1": FAILS, "a.1.2": NEVER}
    pool = made(runner, config("a", workers=3))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=10)
    assert caught.value.exceptions[0].message == "exited with status 3 before it was ready"
    assert runner.running == {}


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_second_stop_does_not_cut_the_cleanup_short() -> None:
    runner = ScriptedRunner(a=NEVER)
    runner.may_stop = asyncio.Event()
    pool = made(runner, config("a"))
    starting = await ordered(pool.start())
    await until(lambda: "place a.1.0" in runner.log)
    stops = [await ordered(pool.stop()) for _ in range(3)]
    await until(lambda: "stop a.1.0 10" in runner.log)
    loop_thread.run_sync(_turns(20))
    assert runner.opened, "the address is not given up while a worker is there"
    on_loop(runner.may_stop.set)
    await asyncio.gather(*stops)
    await asyncio.wait([starting])
    assert isinstance(starting.exception(), PoolStartError)
    assert (runner.running, runner.opened) == ({}, set())


def test_stop_that_outlasts_a_starts_timeout_fails_no_other_server() -> None:
    runner = ScriptedRunner()
    runner.may_stop = asyncio.Event()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    stopping = threading.Thread(target=pool[config("a").bind].stop_sync, daemon=True)
    stopping.start()
    wait_until(lambda: "stop a.1.0 10" in runner.log)
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=0.5)
    assert [error.name for error in caught.value.exceptions] == ["a"]  # type: ignore[attr-defined]
    assert pool[config("b").bind].is_running
    on_loop(runner.may_stop.set)
    stopping.join(60)
    pool.stop_sync()


def test_start_does_not_hold_up_servers_for_the_earlier_stop_of_another() -> None:
    runner = ScriptedRunner()
    runner.may_stop = asyncio.Event()
    needs = {"depends_on": ["a"]}
    pool = made(runner, config("a"), config("b"), config("needs-a", **needs), config("c", depends_on=["b"]))
    pool[config("a").bind].start_sync()
    stopping = threading.Thread(target=pool[config("a").bind].stop_sync, daemon=True)
    stopping.start()
    wait_until(lambda: "stop a.1.0 10" in runner.log)
    starting = threading.Thread(target=pool.start_sync, daemon=True)
    starting.start()
    wait_until(lambda: pool[config("c").bind].is_running)
    assert [server.name for server in pool.values() if server.is_running] == ["b", "c"]
    on_loop(runner.may_stop.set)
    for thread in (stopping, starting):
        thread.join(60)
    assert [server.name for server in pool.values() if server.is_running] == ["a", "b", "needs-a", "c"]
    places = [line for line in runner.log if line.startswith("place")]
    assert places == ["place a.1.0", "place b.1.0", "place c.1.0", "place a.1.0", "place needs-a.1.0"]
    pool.stop_sync()


def test_a_stop_right_after_a_swap_ends_the_old_worker_too() -> None:
    runner = ScriptedRunner()
    runner.may_drain = asyncio.Event()
    pool = made(runner, config("a"))
    for _ in range(20):
        pool.start_sync()

        async def both() -> None:
            await asyncio.gather(pool.restart(), pool.stop(), return_exceptions=True)

        asyncio.run(both())
        assert (runner.running, runner.opened) == ({}, set())
    on_loop(runner.may_drain.set)


def test_context_that_is_cancelled_ends_what_is_attached_once() -> None:
    context, ended = PoolContext({"a": 1}), []
    assert (repr(context), context.cancelled) == ("<PoolContext live, 1 values>", False)
    context.attach("one", lambda: ended.append("one"))
    context.attach("two", lambda: ended.append("two"))
    context.detach("two")
    context.detach("unknown")
    context.cancel()
    context.cancel()
    assert (ended, repr(context), context.cancelled) == (["one"], "<PoolContext cancelled, 1 values>", True)
    context.attach("late", lambda: ended.append("late"))
    assert ended == ["one", "late"]


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "poolctl-context"]


def test_event_of_a_context_that_is_set_elsewhere_ends_what_is_attached() -> None:
    stop, ended = threading.Event(), threading.Event()
    context = PoolContext(stop=stop)
    assert context.stop is stop
    context.attach("one", ended.set)
    stop.set()
    assert ended.wait(20)
    wait_until(lambda: not watchers())


def test_event_of_a_context_is_watched_by_one_thread_and_in_a_child_by_another() -> None:
    stop, ended = threading.Event(), threading.Event()
    context = PoolContext(stop=stop)
    context.attach("one", lambda: None)
    context.attach("two", ended.set)
    assert len(watchers()) == 1
    if (child := os.fork()) == 0:
        assert watchers() == []
        context.attach("three", lambda: None)
        os._exit(len(watchers()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    stop.set()
    assert ended.wait(60)
    wait_until(lambda: not watchers())


def prepared(shared: Shared, **keys: Any) -> ServerConfig:
    return shared.startable_config(ServerConfig(**{"name": "a", "bind": ":1", **keys}))


@pytest.mark.parametrize(
    ("keys", "handler", "problem"),
    [
        ({"app": "a:b", "disabled": True}, None, "is disabled"),
        (
            {"command": ["x"], "bind": None, "job": True, "every": "0 3 * * *"},
            None,
            "`every` cannot be honoured",
        ),
        ({"app": "a:b", "tls": True}, None, "asks for TLS, and there is no default"),
        ({}, None, "has no app, no command and no handler"),
        ({}, lambda: 1 / 0, "the handler failed: ZeroDivisionError"),
        ({}, lambda: [1], "the handler gives no mapping of applications, but [1]"),
        ({"handler_key": "x"}, lambda: {"a": 1, "b": 2}, "the handler has nothing under 'x'"),
        ({}, lambda: {"a": 1, "b": 2}, "the handler has nothing under ''"),
        ({}, dict, "the handler has nothing under ''"),
    ],
)
def test_server_that_cannot_be_prepared_says_why(keys: dict[str, Any], handler: Any, problem: str) -> None:
    shared = Shared()
    shared.handler = handler
    keys = {key: value for key, value in keys.items() if value is not None}
    given = {"name": "a", **({} if keys.get("job") else {"bind": ":1"}), **keys}
    with pytest.raises(ServerError) as caught:
        shared.startable_config(ServerConfig(**given))
    assert caught.value.message.startswith(problem)
    assert caught.value.name == "a"


def test_server_is_completed_by_the_handler_and_the_default_certificate() -> None:
    shared = Shared(PoolContext({"x": 1}))
    assert (shared.values, Shared().values) == ({"x": 1}, {})
    one, other = object(), object()
    shared.handler = lambda: {"api": one, "": other}
    assert (prepared(shared, handler_key="api").app, prepared(shared).app) == (one, other)
    shared.handler = lambda: {"only": one}
    assert prepared(shared).app is one
    assert prepared(shared, app="m:app").app == "m:app"
    assert prepared(shared, command=["x"]).app is None
    shared.handler = None
    shared.tls = TLSConfig(cert="/c.pem")
    made = prepared(shared, app="m:app", tls=True)
    assert made.tls is shared.tls
    plain = ServerConfig(name="a", bind=":1", app="m:app")
    assert shared.startable_config(plain) is plain
    assert shared.context is not None
    shared.context.cancel()
    with pytest.raises(ServerError, match="its context was cancelled"):
        shared.startable_config(plain)


OBSERVED = {
    "status": "warn", "latency_seconds": 0.5, "uptime_seconds": 1.0, "downtime_seconds": 2.0, "rise_seconds": 3.0,
    "fall_seconds": 4.0, "rises": 5, "falls": 6, "sli": 0.25, "message": "503",
}  # fmt: skip


def test_snapshot_is_read_from_the_document_of_a_supervisor() -> None:
    found = Monitor.from_dict("a", ":1", OBSERVED)
    assert (found.name, found.bind, found.status, found.message) == ("a", ":1", Status.WARN, "503")
    times = found.latency, found.uptime, found.downtime
    assert times == (timedelta(seconds=0.5), timedelta(seconds=1), timedelta(seconds=2))
    assert (found.sli, found.rises, found.falls) == (0.25, 5, 6)
    assert repr(found) == "<Monitor a warn, up 25.0% (503)>"
    unknown = Monitor.from_dict("a", ":1", OBSERVED | {"latency_seconds": None, "sli": None, "message": ""})
    assert (unknown.latency, unknown.sli, repr(unknown)) == (None, 0.0, "<Monitor a warn, up 0.0%>")


def test_latency_is_that_of_a_connection_to_the_first_endpoint(
    tmp_path: Any, free_port: Callable[[], int]
) -> None:
    assert try_connect(()) == (None, "")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        latency, problem = try_connect((f"127.0.0.1:{listener.getsockname()[1]}",))
        assert latency is not None
        assert (timedelta() < latency < timedelta(seconds=5), problem) == (True, "")
    latency, problem = try_connect((f"127.0.0.1:{free_port()}",))
    assert (latency, "refused" in problem) == (None, True)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        assert try_connect((f"unix:{path}",))[1] == ""


def test_automatic_port_is_a_free_one_of_the_range_and_no_second_servers(
    free_port: Callable[..., int],
) -> None:
    first = free_port(2)
    auto = config("a", bind="127.0.0.1:auto")
    span = f"{first}-{first + 1}"
    chosen = [with_port(auto, span) for _ in range(2)]
    assert {each.address.port for each in chosen} == {first, first + 1}
    with pytest.raises(ServerError) as caught:
        with_port(auto, span)
    assert (caught.value.message, caught.value.name, caught.value.bind) == (
        f"no port is free in {span}",
        "a",
        auto.bind,
    )
    port = chosen.pop().address.port
    assert with_port(auto, span).address.port == port, "free again: nothing has the configuration"
    fixed = config("a")
    assert with_port(fixed) is fixed
    single = free_port()
    assert with_port(auto, str(single)).address.port == single


def test_worker_that_served_enough_is_replaced_and_its_idleness_is_known() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    assert runner.events is not None
    events, placement = runner.events, Placement.of("a", 1, 0, where="nowhere", pid=1001)
    on_loop(lambda: events.expired(placement))
    wait_until(lambda: only(pool).pids == [1002])
    unknown = Placement.of("b", 1, 0, where="nowhere", pid=1)
    on_loop(
        lambda: (
            events.expired(unknown),
            events.idle_changed(unknown, True),
            events.output_lost("a", 1, "/l", "full"),
        )
    )
    pool.stop_sync()


def test_start_of_a_server_in_backoff_starts_it_at_once() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", restart={"backoff": {"initial": 60, "jitter": 0}}))
    pool.start_sync()
    runner.script["a"] = FAILS
    for _ in range(2):
        on_loop(lambda: runner.end("a.1.0", Exit.from_returncode(1)))
    wait_until(lambda: only(pool).state is State.BACKOFF)
    assert only(pool).message.startswith("exited with status 3")
    del runner.script["a"]
    pool.start_sync(timeout=20)
    wait_until(lambda: only(pool).is_running)
    assert only(pool).message == ""
    pool.stop_sync()


def test_message_of_a_server_whose_worker_was_replaced_is_empty() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    on_loop(lambda: runner.end("a.1.0", Exit.from_returncode(1)))
    wait_until(lambda: runner.log.count("place a.1.0") == 2)
    wait_until(lambda: only(pool).ready)
    assert (only(pool).message, only(pool).state) == ("", State.RUNNING)
    pool.stop_sync()


def test_stop_that_is_overtaken_by_a_start_is_no_failure() -> None:
    runner = ScriptedRunner()
    runner.may_stop = asyncio.Event()
    pool = made(runner, config("a"))
    pool.start_sync()
    stopped: list[Any] = []

    def stop() -> None:
        pool.stop_sync()
        stopped.append("stopped")

    stopping = threading.Thread(target=stop)
    stopping.start()
    wait_until(lambda: only(pool).state is State.STOPPING)
    starting = threading.Thread(target=pool.start_sync)
    starting.start()
    on_loop(runner.may_stop.set)
    for each in (stopping, starting):
        each.join(60)
    assert (stopped, only(pool).is_running) == (["stopped"], True)
    pool.stop_sync()


def test_server_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="a Server cannot be pickled; pickle its config"):
        pickle.dumps(Server(config("a")))


class ProbedRunner(ScriptedRunner):
    """Its workers answer their probes with 200, or with the status that `statuses` has for their id."""

    def __init__(self) -> None:
        super().__init__()
        self.statuses: dict[str, int] = {}
        self.answering: set[asyncio.Task[None]] = set()

    async def connect_for_probe(
        self, placement: Placement, kind: str, plain: bool, *, exact: bool = False
    ) -> socket.socket:
        ours = await super().connect_for_probe(placement, kind, plain)
        self.answering.add(asyncio.ensure_future(self._answer(placement.id, self.asked.pop()[2])))
        return ours

    async def _answer(self, worker: str, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=sock)
        while await reader.read(10_000):
            status = self.statuses.get(worker, 200)
            writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()


def test_monitor_of_a_server_with_probes_has_their_findings_and_makes_no_connection() -> None:
    runner = ProbedRunner()
    probe = {"http": "/", "interval": "10ms", "jitter": 0, "fall_count_ko": 1}
    pool = made(runner, config("a", workers=2, health={"readiness": probe}))
    pool.start_sync()
    server = only(pool)
    assert (server.health, server.monitor().status, server.monitor().message) == (Status.OK, Status.OK, "")
    runner.statuses["a.1.0"] = 503
    wait_until(lambda: server.health is Status.WARN)
    assert (server.ready, server.monitor().status) == (True, Status.WARN)
    runner.statuses["a.1.1"] = 503
    wait_until(lambda: server.health is Status.KO)
    monitor = server.monitor()
    assert (monitor.status, server.ready, server.state) == (Status.KO, False, State.RUNNING)
    assert monitor.latency is not None
    assert timedelta() < monitor.latency < timedelta(seconds=30)
    assert "503" in monitor.message
    assert "503" in pool.health_info()["a"]["detail"]
    pool.stop_sync()


def test_job_that_has_ended_runs_again_at_a_restart_and_not_at_a_start() -> None:
    runner = ScriptedRunner()
    pool = made(runner, ServerConfig(name="migrate", job=True, command=["true"]))
    for order, placed in ((pool.start_sync, 1), (pool.start_sync, 1), (pool.restart_sync, 2)):
        order()
        assert runner.log.count("place migrate.1.0") == placed


def test_server_that_a_restart_stops_because_it_is_disabled_does_not_fail_the_others() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b", depends_on=["a"]))
    pool.start_sync()
    pool.merge(made(runner, config("a", disabled=True)))
    pool.restart_sync()
    assert list(runner.running) == ["b.2.0"]
    assert runner.log.count("stop a.1.0 10") == 1
    pool.stop_sync()


def test_running_server_without_a_reference_is_stopped_with_a_warning() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    pools = [pool]
    del pool

    def drop() -> None:
        pools.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"^a was running when the last reference .* it is stopped"):
        drop()
    wait_until(lambda: not runner.opened)
    assert runner.log[-2].startswith("stop a.1.0")


def test_server_that_is_stopped_or_being_stopped_is_dropped_without_a_warning() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    pool.stop_sync()
    runner.may_stop = asyncio.Event()
    other = made(runner, config("b"))
    other.start_sync()
    other.clean()
    del pool, other
    gc.collect()
    on_loop(runner.may_stop.set)
    wait_until(lambda: not runner.opened)
    assert runner.log.count("stop b.1.0 10") == 1


def test_counts_of_ended_workers_are_added_to_those_of_their_server() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    for server in ("a", "a", "gone"):
        runner.events.add_up_counts(server, "worker", [1] * tally.COUNTED)
    counted = [line for line in pool.metrics().splitlines() if 'code="2xx"' in line]
    assert counted == [
        f'poolctl_responses_total{{server="{name}",code="2xx"}} {n}' for name, n in (("a", 2), ("b", 0))
    ]
    pool.stop_sync()


def test_configurations_that_no_worker_uses_are_forgotten() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    used = []
    for tag in "abcd":
        pool.merge(made(runner, config("a", tags=[tag])))
        used.append(weakref.ref(only(pool).config))
        assert only(pool).stale
        pool.restart_sync()
        pool.join_sync()
        assert not only(pool).stale
    gc.collect()
    assert [reference() is not None for reference in used] == [False, False, True, True]
    pool.stop_sync()


def test_servers_without_descriptors_for_a_connection_cannot_be_monitored(
    free_port: Callable[[], int],
) -> None:
    pool = made(ScriptedRunner(), *(config(name, bind=f"127.0.0.1:{free_port()}") for name in "ab"))
    pool.start_sync()
    with free_descriptors(0), pytest.raises(PoolMonitorError) as caught:
        pool.monitor()
    message = "no connection can be made: Too many open files"
    assert [(each.name, each.message, each.hint) for each in caught.value.exceptions] == [
        (name, message, "raise the limit of open files: ulimit -n") for name in "ab"
    ]
    assert str(caught.value).startswith("2 servers cannot be monitored")
    pool.stop_sync()
