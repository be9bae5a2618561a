"""Which problems are sent, how often, and when they end: decided without a clock."""

from __future__ import annotations

from typing import Any

import pytest

from poolctl.features.notify._problem_tracker import Message, NotificationContext, ProblemTracker
from poolctl.features.notify.table import Notify
from poolctl.monitor.journal import JournalEvent


def event(after: str, server: str = "web", kind: str = "lifecycle", **more: Any) -> JournalEvent:
    return JournalEvent.from_json({"kind": kind, "event": after, "server": server, "after": after, **more})


def problems(**keys: Any) -> ProblemTracker:
    return ProblemTracker(
        Notify(type="slack", url_env="A", **keys), lambda: NotificationContext("shop", {}, "/", tags)
    )


def tags(server: str) -> list[str]:
    return ["api"] if server == "web" else []


def lines(message: Message | None) -> list[str]:
    return [] if message is None else list(message.lines)


def test_problem_is_notified_once_after_the_delay_and_so_is_its_end() -> None:
    found = problems(delay=2)
    assert found.next_at() is None
    found.record(event("failed", cause="exited with status 3"), 100)
    assert (found.next_at(), found.take_due_message(101.9)) == (102, None)
    sent = found.take_due_message(102)
    assert sent == Message(
        "problem", "error", "shop: web: failed", ("web: failed (exited with status 3)",), 102,
        (event("failed", cause="exited with status 3"),),
    )  # fmt: skip
    found.record(event("failed"), 110)
    found.record(event("backoff"), 111)
    assert found.next_at() == 102 + 4 * 3600, "only to repeat it"
    assert lines(found.take_due_message(1000)) == []
    found.record(event("starting"), 1000)
    found.record(event("running"), 1060)
    assert (found.next_at(), found.take_due_message(1089)) == (1090, None), "it may crash again"
    over = found.take_due_message(1090)
    assert over is not None
    assert (over.status, over.severity, over.lines) == ("resolved", "info", ("web: running again after 16m",))
    assert found.next_at() is None


def test_problem_that_ends_before_it_was_notified_is_never_notified() -> None:
    found = problems(delay=1)
    found.record(event("worker ended", before="ready", status=1), 10)
    found.record(event("running"), 10.2)
    assert found.take_due_message(12) is None


def test_server_that_crashes_in_a_loop_is_notified_once() -> None:
    found = problems(delay=1)
    found.record(event("backoff"), 10)
    assert lines(found.take_due_message(11)) == ["web: backoff"]
    for at in range(12, 100, 4):
        found.record(event("running"), at)
        assert found.take_due_message(at + 1.5) is None
        found.record(event("backoff"), at + 2)
        assert found.take_due_message(at + 3) is None
    found.record(event("running"), 100)
    kept = problems(delay=1)
    kept.restore(found.to_dict(), 101)
    assert kept.to_dict() == found.to_dict(), "its end was not sent yet"
    assert lines(found.take_due_message(130)) == ["web: running again after 1m30s"]


@pytest.mark.parametrize(("delay", "over"), [(0.1, 3), (60, 60)])
def test_end_is_notified_once_it_has_lasted(delay: float, over: float) -> None:
    found = problems(delay=delay)
    found.record(event("failed"), 10)
    assert found.take_due_message(10 + delay) is not None
    found.record(event("running"), 100)
    assert found.next_at() == 100 + over


def test_problem_that_gets_worse_is_notified_again() -> None:
    found = problems(delay=0)
    found.record(event("backoff"), 10)
    assert lines(found.take_due_message(10)) == ["web: backoff"]
    found.record(event("failed"), 20)
    assert lines(found.take_due_message(20)) == ["web: failed"]
    found.record(event("warn", kind="health"), 30)
    assert lines(found.take_due_message(30)) == ["web: warn"], "its health is another problem"


def test_lasting_problem_is_notified_repeatedly() -> None:
    found = problems(delay=0, repeat=100)
    found.record(event("failed"), 0)
    found.take_due_message(0)
    assert found.next_at() == 100
    assert lines(found.take_due_message(100)) == ["web: failed, for 1m40s now"]
    assert lines(found.take_due_message(150)) == []
    assert lines(found.take_due_message(200)) == ["web: failed, for 3m20s now"]
    assert problems(repeat=0).next_at() is None
    today = problems(delay=0, repeat=100)
    today.record(event("failed"), 1.8e9)
    assert lines(today.take_due_message(1.8e9)) == ["web: failed"], "it is new"


def test_simultaneous_problems_are_one_message() -> None:
    found = problems(delay=1)
    found.record(event("failed", "c"), -39)
    found.take_due_message(-38)
    for name in ("a", "b", "d"):
        found.record(event("failed", name), 10)
    found.record(event("stopped", "c"), -19)
    found.record(event("keeper lost", "", "pool"), 10.5)
    sent = found.take_due_message(11)
    assert sent is not None
    assert sent.title == "shop: 4 problems, 1 resolved (a, b, d …)"
    assert sent.lines == ("a: failed", "b: failed", "d: failed", "c: stopped after 20s", "keeper lost")
    found.record(event("failed", "e"), 20)
    found.record(event("failed", "f"), 20)
    later = found.take_due_message(21)
    assert later is not None
    assert (later.title, lines(later)) == ("shop: 2 problems (e, f)", ["e: failed", "f: failed"])
    found.record(event("stopped", "e"), 30)
    found.record(event("failed", "g"), 59)
    last = found.take_due_message(60)
    assert last is not None
    assert last.title == "shop: 1 problem, 1 resolved (g, e)"


