"""Workers that die again and again: at once, later, and then no more, until somebody starts the server again."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.configuration_diff import expired_message, read_certificate_expiry, read_digests_by_key
from poolctl.core.core import Core
from poolctl.core.explain import describe_hang, record_stacks
from poolctl.core.health_checks import FLAPPING
from poolctl.core.server_entry import Entry
from poolctl.core.server_state import Overrides
from poolctl.core.worker import Worker, WorkerPhase
from poolctl.errors import PoolRestartError, PoolStopError
from poolctl.runners.runner_protocol import Exit, Placement, WorkerFailed
from poolctl.runners.stack_report import Frame, ThreadStack, WorkerStacks
from poolctl.states import Status
from tests.certificates import certificate
from tests.deadline import until
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import OrderedCore, RecordedEvents, run, turns, web
from tests.unit.core.stepped_runner import SteppedLoop
from tests.unit.runners.scripted_runner import FAILS, NEVER, READY, ScriptedRunner, break_once

AT_ONCE = {"policy": "on-failure", "backoff": {"initial": 0, "max": 0}, "limit": 2, "window": 60}
KILLED = Exit.from_signal(9)


async def die(pool: OrderedCore) -> None:
    (worker,) = pool.runner.running
    pool.runner.end(worker, KILLED)
    await turns()


async def test_limit_is_of_a_window_and_the_reason_is_reported() -> None:
    pool = OrderedCore(web(restart=AT_ONCE))
    await pool.start()
    for _ in range(2):
        await die(pool)
        assert pool.states() == {"web": "running"}
    pool.clock.advance(61)
    for _ in range(2):
        await die(pool)
        assert pool.states() == {"web": "running"}
    assert len(pool.core.entries["web"].slot(0).restart_times) == 2, "what is older is forgotten"
    await die(pool)
    assert pool.states() == {"web": "failed"}
    entry = pool.core.entries["web"]
    assert entry.health is Status.KO
    assert entry.observed.failure is not None
    assert entry.observed.failure.message == "killed by SIGKILL; given up after 2 restarts in 1m"
    assert entry.observed.next_step == "given up after 2 restarts in 1m: poolctl logs web"
    assert pool.runner.opened == set()


async def test_start_resets_the_count() -> None:
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


async def test_connections_wait_while_the_worker_is_replaced_and_in_a_short_pause() -> None:
    slow: dict[str, Any] = AT_ONCE | {"backoff": {"initial": 20, "max": 20}}
    pool = OrderedCore(web(restart=slow))
    await pool.start()
    await die(pool)
    assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {pool.core.entries["web"].config.key})
    await die(pool)
    assert pool.states() == {"web": "backoff"}
    assert pool.runner.opened, "held, as it comes back sooner than a start may take"
    assert await pool.start() == []
    assert pool.states() == {"web": "running"}


SLOW = {"initial": 5, "max": 20, "factor": 1, "jitter": 0}


Stepped = Callable[..., tuple[OrderedCore, SteppedLoop]]


@pytest.fixture
def stepped() -> Iterator[Stepped]:
    """Make a core of these servers, and a loop whose time is that of the core's clock."""
    loops: list[SteppedLoop] = []

    def begin(*servers: ServerConfig, **script: str) -> tuple[OrderedCore, SteppedLoop]:
        pool = OrderedCore(*servers, **script)
        loops.append(SteppedLoop(pool.clock))
        return pool, loops[-1]

    yield begin
    for loop in loops:
        loop.close()


def test_socket_is_closed_in_the_backoff_after_the_first_attempt_of_a_start_and_open_during_the_next(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(restart={"backoff": SLOW}), web=FAILS)
    loop.run_until_complete(pool.start())
    loop.settle()
    assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
    pool.runner.script["web"] = NEVER
    pool.clock.advance(5)
    loop.settle()
    assert (pool.states(), len(pool.runner.opened)) == ({"web": "starting"}, 1)
    pool.runner.end("web.1.0", KILLED)
    loop.settle()
    assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
    pool.runner.script["web"] = READY
    pool.clock.advance(5)
    loop.settle()
    assert (pool.states(), len(pool.runner.opened)) == ({"web": "running"}, 1)


def test_connections_to_a_server_that_was_ready_wait_until_three_attempts_in_a_row_have_failed(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(restart={"backoff": SLOW}))
    loop.run_until_complete(pool.start())
    pool.runner.script["web"] = FAILS
    loop.run_until_complete(die(pool))  # replaced at once, by the first attempt that fails
    for attempt in range(1, 4):
        assert (pool.states(), len(pool.runner.opened)) == ({"web": "backoff"}, attempt < 3)
        pool.clock.advance(5)
        loop.settle()
    pool.runner.script["web"] = READY
    pool.clock.advance(5)
    loop.settle()
    pool.runner.script["web"] = FAILS
    loop.run_until_complete(die(pool))
    assert (pool.states(), len(pool.runner.opened)) == ({"web": "backoff"}, 1), "counted anew"


def test_server_that_was_ready_is_ko_at_its_limit_and_tried_after_the_longest_delay_until_it_is_ready(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(restart={"backoff": SLOW}))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())
    pool.runner.script["web"] = FAILS
    loop.run_until_complete(die(pool))
    for _ in range(7):
        assert (entry.state, entry.health) == ("backoff", Status.UNKNOWN)
        pool.clock.advance(5)
        loop.settle()
    assert (entry.state, entry.health, entry.is_missing) == ("backoff", Status.KO, True)
    event = pool.events[-1]
    assert (event.event, event.message) == ("ko", "keeps failing, and is tried every 20s")
    placed = pool.runner.log.count("place web.1.0")
    for _ in range(30):
        pool.clock.advance(20)
        loop.settle()
    assert pool.runner.log.count("place web.1.0") == placed + 30, "though the window has passed"
    pool.runner.script["web"] = READY
    pool.clock.advance(20)
    loop.settle()
    assert (entry.state, entry.health) == ("running", Status.OK)
    assert pool.events[-1].message == "is healthy again"


async def test_a_start_after_a_stop_begins_as_if_the_server_had_never_been_ready() -> None:
    pool = OrderedCore(web(restart={"backoff": SLOW}))
    await pool.start()
    await pool.stop()
    pool.runner.script["web"] = FAILS
    await pool.start()
    await turns()
    assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
    assert not pool.core.entries["web"].observed.was_up


def test_server_flaps_after_two_deaths_soon_after_ready_until_it_has_been_ready_for_long(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(restart={"backoff": {"initial": 0, "max": 0}}))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())
    pool.clock.advance(61)
    loop.run_until_complete(die(pool))  # not soon
    for flapping in (False, True):
        pool.clock.advance(59)
        loop.run_until_complete(die(pool))
        assert (entry.flapping, entry.health) == (flapping, Status.WARN if flapping else Status.OK)
    assert pool.events[-1].message == FLAPPING
    pool.clock.advance(299)
    loop.settle()
    assert entry.flapping
    pool.clock.advance(2)
    loop.settle()
    assert (entry.flapping, entry.health) == (False, Status.OK)


async def test_stopped_server_is_no_longer_watched_for_being_ready_for_long() -> None:
    pool = OrderedCore(web(restart=AT_ONCE))
    await pool.start()
    await die(pool)
    timer = pool.core.entries["web"].slot(0).steady_timer
    assert timer is not None
    await pool.stop()
    assert timer.cancelled()


async def test_program_that_ends_while_it_is_idle_and_sleeps_does_not_flap() -> None:
    program = web(app=None, command=["program"], scale={"min": 0, "idle": 0})
    pool = OrderedCore(program)
    await pool.start()
    for _ in range(3):
        pool.runner.ring("web")
        await turns()
        assert pool.states() == {"web": "running"}
        (worker,) = pool.runner.running
        pool.runner.end(worker, Exit.from_returncode(0))
        await turns()
        assert pool.states() == {"web": "sleeping"}
    assert not pool.core.entries["web"].flapping


def test_order_to_restart_neither_makes_a_server_flap_nor_ends_nor_prolongs_that(stepped: Stepped) -> None:
    pool, loop = stepped(web(restart={"backoff": {"initial": 0, "max": 0}}))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())
    for _ in range(3):
        loop.run_until_complete(pool.restart())
    assert not entry.flapping
    for _ in range(2):
        loop.run_until_complete(die(pool))
    pool.clock.advance(200)
    loop.run_until_complete(pool.restart())
    pool.clock.advance(50)
    loop.settle()
    assert entry.flapping, "no worker has been ready for long"
    pool.clock.advance(100)
    loop.settle()
    assert not entry.flapping, "none has died for five minutes"


