"""Windows in which a server is kept awake or asleep: what happens at their ends, and in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.clock import ManualClock
from poolctl.core.core import Core
from poolctl.core.decision_input import Overrides
from poolctl.core.server_entry import Entry
from poolctl.core.sleep_windows import asleep_until, window_text
from tests.unit.core.ordered_core import RecordedEvents
from tests.unit.core.stepped_runner import SteppedLoop
from tests.unit.runners.scripted_runner import ScriptedRunner

# A Monday.
BEGIN = datetime(2026, 11, 23, 7, 30, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Stage:
    """A core whose time the test moves."""

    def __init__(self) -> None:
        self.clock = ManualClock(time_seconds=BEGIN)
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
        return entry.state, entry.kept, str(entry.listener.state) == "open"

    def ring(self, name: str = "web") -> None:
        """A request comes."""
        self.do(self.runner.ring, name)

    def quiet(self, name: str = "web") -> None:
        """Its workers have had no traffic for long enough."""
        for worker in list(self.entry(name).observed.workers):
            self.do(self.core.idle, self.entry(name), worker, True)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    yield made
    made.loop.run_until_complete(made.loop.shutdown_asyncgens())
    made.loop.close()


def sleepy(name: str = "web", *, awake: str = "", asleep: str = "", **keys: Any) -> ServerConfig:
    windows = {key: [text] for key, text in (("awake", awake), ("asleep", asleep)) if text}
    scale = {"min": 0, "idle": "5m", "timezone": "UTC", **windows}
    bind = f"127.0.0.1:{9000 + len(name)}"
    return ServerConfig(name=name, bind=bind, app="any:app", scale=scale, **keys)


def test_server_is_woken_when_a_window_begins_and_sleeps_when_idle_after_its_end(stage: Stage) -> None:
    stage.begin(sleepy(awake="* 8-17 * * mon-fri"))
    assert stage.state() == ("sleeping", "", True)
    stage.pass_time(0.5 * HOUR - 1)
    assert stage.state() == ("sleeping", "", True)
    stage.pass_time(1)
    assert stage.state() == ("running", "awake", True)
    assert window_text(stage.entry(), stage.clock.time()) == "kept awake until 18:00 (UTC)"
    stage.quiet()
    assert stage.state() == ("running", "awake", True)
    stage.pass_time(10 * HOUR)
    assert stage.state() == ("sleeping", "", True)


def test_server_that_was_started_within_a_window_does_not_sleep_first(stage: Stage) -> None:
    stage.begin(sleepy(awake="* 7 * * *"))
    assert stage.state() == ("running", "awake", True)
    assert not any(line.startswith("arm") for line in stage.runner.log)


def test_server_is_put_to_sleep_when_a_window_begins_and_refuses_until_its_end(stage: Stage) -> None:
    stage.begin(sleepy(asleep="* 8-9 * * *"))
    stage.ring()
    assert stage.state() == ("running", "", True)
    stage.pass_time(0.5 * HOUR)
    assert stage.state() == ("sleeping", "asleep", False)
    assert stage.entry().asleep
    assert stage.runner.armed == {}
    stage.do(stage.core.wake, stage.entry())
    stage.do(stage.core.restart, stage.entry())
    assert stage.state() == ("sleeping", "asleep", False)
    stage.pass_time(2 * HOUR)
    assert stage.state() == ("sleeping", "", True)
    stage.ring()
    assert stage.state() == ("running", "", True)


def test_no_timer_is_set_but_the_one_for_the_next_change(stage: Stage) -> None:
    stage.begin(sleepy("a", awake="* 8 * * *"), sleepy("bb", asleep="* 12 * * *"), sleepy("ccc"))
    due = [timer.when() for timer in stage.loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
    assert due == [0.5 * HOUR]


def test_machine_whose_time_is_set_is_believed_at_the_next_decision(stage: Stage) -> None:
    stage.begin(sleepy(awake="* 8 * * *"))
    stage.clock._time_seconds += HOUR
    stage.do(stage.core.touch, stage.entry())
    assert stage.state() == ("running", "awake", True)
    stage.clock._time_seconds -= HOUR
    stage.do(stage.core.touch, stage.entry())
    assert stage.entry().kept == ""


def test_machine_whose_time_is_set_is_believed_within_an_hour(stage: Stage) -> None:
    stage.begin(sleepy(awake="* 20 * * *"), sleepy("other", awake="* 22 * * *"))
    stage.clock._time_seconds += 13 * HOUR
    stage.pass_time(HOUR)
    assert stage.state() == ("sleeping", "", True)
    assert stage.entry().observed.window.until == BEGIN + 36.5 * HOUR
    stage.clock._time_seconds -= 2 * HOUR
    stage.pass_time(HOUR)
    assert (stage.state(), stage.state("other")) == (("running", "awake", True), ("sleeping", "", True))


def test_dependent_that_is_up_keeps_a_server_from_being_put_to_sleep(stage: Stage) -> None:
    plain = ServerConfig(name="api", bind="127.0.0.1:9100", app="any:app", depends_on=["db"])
    stage.begin(sleepy("db", asleep="* 8-9 * * *"), plain)
    stage.pass_time(0.5 * HOUR)
    assert stage.state("db") == ("running", "", True)
    stage.do(stage.core.stop, stage.entry("api"))
    assert stage.state("db") == ("sleeping", "asleep", False)
    stage.do(stage.core.start, stage.entry("api"))
    assert (stage.state("db"), stage.state("api")) == (("running", "", True), ("running", "", True))


def test_dependency_is_woken_with_the_server_that_a_window_wakes(stage: Stage) -> None:
    stage.begin(sleepy("db"), sleepy("web", awake="* 8 * * *", depends_on=["db"]))
    assert stage.state("db")[0] == "sleeping"
    stage.pass_time(0.5 * HOUR)
    assert [stage.state(name)[0] for name in ("db", "web")] == ["running", "running"]


def test_number_of_workers_that_was_ordered_overrides_windows(stage: Stage) -> None:
    stage.begin(sleepy(asleep="* * * * *"))
    assert stage.state() == ("sleeping", "asleep", False)
    stage.do(stage.core.override, stage.entry(), Overrides(workers=1))
    assert stage.state() == ("running", "", True)
    stage.do(stage.core.override, stage.entry())
    assert stage.state() == ("sleeping", "asleep", False)


def test_reload_changes_windows_at_once(stage: Stage) -> None:
    stage.begin(sleepy(awake="* * * * *"))
    assert stage.state() == ("running", "awake", True)
    stage.do(stage.core.change, stage.entry(), sleepy(asleep="* * * * *"), live=True)
    assert stage.state() == ("sleeping", "asleep", False)
    stage.do(stage.core.change, stage.entry(), sleepy(), live=True)
    assert stage.state() == ("sleeping", "", True)
    stage.do(stage.core.stop, stage.entry())
    stage.do(stage.core.change, stage.entry(), sleepy(awake="* * * * *"), live=True)
    assert stage.state()[0] == "stopped"


def test_server_is_reported_asleep_until_its_window_ends_and_0_for_ever(stage: Stage) -> None:
    stage.begin(sleepy("night", asleep="* 7 * * *"), sleepy("never", asleep="* * * * *"), sleepy("web"))
    assert asleep_until(stage.entry("night")) == BEGIN + 0.5 * HOUR
    assert asleep_until(stage.entry("never")) == 0.0
    assert asleep_until(stage.entry("web")) is None
    stage.do(stage.core.stop, stage.entry("night"))
    assert asleep_until(stage.entry("night")) is None
