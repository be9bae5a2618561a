"""What could not be sent is sent again, less and less often, and some day no more."""

from __future__ import annotations

import json

from poolctl.features.notify._problem_tracker import Message
from poolctl.features.notify.notifications import MAX_WAITING, Outbox
from poolctl.monitor.journal import JournalEvent


def message(title: str = "a") -> Message:
    return Message("problem", "error", title, ("line",), 5.0, (JournalEvent("", 1, "lifecycle", "running"),))


def test_attempts_are_spaced_by_twice_the_time_up_to_five_minutes() -> None:
    box = Outbox(10_000)
    box.put(message(), 0)
    now, waits = 0.0, []
    for _ in range(11):
        assert box.due(now) == message()
        assert box.failed(now)
        at = box.next_at()
        assert at is not None
        waits.append(at - now)
        assert box.due(at - 0.001) is None
        now = at
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_attempts_are_spread_by_jitter() -> None:
    for jitter, wait in ((-1, 0.8), (1, 1.2)):
        box = Outbox(100)
        box.put(message(), 0)
        box.failed(0, jitter=jitter)
        assert box.next_at() == wait


def test_receiver_may_delay_the_next_attempt_by_an_hour_at_most() -> None:
    for asked, wait in ((30.0, 30), (1e9, 3600)):
        box = Outbox(10_000)
        box.put(message(), 0)
        assert box.failed(0, after_seconds=asked)
        assert box.next_at() == wait


def test_message_that_cannot_be_sent_in_time_is_dropped_and_the_next_one_sent() -> None:
    box = Outbox(2.5)
    box.put(message("a"), 0)
    box.put(message("b"), 0)
    assert box.failed(0)
    assert not box.failed(1), "the next attempt would be at 3"
    assert box.due(1) == message("b")
    assert not box.failed(1, again=False)
    assert (len(box), box.next_at()) == (0, None)


def test_oldest_message_is_dropped_when_a_hundred_wait() -> None:
    box = Outbox(100)
    for number in range(MAX_WAITING):
        assert box.put(message(str(number)), 0) is None
    assert box.put(message("last"), 0) == message("0")
    assert box.due(0) == message("1")


def test_waiting_messages_are_left_to_a_successor() -> None:
    first, second = Outbox(100), Outbox(100)
    first.put(message(), 7)
    second.restore(json.loads(json.dumps(first.to_list())))
    assert second.due(7) == message()
    assert not second.failed(107), "how long it has waited is known"


def test_message_is_given_up_when_the_next_attempt_would_be_too_long_after_it_was_put() -> None:
    for waited, again in ((1.0, True), (2.0, True), (2.5, False)):
        box = Outbox(3.0)
        box.put(message("a"), 1000.0)
        assert box.failed(1000.0 + waited) is again, waited
        assert box.next_at() == (1001.0 + waited if again else None)