async def test_server_has_failed_for_the_reason_of_the_worker_that_failed_although_another_ended_last() -> (
    None
):
    pool = OrderedCore(web(workers=2, restart="no"))
    await pool.start()
    pool.runner.end("web.1.0", Exit.from_returncode(3))
    await turns()
    pool.runner.end("web.1.1", Exit.from_returncode(0))
    await turns()
    observed = pool.core.entries["web"].observed
    assert pool.states() == {"web": "failed"}
    assert observed.failure is not None
    assert (observed.last_exit, observed.failure.message) == (Exit.from_returncode(3), "exited with status 3")


async def test_restarts_are_counted_for_each_worker() -> None:
    pool = OrderedCore(web(workers=3, restart=AT_ONCE))
    await pool.start()
    for _ in range(2):
        for index in range(3):
            pool.runner.end(f"web.1.{index}", KILLED)
            await turns()
    assert len(pool.runner.running) == 3
    assert pool.core.entries["web"].observed.restarts == 6


async def test_backoff_of_one_worker_delays_no_other() -> None:
    pool = OrderedCore(web(workers=2, restart=AT_ONCE | {"backoff": {"initial": 60, "max": 60}}))
    await pool.start()
    for _ in range(2):
        pool.runner.end("web.1.0", KILLED)
        await turns()
    assert list(pool.runner.running) == ["web.1.1"]
    pool.runner.end("web.1.1", KILLED)
    await turns()
    assert (list(pool.runner.running), pool.states()) == (["web.1.1"], {"web": "running"})


async def test_server_fails_when_none_of_its_workers_is_left_and_one_has_reached_its_limit() -> None:
    pool = OrderedCore(web(workers=2, restart=AT_ONCE | {"backoff": {"initial": 0, "max": 60}}))
    await pool.start()
    for _ in range(3):
        pool.runner.end("web.1.0", KILLED)
        await turns()
    assert (list(pool.runner.running), pool.states()) == (["web.1.1"], {"web": "running"})
    for _ in range(2):
        pool.runner.end("web.1.1", KILLED)
        await turns()
        assert pool.states() == {"web": "running"}
    pool.runner.end("web.1.1", KILLED)
    await turns()
    assert (pool.states(), pool.runner.opened) == ({"web": "failed"}, set())


@pytest.mark.parametrize(
    ("policy", "last", "state"), [("on-failure", 0, "stopped"), ("no", 0, "stopped"), ("no", 1, "failed")]
)
async def test_worker_that_ends_for_good_leaves_the_others_until_the_last_has_ended(
    policy: str, last: int, state: str
) -> None:
    pool = OrderedCore(web(workers=3, restart=policy))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.end("web.1.1", Exit.from_returncode(0))
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.1.2"]
    assert (entry.ready, entry.health, entry.observed.next_step) == (True, Status.WARN, "not restarted")
    message = "a worker has ended, and is not replaced; poolctl restart web starts it again"
    assert pool.events[-1].message == message
    pool.runner.end("web.1.0", Exit.from_returncode(0))
    await turns()
    assert (list(pool.runner.running), pool.states()) == (["web.1.2"], {"web": "running"})
    pool.runner.end("web.1.2", Exit.from_returncode(last))
    await turns()
    assert (pool.states(), pool.runner.opened) == ({"web": state}, set())


async def test_restart_brings_back_a_worker_that_had_ended_for_good() -> None:
    pool = OrderedCore(web(workers=2, restart="no"))
    await pool.start()
    pool.runner.end("web.1.1", KILLED)
    await turns()
    assert await pool.restart() == []
    assert sorted(pool.runner.running) == ["web.2.0", "web.2.1"]
    assert pool.core.entries["web"].health is Status.OK


async def test_worker_that_is_replaced_alone_serves_until_its_replacement_is_ready() -> None:
    pool = OrderedCore(web(workers=2), **{"web.2.1": NEVER})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.mark_expired(entry, "web.1.1")
    pool.core.mark_expired(entry, "web.1.1")
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.1.1", "web.2.1"]
    pool.runner.end("web.2.1", KILLED)
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.1.1"], "the old one stays if the new one fails"
    pool.core.mark_expired(entry, "web.1.1")
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.3.1"]
    assert (entry.observed.restarts, entry.is_fully_ready) == (0, True)


async def test_failed_reload_goes_back_to_workers_that_had_been_replaced_alone() -> None:
    pool = OrderedCore(web(workers=2), **{"web.3.0": FAILS})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.mark_expired(entry, "web.1.1")
    await turns()
    assert await pool.restart() != []
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.2.1"]
    assert entry.is_fully_ready


async def test_a_listener_that_cannot_be_opened_is_tried_again_after_a_pause_and_not_at_once() -> None:
    pool = OrderedCore(web(restart=AT_ONCE | {"backoff": {"initial": 20, "max": 20}}))
    pool.runner.unopenable.add("web")
    assert await pool.start() != []
    await turns()
    entry = pool.core.entries["web"]
    assert (entry.state, entry.observed.failures) == ("backoff", 1)
    assert entry.observed.failed_since == pool.clock.time()
    pool.runner.unopenable.clear()
    assert await pool.start() == []


async def test_refusal_by_the_system_is_explained_with_its_fix() -> None:
    pool = OrderedCore(web())

    async def place(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    pool.runner.place = place  # type: ignore[method-assign]
    (problem,) = await pool.start()
    assert problem.message == "cannot start a worker: Too many open files"
    assert "ulimit -n" in problem.hint


def test_backoff_that_is_longer_than_a_start_refuses_connections_and_ends_with_another_worker(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(restart=AT_ONCE | {"backoff": {"initial": 60, "max": 60}}, start_timeout=10))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())
    for _ in range(2):
        loop.run_until_complete(die(pool))
    assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
    assert entry.observed.failure is not None
    assert entry.observed.failure.message == "killed by SIGKILL"
    assert entry.observed.next_step.startswith("restart")
    pool.clock.advance(50)
    loop.settle()
    assert (pool.states(), pool.runner.opened) == ({"web": "backoff"}, set())
    pool.clock.advance(20)
    loop.settle()
    assert (pool.states(), pool.runner.opened) == ({"web": "running"}, {entry.config.key})
    assert entry.observed.restarts == 2


def test_port_that_cannot_be_opened_is_tried_once_for_all_workers_and_not_again_before_the_backoff_is_over(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(web(workers=3, restart={"backoff": SLOW}))
    pool.runner.unopenable.add("web")
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())
    loop.settle()
    assert (pool.states(), entry.observed.restarts) == ({"web": "backoff"}, 1)
    pool.runner.unopenable.clear()
    pool.clock.advance(5)
    loop.settle()
    assert (pool.states(), len(pool.runner.running)) == ({"web": "running"}, 3)


async def test_each_worker_that_is_replaced_alone_without_overlap_is_kept_if_no_other_can_be_started() -> (
    None
):
    pool = OrderedCore(web(overlap=False))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.replace_worker(entry, "web.1.0")
    await turns()
    assert list(pool.runner.running) == ["web.2.0"]
    pool.runner.unplaceable.add("web")
    pool.core.replace_worker(entry, "web.2.0")
    await turns()
    assert list(pool.runner.running) == ["web.2.0"]


async def test_failed_replacement_of_one_worker_leaves_that_of_another() -> None:
    pool = OrderedCore(web(workers=2), **{"web.2.0": NEVER, "web.3.1": NEVER})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.replace_worker(entry, "web.1.0")
    pool.core.replace_worker(entry, "web.1.1")
    await turns()
    pool.runner.end("web.2.0", KILLED)
    await turns()
    assert sorted(pool.runner.running) == ["web.1.0", "web.1.1", "web.3.1"]


async def test_files_of_a_server_are_those_of_its_oldest_worker_while_they_differ(tmp_path: Path) -> None:
    variables = tmp_path / "a.env"
    variables.write_text("A=1\n")
    pool = OrderedCore(web(workers=2, env_file=str(variables)))
    await pool.start()
    entry = pool.core.entries["web"]
    before = entry.observed.files
    variables.write_text("A=2\n")
    pool.core.replace_worker(entry, "web.1.0")
    await turns()
    assert entry.observed.files == before
    pool.core.replace_worker(entry, "web.1.1")
    await turns()
    assert entry.observed.files != before


