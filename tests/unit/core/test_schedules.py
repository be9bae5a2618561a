"""Windows in which a server is kept awake or asleep: what happens at their ends, and in between."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.core.core import Core
from poolctl.core.schedules import (
    asleep_until,
    failed_run_message,
    moment_text,
    reason_to_skip,
    record_run_end,
    window_effect_text,
)
from poolctl.core.server_entry import Entry, record_of, restore
from poolctl.core.server_state import Desired, DesiredState, Overrides
from poolctl.core.worker import Worker
from poolctl.runners.runner_protocol import Exit
from poolctl.time_windows import next_time
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import RecordedEvents
from tests.unit.core.stepped_runner import SteppedLoop
from tests.unit.runners.scripted_runner import NEVER, ScriptedRunner

# A Monday.
FIRST_MOMENT = datetime(2026, 11, 23, 7, 30, tzinfo=UTC).timestamp()
HOUR = 3600.0


class WindowStage:
    """A core whose time the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock(time_seconds=FIRST_MOMENT)
        self.loop = SteppedLoop(self.clock)
        self.runner = ScriptedRunner()

    def begin(self, *servers: ServerConfig) -> None:
        self.core = Core(servers, self.runner, self.clock, RecordedEvents())
        for entry in self.core.entries.values():
            self.do(self.core.start, entry)

    def do(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        async def ordered() -> None:
            work(*args, **options)

        self.loop.run_until_complete(ordered())
        self.loop.settle()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.settle()

    def entry(self, name: str = "web") -> Entry:
        return self.core.entries[name]

    def state(self, name: str = "web") -> tuple[str, str, bool]:
        """Its state, what keeps it so, and whether its listener is open."""
        entry = self.entry(name)
        return entry.state, entry.window_demand, str(entry.listener.state) == "open"

    def ring(self, name: str = "web") -> None:
        """A request comes."""
        self.do(self.runner.ring, name)

    def quiet(self, name: str = "web") -> None:
        """Its workers have had no traffic for long enough."""
        for worker in list(self.entry(name).observed.workers):
            self.do(self.core.set_idle, self.entry(name), worker, True)


@pytest.fixture
def windows() -> Iterator[WindowStage]:
    new_stage = WindowStage()
    yield new_stage
    new_stage.loop.run_until_complete(new_stage.loop.shutdown_asyncgens())
    new_stage.loop.close()


def sleepy(name: str = "web", *, awake: str = "", asleep: str = "", **keys: Any) -> ServerConfig:
    windows = {key: [text] for key, text in (("awake", awake), ("asleep", asleep)) if text}
    scale = {"min": 0, "idle": "5m", "timezone": "UTC", **windows}
    bind = f"127.0.0.1:{9000 + len(name)}"
    return ServerConfig(name=name, bind=bind, app="any:app", scale=scale, **keys)


def test_server_is_woken_when_a_window_begins_and_sleeps_when_idle_after_its_end(
    windows: WindowStage,
) -> None:
    windows.begin(sleepy(awake="* 8-17 * * mon-fri"))
    assert windows.state() == ("sleeping", "", True)
    windows.pass_time(0.5 * HOUR - 1)
    assert windows.state() == ("sleeping", "", True)
    windows.pass_time(1)
    assert windows.state() == ("running", "awake", True)
    assert window_effect_text(windows.entry(), windows.clock.time()) == "kept awake until 18:00 (UTC)"
    windows.quiet()
    assert windows.state() == ("running", "awake", True)
    windows.pass_time(10 * HOUR)
    assert windows.state() == ("sleeping", "", True)


def test_server_that_was_started_within_a_window_does_not_sleep_first(windows: WindowStage) -> None:
    windows.begin(sleepy(awake="* 7 * * *"))
    assert windows.state() == ("running", "awake", True)
    assert not any(line.startswith("arm") for line in windows.runner.log)


def test_server_is_put_to_sleep_when_a_window_begins_and_refuses_until_its_end(windows: WindowStage) -> None:
    windows.begin(sleepy(asleep="* 8-9 * * *"))
    windows.ring()
    assert windows.state() == ("running", "", True)
    windows.pass_time(0.5 * HOUR)
    assert windows.state() == ("sleeping", "asleep", False)
    assert windows.entry().is_asleep
    assert windows.runner.armed == {}
    windows.do(windows.core.wake, windows.entry())
    windows.do(windows.core.restart, windows.entry())
    assert windows.state() == ("sleeping", "asleep", False)
    windows.pass_time(2 * HOUR)
    assert windows.state() == ("sleeping", "", True)
    windows.ring()
    assert windows.state() == ("running", "", True)


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 365.5 * 24 * HOUR, -365.5 * 24 * HOUR])
def test_server_wakes_within_half_a_minute_of_a_jump_out_of_its_asleep_window(
    windows: WindowStage, jump: float
) -> None:
    windows.begin(sleepy(asleep="* 7 * * *"))
    assert windows.state() == ("sleeping", "asleep", False)
    windows.clock.set_time_of_day(jump)
    windows.pass_time(30)
    assert windows.state() == ("sleeping", "", True)