def test_message_has_at_most_a_thousand_events_that_are_no_lasting_problems() -> None:
    found = problems(delay=1, min_severity="info", events=["audit"])
    for number in range(1002):
        found.record(event(f"stop {number}", "", "audit"), 0)
    message = found.take_due_message(1)
    assert message is not None
    assert (message.title, len(message.lines)) == ("shop: 1000 news", 1000)
    assert message.lines[-1].endswith("999")


@pytest.mark.parametrize(
    ("keys", "event_", "sent"),
    [
        ({}, event("starting"), False),
        ({}, event("warn", kind="health"), True),
        ({"min_severity": "error"}, event("warn", kind="health"), False),
        ({"min_severity": "error"}, event("ko", kind="health"), True),
        ({"events": ["health"]}, event("failed"), False),
        ({"events": ["audit"], "min_severity": "info"}, event("stop", "", "audit"), True),
        ({"events": ["audit"]}, event("stop", "", "audit"), False),
        ({"min_severity": "info"}, event("starting"), True),
        ({"servers": ["w*"]}, event("failed"), True),
        ({"servers": ["WEB"]}, event("failed"), True),
        ({"servers": ["tag:api"]}, event("failed"), True),
        ({"servers": ["tag:api"]}, event("failed", "other"), False),
        ({"servers": ["other"]}, event("keeper lost", "", "pool"), True),
        (
            {"events": ["notify"]},
            event("given up", "", "notify", severity="warning", receiver="slack"),
            False,
        ),
        ({"events": ["notify"]}, event("given up", "", "notify", severity="warning", receiver="ntfy"), True),
        ({}, event("recovered", "web", "recovery")._replace(after={"pids": [7], "state": "running"}), True),
        ({}, event("worker ended", before="stopping", status=1), False),
        ({}, event("worker ended", before="ready", status=0), False),
    ],
)
def test_receiver_is_notified_of_the_problems_it_selects(
    keys: dict[str, Any], event_: JournalEvent, sent: bool
) -> None:
    found = problems(delay=0, **keys)
    found.record(event_, 5)
    assert (found.take_due_message(5) is not None) is sent


def test_newest_of_equally_severe_events_is_sent_and_no_lesser_one() -> None:
    found = problems(min_severity="warning")
    for second, word in enumerate(("ko", "ko", "warn")):
        found.record(event(word, kind="health", message=f"answer {second}"), second)
    assert lines(found.take_due_message(100)) == ["web: ko: answer 1"]


def test_receiver_without_resolved_gets_no_end() -> None:
    found = problems(delay=0, resolved=False)
    found.record(event("failed"), 0)
    found.take_due_message(0)
    found.record(event("running"), 1)
    assert found.take_due_message(1) is None


def test_problem_is_resolved_when_its_server_falls_asleep() -> None:
    found = problems(delay=0)
    found.record(event("backoff"), 0)
    found.take_due_message(0)
    found.record(event("sleeping", kind="wake"), 5)
    assert lines(found.take_due_message(5)) == ["web: sleeping after 5s"]


def test_failed_run_of_a_job_is_sent_with_its_last_lines_until_one_succeeds() -> None:
    found = problems(min_severity="error")
    found.record(
        event("warn", kind="health", severity="error", message="no space", output=["copying", "no space"]), 1
    )
    found.record(event("running"), 50)
    assert lines(found.take_due_message(100)) == ["web: warn: no space\n  copying\n  no space"]
    found.record(event("ok", kind="health"), 200)
    assert lines(found.take_due_message(300)) == ["web: ok again after 3m19s"]


def test_stopped_server_is_not_unhealthy() -> None:
    found = problems(delay=0, events=["health"])
    found.record(event("ko", kind="health"), 0)
    found.take_due_message(0)
    found.record(event("failed"), 1)
    assert found.take_due_message(1) is None
    found.record(event("stopped"), 5)
    assert lines(found.take_due_message(5)) == ["web: stopped after 5s"]


def test_successor_knows_which_problems_were_notified() -> None:
    first, second = problems(delay=0), problems(delay=0)
    first.record(event("failed"), 0)
    assert first.to_dict() == {}, "it was not sent yet"
    first.take_due_message(0)
    second.restore(first.to_dict(), 40)
    second.record(event("failed"), 50)
    assert second.take_due_message(50) is None
    second.record(event("running"), 60)
    assert lines(second.take_due_message(60)) == ["web: running again after 1m"]


def test_recovery_of_a_hung_worker_is_sent_with_its_innermost_calls_only() -> None:
    frames = [{"function": f"f{depth}", "file": "shop.py", "line": depth} for depth in range(1, 50)]
    stacks = [
        {
            "worker": f"web.{number}.0",
            "threads": [{"name": "MainThread", "main": True, "frames": frames[number:]}],
        }
        for number in range(3)
    ]
    recovered = event("recovered", "web", "recovery")._replace(message="it hung", detail={"stacks": stacks})
    tracker = problems(events=["recovery"])
    tracker.record(recovered, 0.0)
    message = tracker.take_due_message(0.0, at_once=True)
    assert message is not None
    first, *rest = message.text.splitlines()
    assert first.startswith("web: recovered: it hung")
    assert rest == ["  main thread:", *(f"    f{depth} (shop.py:{depth})" for depth in range(1, 10))]
    assert message.title == "shop: web: recovered"
    assert "stacks" not in message.events[0].to_json()


@pytest.mark.parametrize("stacks", [[], "unknown"])
def test_recovery_of_a_worker_without_stacks_is_sent_without_calls(stacks: Any) -> None:
    tracker = problems(events=["recovery"])
    hung = event("recovered", "web", "recovery")._replace(message="it hung", detail={"stacks": stacks})
    tracker.record(hung, 0.0)
    assert lines(tracker.take_due_message(0.0, at_once=True)) == ["web: recovered: it hung"]