async def test_restart_without_overlap_of_a_server_whose_worker_is_at_its_limit_is_no_failure() -> None:
    pool = OrderedCore(web(workers=2, overlap=False), **{"web.2.0": NEVER, "web.2.1": NEVER})
    await pool.start()
    entry = pool.core.entries["web"]
    entry.slot(1).spent = True
    pool.core.restart(entry)
    await turns()
    assert (entry.observed.ready, entry.keeps_failing) == ([], False)


async def test_restart_without_overlap_keeps_the_worker_and_reports_why_no_other_can_be_started() -> None:
    pool = OrderedCore(web(overlap=False))
    await pool.start()
    pool.runner.unplaceable.add("web")
    (problem,) = await pool.restart()
    assert (problem.message, problem.hint) == ("no worker can be forked", "look")
    observed = pool.core.entries["web"].observed
    assert (observed.failures, observed.failed_since) == (1, pool.clock.time())
    assert not observed.checking
    assert (pool.states(), list(pool.runner.running)) == ({"web": "running"}, ["web.1.0"])
    pool.runner.unplaceable.clear()
    assert await pool.restart() == []
    assert "web.1.0" not in pool.runner.running


async def test_listener_that_fails_to_open_after_a_stop_is_no_failure() -> None:
    pool = OrderedCore(web())
    pool.runner.may_open.clear()
    pool.runner.unopenable.add("web")
    starting = pool.begin(pool.start())
    await turns()
    stopping = pool.begin(pool.stop())
    await turns()
    pool.runner.may_open.set()
    assert await stopping == []
    await starting
    assert (pool.states(), pool.core.entries["web"].observed.failure) == ({"web": "stopped"}, None)


async def test_worker_that_is_killed_gets_no_time_even_if_it_is_stopping_already() -> None:
    pool = OrderedCore(web(stop_timeout=7))
    await pool.start()
    entry = pool.core.entries["web"]
    (worker,) = entry.observed.workers.values()
    pool.runner.may_end.clear()
    stopping = pool.begin(pool.stop())
    await turns()
    pool.core.kill(entry, worker)
    assert await stopping == []
    pool.runner.may_end.set()
    assert "stop web.1.0 0" in pool.runner.log


def test_stuck_worker_has_a_second_to_end_and_less_if_its_stop_timeout_is_shorter() -> None:
    async def scenario(stop_timeout: float, expected: str) -> None:
        pool = OrderedCore(web(stop_timeout=stop_timeout))
        await pool.start()
        (worker,) = pool.core.entries["web"].observed.workers.values()
        worker.stuck = True
        await pool.stop()
        assert f"stop web.1.0 {expected}" in pool.runner.log

    run(scenario(7, "1"))
    run(scenario(0.5, "0.5"))


def test_workers_that_had_to_be_killed_are_named_in_one_warning_with_their_time() -> None:
    async def scenario(exit_: Exit, warnings: list[str]) -> None:
        pool = OrderedCore(web(stop_timeout=7, workers=2))
        await pool.start()
        stop = pool.runner.stop

        async def stopped(*args: Any, **options: Any) -> Exit:
            await stop(*args, **options)
            return exit_

        pool.runner.stop = stopped  # type: ignore[method-assign]
        await pool.stop()
        await turns()
        assert pool.core.entries["web"].observed.warnings == warnings

    run(scenario(KILLED, ["web: had to be killed after 7s"]))
    run(scenario(Exit.from_signal(15), []))


async def test_worker_that_survives_its_kill_is_reported_with_where_it_runs() -> None:
    pool = OrderedCore(web())
    await pool.start()
    (worker,) = pool.core.entries["web"].observed.workers.values()
    pool.runner.deaf.add("web")
    (problem,) = await pool.stop()
    assert problem.message == "still running after SIGKILL (nowhere)"
    assert worker.unstoppable
    assert list(pool.core.entries["web"].observed.workers) == ["web.1.0"]


async def test_stop_during_the_import_of_an_application_places_no_worker() -> None:
    pool = OrderedCore(web(preload=True))
    imports = asyncio.Event()

    async def prepare(*_: Any) -> str:
        await imports.wait()
        return ""

    pool.runner.preload_application = prepare  # type: ignore[attr-defined]
    starting = pool.begin(pool.start())
    await turns()
    assert await pool.stop() == []
    await starting
    assert pool.states() == {"web": "stopped"}
    assert not any(line.startswith("place") for line in pool.runner.log)


async def test_application_that_cannot_be_preloaded_is_served_and_reported_once() -> None:
    pool = OrderedCore(web(preload=True, workers=2))

    async def prepare(*_: Any) -> str:
        return "it starts threads"

    pool.runner.preload_application = prepare  # type: ignore[attr-defined]
    assert await pool.start() == []
    assert len(pool.runner.running) == 2
    assert pool.core.entries["web"].observed.warnings == [
        "web: preload = true has no effect: it starts threads"
    ]


def test_connections_that_wait_for_a_wake_are_closed_when_it_fails_and_not_before(stepped: Stepped) -> None:
    pool, loop = stepped(web(scale={"min": 0, "idle": 1}, start_timeout=10), web=NEVER)
    dismissal = f"close_waiting {pool.core.entries['web'].config.key}"
    loop.run_until_complete(pool.start())
    assert pool.states() == {"web": "sleeping"}

    async def rung() -> None:
        pool.runner.ring("web")

    loop.run_until_complete(rung())
    loop.settle()
    assert list(pool.runner.running) == ["web.1.0"]
    pool.clock.advance(9)
    loop.settle()
    assert dismissal not in pool.runner.log
    for _ in range(2):  # the first time shows that this process was held up
        pool.clock.advance(2)
        loop.settle()
    assert pool.runner.log.count(dismissal) == 1


async def test_listener_of_a_sleeping_server_is_no_longer_watched_after_an_order_to_wake_it() -> None:
    pool = OrderedCore(web(scale={"min": 0, "idle": 1}))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.wake(entry)
    await turns()
    assert pool.runner.log[1:] == ["arm web", f"disarm {entry.config.key}", "place web.1.0"]
    assert (entry.listener.armed, pool.states()) == (None, {"web": "running"})


async def test_death_of_a_worker_that_is_being_replaced_is_no_failure_of_its_replacement() -> None:
    pool = OrderedCore(web(restart=AT_ONCE), **{"web.2.0": NEVER})
    await pool.start()
    pool.begin(pool.restart())
    await turns()
    pool.runner.end("web.1.0", KILLED)
    await turns()
    entry = pool.core.entries["web"]
    assert (list(pool.runner.running), pool.states()) == (["web.2.0"], {"web": "starting"})
    counts = (entry.observed.restarts, entry.slot(0).restart_times, entry.observed.next_step)
    assert counts == (0, [], "")
    await pool.stop()


async def test_server_whose_replacement_failed_at_once_is_retried_when_its_serving_worker_dies() -> None:
    pool = OrderedCore(web(restart=AT_ONCE | {"backoff": {"initial": 60, "max": 60}}), **{"web.2.0": FAILS})
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.restart(entry, retries=False)
    await turns()
    assert (pool.states(), entry.desired.generation) == ({"web": "running"}, 1)
    pool.runner.script["web"] = FAILS
    await die(pool)
    assert pool.states() == {"web": "backoff"}


async def test_worker_that_is_to_leave_before_it_has_a_process_drains_as_soon_as_it_has_one() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.may_place = asyncio.Event()
    pool.core.replace_overrides(entry, Overrides(workers=2))
    await turns()
    pool.core.replace_overrides(entry, Overrides(workers=1))
    await turns()
    assert entry.observed.workers["web.1.1"].phase is WorkerPhase.DRAINING
    log_of(pool)
    pool.runner.may_place.set()
    await turns()
    assert log_of(pool) == ["drain web.1.1", "stop web.1.1 10"]
    assert list(pool.runner.running) == ["web.1.0"]


@pytest.fixture
def stepped_core(stepped: Stepped) -> tuple[OrderedCore, SteppedLoop]:
    """A server with 10 seconds to start, none of whose workers reports that it is ready, on a loop that is stepped."""
    return stepped(web(start_timeout=10), web=NEVER)


