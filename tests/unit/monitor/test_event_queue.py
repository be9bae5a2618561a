"""Events: gathered, numbered over supervisors, written at once, delivered to subscribers, never blocking."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from poolctl.clock import Clock
from poolctl.monitor.event_queue import EventBus
from poolctl.monitor.journal import Journal, JournalEvent, newest_first
from tests.manual_clock import ManualClock

TIME = "2023-11-14T22:13:20.000000Z"


def written_to(clock: Clock, journal: Journal) -> EventBus:
    events = EventBus(clock)
    events.write_to(journal)
    return events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "events.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_event_is_one_json_line_with_all_its_fields(path: Path) -> None:
    events = written_to(ManualClock(), Journal(str(path)))
    by = {"uid": 0, "pid": 42, "user": "root"}
    events.record(
        "lifecycle", "state", server="web", message="m", cause="c", by=by, before="stopped", after="running", bind="b"
    )  # fmt: skip
    assert read(path) == [
        {
            "time": TIME, "schema": 1, "seq": 1, "kind": "lifecycle", "event": "state", "server": "web",
            "message": "m", "cause": "c", "by": by, "before": "stopped", "after": "running", "bind": "b",
        }
    ]  # fmt: skip


async def test_events_recorded_together_are_written_together_and_in_order(path: Path) -> None:
    events = written_to(ManualClock(), Journal(str(path)))
    delivered: list[int] = []
    done = asyncio.Event()
    events.subscribe(lambda event: (delivered.append(event.seq), done.set())[0])
    events.record("pool", "one")
    events.record("pool", "two")
    assert delivered == []
    await asyncio.wait_for(done.wait(), 60)
    assert [event["event"] for event in read(path)] == ["one", "two"]
    assert delivered == [1, 2]


def test_numbers_continue_from_the_previous_supervisors_last(path: Path) -> None:
    for number in (1, 2, 3):
        events = written_to(ManualClock(), Journal(str(path)))
        events.record("pool", f"supervisor {number}")
        events.close()
    assert [(event.seq, event.event) for event in newest_first(str(path))] == [
        (3, "supervisor 3"), (2, "supervisor 2"), (1, "supervisor 1"),
    ]  # fmt: skip


@pytest.mark.parametrize(("earlier", "following"), [(7, 8), (1, 4)])
def test_other_journal_gets_later_events_with_numbers_above_those_of_both(
    tmp_path: Path, earlier: int, following: int
) -> None:
    before, after = tmp_path / "before.jsonl", tmp_path / "after.jsonl"
    after.write_text(json.dumps({"time": TIME, "seq": earlier, "kind": "pool", "event": "old"}) + "\n")

    async def scenario() -> None:
        events = written_to(ManualClock(), Journal(str(before)))
        for name in ("one", "two", "three"):
            events.record("pool", name)
        events.write_to(Journal(str(after)))
        assert [event["event"] for event in read(before)] == ["one", "two", "three"], "none waits any longer"
        events.record("pool", "four")
        events.close()

    asyncio.run(scenario())
    assert len(read(before)) == 3
    assert [(event["seq"], event["event"]) for event in read(after)] == [
        (earlier, "old"),
        (following, "four"),
    ]


def test_a_torn_last_line_is_skipped_and_the_next_event_has_a_line_of_its_own(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"time": "x", "seq": 7}\n7\n{"of": "another program"}\n{"time": "y", "se')
    events = written_to(ManualClock(), Journal(str(path)))
    events.record("pool", "after")
    assert [event.seq for event in newest_first(str(path))] == [8, 7]


def test_numbers_continue_across_rotation(path: Path) -> None:
    journal = Journal(str(path), max_size_bytes=300, keep=2)
    events = written_to(ManualClock(), journal)
    for number in range(10):
        events.record("pool", f"event {number}")
    events.close()
    path.unlink()
    assert written_to(ManualClock(), Journal(str(path))).seq == 9
    assert not path.with_name("events.jsonl.3").exists()


def test_journal_is_rotated_when_it_is_old(path: Path) -> None:
    clock = ManualClock()
    events = written_to(clock, Journal(str(path), max_age_seconds=3600, clock=clock))
    events.record("pool", "old")
    clock.advance(3601)
    events.record("pool", "new")
    assert [event["event"] for event in read(path)] == ["new"]
    assert [event["event"] for event in read(path.with_name("events.jsonl.1"))] == ["old"]


def test_a_full_disk_loses_events_counts_them_and_says_so_when_there_is_room_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    link = tmp_path / "events.jsonl"
    link.symlink_to("/dev/full")
    events = written_to(ManualClock(), journal := Journal(str(link)))
    delivered: list[str] = []
    events.subscribe(lambda event: delivered.append(event.event))
    events.record("pool", "one")
    events.record("pool", "two")
    assert journal.lost == 2
    assert events.problem == f"2 events could not be written to {link}: No space left on device"
    assert delivered == ["one", "two"]
    assert [record.message for record in caplog.records] == [
        f"events are not written to {link}: No space left on device"
    ]
    link.unlink()
    journal.close()
    events.record("pool", "three")
    events.close()
    written = [(event["event"], event.get("lost")) for event in read(link)]
    assert written == [("three", None), ("events lost", 2)]
    assert events.problem == ""


async def test_end_of_a_loss_is_in_the_journal_when_it_is_closed_at_once(tmp_path: Path) -> None:
    link = tmp_path / "events.jsonl"
    link.symlink_to("/dev/full")
    events = written_to(ManualClock(), journal := Journal(str(link)))
    events.record("pool", "one")
    events.flush()
    link.unlink()
    journal.close()
    events.record("pool", "two")
    events.close()
    assert [(event["event"], event.get("lost")) for event in read(link)] == [
        ("two", None),
        ("events lost", 1),
    ]


def test_directory_in_place_of_the_journal_costs_the_events_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    events = written_to(ManualClock(), Journal(str(tmp_path)))
    events.record("pool", "one")
    events.flush()
    assert events.problem == f"1 event could not be written to {tmp_path}: Is a directory"


def test_failing_subscriber_does_not_affect_the_others(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: JournalEvent) -> None:
        raise RuntimeError("no")

    events = written_to(ManualClock(), Journal(str(path)))
    delivered: list[int] = []
    events.subscribe(fails)
    end = events.subscribe(lambda event: delivered.append(event.seq))
    events.record("pool", "one")
    end()
    end()
    events.record("pool", "two")
    assert delivered == [1]
    assert len(read(path)) == 2
    assert "an event could not be delivered" in caplog.text


def test_line_that_is_no_json_is_written_as_text(path: Path) -> None:
    events = written_to(ManualClock(), Journal(str(path)))
    events.record("pool", "odd", after={1})
    assert read(path)[0]["after"] == "{1}"


@pytest.mark.slow
def test_a_flood_of_events_of_one_server_is_bounded_and_counted(path: Path) -> None:
    clock = ManualClock()
    events = written_to(clock, Journal(str(path), max_size_bytes=0))
    for _ in range(25_000):
        events.record("lifecycle", "worker ended", server="web", message="x" * 10_000)
    events.record("lifecycle", "running", server="other")
    events.record("audit", "restart")
    clock.advance(1)
    events.record("lifecycle", "running", server="web")
    found = read(path)
    delivered = [(event["event"], event["server"]) for event in found]
    assert delivered.count(("worker ended", "web")) == 10_000
    assert len(found[0]["message"]) == 4097
    assert delivered[-4:] == [
        ("running", "other"),
        ("restart", ""),
        ("events left out", "web"),
        ("running", "web"),
    ]
    assert (found[-2]["lost"], found[-2]["message"]) == (
        15_000,
        "15,000 events of web were left out: too many at once",
    )
    assert [event["seq"] for event in found] == list(range(1, len(found) + 1))


def test_long_texts_are_shortened_and_passwords_masked_in_messages_causes_and_output() -> None:
    events, found = EventBus(ManualClock()), []
    events.subscribe(found.append)
    secret = "postgres://ann:secret@db/shop"
    masked = "postgres://ann:********@db/shop"
    events.record("pool", "one", message=secret, cause=secret, output=[secret, "x" * 5000], other=[secret])
    (event,) = found
    assert (event.message, event.cause, event.detail["output"][0]) == (masked, masked, masked)
    assert (event.detail["output"][1], event.detail["other"]) == ("x" * 4096 + "…", [secret])
    events.record("pool", "two", message="x" * 4096, output="text")
    assert (found[1].message, found[1].detail) == ("x" * 4096, {"output": "text"})
