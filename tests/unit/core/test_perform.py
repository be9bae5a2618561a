"""Workers that die again and again: at once, later, and then no more, until somebody starts the server again."""

from __future__ import annotations

import errno
from typing import Any

from poolctl.runners.runner_protocol import Exit
from poolctl.states import Status
from tests.unit.core.ordered_core import OrderedCore, run, turns, web

AT_ONCE = {"policy": "on-failure", "backoff": {"initial": 0, "max": 0}, "limit": 2, "window": 60}
KILLED = Exit.from_signal(9)


async def die(pool: OrderedCore) -> None:
    (worker,) = pool.runner.running
    pool.runner.end(worker, KILLED)
    await turns()


def test_limit_is_of_a_window_and_the_reason_is_reported() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE))
        await pool.start()
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        pool.clock.advance(61)
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        assert len(pool.core.entries["web"].observed.restart_times) == 2, "what is older is forgotten"
        await die(pool)
        assert pool.states() == {"web": "failed"}
        entry = pool.core.entries["web"]
        assert entry.health is Status.KO
        assert entry.observed.failure is not None
        assert entry.observed.failure.message == "killed by SIGKILL; given up after 2 restarts in 1m"
        assert pool.runner.opened == set()

    run(scenario())


def test_start_resets_the_count() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE))
        await pool.start()
        for _ in range(3):
            await die(pool)
        assert pool.states() == {"web": "failed"}
        assert await pool.start() == []
        for _ in range(2):
            await die(pool)
            assert pool.states() == {"web": "running"}
        assert pool.core.entries["web"].observed.restarts == 4

    run(scenario())


def test_connections_wait_while_the_worker_is_replaced_and_in_a_short_pause() -> None:
    async def scenario() -> None:
        slow: dict[str, Any] = AT_ONCE | {"backoff": {"initial": 20, "max": 20}}
        pool = OrderedCore(web(restart=slow))
        await pool.start()
        await die(pool)
        assert (pool.states(), pool.runner.opened) == (
            {"web": "running"},
            {pool.core.entries["web"].config.key},
        )
        await die(pool)
        assert pool.states() == {"web": "backoff"}
        assert pool.runner.opened, "held, as it comes back sooner than a start may take"
        assert await pool.start() == []
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_one_of_several_that_dies_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(workers=3, restart=AT_ONCE))
        await pool.start()
        pool.runner.log.clear()
        pool.runner.end("web.1.1", KILLED)
        await turns()
        assert pool.runner.log == ["place web.1.1"]
        assert pool.states() == {"web": "running"}

    run(scenario())


def test_a_listener_that_cannot_be_opened_is_tried_again_after_a_pause_and_not_at_once() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(restart=AT_ONCE | {"backoff": {"initial": 20, "max": 20}}))
        pool.runner.unopenable.add("web")
        assert await pool.start() != []
        await turns()
        entry = pool.core.entries["web"]
        assert (entry.state, entry.observed.failures) == ("backoff", 1)
        pool.runner.unopenable.clear()
        assert await pool.start() == []

    run(scenario())


def test_server_not_ready_in_time_has_failed_although_it_ends_with_status_0() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web(start_timeout="20ms"), web="never")
        (problem,) = await pool.start()
        assert "was not ready within 20ms" in problem.message
        assert all(exit_.ok for exit_ in pool.runner.ended.values())
        assert pool.states() == {"web": "failed"}

    run(scenario())


def test_refusal_by_the_system_is_explained_with_its_fix() -> None:
    async def scenario() -> None:
        pool = OrderedCore(web())

        async def place(*_: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        pool.runner.place = place  # type: ignore[method-assign]
        (problem,) = await pool.start()
        assert problem.message == "the machine refuses a worker: Too many open files"
        assert "ulimit -n" in problem.hint

    run(scenario())