def test_worker_that_drains_before_it_is_known_to_be_ready_is_not_killed_at_its_start_timeout(
    stepped_core: tuple[OrderedCore, SteppedLoop],
) -> None:
    pool, loop = stepped_core
    entry = pool.core.entries["web"]

    async def order(change: Callable[[Entry], None]) -> None:
        change(entry)

    pool.runner.script["web.2.0"] = READY
    pool.runner.may_drain = asyncio.Event()
    for change in (pool.core.start, pool.core.restart):
        loop.run_until_complete(order(change))
        loop.settle()
    worker = entry.observed.workers["web.1.0"]
    assert worker.phase is WorkerPhase.DRAINING
    log_of(pool)
    pool.clock.advance(15)
    loop.settle()
    pool.clock.advance(15)
    loop.settle()
    assert [line for line in log_of(pool) if "web.1.0" in line] == []
    pool.runner.may_drain.set()
    loop.settle()
    assert "stop web.1.0 10" in log_of(pool)
    assert worker.id not in entry.observed.workers


@pytest.mark.parametrize("reports", [True, False])
def test_time_in_which_the_supervisor_is_held_up_is_no_part_of_a_start_timeout(
    stepped_core: tuple[OrderedCore, SteppedLoop], reports: bool
) -> None:
    pool, loop = stepped_core
    reported = asyncio.Event()

    async def wait_until_ready(placement: Placement) -> None:
        await reported.wait()

    async def start() -> None:
        pool.core.start(pool.core.entries["web"])
        if reports:
            loop.call_later(5, reported.set)

    pool.runner.wait_until_ready = wait_until_ready  # type: ignore[method-assign]
    loop.run_until_complete(start())
    loop.settle()
    pool.clock.advance(30)  # as seen by a process that was stopped: the report and the timeout at once
    loop.settle()
    assert pool.states() == {"web": "running" if reports else "starting"}
    pool.clock.advance(21)
    loop.settle()
    assert pool.states() == {"web": "running" if reports else "failed"}


# Stacks of workers that hang.


class StackRunner(ScriptedRunner):
    """Reads the stacks that a test gives, or raises its error."""

    def __init__(self, answer: WorkerStacks | Exception) -> None:
        super().__init__()
        self.found = answer
        self.asked_for: list[tuple[str, float]] = []

    async def stacks(self, worker: str, timeout_seconds: float) -> WorkerStacks:
        self.asked_for.append((worker, timeout_seconds))
        if isinstance(self.found, Exception):
            raise self.found
        return replace(self.found, worker=worker)


def hanging_worker() -> tuple[Entry, Worker]:
    config = web()
    placement = Placement.of("web", 1, 0, pid=7)
    return Entry(config), Worker(placement.id, 1, 0, config, placement=placement)


FRAME = Frame(file="app.py", line=3, function="wait")
FOUND = WorkerStacks(
    name="web", worker="web.1.0", pid=7, source="python", place="wait (app.py:3)",
    threads=tuple(ThreadStack(name=str(number), main=not number, frames=(FRAME,) * 30) for number in range(30)),
)  # fmt: skip


@pytest.mark.slow
async def test_stacks_are_shortened_kept_by_server_and_reported_with_their_place() -> None:
    runner, events = StackRunner(FOUND), RecordedEvents()
    entry, worker = hanging_worker()
    assert entry.observed.stacks is None
    stacks = await record_stacks(runner, entry, worker)
    assert stacks is not None
    assert runner.asked_for == [("web.1.0", 0.9)]
    assert [len(stacks.threads), *(len(thread.frames) for thread in stacks.threads)] == [20] * 21
    assert entry.observed.stacks == stacks
    message = await describe_hang(runner, events, entry, worker, "is not ready within 5s")
    assert message == "is not ready within 5s, in wait (app.py:3)"
    (event,) = events
    assert (event.event, event.server, event.worker, event.pid) == (
        "start timed out", "web", "web.1.0", 7,
    )  # fmt: skip
    assert event.message == f"worker web.1.0 {message}"


async def test_stacks_that_cannot_be_taken_leave_the_message_as_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for error, logged in ((TimeoutError(), False), (OSError("gone"), True)):
        caplog.clear()
        events = RecordedEvents()
        runner = StackRunner(error)
        entry, worker = hanging_worker()
        assert await record_stacks(runner, entry, worker) is None
        assert await describe_hang(runner, events, entry, worker, "hangs") == "hangs"
        assert events == []
        assert ("the stacks of worker web.1.0 cannot be taken" in caplog.text) == logged
    assert await record_stacks(ScriptedRunner(), entry, worker) is None
    worker.placement = None
    assert await record_stacks(StackRunner(FOUND), entry, worker) is None


# What a worker printed.


class LoggedRunner(ScriptedRunner):
    """Keeps the output of a server's workers."""

    printed = ("Traceback (most recent call last):", "  File 'x.py', line 3", "KeyError: 'db'")

    async def logs(self, name: str, lines: int, since: float = 0.0, worker: str = "") -> list[str]:
        return list(self.printed)


class LoggedCore(OrderedCore):
    """A core whose runner keeps output."""

    def __init__(self, *servers: ServerConfig) -> None:
        super().__init__(*servers)
        self.runner: Any = LoggedRunner()
        self.core = Core(servers, self.runner, self.clock, self.events)


async def test_failure_of_several_workers_quotes_each_line_of_their_output_once() -> None:
    pool = LoggedCore(web(workers=2))
    pool.runner.script["web"] = FAILS
    place = 'File "/srv/app.py", line 1, in <module>'
    traceback = (
        "Traceback (most recent call last):",
        f"  {place}",
        "    load()",
        "RuntimeError: broken release",
    )
    pool.runner.printed = ("no database", *traceback) * 2
    (problem,) = await pool.start()
    lines = [line.strip() for line in problem.message.splitlines()[1:]]
    assert lines == [place, "RuntimeError: broken release", "no database"]


@pytest.mark.parametrize(
    ("policy", "deaths", "explained_since"), [("no", 1, 1), ("on-failure", 2, 2), ("always", 2, 2)]
)
async def test_cause_of_a_death_is_read_from_the_output_unless_the_worker_is_replaced_at_once(
    policy: str, deaths: int, explained_since: int
) -> None:
    restart = {"policy": policy, "backoff": {"initial": 60, "max": 60}}
    pool = LoggedCore(web(restart=restart if policy != "no" else "no"))
    await pool.start()
    entry = pool.core.entries["web"]
    for death in range(1, deaths + 1):
        (worker,) = pool.runner.running
        pool.runner.end(worker, Exit.from_returncode(1))
        await turns()
        if death < explained_since:
            assert "KeyError: 'db'" not in str(entry.observed.failure)
        else:
            await until(lambda: "KeyError: 'db'" in str(entry.observed.failure))


@pytest.mark.parametrize(
    ("was_ready", "exit_", "is_cause"),
    [(True, Exit.from_returncode(1), False), (False, Exit.from_returncode(1), True), (False, KILLED, False)],
)
async def test_last_line_is_the_cause_only_of_a_worker_that_refuses_to_start(
    was_ready: bool, exit_: Exit, is_cause: bool
) -> None:
    pool = LoggedCore(web())
    pool.runner.printed = ("the licence has expired",)
    if not was_ready:
        pool.runner.script["web"] = NEVER
    starting = pool.begin(pool.start())
    await turns()
    pool.runner.end("web.1.0", exit_)
    await starting
    entry = pool.core.entries["web"]
    await until(lambda: entry.observed.failure is not None)
    failure = entry.observed.failure
    assert failure is not None
    assert ("the licence has expired" in failure.message) is is_cause


async def test_run_of_a_scheduled_job_is_reported_when_it_fails_and_when_the_next_one_succeeds() -> None:
    job = ServerConfig(name="job", job=True, command=["backup"], every="0 3 * * *", restart="no")
    pool = LoggedCore(job)
    entry = pool.core.entries["job"]
    pool.runner.script["job"] = NEVER

    def reports() -> list[Any]:
        return [event for event in pool.events if event.event.startswith("run ")]

    for status, count in ((1, 1), (1, 2), (0, 3), (0, 3)):
        pool.core.run_now(entry)
        await turns()
        (worker,) = pool.runner.running
        pool.runner.end(worker, Exit.from_returncode(status))
        await turns()
        await until(lambda count=count: len(reports()) >= count)
    assert [event.event for event in reports()] == ["run failed", "run failed", "run succeeded"]
    message = "exited with status 1 before it was ready: KeyError: 'db'"
    assert (reports()[0].message, reports()[0].severity) == (message, "error")
    assert reports()[0].output[-1] == "KeyError: 'db'"