def test_machine_whose_time_is_set_is_believed_at_the_next_decision(windows: WindowStage) -> None:
    windows.begin(sleepy(awake="* 8 * * *"))
    windows.clock.set_time_of_day(HOUR)
    windows.do(windows.core.touch, windows.entry())
    assert windows.state() == ("running", "awake", True)
    windows.clock.set_time_of_day(-HOUR)
    windows.do(windows.core.touch, windows.entry())
    assert windows.entry().window_demand == ""


def test_machine_whose_time_is_set_is_believed_within_half_a_minute(windows: WindowStage) -> None:
    windows.begin(sleepy(awake="* 20 * * *"), sleepy("other", awake="* 22 * * *"))
    windows.clock.set_time_of_day(14 * HOUR)
    windows.pass_time(30)
    assert windows.state() == ("sleeping", "", True)
    assert windows.entry().observed.window.until == FIRST_MOMENT + 36.5 * HOUR
    windows.clock.set_time_of_day(-HOUR)
    windows.pass_time(30)
    assert (windows.state(), windows.state("other")) == (("running", "awake", True), ("sleeping", "", True))


def test_dependent_that_is_up_keeps_a_server_from_being_put_to_sleep(windows: WindowStage) -> None:
    plain = ServerConfig(name="api", bind="127.0.0.1:9100", app="any:app", depends_on=["db"])
    windows.begin(sleepy("db", asleep="* 8-9 * * *"), plain)
    windows.pass_time(0.5 * HOUR)
    assert windows.state("db") == ("running", "", True)
    windows.do(windows.core.stop, windows.entry("api"))
    assert windows.state("db") == ("sleeping", "asleep", False)
    windows.do(windows.core.start, windows.entry("api"))
    assert (windows.state("db"), windows.state("api")) == (("running", "", True), ("running", "", True))


def test_dependency_is_woken_with_the_server_that_a_window_wakes(windows: WindowStage) -> None:
    windows.begin(sleepy("db"), sleepy("web", awake="* 8 * * *", depends_on=["db"]))
    assert windows.state("db")[0] == "sleeping"
    windows.pass_time(0.5 * HOUR)
    assert [windows.state(name)[0] for name in ("db", "web")] == ["running", "running"]


def test_number_of_workers_that_was_ordered_overrides_windows(windows: WindowStage) -> None:
    windows.begin(sleepy(asleep="* * * * *"))
    assert windows.state() == ("sleeping", "asleep", False)
    windows.do(windows.core.replace_overrides, windows.entry(), Overrides(workers=1))
    assert windows.state() == ("running", "", True)
    windows.do(windows.core.replace_overrides, windows.entry())
    assert windows.state() == ("sleeping", "asleep", False)


