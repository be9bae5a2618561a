"""Workers that die again and again: at once, later, and then no more, until somebody starts the server again."""

from __future__ import annotations

import errno
from typing import Any

from poolctl.runners.runner_protocol import Exit
from tests.unit.supervisor.desk import Desk, run, turns, web

AT_ONCE = {"policy": "on-failure", "backoff": {"initial": 0, "max": 0}, "limit": 2, "window": 60}
KILLED = Exit.from_signal(9)


async def die(desk: Desk) -> None:
    (worker,) = desk.runner.running
    desk.runner.end(worker, KILLED)
    await turns()


def test_limit_is_of_a_window_and_the_reason_is_reported() -> None:
    async def scenario() -> None:
        desk = Desk(web(restart=AT_ONCE))
        await desk.ask("start")
        for _ in range(2):
            await die(desk)
            assert desk.states() == {"web": "running"}
        desk.clock.advance(61)
        for _ in range(2):
            await die(desk)
            assert desk.states() == {"web": "running"}
        assert len(desk.core.entries["web"].observed.restart_times) == 2, "what is older is forgotten"
        await die(desk)
        assert desk.states() == {"web": "failed"}
        answer = await desk.ask("status")
        assert ([each["health"] for each in answer["items"]], answer["summary"]["health"]) == (
            ["ko"],
            {"ko": 1},
        )
        assert answer["errors"][0]["message"] == "killed by SIGKILL; given up after 2 restarts in 1m"
        assert desk.runner.opened == set()

    run(scenario())


def test_start_resets_the_count() -> None:
    async def scenario() -> None:
        desk = Desk(web(restart=AT_ONCE))
        await desk.ask("start")
        for _ in range(3):
            await die(desk)
        assert desk.states() == {"web": "failed"}
        assert (await desk.ask("start"))["exit_code"] == 0
        for _ in range(2):
            await die(desk)
            assert desk.states() == {"web": "running"}
        assert desk.core.entries["web"].observed.restarts == 4

    run(scenario())


def test_connections_wait_while_the_worker_is_replaced_and_in_a_short_pause() -> None:
    async def scenario() -> None:
        slow: dict[str, Any] = AT_ONCE | {"backoff": {"initial": 20, "max": 20}}
        desk = Desk(web(restart=slow))
        await desk.ask("start")
        await die(desk)
        assert (desk.states(), desk.runner.opened) == (
            {"web": "running"},
            {desk.core.entries["web"].config.key},
        )
        await die(desk)
        assert desk.states() == {"web": "backoff"}
        assert desk.runner.opened, "held, as it comes back sooner than a start may take"
        assert (await desk.ask("start"))["exit_code"] == 0
        assert desk.states() == {"web": "running"}

    run(scenario())


def test_one_of_several_that_dies_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        desk = Desk(web(workers=3, restart=AT_ONCE))
        await desk.ask("start")
        desk.runner.log.clear()
        desk.runner.end("web.1.1", KILLED)
        await turns()
        assert desk.runner.log == ["place web.1.1"]
        assert desk.states() == {"web": "running"}

    run(scenario())


def test_a_listener_that_cannot_be_opened_is_tried_again_after_a_pause_and_not_at_once() -> None:
    async def scenario() -> None:
        desk = Desk(web(restart=AT_ONCE | {"backoff": {"initial": 20, "max": 20}}))
        desk.runner.unopenable.add("web")
        assert (await desk.ask("start"))["exit_code"] == 1
        await turns()
        entry = desk.core.entries["web"]
        assert (entry.state, entry.observed.failures) == ("backoff", 1)
        desk.runner.unopenable.clear()
        assert (await desk.ask("start"))["exit_code"] == 0

    run(scenario())


def test_server_not_ready_in_time_has_failed_although_it_ends_with_status_0() -> None:
    async def scenario() -> None:
        desk = Desk(web(start_timeout="20ms"), web="never")
        result = await desk.ask("start")
        assert result["exit_code"] == 1
        assert "was not ready within 20ms" in result["errors"][0]["message"]
        assert all(exit_.ok for exit_ in desk.runner.ended.values())
        assert desk.states() == {"web": "failed"}

    run(scenario())


def test_refusal_by_the_system_is_explained_with_its_fix() -> None:
    async def scenario() -> None:
        desk = Desk(web())

        async def place(*_: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        desk.runner.place = place  # type: ignore[method-assign]
        (error,) = (await desk.ask("start"))["errors"]
        assert error["message"] == "the machine refuses a worker: Too many open files"
        assert "ulimit -n" in error["hint"]

    run(scenario())