# Actions that changes and requests order.


def log_of(pool: OrderedCore) -> list[str]:
    """What the runner did since the last call."""
    lines, pool.runner.log[:] = list(pool.runner.log), []
    return lines


async def test_move_to_another_address_is_complete_when_the_old_one_is_closed() -> None:
    pool = OrderedCore(web())
    await pool.start()
    entry = pool.core.entries["web"]
    pool.runner.may_close.clear()

    def move(entry: Entry) -> None:
        pool.core.change(entry, web(bind="127.0.0.1:9999"), live=False)

    moving = pool.begin(pool.order(PoolRestartError, [entry], move))
    await turns(60)
    assert (list(pool.runner.running), moving.done()) == (["web.2.0"], False)
    pool.runner.may_close.set()
    assert await moving == []


ASLEEP_SOON = {"min": 0, "idle": 1}


async def test_order_to_wake_a_server_that_falls_asleep_starts_the_next_worker_at_once() -> None:
    pool = OrderedCore(web(scale=ASLEEP_SOON, stop_timeout=7))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.wake(entry)
    await turns()
    pool.runner.may_drain = asyncio.Event()
    pool.core.set_idle(entry, "web.1.0", True)
    while entry.observed.has_pending_request:
        await asyncio.sleep(0)
    log_of(pool)
    pool.core.wake(entry)
    await turns()
    assert [line for line in log_of(pool) if "web.1.0" not in line] == [
        f"disarm {entry.config.key}",
        "place web.2.0",
    ]
    assert (entry.observed.has_pending_request, list(entry.observed.workers)) == (
        True,
        ["web.1.0", "web.2.0"],
    )
    pool.runner.may_drain.set()
    await turns()
    assert list(entry.observed.workers) == ["web.2.0"]


async def test_order_to_wake_a_stopped_server_has_no_effect() -> None:
    pool = OrderedCore(web(scale=ASLEEP_SOON))
    entry = pool.core.entries["web"]
    pool.core.wake(entry)
    await turns()
    assert (log_of(pool), entry.observed.has_pending_request) == ([], False)


@pytest.mark.parametrize(
    ("problem", "expected"),
    [("it starts threads", "it starts threads"), (WorkerFailed("no such module"), "")],
)
async def test_application_of_a_sleeping_server_is_imported_ahead(
    problem: str | WorkerFailed, expected: str
) -> None:
    pool = OrderedCore(web(scale=ASLEEP_SOON, preload=True))
    imported: list[tuple[str, float]] = []

    async def prepare(server: ServerConfig, since: float) -> str:
        imported.append((server.name, since))
        if isinstance(problem, WorkerFailed):
            raise problem
        return problem

    pool.runner.preload_application = prepare  # type: ignore[attr-defined]
    assert await pool.start() == []
    await turns()
    entry = pool.core.entries["web"]
    assert imported == [("web", entry.desired.code_since)]
    assert (entry.observed.preload_problem, entry.observed.failure) == (expected, None)
    assert pool.states() == {"web": "sleeping"}


async def test_program_that_ends_while_it_is_idle_is_started_again_by_the_next_request() -> None:
    program = web(app=None, command=["program"], scale={"min": 0, "idle": 0}, restart="on-failure")
    pool = OrderedCore(program)
    await pool.start()
    pool.runner.ring("web")
    await turns()
    log_of(pool)
    pool.runner.end("web.1.0", Exit.from_returncode(0))
    await turns()
    entry = pool.core.entries["web"]
    assert (log_of(pool), pool.states()) == (["arm web"], {"web": "sleeping"})
    assert (entry.observed.has_pending_request, entry.observed.restarts) == (False, 0)


def test_sleeping_server_that_has_failed_sleeps_again_after_its_window(stepped: Stepped) -> None:
    pool, loop = stepped(web(scale=ASLEEP_SOON, restart=AT_ONCE | {"limit": 0, "window": 60}))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())

    async def scenario() -> None:
        pool.runner.ring("web")
        await turns()
        await die(pool)

    loop.run_until_complete(scenario())
    loop.settle()
    assert (pool.states(), entry.observed.has_pending_request) == ({"web": "failed"}, False)
    pool.clock.advance(59)
    loop.settle()
    assert pool.states() == {"web": "failed"}
    pool.clock.advance(1)
    loop.settle()
    assert (pool.states(), pool.runner.log[-1]) == ({"web": "sleeping"}, "arm web")


async def test_run_that_a_stop_ends_is_recorded_as_stopped() -> None:
    job = ServerConfig(name="job", job=True, command=["backup"], every="0 3 * * *", restart="no")
    pool = OrderedCore(job, job=NEVER)
    entry = pool.core.entries["job"]
    pool.core.run_now(entry)
    await turns()
    pool.clock.advance(5)
    await pool.stop()
    run_ = entry.schedule.last_run
    assert run_ is not None
    assert (run_["result"], entry.schedule.run_since) == ("stopped", 0.0)


# Programs that open a socket of their own.


class ProgramRunner(LoggedRunner):
    """A program that cannot bind its address while the pool listens there; `says` is its last line."""

    says = "Error: listen EADDRINUSE: address already in use 127.0.0.1:9000"
    may_bind = True

    @property
    def printed(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.says,)

    async def wait_until_ready(self, placement: Placement) -> None:
        await asyncio.sleep(0)  # a program ends after it is watched
        await super().wait_until_ready(placement)

    async def place(self, server: ServerConfig, generation: int, index: int, **keys: Any) -> Placement:
        self.script["web"] = READY if server.binds_itself and self.may_bind else FAILS
        return await super().place(server, generation, index, **keys)


class ProgramCore(OrderedCore):
    """A core with one program."""

    def __init__(self, **keys: Any) -> None:
        super().__init__()
        self.runner: Any = ProgramRunner()
        settings: dict[str, Any] = {"app": None, "command": ["program"], "bind": "127.0.0.1:9000"}
        program = web(**settings | keys)
        self.core = Core([program], self.runner, self.clock, self.events)
        self.entry = self.core.entries["web"]


OPENS_ITSELF = (
    "opens 127.0.0.1:9000 itself, and was started again without the pool's socket; "
    'write socket = "program" to its table: a restart ends the old process first'
)
TAKEN = "exited with status 3 before it was ready: address 127.0.0.1:9000 is in use"


async def test_program_whose_address_the_pool_holds_is_started_again_without_the_pools_socket() -> None:
    pool = ProgramCore()
    assert await pool.start() == []
    entry = pool.entry
    assert (pool.states(), entry.observed.socket_found) == ({"web": "running"}, "program")
    assert entry.config.binds_itself
    assert entry.observed.warnings == [f"web: {OPENS_ITSELF}"]
    (event,) = [event for event in pool.events if event.event == "own socket"]
    assert (event.kind, event.server, event.bind) == ("lifecycle", "web", "127.0.0.1:9000")
    assert event.message == OPENS_ITSELF
    assert (entry.observed.restarts, entry.observed.failures) == (0, 0)


async def test_program_whose_address_is_in_use_without_the_pools_socket_too_fails() -> None:
    pool = ProgramCore()
    pool.runner.may_bind = False
    (problem,) = await pool.start()
    assert problem.message == f"{TAKEN}\n    {pool.runner.says}"
    assert (pool.states(), pool.entry.observed.socket_found) == ({"web": "failed"}, "pool")
    assert not pool.entry.config.binds_itself
    places = [line for line in pool.runner.log if line.startswith("place")]
    assert len(places) == 2


@pytest.mark.parametrize(
    "keys",
    [{"command": ["program", "--fd={fd}"]}, {"socket": "pool"}, {"workers": 2}],
    ids=["descriptor in the command", "socket in the table", "two workers"],
)
async def test_program_that_must_take_the_pools_socket_is_not_started_without_it(
    keys: dict[str, Any],
) -> None:
    pool = ProgramCore(**keys)
    (problem,) = await pool.start()
    assert problem.message == f"{TAKEN} (by this pool)\n    {pool.runner.says}"
    assert problem.hint.startswith("the pool listens there for it: have it take that socket ({fd}")
    await until(lambda: pool.states() == {"web": "failed"})
    assert pool.entry.observed.socket_found == ""