def test_reload_changes_windows_at_once(windows: WindowStage) -> None:
    windows.begin(sleepy(awake="* * * * *"))
    assert windows.state() == ("running", "awake", True)
    windows.do(windows.core.change, windows.entry(), sleepy(asleep="* * * * *"), live=True)
    assert windows.state() == ("sleeping", "asleep", False)
    windows.do(windows.core.change, windows.entry(), sleepy(), live=True)
    assert windows.state() == ("sleeping", "", True)
    windows.do(windows.core.stop, windows.entry())
    windows.do(windows.core.change, windows.entry(), sleepy(awake="* * * * *"), live=True)
    assert windows.state()[0] == "stopped"


def test_server_is_reported_asleep_until_its_window_ends_and_0_for_ever(windows: WindowStage) -> None:
    windows.begin(sleepy("night", asleep="* 7 * * *"), sleepy("never", asleep="* * * * *"), sleepy("web"))
    assert asleep_until(windows.entry("night")) == FIRST_MOMENT + 0.5 * HOUR
    assert asleep_until(windows.entry("never")) == 0.0
    assert asleep_until(windows.entry("web")) is None
    windows.do(windows.core.stop, windows.entry("night"))
    assert asleep_until(windows.entry("night")) is None


def test_effect_of_a_window_has_its_end_in_the_servers_time_zone_if_there_is_one(
    windows: WindowStage,
) -> None:
    scale = {"min": 0, "asleep": ["* 7 * * *"]}
    windows.begin(
        sleepy("zone", asleep="* 7 * * *"), sleepy("never", asleep="* * * * *"), sleepy("none"),
        ServerConfig(name="local", bind="127.0.0.1:9001", app="any:app", scale=scale),
    )  # fmt: skip
    now = windows.clock.time()
    assert {name: window_effect_text(entry, now) for name, entry in windows.core.entries.items()} == {
        "zone": "kept asleep until 08:00 (UTC)",
        "never": "kept asleep",
        "none": "",
        "local": "kept asleep until 08:00",
    }


# Jobs with `every`: when they run, when they do not, and how they look before, meanwhile and afterwards.


