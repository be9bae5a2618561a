"""The journal of a pool: what its servers did, why, and who asked for it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from poolctl.control.answers import SupervisorIdentity
from poolctl.control.control_server import Request
from poolctl.core.server_state import Desired
from poolctl.core.workqueue import caused_by
from poolctl.json_form import from_json, to_json
from poolctl.monitor.journal import Journal
from poolctl.runners.runner_protocol import Exit
from poolctl.supervisor.observers.event_recorder import EventRecorder, LostOutputReporter
from tests.unit.core.ordered_core import turns, web
from tests.unit.runners.scripted_runner import FAILS, NEVER
from tests.unit.supervisor.desk import Desk

OURS = Path("/proc/self/comm").read_text().strip()
ABOUT = from_json(SupervisorIdentity, {"supervisor_pid": 1, "keeper_pid": 2, "version": "v"})


class Recording:
    """The events of a desk's pool, from its supervisor's start on."""

    def __init__(self, desk: Desk, adopted: int = 0) -> None:
        self._desk = desk
        self.all: list[dict[str, Any]] = []
        desk.events.subscribe(lambda event: self.all.append(event.to_json()))
        EventRecorder(desk.core, desk.events).record_start_and_observe(adopted, ABOUT)

    def take(self, *kinds: str) -> list[dict[str, Any]]:
        """The events of these kinds since the last call."""
        self._desk.events.flush()
        events, self.all[:] = list(self.all), []
        return [event for event in events if not kinds or event["kind"] in kinds]

    def lines(self, *kinds: str) -> list[tuple[str, str, str]]:
        return [(event["server"], event["event"], event["cause"]) for event in self.take(*kinds)]


async def ask(desk: Desk, verb: str, *targets: str, **options: Any) -> dict[str, Any]:
    """The answer to a request as it comes over the control socket, from this very process."""
    body = {"selector": {"targets": list(targets)}, "options": options}
    answer = await desk.verbs.handle(Request(verb, body, os.getpid(), os.getuid()), lambda line: None)
    return to_json(answer)


async def test_start_and_stop_record_the_caller_and_the_outcome_of_each_server() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    await ask(desk, "start")
    assert recording.lines() == [
        ("", "supervisor started", ""),
        ("", "start", ""),
        ("a", "starting", "start"),
        ("a", "running", "start"),
        ("", "start done", ""),
    ]
    await ask(desk, "stop", "a")
    events = recording.take("lifecycle")
    assert [(event["before"], event["after"]) for event in events] == [
        ("running", "stopping"), ("stopping", "ended"), ("stopping", "stopped"),
    ]  # fmt: skip
    assert {event["cause"] for event in events} == {"stop a"}
    for event in events:
        assert event["by"]["pid"] == os.getpid()
        assert event["by"]["uid"] == os.getuid()
        assert event["by"]["user"]
        assert event["by"]["command"] == OURS
        assert event["bind"] == desk.core.entries["a"].config.key


async def test_server_with_a_stop_hook_has_stopped_when_the_hook_has_ended() -> None:
    desk = Desk(web("a", hooks={"after_stop": ["true"]}))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    await ask(desk, "stop", "a")
    events = recording.take("lifecycle")
    states = [
        (event["before"], event["after"]) for event in events if event["event"] in ("stopping", "stopped")
    ]
    assert states == [("running", "stopping"), ("stopping", "stopped")]
    assert {event["cause"] for event in events} == {"stop a"}


async def test_crash_is_its_own_cause_and_follows_no_command() -> None:
    desk = Desk(web("a", restart="always"))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    desk.runner.end("a.1.0", Exit.from_signal(9))
    await turns()
    events = recording.take("lifecycle")
    assert [(event["event"], event["cause"], event["by"]) for event in events] == [
        ("worker ended", "killed by SIGKILL", None),
        ("starting", "killed by SIGKILL", None),
        ("running", "killed by SIGKILL", None),
    ]
    assert (events[0]["signal"], events[0]["status"], events[0]["worker"]) == (9, None, "a.1.0")
    await ask(desk, "stop", "a")
    assert {line[2] for line in recording.lines("lifecycle")} == {"stop a"}


async def test_replacement_is_recorded_worker_by_worker_under_its_command() -> None:
    desk = Desk(web("a", workers=2))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    await ask(desk, "restart", "a")
    await turns()
    events = recording.take("lifecycle")
    assert sorted((event["event"], event["worker"]) for event in events) == [
        ("worker ended", "a.1.0"), ("worker ended", "a.1.1"),
        ("worker ready", "a.2.0"), ("worker ready", "a.2.1"),
    ]  # fmt: skip
    assert {event["cause"] for event in events} == {"restart a"}


async def test_a_server_that_cannot_start_says_why() -> None:
    desk = Desk(web("a"), a=FAILS)
    recording = Recording(desk)
    await ask(desk, "start")
    events = recording.take()
    assert events[-1]["event"] == "start failed"
    assert events[-1]["exit_code"] == 1
    (ended,) = [event for event in events if event["event"] == "worker ended"]
    assert (ended["by"], ended["before"]) == (None, "starting"), "no command has ended it"
    failed = next(event for event in events if event["event"] == "failed")
    assert failed["cause"]
    assert failed["cause"] in events[-1]["cause"]


async def test_live_changes_and_their_causes_are_recorded() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    await ask(desk, "scale", "a", workers=3)
    (scaled,) = recording.take("scale")
    assert (scaled["before"], scaled["after"], scaled["cause"]) == (1, 3, "scale a 3")
    await ask(desk, "drain", "a")
    await turns()
    assert recording.lines("lifecycle") == [("a", "draining", "drain a")]
    await ask(desk, "disable", "a")
    assert recording.lines("lifecycle")[-1] == ("a", "disabled", "disable a")


async def test_a_reload_records_each_change_and_a_dry_run_nothing() -> None:
    desk = Desk(web("a"), web("gone"))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    desk.files.written = [web("a", env={"SECRET": "s3cret"}), web("new")]
    await ask(desk, "reload", dry_run=True)
    assert recording.take() == []
    await ask(desk, "reload")
    events = recording.take()
    assert [
        (event["server"], event["event"], event["keys"]) for event in events if event["kind"] == "config"
    ] == [("gone", "remove", []), ("a", "restart", ["env.SECRET"]), ("new", "add", [])]
    assert "s3cret" not in str(events)
    assert ("new", "running", "reload") in [(e["server"], e["event"], e["cause"]) for e in events]


async def test_a_failed_command_is_recorded_and_a_read_is_not() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    recording.take()
    assert (await ask(desk, "start", "nobody"))["exit_code"] == 4
    assert (await ask(desk, "scale", "a", workers="many"))["exit_code"] == 2
    events = recording.take()
    assert [(event["event"], event.get("exit_code"), event["cause"]) for event in events] == [
        ("start", None, ""), ("start failed", 4, "no server matches 'nobody'"),
        ("scale", None, ""), ("scale failed", 2, "'many' is not a number of workers"),
    ]  # fmt: skip
    await ask(desk, "list")
    await ask(desk, "wait", until="stopped", timeout=0.01)
    assert recording.take() == []


async def test_a_client_that_goes_away_is_recorded() -> None:
    desk = Desk(web("a"), a=NEVER)
    recording = Recording(desk)
    command = asyncio.ensure_future(ask(desk, "start"))
    await turns()
    command.cancel()
    await asyncio.wait({command})
    assert recording.lines("audit")[-1] == ("", "start abandoned", "the client disconnected")


async def test_falling_asleep_and_waking_are_recorded() -> None:
    desk = Desk(web("a", scale={"min": 0, "max": 1, "idle": 5}))
    recording = Recording(desk)
    await ask(desk, "start")
    assert [(e["before"], e["after"], e["cause"]) for e in recording.take("wake")][-1:] == [
        ("starting", "sleeping", "start")
    ]
    desk.runner.ring("a")
    await turns()
    assert [(e["before"], e["after"], e["cause"]) for e in recording.take("wake")] == [
        ("sleeping", "starting", "a request")
    ]


async def test_window_is_recorded_and_is_the_cause_of_what_it_does() -> None:
    scale = {"min": 0, "idle": 1, "timezone": "UTC"}
    asleep, awake = (web("a", scale={**scale, kept: ["* * * * *"]}) for kept in ("asleep", "awake"))
    desk = Desk(asleep)
    recording = Recording(desk)
    await ask(desk, "start")
    wakes = [(e["event"], e["message"]) for e in recording.take("wake")]
    assert wakes[0] == ("kept asleep", "kept asleep")
    desk.core.change(desk.core.entries["a"], awake, live=True)
    await turns()
    wakes = [(e["event"], e["cause"]) for e in recording.take("wake")]
    assert wakes == [("kept awake", ""), ("starting", "kept awake")]
    desk.core.change(desk.core.entries["a"], asleep, live=True)
    await turns()
    events = recording.take("wake")
    assert {e["cause"] for e in events if e["event"] == "sleeping"} == {"kept asleep"}


async def test_a_decision_of_the_pool_itself_has_its_words_as_cause() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    with caused_by("liveness ko"):
        desk.core.restart(desk.core.entries["a"])
    await turns()
    assert {(line[1], line[2]) for line in recording.lines()} == {
        ("worker ready", "liveness ko"), ("worker ended", "liveness ko"),
    }  # fmt: skip


async def test_a_supervisor_that_takes_over_has_started_nothing(tmp_path: Path) -> None:
    desk = Desk(web("a"))
    await ask(desk, "start")
    desk.events.write_to(Journal(str(tmp_path / "events.jsonl")))
    recording = Recording(desk, adopted=1)
    desk.core.touch(desk.core.entries["a"])
    await turns()
    assert [(event["event"], event["message"]) for event in recording.take()] == [
        ("supervisor started", "took over 1 worker")
    ]
    await ask(desk, "stop", "a")
    assert recording.take("lifecycle")[0]["before"] == "running"


@pytest.mark.parametrize(
    ("adopted", "message"), [(0, ""), (1, "took over 1 worker"), (2, "took over 2 workers")]
)
def test_supervisor_that_starts_says_who_it_is_and_how_many_workers_it_took_over(
    adopted: int, message: str
) -> None:
    desk = Desk()
    recorded = Recording(desk, adopted=adopted)
    (started,) = recorded.take()
    assert (started["kind"], started["event"], started["message"]) == ("pool", "supervisor started", message)
    assert (started["pid"], started["keeper_pid"], started["version"], started["adopted"]) == (
        1,
        2,
        "v",
        adopted,
    )


async def test_event_of_a_server_that_runs_has_its_address_its_pids_and_both_states() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    await ask(desk, "start")
    starting, running = recording.take("lifecycle")
    assert (starting["before"], starting["after"], starting["message"]) == (
        "stopped", "starting", "stopped → starting",
    )  # fmt: skip
    assert (running["before"], running["after"], running["pids"]) == ("starting", "running", [1001])
    assert "pids" not in starting
    assert running["bind"] == desk.core.entries["a"].config.key


async def test_worker_that_ended_is_recorded_with_its_process_its_exit_and_what_follows() -> None:
    desk = Desk(web("a", restart="no"))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    desk.runner.end("a.1.0", Exit.from_returncode(7))
    await turns()
    ended, failed = recording.take("lifecycle")
    names = (
        "event",
        "before",
        "after",
        "status",
        "signal",
        "worker",
        "pid",
        "generation",
        "message",
        "cause",
    )
    assert [ended[name] for name in names] == [
        "worker ended", "ready", "ended", 7, None, "a.1.0", 1001, 1, "exited with status 7", "exited with status 7",
    ]  # fmt: skip
    assert ended["next"]
    assert (failed["event"], "next" in failed) == ("failed", False), "the worker's event says what follows"
    assert failed["cause"]


async def test_server_whose_worker_cannot_be_placed_says_itself_what_follows() -> None:
    desk = Desk(web("a"))
    desk.runner.unopenable.add("a")
    recording = Recording(desk)
    await ask(desk, "start")
    events = recording.take("lifecycle")
    assert [event["event"] for event in events][-1] == "failed"
    assert "in use by nobody in particular" in events[-1]["cause"]
    assert not [event for event in events if event["event"] == "worker ended"]
    await ask(desk, "stop")
    assert {event["cause"] for event in recording.take("lifecycle")} <= {"stop", "stop a"}


async def test_first_worker_is_reported_by_its_server_and_each_further_one_by_itself() -> None:
    desk = Desk(web("a", workers=3))
    recording = Recording(desk)
    await ask(desk, "start")
    await turns()
    events = [event["event"] for event in recording.take("lifecycle")]
    assert events.count("running") == 1
    assert events.count("worker ready") <= 2
    await ask(desk, "scale", "a", workers=4)
    await turns()
    (ready,) = recording.take("lifecycle")
    assert (ready["event"], ready["worker"], ready["cause"]) == ("worker ready", "a.1.3", "scale a 4")
    await ask(desk, "scale", "a", workers=2)
    await turns()
    ended = recording.take("lifecycle")
    assert {(event["event"], event["cause"]) for event in ended} == {("worker ended", "scale a 2")}


async def test_decision_of_the_triggers_is_recorded_with_its_figures() -> None:
    desk = Desk(web("a", scale={"min": 1, "max": 4}))
    recording = Recording(desk)
    await ask(desk, "start")
    recording.take()
    entry = desk.core.entries["a"]
    decided = {"before": 1, "after": 2, "trigger": "requests", "value": 9}
    for scaling in (decided, {"before": 2, "after": 4, "trigger": "old"}):
        entry.desired.scaling = scaling
        before = entry.size
        await ask(desk, "scale", "a", workers=before + 1)
        (scaled,) = recording.take("scale")
        assert (scaled["before"], scaled["after"]) == (before, before + 1)
        assert scaled.get("trigger") == ("requests" if scaling is decided else None)


async def test_servers_that_are_reloaded_away_are_forgotten_and_one_of_their_name_begins_anew() -> None:
    desk = Desk(web("a"), web("b"))
    recording = Recording(desk)
    await ask(desk, "start")
    desk.files.written = [web("b")]
    await ask(desk, "reload")
    await turns()
    recording.take()
    desk.files.written = [web("a"), web("b")]
    await ask(desk, "reload")
    await turns()
    changes = [(e["server"], e["before"], e["after"]) for e in recording.take("lifecycle")]
    assert changes == [("a", "stopped", "starting"), ("a", "starting", "running")]


async def test_disabled_server_begins_as_disabled() -> None:
    desk = Desk(web("a", disabled=True))
    recording = Recording(desk)
    await ask(desk, "enable", "a")
    assert recording.take("lifecycle")[0]["before"] == "disabled"


async def test_server_that_slept_under_the_previous_supervisor_falls_asleep_without_an_event() -> None:
    desk = Desk(web("a", scale={"min": 0, "max": 1, "idle": 5}))
    entry = desk.core.entries["a"]
    entry.set_desired(Desired.RUN)
    recording = Recording(desk)
    recording.take()
    desk.core.touch(entry)
    await turns()
    assert entry.state == "sleeping"
    assert recording.take("wake", "lifecycle") == []


def test_lost_output_is_an_event_a_minute_and_one_warning_that_counts_all_of_it() -> None:
    desk = Desk(web("a"))
    recording = Recording(desk)
    recording.take()
    lost = LostOutputReporter(desk.core, desk.events)
    entry = desk.core.entries["a"]
    lost.report_lost_bytes("nobody", 1, "/a.log", "")
    assert recording.take() == []
    lost.report_lost_bytes("a", 100, "/a.log", "disk full")
    (event,) = recording.take()
    assert (event["kind"], event["event"], event["server"], event["cause"], event["severity"]) == (
        "pool", "output lost", "a", "disk full", "error",
    )  # fmt: skip
    assert event["message"] == "100 bytes of output could not be written to /a.log: disk full"
    assert event["bind"] == entry.config.key
    assert [*entry.observed.warnings] == ["a: 100 bytes of output could not be written to /a.log: disk full"]
    desk.clock.advance(59)
    lost.report_lost_bytes("a", 20, "/a.log", "disk full")
    assert recording.take() == []
    assert [*entry.observed.warnings] == ["a: 120 bytes of output could not be written to /a.log: disk full"]
    desk.clock.advance(1)
    lost.report_lost_bytes("a", 3, "/a.log", "")
    (event,) = recording.take()
    assert event["message"] == "23 bytes of output could not be written to /a.log"
    entry.observed.warnings.clear()
    lost.report_lost_bytes("a", 4, "/a.log", "")
    assert [*entry.observed.warnings] == ["a: 4 bytes of output could not be written to /a.log"]


async def test_server_that_no_dependent_needs_any_more_falls_asleep_for_want_of_traffic() -> None:
    desk = Desk(web("db", scale={"min": 0, "idle": 1}), web("api", depends_on=["db"]))
    recording = Recording(desk)
    await ask(desk, "start", "api")
    await turns(60)
    await ask(desk, "stop", "api")
    await turns(60)
    recording.take()
    desk.core.set_idle(desk.core.entries["db"], "db.1.0", True)
    await turns(60)
    events = recording.take("wake", "lifecycle")
    assert [(event["event"], event["cause"]) for event in events if event["server"] == "db"] == [
        ("draining", ""), ("worker ended", ""), ("sleeping", "no traffic"),
    ]  # fmt: skip