async def test_program_that_takes_the_pools_socket_is_noted_without_a_warning() -> None:
    pool = OrderedCore(web(app=None, command=["program"]))
    await pool.start()
    observed = pool.core.entries["web"].observed
    assert (observed.socket_found, observed.warnings) == ("pool", [])


@pytest.mark.parametrize("keys", [{}, {"app": None, "command": ["program"], "socket": "program"}])
async def test_socket_of_an_application_or_of_a_program_that_binds_itself_is_not_noted(
    keys: dict[str, Any],
) -> None:
    pool = OrderedCore(web(**keys))
    await pool.start()
    assert pool.core.entries["web"].observed.socket_found == ""


# Programs that cannot start while their previous process runs.


class AloneRunner(LoggedRunner):
    """A program that starts only while no older process of it runs, if it is `alone`; `says` is its last line."""

    alone = True
    says = "already running on pid 7"

    @property
    def printed(self) -> tuple[str, ...]:  # type: ignore[override]
        return (self.says,)

    async def place(self, server: ServerConfig, generation: int, index: int, **keys: Any) -> Placement:
        others = any(worker.endswith(f".{index}") for worker in self.running)
        placement = await super().place(server, generation, index, **keys)
        self.script[placement.id] = FAILS if others and self.alone else self.script.get("web", READY)
        return placement

    async def wait_until_ready(self, placement: Placement) -> None:
        await asyncio.sleep(0)  # a program ends after it is watched
        await super().wait_until_ready(placement)


class AloneCore(OrderedCore):
    """A core with one program on the pool's socket."""

    def __init__(self, **keys: Any) -> None:
        super().__init__()
        self.runner: Any = AloneRunner()
        self.core = Core([web(app=None, command=["x"], **keys)], self.runner, self.clock, self.events)
        self.entry = self.core.entries["web"]

    @property
    def places(self) -> list[str]:
        return [line for line in log_of(self) if line.startswith("place")]


ALONE = (
    "cannot start while its previous process runs, and was started again after its end; from now on a "
    "restart ends the old process first, and connections wait: overlap = false in its table says so"
)


@pytest.mark.parametrize("workers", [1, 3])
async def test_program_that_dies_while_its_old_process_runs_is_started_again_after_its_end(
    workers: int,
) -> None:
    pool = AloneCore(workers=workers)
    await pool.start()
    assert pool.entry.may_overlap
    assert await pool.restart() == []
    observed = pool.entry.observed
    assert [worker.generation for worker in observed.ready] == [3] * workers
    assert (observed.overlap_found, observed.warnings) == ("no", [f"web: {ALONE}"])
    (event,) = [event for event in pool.events if event.event == "no overlap"]
    assert (event.kind, event.server, event.message) == ("lifecycle", "web", ALONE)
    restarts = [pool.entry.slot(index).restart_times for index in range(workers)]
    assert (observed.restarts, observed.failures, restarts) == (1, 0, [[]] * workers)
    assert len(pool.places) >= 2 * workers
    assert await pool.restart() == []
    assert len(pool.places) == workers, "it is remembered"
    assert len([event for event in pool.events if event.event == "no overlap"]) == 1


async def test_worker_that_is_replaced_alone_and_cannot_run_twice_ends_first_and_alone() -> None:
    pool = AloneCore(workers=2)
    await pool.start()
    log_of(pool)
    pool.core.replace_worker(pool.entry, "web.1.0")
    await turns()
    assert (sorted(pool.runner.running), pool.entry.observed.overlap_found) == (["web.1.1", "web.3.0"], "no")
    assert pool.places == ["place web.2.0", "place web.3.0"]
    pool.core.replace_worker(pool.entry, "web.3.0")
    await turns()
    assert (sorted(pool.runner.running), pool.places) == (["web.1.1", "web.4.0"], ["place web.4.0"])


async def test_program_that_dies_after_the_end_of_its_old_process_too_is_not_called_unable_to_overlap() -> (
    None
):
    pool = AloneCore(restart="no")
    await pool.start()
    pool.runner.script["web"] = FAILS
    (problem,) = await pool.restart()
    assert problem.message.startswith("exited with status 3 before it was ready")
    assert (pool.states(), pool.entry.observed.overlap_found) == ({"web": "failed"}, "")
    assert [event.event for event in pool.events if event.event == "no overlap"] == []


@pytest.mark.parametrize(
    ("keys", "proven", "says", "retried"),
    [
        ({}, False, "already running", True),
        ({}, False, "ModuleNotFoundError: No module named 'shop'", False),
        ({}, False, "Error: Cannot find module 'express'", False),
        ({"notify": True}, False, "already running", True),
        ({"overlap": True}, False, "already running", False),
        ({}, True, "already running", False),
        ({}, True, "Error: listen EADDRINUSE: address already in use 127.0.0.1:9100", True),
    ],
    ids=["unknown", "import", "module", "notifies", "written", "proven", "port"],
)
async def test_old_process_is_ended_only_if_it_may_have_prevented_the_start(
    keys: dict[str, Any], proven: bool, says: str, retried: bool
) -> None:
    pool = AloneCore(**keys)
    pool.runner.alone, pool.runner.says = False, says
    await pool.start()
    if proven:
        assert await pool.restart() == []
        assert pool.entry.observed.overlap_found == "yes"
    (old,) = pool.runner.running
    pool.runner.alone = True
    problems = await pool.restart()
    assert (problems == []) is retried
    assert (old not in pool.runner.running) is retried
    assert (pool.entry.observed.overlap_found == "no") is retried
    if problems:
        assert problems[0].hint.endswith("; overlap = false ends the previous process first")


async def test_program_that_could_not_be_placed_or_is_late_leaves_the_old_process() -> None:
    pool = AloneCore(start_timeout="20ms")
    pool.runner.alone = False
    await pool.start()
    pool.runner.script["web"] = NEVER
    (problem,) = await pool.restart()
    assert problem.message.startswith("was not ready within 20ms: it has not accepted a connection on")
    assert list(pool.runner.running) == ["web.1.0"]

    async def refuse(*args: Any, **_: Any) -> Placement:
        raise OSError(errno.EAGAIN, "no process")

    pool.runner.place = refuse
    (problem,) = await pool.restart()
    assert problem.message.startswith("cannot start a worker")
    assert list(pool.runner.running) == ["web.1.0"]
    assert pool.entry.observed.overlap_found == ""


async def test_old_process_is_not_ended_for_a_program_that_cannot_be_started_at_all() -> None:
    pool = AloneCore()
    await pool.start()
    pool.runner.unplaceable.add("web")
    (problem,) = await pool.restart()
    assert problem.message.startswith("no worker can be forked")
    assert list(pool.runner.running) == ["web.1.0"]
    pool.runner.unplaceable.clear()
    pool.runner.alone = False
    assert await pool.restart() == []
    assert (pool.entry.observed.overlap_found, pool.entry.observed.warnings) == ("yes", [])


# Expired certificates.


@pytest.mark.parametrize("days", [1, -1])
async def test_expired_certificate_of_a_new_worker_is_reported(tmp_path: Path, days: float) -> None:
    cert, key = certificate(tmp_path, days=days)
    pool = OrderedCore(web(tls={"cert": str(cert), "key": str(key)}))
    pool.clock = ManualClock(time_seconds=time.time())
    pool.core = Core([pool.core.entries["web"].config], pool.runner, pool.clock, pool.events)
    await pool.start()
    entry = pool.core.entries["web"]
    ends = read_certificate_expiry(entry.config)
    assert ends is not None
    (worker,) = entry.observed.workers.values()
    assert worker.certificate_ends == entry.observed.certificate_ends == ends
    events = [event for event in pool.events if event.kind == "config"]
    if days > 0:
        assert events == []
        return
    (reported,) = events
    assert vars(reported) == {
        "kind": "config",
        "event": "expired certificate in use",
        "server": "web",
        "bind": entry.config.key,
        "message": expired_message(entry.config, ends),
        "worker": "web.1.0",
        "severity": "warning",
    }


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"notify": True}, ": it has not sent READY=1"),
        ({}, ": nothing has accepted a connection on 127.0.0.1:9000"),
        ({"ready_line": r"^up\.$"}, r": it has printed no line that matches its ready_line: ^up\.$"),
    ],
)
async def test_program_that_is_not_ready_in_time_is_told_what_was_missing(
    keys: dict[str, Any], reason: str
) -> None:
    program = web(bind="127.0.0.1:9000", app=None, command=["program"], start_timeout="20ms", **keys)
    pool = OrderedCore(program, web=NEVER)
    (problem,) = await pool.start()
    assert problem.message == f"was not ready within 20ms{reason}"
    assert problem.hint.startswith("poolctl logs web; start_timeout says how long it may take")
    assert ("buffer" in problem.hint) is ("ready_line" in keys)