BEGIN = datetime(2026, 11, 23, 2, 0, tzinfo=UTC).timestamp()
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Stage:
    """A core whose time the test moves; runs of jobs last until the test ends them."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = clock or ManualClock(time_seconds=BEGIN)
        self.loop = SteppedLoop(self.clock)
        self.runner = ScriptedRunner(backup=NEVER)
        self.successors: list[Stage] = []
        self.events = RecordedEvents()

    def begin(self, *servers: ServerConfig, calm: bool = False, starts: bool = True) -> None:
        self.core = Core(servers, self.runner, self.clock, self.events, calm=calm)
        for entry in self.core.entries.values() if starts else ():
            self.do(self.core.start, entry)

    def do(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        async def ordered() -> None:
            work(*args, **options)

        self.loop.run_until_complete(ordered())
        self.loop.settle()

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.loop.settle()

    def set_clock(self, seconds: float) -> None:
        """Only the wall clock moves, as when the machine was suspended or its time is set."""
        self.clock.set_time_of_day(seconds)

    @property
    def backup(self) -> Entry:
        return self.core.entries["backup"]

    @property
    def look(self) -> tuple[str, bool, str, bool]:
        """State, ready, health, and whether it is missing."""
        entry = self.backup
        return entry.state, entry.ready, entry.health.value, entry.is_missing

    @property
    def runs(self) -> int:
        return sum(line.startswith("place backup.") for line in self.runner.log)

    @property
    def said(self) -> list[tuple[str, str]]:
        return [(event.event, event.message) for event in self.events]

    def end(self, status: int = 0) -> None:
        for name in [worker for worker in self.runner.running if worker.startswith("backup.")]:
            self.do(self.runner.end, name, Exit.from_returncode(status))

    def close(self) -> None:
        """End what still runs, on this loop and on those of its successors."""
        for stage in [*self.successors, self]:
            stage.loop.settle()
            stage.loop.run_until_complete(end_tasks())
            stage.loop.close()


async def end_tasks() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def stage() -> Iterator[Stage]:
    new_stage = Stage()
    yield new_stage
    new_stage.close()


def job(**keys: Any) -> ServerConfig:
    return ServerConfig(**{"name": "backup", "job": True, "command": ["true"], "every": "0 3 * * *"} | keys)


def web(name: str = "db", **keys: Any) -> ServerConfig:
    return ServerConfig(name=name, bind=f"127.0.0.1:{9000 + len(name)}", app="any:app", **keys)


def test_job_runs_at_its_time_and_is_as_it_should_be_before_meanwhile_and_afterwards(stage: Stage) -> None:
    stage.begin(job())
    assert (stage.look, stage.runs) == (("sleeping", True, "ok", False), 0)
    assert stage.backup.schedule.next_run == BEGIN + HOUR
    stage.pass_time(HOUR - 1)
    assert stage.runs == 0
    stage.pass_time(1)
    assert (stage.look, stage.runs) == (("running", True, "ok", False), 1)
    assert stage.backup.schedule.next_run == BEGIN + HOUR + DAY
    stage.pass_time(2.5)
    stage.end()
    assert stage.look == ("sleeping", True, "ok", False)
    last = stage.backup.schedule.last_run
    assert (last["result"], last["status"], last["ended_at"] - last["started_at"]) == ("succeeded", 0, 2.5)
    stage.pass_time(MINUTE)
    assert stage.runs == 1
    stage.pass_time(DAY - 2 * MINUTE)
    stage.pass_time(MINUTE)
    assert (stage.runs, stage.said) == (2, [])


def test_failed_run_is_a_warning_and_an_event_until_a_run_succeeds(stage: Stage) -> None:
    stage.begin(job(every="0 * * * *"))
    stage.pass_time(HOUR)
    stage.end(3)
    assert stage.look == ("sleeping", True, "warn", False)
    assert stage.backup.schedule.last_run["result"] == "failed"
    assert stage.backup.observed.next_step == "runs again at 2026-11-23 04:00 UTC"
    event = stage.events[-1]
    assert (event.kind, event.event, event.before, event.after, event.severity) == (
        "health", "run failed", "ok", "warn", "error",
    )  # fmt: skip
    assert event.message.startswith("exited with status 3")
    stage.pass_time(HOUR)
    assert stage.look == ("running", True, "warn", False)
    stage.end(3)
    assert [event.event for event in stage.events] == ["run failed", "run failed"]
    stage.pass_time(HOUR)
    stage.end()
    assert (stage.look, stage.backup.observed.failure) == (("sleeping", True, "ok", False), None)
    assert stage.events[-1].event == "run succeeded"


def test_no_second_run_begins_while_one_is_under_way(stage: Stage) -> None:
    stage.begin(job(every="* * * * *"))
    stage.pass_time(MINUTE)
    stage.pass_time(MINUTE)
    assert stage.runs == 1
    reason = "the run of 2026-11-23 02:01 UTC has not ended"
    assert stage.said == [("run skipped", f"the run of 2026-11-23 02:02 UTC is skipped: {reason}")]
    stage.end()
    assert stage.runs == 1
    stage.pass_time(MINUTE)
    assert stage.runs == 2


def test_run_whose_minute_has_passed_is_dropped(stage: Stage) -> None:
    stage.begin(job())
    stage.pass_time(MINUTE)
    stage.set_clock(HOUR)  # suspended from 02:01 to 03:01
    stage.pass_time(30)
    assert (stage.runs, stage.look[0]) == (0, "sleeping")
    assert [word for word, _ in stage.said] == ["run skipped"]
    assert stage.backup.schedule.next_run == BEGIN + HOUR + DAY


def test_run_that_is_due_soon_after_the_machine_wakes_is_not_missed(stage: Stage) -> None:
    stage.begin(job(every="0 7 * * *"))
    stage.pass_time(MINUTE)
    stage.set_clock(5 * HOUR - 90)  # suspended until 06:59:30, of which the loop's clock knows nothing
    for _ in range(2):
        stage.pass_time(30)
    assert stage.runs == 1


def test_clock_that_is_corrected_backwards_repeats_no_run(stage: Stage) -> None:
    stage.begin(job())
    stage.pass_time(HOUR)
    stage.end()
    stage.set_clock(-10 * MINUTE)
    for _ in range(40):
        stage.pass_time(30)
    assert stage.runs == 1


@pytest.mark.parametrize("every", ["* * * * *", "*/5 2-4 * * *", "0,30 0-23 * * *"])
@pytest.mark.parametrize("seconds", [HOUR, 2 * HOUR, 365 * DAY])
def test_frequent_job_goes_by_a_clock_that_is_set_back(stage: Stage, every: str, seconds: float) -> None:
    stage.set_clock(seconds)  # as a board without a battery that begins
    stage.begin(job(every=every))
    stage.set_clock(-seconds)
    for _ in range(90):
        stage.end()
        stage.pass_time(30)
    assert stage.runs >= 1


def test_small_correction_of_the_clock_repeats_no_run_of_a_frequent_job(stage: Stage) -> None:
    stage.begin(job(every="0 * * * *"))
    stage.pass_time(HOUR)
    stage.end()
    stage.set_clock(-50)
    for _ in range(10):
        stage.pass_time(30)
    assert stage.runs == 1


def test_clock_that_is_set_back_for_good_makes_earlier_times_due_again(stage: Stage) -> None:
    stage.begin(job())
    stage.pass_time(30)
    stage.set_clock(30 * DAY)
    stage.pass_time(30)
    stage.set_clock(-30 * DAY)
    stage.pass_time(30)
    assert stage.backup.schedule.next_run == BEGIN + HOUR


def test_restart_of_the_core_only_puts_the_schedule_in_force_and_run_now_runs_it(stage: Stage) -> None:
    stage.begin(job(), starts=False)
    assert stage.look == ("stopped", False, "unknown", True)
    stage.do(stage.core.restart, stage.backup)
    assert (stage.look[0], stage.runs) == ("sleeping", 0)
    stage.do(stage.core.run_now, stage.backup)
    assert (stage.look[0], stage.runs, stage.backup.schedule.next_run) == ("running", 1, BEGIN + HOUR)
    stage.do(stage.core.start, stage.backup)
    assert (stage.look[0], stage.runs) == ("running", 1)


def test_stop_ends_the_run_and_the_schedule_until_a_start(stage: Stage) -> None:
    stage.begin(job())
    stage.pass_time(HOUR)
    assert stage.backup.has_or_wants_workers
    stage.do(stage.core.stop, stage.backup)
    assert (stage.look[:2], stage.backup.is_fully_stopped, stage.backup.schedule.next_run) == (
        ("stopped", False),
        True,
        None,
    )
    assert stage.backup.schedule.last_run["result"] == "stopped"
    stage.pass_time(DAY)
    assert stage.runs == 1
    stage.do(stage.core.start, stage.backup)
    assert (stage.look[0], stage.backup.is_fully_stopped, stage.backup.has_or_wants_workers) == (
        "sleeping",
        False,
        True,
    )
    stage.pass_time(DAY)
    assert stage.runs == 2


def test_disabled_job_does_not_run(stage: Stage) -> None:
    stage.begin(job(disabled=True))
    stage.pass_time(HOUR)
    assert (stage.look[0], stage.runs) == ("disabled", 0)
    stage.do(stage.core.enable_and_start, stage.backup)
    stage.pass_time(DAY)
    assert stage.runs == 1


def test_run_waits_for_a_dependency_that_is_coming_and_is_skipped_for_one_that_is_not(stage: Stage) -> None:
    stage.begin(web(scale={"min": 0}), job(depends_on=["db"]))
    db = stage.core.entries["db"]
    assert (db.state, stage.look[0]) == ("sleeping", "sleeping")
    stage.pass_time(HOUR)
    assert (db.state, stage.runs) == ("running", 1)
    stage.end()
    stage.do(stage.core.stop, db)
    stage.pass_time(DAY)
    assert (stage.runs, stage.look[0]) == (1, "sleeping")
    assert stage.said[-1][1].endswith("is skipped: db, on which it depends, is stopped")


def test_calm_supervisor_begins_only_the_runs_that_commands_ask_for(stage: Stage) -> None:
    stage.begin(job(), calm=True)
    stage.pass_time(HOUR)
    assert (stage.runs, stage.look[0]) == (0, "sleeping")


class TestReload:
    def test_changed_times_are_in_force_at_once(self, stage: Stage) -> None:
        stage.begin(job())
        stage.do(stage.core.change, stage.backup, job(every="30 2 * * *"), live=True)
        assert stage.backup.schedule.next_run == BEGIN + HOUR / 2
        stage.pass_time(HOUR / 2)
        assert stage.runs == 1

    def test_run_under_way_is_not_repeated_for_a_changed_command(self, stage: Stage) -> None:
        stage.begin(job())
        stage.pass_time(HOUR)
        stage.do(stage.core.change, stage.backup, job(command=["false"]), live=False)
        assert (stage.runs, stage.look[0]) == (1, "running")
        stage.end()
        assert (stage.runs, stage.look[0]) == (1, "sleeping")

    def test_job_that_gets_a_schedule_is_not_run_at_once(self, stage: Stage) -> None:
        stage.begin(job(every=None))
        stage.end()
        assert stage.look[0] == "completed"
        stage.do(stage.core.change, stage.backup, job(), live=True)
        assert (stage.look[0], stage.runs) == ("sleeping", 1)

    def test_job_that_loses_its_schedule_runs_once(self, stage: Stage) -> None:
        stage.begin(job())
        stage.do(stage.core.change, stage.backup, job(every=None), live=True)
        assert (stage.look[0], stage.runs) == ("starting", 1)
        stage.end()
        assert stage.look == ("completed", True, "ok", False)

    def test_run_under_way_ends_as_that_of_a_job_without_a_schedule(self, stage: Stage) -> None:
        stage.begin(job())
        stage.pass_time(HOUR)
        stage.do(stage.core.change, stage.backup, job(every=None), live=True)
        stage.end()
        assert (stage.look[0], stage.runs) == ("completed", 1)
        stage.pass_time(2 * DAY)
        assert stage.runs == 1


class TestTakeover:
    def _take_over(self, after: Stage, running: Worker | None) -> None:
        if running is not None:
            assert running.placement is not None
            after.runner.jobs.add(running.id)
            after.runner.running[running.id] = after.loop.create_future()
            worker = Worker(
                running.id, running.generation, 0, running.config, running.phase, placement=running.placement
            )
            after.core.adopt_worker(after.backup, worker)
        after.core.resume_adopted_server(after.backup)

    def successor(self, stage: Stage, record: dict[str, Any] | None = None, *, runs: bool = False) -> Stage:
        """Another supervisor that knows the newest record of the first one, or this one, and finds what `runs`."""
        record = json.loads(json.dumps(record_of(stage.backup) if record is None else record))
        after = Stage(stage.clock)
        stage.successors.append(after)
        after.begin(stage.backup.config, starts=False)
        restore(after.backup, record)
        after.do(self._take_over, after, next(iter(stage.backup.observed.workers.values())) if runs else None)
        return after

    def test_run_under_way_is_adopted_and_not_begun_again(self, stage: Stage) -> None:
        stage.begin(job(every="* * * * *"))
        stage.pass_time(MINUTE)
        after = self.successor(stage, runs=True)
        assert (after.look[0], after.runs) == ("running", 0)
        after.pass_time(10)
        after.end(3)
        assert (after.look[:3], after.runs) == (("sleeping", True, "warn"), 0)
        assert after.backup.schedule.last_run["started_at"] == BEGIN + MINUTE
        assert after.said[-1][0] == "run failed"
        after.pass_time(50)
        assert after.runs == 1

    def test_run_that_was_not_recorded_any_more_is_adopted(self, stage: Stage) -> None:
        stage.begin(job(every="* * * * *"))
        record = record_of(stage.backup)
        stage.pass_time(MINUTE)
        assert record["desired"] == "scheduled"
        after = self.successor(stage, record, runs=True)
        assert (after.look[0], after.said) == ("running", [])
        after.pass_time(10)
        after.end()
        assert (after.look[0], after.runs) == ("sleeping", 0)

    def test_run_that_ended_meanwhile_is_not_repeated(self, stage: Stage) -> None:
        stage.begin(job(every="* * * * *"))
        stage.pass_time(MINUTE)
        after = self.successor(stage)
        assert (after.look[0], after.runs) == ("sleeping", 0)
        assert after.backup.schedule.last_run["result"] == "failed"
        assert after.backup.schedule.last_run["message"].endswith("its exit status is not known")
        after.pass_time(59)
        assert after.runs == 0
        after.pass_time(1)
        assert after.runs == 1

    def test_run_that_was_due_meanwhile_is_dropped(self, stage: Stage) -> None:
        stage.begin(job())
        stage.clock.advance(HOUR + 5)
        after = self.successor(stage)
        after.pass_time(10)
        assert (after.look[0], after.runs) == ("sleeping", 0)
        message = "the run of 2026-11-23 03:00 UTC is skipped: no supervisor ran at that time"
        assert after.said == [("run skipped", message)]
        assert after.backup.schedule.next_run == BEGIN + HOUR + DAY

    @pytest.mark.parametrize(("every", "seconds"), [("0 3 * * *", 30 * DAY), ("*/5 * * * *", HOUR)])
    def test_clock_that_was_set_back_meanwhile_is_believed(
        self, stage: Stage, every: str, seconds: float
    ) -> None:
        stage.begin(job(every=every))
        stage.pass_time(HOUR)
        stage.end()
        stage.set_clock(-seconds)
        after = self.successor(stage)
        assert after.backup.schedule.next_run == next_time(every, stage.clock.time())

    def test_failure_of_the_last_run_is_remembered(self, stage: Stage) -> None:
        stage.begin(job())
        stage.pass_time(HOUR)
        stage.end(3)
        assert self.successor(stage).look == ("sleeping", True, "warn", False)

    def test_stopped_job_stays_stopped(self, stage: Stage) -> None:
        stage.begin(job())
        stage.do(stage.core.stop, stage.backup)
        after = self.successor(stage)
        assert after.backup.schedule.next_run is None
        after.pass_time(DAY)
        assert (after.look[0], after.runs) == ("stopped", 0)


@pytest.mark.parametrize(("late", "begins"), [(0, True), (59, True), (60, False)])
def test_run_may_begin_within_its_minute(late: float, begins: bool) -> None:
    entry = Entry(job(), DesiredState(Desired.SCHEDULED))
    assert (reason_to_skip(entry, BEGIN, BEGIN + late) == "") is begins


def test_failed_last_run_is_described_until_a_run_succeeds_or_the_schedule_ends() -> None:
    entry = Entry(job(), DesiredState(Desired.SCHEDULED))
    assert failed_run_message(entry) == ""
    entry.schedule.run_since = BEGIN
    record_run_end(entry, Exit.from_returncode(3), BEGIN + MINUTE)
    text = f"its last run failed ({moment_text(BEGIN)}): exited with status 3"
    assert failed_run_message(entry) == text
    assert (entry.schedule.last_run["started_at"], entry.schedule.last_run["ended_at"]) == (
        BEGIN,
        BEGIN + MINUTE,
    )
    entry.desired.state = Desired.STOPPED
    assert failed_run_message(entry) == ""
    entry.desired.state = Desired.SCHEDULED
    record_run_end(entry, Exit.from_returncode(3), BEGIN, stopped=True)
    assert failed_run_message(entry) == ""
    assert (entry.schedule.last_run["started_at"], entry.schedule.run_since) == (BEGIN, 0.0)
