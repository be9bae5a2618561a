"""The journal: events as people read them, how severe they are, and which ones a request selects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolctl.config import EventsTable
from poolctl.monitor.journal import (
    KEEP,
    MAX_LINES,
    MAX_SIZE_BYTES,
    EventFilter,
    Journal,
    JournalEvent,
    newest_first,
    parse_event,
    parse_filter_or_none,
    recent,
)
from tests.manual_clock import ManualClock

STAMP = "2023-11-14T22:13:20.000000Z"


def event_of(**keys: Any) -> JournalEvent:
    return JournalEvent.from_json({"kind": "pool", "event": "e"} | keys)


@pytest.mark.parametrize(("event", "said"), [
    ({"kind": "lifecycle", "event": "starting", "message": "stopped → starting", "cause": "start"},
     "stopped → starting (start)"),
    ({"kind": "lifecycle", "event": "running", "message": "starting → running"}, "starting → running"),
    ({"kind": "lifecycle", "event": "running"}, "running"),
    ({"kind": "wake", "event": "woken", "message": "sleeping → starting"}, "sleeping → starting"),
    ({"kind": "lifecycle", "event": "worker ended", "pid": 7, "message": "exited with status 3",
      "cause": "exited with status 3"}, "worker ended (pid 7): exited with status 3"),
    ({"kind": "lifecycle", "event": "worker ended", "pid": 7, "message": "exited with status 0",
      "cause": "exited with status 0 before it was ready", "next": "not restarted"},
     "worker ended (pid 7): exited with status 0 before it was ready; not restarted"),
    ({"kind": "lifecycle", "event": "worker ended", "pid": 7}, "worker ended (pid 7)"),
    ({"kind": "lifecycle", "event": "worker ended", "message": "gone", "next": "started again in 1s"},
     "worker ended: gone; started again in 1s"),
    ({"kind": "pool", "event": "worker ended", "pid": 7, "message": "gone"}, "worker ended: gone"),
    ({"kind": "scale", "event": "workers", "before": 1, "after": 3}, "workers: 1 → 3"),
    ({"kind": "scale", "event": "workers", "message": "from 1 to 3"}, "from 1 to 3"),
    ({"kind": "pool", "event": "output lost", "message": "5 bytes could not be written: it is full",
      "cause": "it is full"}, "output lost: 5 bytes could not be written: it is full"),
    ({"kind": "pool", "event": "taken over", "message": "taken over"}, "taken over"),
    ({"kind": "pool", "event": "taken over"}, "taken over"),
    ({"kind": "audit", "event": "stop done", "message": "stop web", "duration_seconds": 0.5},
     "stop web: done after 0.5 s"),
    ({"kind": "audit", "event": "stop done", "message": "stop web"}, "stop web: done"),
    ({"kind": "audit", "event": "stop", "message": "stop web", "duration_seconds": 0.5}, "stop web"),
    ({"kind": "config", "event": "changed", "keys": ["app", "bind"]}, "changed: app, bind"),
    ({"kind": "config", "event": "changed", "keys": ["app"], "message": "all of it"}, "changed: all of it"),
    ({"kind": "config", "event": "changed", "keys": "app"}, "changed"),
])  # fmt: skip
def test_an_event_is_one_line_that_says_nothing_twice(event: dict[str, Any], said: str) -> None:
    assert JournalEvent.from_json(event).sentence == said


@pytest.mark.parametrize(("event", "severity"), [
    ({"severity": "error"}, "error"),
    ({"severity": "fatal"}, "info"),
    ({"kind": "health", "after": "ko"}, "error"),
    ({"kind": "health", "after": "warn"}, "warning"),
    ({"kind": "health", "after": "ok"}, "info"),
    ({"kind": "health", "after": 5}, "info"),
    ({"kind": "lifecycle", "event": "worker ended", "before": "running", "status": 1}, "warning"),
    ({"kind": "lifecycle", "event": "worker ended", "before": "running"}, "warning"),
    ({"kind": "lifecycle", "event": "worker ended", "before": "running", "status": 0}, "info"),
    ({"kind": "lifecycle", "event": "worker ended", "before": "draining", "status": 1}, "info"),
    ({"kind": "lifecycle", "event": "worker ended", "before": "stopping", "status": 1}, "info"),
    ({"kind": "lifecycle", "event": "failed", "after": "failed"}, "error"),
    ({"kind": "lifecycle", "event": "backoff", "after": "backoff"}, "warning"),
    ({"kind": "lifecycle", "event": "running", "after": "running"}, "info"),
    ({"kind": "recovery", "event": "failed"}, "error"),
    ({"kind": "recovery", "event": "given up"}, "error"),
    ({"kind": "recovery", "event": "replaced"}, "warning"),
    ({"event": "keeper lost"}, "error"),
    ({"event": "keeper silent"}, "error"),
    ({"event": "events lost"}, "error"),
    ({"event": "taken over", "adopted": 3}, "warning"),
    ({"event": "taken over"}, "info"),
    ({"kind": "audit", "event": "failed", "adopted": 3, "after": "failed"}, "info"),
])  # fmt: skip
def test_severity_is_the_events_own_or_follows_from_its_kind(event: dict[str, Any], severity: str) -> None:
    assert event_of(**event).severity == severity


@pytest.mark.parametrize(("by", "author"), [
    (None, ""),
    ("root", ""),
    ({"uid": 0, "user": "root", "pid": 42, "command": "poolctl"}, "root, poolctl 42"),
    ({"uid": 7, "pid": 42}, "7, pid 42"),
    ({"user": "page", "address": "::1", "command": "dashboard"}, "page, dashboard ::1"),
    ({"command": "poolctl"}, "?, poolctl ?"),
])  # fmt: skip
def test_author_is_the_user_and_the_process_or_the_address(by: Any, author: str) -> None:
    assert event_of(by=by).author == author


def test_an_event_is_the_same_after_it_was_written_and_read() -> None:
    table = {
        "time": STAMP, "schema": 1, "seq": 3, "kind": "audit", "event": "stop", "server": "web", "message": "m",
        "cause": "c", "by": {"pid": 1}, "before": "running", "after": ["x"], "servers": ["web"], "n": 1,
    }  # fmt: skip
    event = JournalEvent.from_json(table)
    assert event.to_json() == table
    assert event.detail == {"servers": ["web"], "n": 1}
    assert (event.state, event_of(after="running").state) == ("", "running")


@pytest.mark.parametrize(
    "line", [b"", b"{", b"7", b"[]", b"{}", b'{"seq": "1"}', b'{"seq": null}', b"[" * 100_000, b"\xff"]
)
def test_a_line_without_a_number_is_no_event(line: bytes) -> None:
    assert parse_event(line) is None
    assert parse_event(b'{"seq": 0}') == JournalEvent("", 0, "", "")


@pytest.mark.parametrize(("wanted", "matches"), [
    ({}, True),
    ({"servers": ["web"]}, True),
    ({"servers": ["db"]}, True),
    ({"servers": ["other"]}, False),
    ({"servers": []}, False),
    ({"kinds": ["audit"]}, True),
    ({"kinds": ["pool", "scale"]}, False),
    ({"since": STAMP}, True),
    ({"since": STAMP.replace("20.", "21.")}, False),
    ({"after": 4}, True),
    ({"after": 5}, False),
    ({"until": 5}, True),
    ({"until": 4}, False),
])  # fmt: skip
def test_filter_selects_by_servers_kind_time_and_number(wanted: dict[str, Any], matches: bool) -> None:
    event = event_of(kind="audit", server="web", servers=["db"], time=STAMP, seq=5)
    assert EventFilter(**wanted).matches(event) is matches


def test_event_whose_detail_names_servers_otherwise_concerns_only_its_own() -> None:
    assert not EventFilter(servers=["db"]).matches(event_of(server="web", servers="db"))


@pytest.mark.parametrize(("request_", "wanted"), [
    ({}, EventFilter(["web"], [], "", 0)),
    ({"kinds": ["audit", "pool"], "since": STAMP, "after": 7}, EventFilter(["web"], ["audit", "pool"], STAMP, 7)),
    ({"kinds": "audit"}, None),
    ({"kinds": ["audit", "another"]}, None),
    ({"since": 5}, None),
    ({"since": STAMP[:-1]}, None),
    ({"since": f"{STAMP}Z"}, None),
    ({"after": "7"}, None),
    ({"after": True}, None),
])  # fmt: skip
def test_a_requests_filter_is_refused_unless_each_value_is_valid(
    request_: dict[str, Any], wanted: EventFilter | None
) -> None:
    assert (
        parse_filter_or_none(servers=["web"], **({"kinds": None, "since": None, "after": None} | request_))
        == wanted
    )


def test_the_last_events_that_match_are_found_oldest_first_across_rotation(tmp_path: Path) -> None:
    path = str(tmp_path / "events.jsonl")
    journal = Journal(path, max_size_bytes=500, keep=9)
    for number in range(1, 13):
        journal.append([event_of(seq=number, server="web" if number % 2 else "db", time=STAMP)])
    assert Path(f"{path}.1").exists()
    assert [event.seq for event in newest_first(path)] == [*range(12, 0, -1)]

    def numbers(lines: int | None, **wanted: Any) -> list[int]:
        return [event.seq for event in recent(path, EventFilter(**wanted), lines)]

    assert numbers(None) == [*range(1, 13)]
    assert numbers(0) == []
    assert numbers(1) == [12]
    assert numbers(2, servers=["web"]) == [9, 11]
    assert numbers(None, after=10) == [11, 12]
    assert numbers(3, until=4) == [2, 3, 4]
    journal.close()


def test_journal_has_the_configured_file_or_else_the_default_one(tmp_path: Path) -> None:
    default, own = tmp_path / "default.jsonl", tmp_path / "own.jsonl"
    assert Journal.configured(None, str(default)).path == str(default)
    assert Journal.configured(EventsTable(), str(default)).path == str(default)
    journal = Journal.configured(EventsTable(path=str(own), max_size=300, keep=1), str(default))
    assert repr(journal) == f"<Journal {own}, ok>"
    for number in range(12):
        journal.append([event_of(seq=number)])
    journal.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["own.jsonl", "own.jsonl.1"]
    assert (MAX_SIZE_BYTES, KEEP, MAX_LINES) == (10 * 1024 * 1024, 5, 10_000)


def test_journal_without_an_age_is_not_rotated_when_it_is_old(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(str(tmp_path / "events.jsonl"), clock=clock)
    for number in range(2):
        journal.append([event_of(seq=number)])
        clock.advance(10 * 365 * 86400)
    journal.close()
    assert [each.name for each in tmp_path.iterdir()] == ["events.jsonl"]


def test_events_that_do_not_fit_are_counted_until_a_write_succeeds(tmp_path: Path) -> None:
    link = tmp_path / "events.jsonl"
    link.symlink_to("/dev/full")
    journal = Journal(str(link))
    journal.append([event_of(seq=1), event_of(seq=2)])
    journal.append([event_of(seq=3)])
    assert (journal.lost, journal.error) == (3, "No space left on device")
    journal.close()
    link.unlink()
    journal.append([event_of(seq=4, message="\ud800")])
    assert (journal.lost, journal.error) == (0, "")
    assert [event.seq for event in newest_first(str(link))] == [4]
    journal.close()


def test_journal_behind_a_link_is_rotated_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "events.jsonl"
    link.symlink_to(tmp_path / "disk" / "events.jsonl")
    journal = Journal(str(link), max_size_bytes=300, keep=9)
    for number in range(1, 10):
        journal.append([event_of(seq=number)])
    journal.close()
    assert link.is_symlink()
    assert len(list((tmp_path / "disk").iterdir())) > 1
    assert [path.name for path in tmp_path.iterdir() if not path.is_dir()] == ["events.jsonl"]
    assert [event.seq for event in newest_first(str(link))] == list(range(9, 0, -1))