async def test_worker_that_survived_its_kill_is_not_called_so_while_it_is_stopped_again() -> None:
    pool = OrderedCore(web())
    await pool.start()
    (worker,) = pool.core.entries["web"].observed.workers.values()
    pool.runner.deaf.add("web")
    await pool.stop()
    assert worker.unstoppable
    pool.runner.deaf.clear()
    pool.runner.may_stop = asyncio.Event()
    pool.core.kill(pool.core.entries["web"], worker)
    await turns()
    assert not worker.unstoppable
    pool.runner.may_stop.set()
    await turns()
    assert pool.core.entries["web"].observed.workers == {}


ALL_ORDERS = ["leave", "drain", "stop"]


@pytest.mark.parametrize(
    ("keys", "order", "expected"),
    [
        ({}, "stop", []),
        ({}, "kill", []),
        ({}, "restart", ALL_ORDERS),
        ({"overlap": False}, "restart", ["stop"]),
        ({}, "forbid overlap", ["stop"]),
        ({}, "drain_then_replace", ["stop"]),
        ({"scale": ASLEEP_SOON}, "sleep", ALL_ORDERS),
        ({}, "move", []),
        ({"overlap": False}, "move", []),
    ],
)
async def test_connections_of_a_worker_go_to_another_one_if_there_will_be_one_at_its_address(
    keys: dict[str, Any], order: str, expected: list[str]
) -> None:
    pool = OrderedCore(web(**keys))
    await pool.start()
    entry = pool.core.entries["web"]
    pool.core.wake(entry)
    await turns()
    (worker,) = entry.observed.workers.values()
    if order == "sleep":
        pool.core.set_idle(entry, worker.id, True)
    elif order == "move":
        pool.core.change(entry, web(bind="127.0.0.1:9999", **keys), live=False)
    elif order == "forbid overlap":
        pool.core.change(entry, web(overlap=False), live=False)
    elif order in ("kill", "drain_then_replace"):
        getattr(pool.core, order)(entry, worker)
    else:
        getattr(pool.core, order)(entry)
    await turns(60)
    assert worker.exit is not None
    assert pool.runner.replaced == [f"{way} {worker.id}" for way in expected]


async def test_stuck_worker_does_not_accept_while_another_one_does() -> None:
    pool = OrderedCore(web(workers=2))
    await pool.start()
    entry = pool.core.entries["web"]
    worker = entry.observed.workers["web.1.1"]
    log_of(pool)
    pool.core.mark_stuck(entry, worker, True)
    await turns()
    assert (log_of(pool), worker.resting) == (["rest web.1.1"], True)
    pool.core.mark_stuck(entry, worker, False)
    await turns()
    assert (log_of(pool), worker.resting) == (["work web.1.1"], False)


@pytest.mark.parametrize("error", [TimeoutError(), OSError("the file is gone")])
async def test_output_that_cannot_be_read_does_not_hide_a_failure(error: Exception) -> None:
    pool = LoggedCore(web())

    async def logs(*_: Any) -> list[str]:
        raise error

    pool.runner.logs = logs
    pool.runner.script["web"] = FAILS
    (problem,) = await pool.start()
    assert problem.message == "exited with status 3 before it was ready"


def test_worker_that_another_supervisor_was_ending_is_ended_in_the_same_way() -> None:
    async def scenario(phase: WorkerPhase, expected: list[str]) -> None:
        pool = OrderedCore(web(stop_timeout=7))
        entry = pool.core.entries["web"]
        pool.runner.opened.add(entry.config.key)
        placement = await pool.runner.place(entry.config, 1, 0)
        log_of(pool)
        pool.core.adopt_worker(entry, Worker(placement.id, 1, 0, entry.config, phase, placement))
        await turns()
        assert log_of(pool)[: len(expected)] == expected
        assert (entry.observed.workers, pool.runner.replaced) == ({}, [])

    run(scenario(WorkerPhase.DRAINING, ["drain web.1.0", "stop web.1.0 7"]))
    run(scenario(WorkerPhase.STOPPING, ["stop web.1.0 7"]))


def test_replacement_of_an_unhealthy_worker_that_does_not_start_is_retried_after_the_longest_backoff(
    stepped: Stepped,
) -> None:
    pool, loop = stepped(
        web(
            workers=2,
            restart=AT_ONCE | {"limit": 0, "backoff": {"initial": 1, "max": 40, "jitter": 0}},
            start_timeout=60,
        )
    )
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())

    async def recover() -> None:
        pool.core.note_recovery_begun(entry, {"worker": "web.1.0"}, {}, counts=False)
        pool.runner.script["web.1.0"] = FAILS
        pool.core.drain_then_replace(entry, entry.observed.workers["web.1.0"])
        await turns()

    loop.run_until_complete(recover())
    assert entry.slot(0).backoff is not None
    assert (pool.states(), list(pool.runner.running)) == ({"web": "running"}, ["web.1.1"])
    pool.runner.script.clear()
    pool.clock.advance(39)
    loop.settle()
    assert list(pool.runner.running) == ["web.1.1"]
    pool.clock.advance(1)
    loop.settle()
    assert sorted(pool.runner.running) == ["web.1.0", "web.1.1"]


# Files that workers read.


@pytest.mark.parametrize("workers", [1, 2])
async def test_files_in_use_are_those_of_the_last_worker_that_started(tmp_path: Path, workers: int) -> None:
    variables = tmp_path / "web.env"
    variables.write_text("A=1")
    pool = OrderedCore(web(env_file=[str(variables)], workers=workers), **{f"web.2.{workers - 1}": FAILS})
    await pool.start()
    entry = pool.core.entries["web"]
    first = read_digests_by_key(entry.config)
    assert entry.observed.files == first != {}
    variables.write_text("A=2")
    assert len(await pool.restart()) == 1
    await turns()
    generations = {worker[:5] for worker in pool.runner.running}
    assert (generations, entry.observed.files) == ({"web.1"}, first)
    assert await pool.restart() == []
    assert entry.observed.files == read_digests_by_key(entry.config) != first


async def test_files_of_one_worker_that_fails_to_start_again_are_not_in_use(tmp_path: Path) -> None:
    variables = tmp_path / "web.env"
    variables.write_text("A=1")
    again = {"policy": "on-failure", "backoff": {"initial": 5, "max": 5}, "limit": 9}
    pool = OrderedCore(web(env_file=[str(variables)], workers=2, restart=again))
    await pool.start()
    entry = pool.core.entries["web"]
    first = read_digests_by_key(entry.config)
    variables.write_text("A=2")
    pool.runner.script["web.1.1"] = FAILS
    pool.runner.end("web.1.1", KILLED)
    await turns()
    assert list(pool.runner.running) == ["web.1.0"]
    assert entry.observed.files == first


async def test_start_that_is_not_retried_is_retried_once_all_of_its_workers_have_been_ready() -> None:
    pool = OrderedCore(web(workers=2), **{"web.1.1": NEVER})
    entry = pool.core.entries["web"]
    pool.core.start(entry, retries=False)
    await turns()
    assert (len(entry.observed.ready), entry.desired.retries) == (1, False)
    await pool.stop()
    pool.runner.script.clear()
    pool.core.start(entry, retries=False)
    await turns()
    assert (len(entry.observed.ready), entry.desired.retries) == (2, True)


async def test_start_that_is_retried_stays_so_while_its_workers_become_ready() -> None:
    pool = OrderedCore(web(workers=2), **{"web.1.1": NEVER})
    entry = pool.core.entries["web"]
    pool.core.start(entry)
    await turns()
    assert (len(entry.observed.ready), entry.desired.retries) == (1, True)


