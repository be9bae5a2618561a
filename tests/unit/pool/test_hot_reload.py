"""What a pool asks of its runner when it is brought to another list of servers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from poolctl import (
    Field,
    Pool,
    PoolConfig,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    ServerConfig,
    State,
)
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.unit.pool.test_lifecycle import config, made, on_loop
from tests.unit.runners.scripted_runner import FAILS, NEVER, ScriptedRunner


def states(pool: Pool) -> dict[str, str]:
    return {server.name: str(server.state) for server in pool.values()}


def failures(pool: Pool, configs: Any) -> dict[str, str]:
    with pytest.raises(PoolRestartError) as caught:
        pool.apply_sync(configs)
    return {error.name: error.message for error in caught.value.exceptions}


def test_only_what_differs_is_touched() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("same"), config("other"), config("gone"))
    pool.start_sync()
    same, other, gone = pool.values()
    runner.log.clear()
    pool.apply_sync([config("new"), config("same"), config("other", stop_timeout=7)])
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
    pool.apply_sync([config("new"), config("same"), config("other", stop_timeout=7)])
    assert runner.log == []
    pool.stop_sync()


def test_apply_inside_a_loop_starts_new_servers_after_those_whose_address_they_get() -> None:
    runner = ScriptedRunner()

    async def scenario() -> None:
        async with made(runner, config("old")) as pool:
            await pool.apply([config("new", bind=config("old").bind)])
            assert states(pool) == {"new": "running"}

    asyncio.run(scenario())
    assert runner.log[:4] == ["open old", "place old.1.0", "stop old.1.0 10", "place new.1.0"]


def test_pool_that_does_not_run_gets_its_servers_and_starts_none() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.apply_sync([config("a", stop_timeout=1), config("b")])
    assert (runner.log, states(pool)) == ([], {"a": "stopped", "b": "stopped"})
    assert pool[config("a").bind].config.stop_timeout == 1


def test_pool_that_was_started_empty_starts_what_it_gets() -> None:
    pool = made(ScriptedRunner())
    pool.start_sync()
    pool.apply_sync([config("a")])
    assert states(pool) == {"a": "running"}
    pool.stop_sync()
    pool.apply_sync([config("a"), config("b")])
    assert states(pool) == {"a": "stopped", "b": "stopped"}


def test_stopped_server_stays_stopped_and_a_failed_one_is_tried_again_when_it_differs() -> None:
    runner = ScriptedRunner(failed=FAILS, hopeless=FAILS)
    servers = [config("stopped"), config("failed"), config("hopeless"), config("runs")]
    pool = made(runner, *servers)
    with pytest.raises(PoolStartError):
        pool.start_sync()
    pool[servers[0].bind].stop_sync()
    runner.script.clear()
    runner.log.clear()
    pool.apply_sync([servers[0].but(stop_timeout=1), servers[1].but(stop_timeout=1), *servers[2:]])
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
    pool = made(runner, config("a", workers=1))
    pool.start_sync()
    pool.apply_sync([config("a", workers=3, tags=["x"])])
    (server,) = pool.values()
    assert list(runner.running) == ["a.1.0", "a.1.1", "a.1.2"]
    assert (server.config.tags, server.stale) == (("x",), False)
    pool.apply_sync([config("a", tags=["x"])])
    wait_until(lambda: list(runner.running) == ["a.1.0"])
    pool.stop_sync()


def test_worker_that_a_live_change_adds_and_that_fails_leaves_the_others() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    runner.script["a.1.1"] = FAILS
    said = failures(
        pool, [config("a", workers=2, restart={"backoff": {"initial": 60}}), config("b", workers=2)]
    )
    assert list(said) == ["a"]
    assert "a.1.0" in runner.running
    assert "b.1.1" in runner.running
    pool.stop_sync()


def test_failed_replacement_leaves_the_old_worker_and_does_not_keep_others_from_changing() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"), config("gone"))
    pool.start_sync()
    runner.script = {"a": FAILS, "new": FAILS}
    newer = [config("a", stop_timeout=1), config("b", stop_timeout=1), config("new")]
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
    pool.apply_sync([config("a"), config("b", stop_timeout=1), config("new", stop_timeout=1)])
    assert not a.stale
    assert "a.1.0" in runner.running, "it runs as it should"
    pool.stop_sync()


def test_invalid_servers_stay_as_they_are_and_the_others_change() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"), config("c"))
    pool.start_sync()
    invalid = {"name": "a", "bind": config("a").bind, "app": "m:app", "workers": "many"}
    taken = config("c", bind=config("a").bind)
    said = failures(pool, [invalid, config("b", stop_timeout=1), taken])
    assert list(said) == ["a", "c"]
    assert said["c"] == f"the address {config('a').bind} is taken by 'a'"
    pool.join_sync()
    assert sorted(runner.running) == ["a.1.0", "b.2.0", "c.1.0"]
    assert {server.name: server.bind for server in pool.values()} == {
        name: config(name).bind for name in "abc"
    }
    pool.stop_sync()


def test_problem_without_a_name_takes_no_server_out() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    failures(pool, [config("a"), object()])
    assert states(pool) == {"a": "running", "b": "running"}
    pool.stop_sync()


def test_servers_may_exchange_their_addresses() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    a, b = pool.values()
    view = pool.filter(Field.NAME, "a")
    pool.apply_sync([config("a", bind=config("b").bind), config("b", bind=config("a").bind)])
    assert (pool[config("b").bind], pool[config("a").bind]) == (a, b)
    assert a.ready
    assert b.ready
    assert runner.opened == set(pool)
    assert view.load_and_delete(config("a").bind) is a
    pool.stop_sync()


def test_automatic_port_is_kept() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a", bind="127.0.0.1:auto"))
    pool.start_sync()
    (bind,) = pool
    pool.apply_sync([config("a", bind="127.0.0.1:auto")])
    assert list(pool) == [bind]
    assert list(runner.running) == ["a.1.0"]
    pool.apply_sync(PoolConfig([config("a", bind="127.0.0.1:auto", stop_timeout=1)]))
    assert list(pool) == [bind]
    pool.stop_sync()


def test_server_that_is_disabled_stops_and_starts_when_it_is_enabled() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"), config("b"))
    pool.start_sync()
    pool.apply_sync([config("a", disabled=True), config("b")])
    assert (states(pool), list(runner.running)) == ({"a": "disabled", "b": "running"}, ["b.1.0"])
    pool.apply_sync([config("a"), config("b")])
    assert states(pool) == {"a": "running", "b": "running"}
    pool.stop_sync()


def test_new_server_waits_for_one_that_it_depends_on_and_that_does_not_change() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("db"))
    pool.start_sync()
    pool.apply_sync([config("db"), config("web", depends_on=["db"])])
    assert states(pool) == {"db": "running", "web": "running"}
    runner.log.clear()
    pool.stop_sync()
    assert [line for line in runner.log if line.startswith("stop")] == ["stop web.1.0 10", "stop db.1.0 10"]


def test_certificate_that_has_changed_is_given_to_the_worker(tmp_path: Path) -> None:
    runner = ScriptedRunner()
    cert, key = certificate(tmp_path)
    servers = PoolConfig([config("a", tls=True), config("b")])
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
    pool = made(runner, config("a"), config("gone", stop_timeout=0.01))
    pool.start_sync()
    gone = pool[config("gone").bind]
    assert list(failures(pool, [config("a")])) == ["gone"]
    assert list(pool) == [config("a").bind]
    runner.deaf.clear()
    gone.stop_sync()
    pool.stop_sync()


def test_second_apply_undoes_one_that_is_under_way() -> None:
    runner = ScriptedRunner()
    pool = made(runner, config("a"))
    pool.start_sync()
    runner.script["a.2.0"] = NEVER
    thread = threading.Thread(target=_quietly(pool, [config("a", stop_timeout=1)]))
    thread.start()
    wait_until(lambda: "place a.2.0" in runner.log)
    pool.apply_sync([config("a")])
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
    pool = made(ScriptedRunner(), config("a"))
    with pytest.raises(PoolParamError, match="view"):
        pool.filter(Field.NAME, "a").apply_sync([])
    with pytest.raises(PoolParamError, match="no list of servers"):
        pool.apply_sync(7)  # type: ignore[arg-type]
    assert len(pool) == 1


def test_the_blocking_twin_refuses_the_pools_own_loop() -> None:
    pool = made(ScriptedRunner(), config("a"))
    with pytest.raises(RuntimeError, match="would block"):
        on_loop(lambda: pool.apply_sync([]))