async def test_worker_knows_the_consequence_of_its_exit_unless_the_exit_was_ordered() -> None:
    pool = OrderedCore(web(restart=AT_ONCE))
    await pool.start()
    (worker,) = pool.core.entries["web"].observed.workers.values()
    await die(pool)
    assert (worker.next_step, worker.exit) == ("restarting", KILLED)
    (worker,) = pool.core.entries["web"].observed.workers.values()
    await pool.stop()
    assert (worker.next_step, worker.exit) == ("", Exit.from_returncode(0))


async def test_new_idle_time_is_not_given_to_a_worker_that_is_not_placed_yet() -> None:
    pool = OrderedCore(web(scale={"min": 0, "idle": 60}))
    await pool.start()
    pool.runner.may_place = asyncio.Event()
    pool.runner.ring("web")
    await turns()
    entry = pool.core.entries["web"]
    pool.core.change(entry, web(scale={"min": 0, "idle": 30}), live=True)
    pool.runner.may_place.set()
    await turns()
    assert log_of(pool)[2:] == ["place web.1.0"]
    assert pool.states() == {"web": "running"}


async def test_closed_listener_has_no_endpoints() -> None:
    pool = OrderedCore(web())
    config = pool.core.entries["web"].config
    await pool.start()
    assert pool.core.endpoints(config) == (config.key,)
    await pool.stop()
    assert pool.core.endpoints(config) == ()


def test_check_that_takes_too_long_is_a_failure_and_the_running_worker_stays(stepped: Stepped) -> None:
    pool, loop = stepped(web(overlap=False))
    entry = pool.core.entries["web"]
    loop.run_until_complete(pool.start())

    async def restart() -> None:
        async def check(_: ServerConfig) -> None:
            await asyncio.Event().wait()

        pool.runner.check_startable = check  # type: ignore[method-assign]
        pool.core.restart(entry)

    loop.run_until_complete(restart())
    loop.settle()
    assert entry.observed.checking
    pool.clock.advance(41)
    loop.settle()
    assert entry.observed.failure is not None
    assert entry.observed.failure.message == "checking that a worker can start took longer than 40 s"
    assert (list(pool.runner.running), entry.observed.checking) == (["web.1.0"], False)


async def test_listener_of_a_sleeping_server_is_no_longer_watched_when_it_is_stopped() -> None:
    pool = OrderedCore(web(scale=ASLEEP_SOON))
    await pool.start()
    entry = pool.core.entries["web"]
    log_of(pool)
    assert await pool.stop() == []
    assert log_of(pool) == [f"disarm {entry.config.key}", f"close {entry.config.key}"]
    assert entry.listener.armed is None


# Unexpected exceptions, and processes that cannot be ended: no worker is left without a task, and each stop returns.


def expect_exceptions() -> list[str]:
    """Collects what the event loop is told of unexpected exceptions from now on: the consequence, and the exception."""
    messages: list[str] = []

    def note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        messages.append(f"{context['message']}: {context.get('exception')}")

    asyncio.get_running_loop().set_exception_handler(note)
    return messages


async def test_worker_that_cannot_be_watched_is_killed_and_replaced() -> None:
    pool = OrderedCore(web(restart=AT_ONCE))
    break_once(pool.runner, "wait_for_exit")
    await pool.start()
    await turns()
    observed = pool.core.entries["web"].observed
    assert [line for line in pool.runner.log if "web.1.0" in line] == [
        "place web.1.0",
        "stop web.1.0 0",
        "place web.1.0",
    ]
    assert observed.last_exit is not None
    assert observed.last_exit.message == "can't start new thread"
    assert (pool.states(), observed.restarts) == ({"web": "running"}, 1)
    assert await pool.stop() == []


async def test_adopted_worker_that_cannot_be_watched_is_killed_and_replaced() -> None:
    pool = OrderedCore(web(restart=AT_ONCE))
    entry = pool.core.entries["web"]
    await pool.runner.open(entry.config)
    placement = await pool.runner.place(entry.config, 1, 0)
    break_once(pool.runner, "wait_for_exit")
    pool.core.adopt_listener(entry, entry.config, ("127.0.0.1:9000",))
    pool.core.mark_found_running(entry)
    adopted = Worker(placement.id, 1, 0, entry.config, WorkerPhase.READY, placement, ready_at=0.0)
    pool.core.adopt_worker(entry, adopted, generation_recorded=False)
    await turns()
    assert pool.runner.log[-2:] == ["stop web.1.0 0", "place web.1.0"]
    assert pool.states() == {"web": "running"}


@pytest.mark.parametrize("method", ["begin_drain", "drain"])
async def test_worker_that_cannot_be_drained_is_stopped(method: str) -> None:
    pool = OrderedCore(web())
    await pool.start()
    unexpected = expect_exceptions()
    break_once(pool.runner, method)
    assert await pool.restart() == []
    await turns()
    assert unexpected == ["worker web.1.0 cannot be drained: can't start new thread"]
    assert list(pool.runner.running) == ["web.2.0"]


async def test_failure_to_stop_a_worker_is_reported_and_the_next_stop_tries_again() -> None:
    pool = OrderedCore(web())
    await pool.start()
    break_once(pool.runner, "stop")
    (problem,) = await pool.stop()
    assert problem.message == "could not be ended: can't start new thread (nowhere)"
    assert list(pool.runner.running) == ["web.1.0"]
    assert await pool.stop() == []
    assert pool.states() == {"web": "stopped"}


async def test_stop_returns_although_a_listener_cannot_be_closed() -> None:
    pool = OrderedCore(web())
    await pool.start()
    unexpected = expect_exceptions()
    break_once(pool.runner, "close")
    assert await pool.stop() == []
    key = pool.core.entries["web"].config.key
    assert unexpected == [f"{key} cannot be closed: can't start new thread"]


async def test_start_and_stop_return_when_a_worker_that_was_not_ready_in_time_cannot_be_killed() -> None:
    pool = OrderedCore(web(start_timeout="20ms"), web=NEVER)
    pool.runner.deaf.add("web")
    for order in (pool.start, pool.stop):
        (problem,) = await order()
        assert problem.message == ("was not ready within 20ms; still running after SIGKILL (nowhere)")
    assert list(pool.core.entries["web"].observed.workers) == ["web.1.0"]
    pool.runner.end("web.1.0", KILLED)
    await turns()
    assert pool.core.entries["web"].is_fully_stopped


@pytest.mark.parametrize("order", ["stop", "remove"])
async def test_dependency_is_stopped_although_its_dependent_cannot_be_killed(order: str) -> None:
    pool = OrderedCore(web("db"), web(depends_on=["db"]))
    await pool.start()
    pool.runner.deaf.add("web")
    if order == "stop":
        (problem,) = await pool.stop()
    else:
        entries = [*pool.core.entries.values()]
        (problem,) = await pool.order(PoolStopError, entries, pool.core.schedule_removal)
    assert (problem.name, "still running after SIGKILL" in problem.message) == ("web", True)
    assert list(pool.runner.running) == ["web.1.0"]


async def test_start_fails_with_its_own_reason_when_the_output_cannot_be_read() -> None:
    pool = LoggedCore(web())
    pool.runner.script["web"] = FAILS
    unexpected = expect_exceptions()

    async def fail(*_: Any) -> list[str]:
        raise RuntimeError("can't start new thread")

    pool.runner.logs = fail
    (problem,) = await pool.start()
    assert problem.message == "exited with status 3 before it was ready"
    assert set(unexpected) == {"web: its output cannot be read: can't start new thread"}


async def test_other_servers_and_observers_are_served_when_an_action_or_an_observer_fails() -> None:
    pool = OrderedCore(web(), web("api"))
    unexpected = expect_exceptions()

    def fail(entry: Entry) -> None:
        if entry.name == "web":
            raise LookupError("no such gauge")

    async def refuse(*_: Any) -> None:
        raise LookupError("no such worker")

    pool.core.observers = {fail, *pool.core.observers}
    assert await pool.start() == []
    pool.runner.set_in_rotation = refuse  # type: ignore[method-assign]
    pool.core.replace_overrides(pool.core.entries["api"], Overrides(out=True))
    await turns()
    assert await pool.stop() == []
    assert pool.states() == {"web": "stopped", "api": "stopped"}
    assert set(unexpected) == {
        "web: an observer cannot handle its change: no such gauge",
        "an action on a server has failed: no such worker",
    }
