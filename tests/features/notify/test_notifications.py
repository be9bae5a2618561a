"""Messages that cannot be sent are tried again, less and less often, and outlive the supervisor and a reload."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.features.notify._problem_tracker import Message
from poolctl.features.notify.notifications import Outbox
from poolctl.monitor.journal import JournalEvent
from poolctl.selection.selector import SelectorError
from tests.features.notify.stage import Stage

REFUSED: tuple[int, dict[str, str]] = (503, {})
HOUR = 3600.0


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with closing(Stage(tmp_path)) as stage:
        yield stage


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def message(title: str = "a") -> Message:
    return Message("problem", "error", title, ("line",), 5.0, (JournalEvent("", 1, "lifecycle", "running"),))


def test_waiting_messages_are_left_to_a_successor() -> None:
    first, second = Outbox(100), Outbox(100)
    first.put(message(), 7)
    second.restore(json.loads(json.dumps(first.to_list())), 7)
    assert second.due(7) == message()
    assert not second.retry_or_drop(107), "how long it has waited is known"


def test_message_is_given_up_when_the_next_attempt_would_be_too_long_after_it_was_put() -> None:
    for waited, again in ((1.0, True), (2.0, True), (2.5, False)):
        box = Outbox(3.0)
        box.put(message("a"), 1000.0)
        assert box.retry_or_drop(1000.0 + waited) is again, waited
        assert box.next_at() == (1001.0 + waited if again else None)


def test_message_is_sent_and_reported(stage: Stage) -> None:
    stage.notify(
        {"name": "mail"}, {"name": "chat", "servers": ["other"]}, {"name": "all", "min_severity": "info"}
    )
    stage.fail()
    assert sorted(stage.journal()) == [
        ("sent", "all: shop: web: failed", ""), ("sent", "mail: shop: web: failed", ""),
    ]  # fmt: skip
    stage.record("lifecycle", "starting", server="other")
    assert stage.journal() == [("sent", "all: info: shop: other: starting", "")]


def test_failed_deliveries_are_warnings_that_other_receivers_get(stage: Stage) -> None:
    stage.notify({"name": "mail", "url": "http://127.0.0.1:1/"}, {"name": "chat", "events": ["notify"]})
    stage.fail()
    stage.pass_time(2 * HOUR)
    delayed, given_up = stage.receiver.taken
    assert delayed.text == "delayed: mail: shop: web: failed (127.0.0.1: Connection refused)"
    assert (delayed.body["severity"], given_up.text.partition(":")[0]) == ("warning", "given up")


def test_failed_attempts_are_repeated_less_and_less_often_with_jitter(stage: Stage) -> None:
    random.seed(1)
    stage.receiver.refusals += [REFUSED] * 16
    stage.notify({"retry_for": "2h"})
    stage.fail()
    stage.pass_time(2 * HOUR)
    usual = [*(2**number for number in range(9)), *[300] * 7]
    factors = [gap / seconds for gap, seconds in zip(gaps(stage.receiver.requests), usual, strict=True)]
    assert 0.8 <= min(factors) < 0.99
    assert 1.01 < max(factors) <= 1.21
    assert [(outcome, message) for outcome, message, _ in stage.journal()] == [
        ("delayed", "webhook: shop: web: failed"), ("sent", "webhook: shop: web: failed"),
    ]  # fmt: skip


def test_each_outage_is_reported_and_begins_with_short_delays(stage: Stage) -> None:
    stage.notify({})
    for server in ("web", "other"):
        stage.receiver.refusals += [REFUSED] * 3
        stage.fail(server)
        stage.pass_time(60)
    assert [outcome for outcome, _, _ in stage.journal()] == ["delayed", "sent", "delayed", "sent"]
    assert gaps(stage.receiver.requests)[4] < 1.3


def test_message_is_given_up_after_its_time_and_the_next_one_is_sent(stage: Stage) -> None:
    stage.receiver.refusals += [REFUSED] * 4  # after 0, 1, 3 and 7 seconds: the next would be after 15
    stage.notify({"retry_for": 10})
    stage.fail()
    stage.pass_time(1.5)
    stage.fail("other")
    stage.pass_time(20)
    assert stage.receiver.texts() == ["other: failed"]
    assert [outcome for outcome, _, _ in stage.journal()] == ["delayed", "given up", "sent"]


@pytest.mark.parametrize(("asked", "seconds"), [("1800", 1800), ("soon", 1), ("0", 1), ("999999", 3600)])
def test_receiver_may_delay_the_next_attempt_by_an_hour_at_most(
    stage: Stage, asked: str, seconds: float
) -> None:
    stage.receiver.refusals.append((429, {"Retry-After": asked}))
    stage.notify({"retry_for": "1d"})
    stage.fail()
    stage.pass_time(2 * HOUR)
    assert gaps(stage.receiver.requests) == [pytest.approx(seconds, rel=0.21)]


@pytest.mark.parametrize(
    ("status", "outcomes"),
    [(408, ["delayed", "sent"]), (500, ["delayed", "sent"]), (301, ["given up"]), (400, ["given up"])],
)
def test_message_that_will_never_be_taken_is_given_up(stage: Stage, status: int, outcomes: list[str]) -> None:
    stage.receiver.refusals.append((status, {}))
    stage.notify({})
    stage.fail()
    stage.pass_time(10)
    assert [outcome for outcome, _, _ in stage.journal()] == outcomes


def test_receivers_do_not_wait_for_each_other(stage: Stage) -> None:
    stage.receiver.may_answer.clear()
    stage.notify({"name": "silent", "timeout": 5}, {"name": "refusing", "url": "http://127.0.0.1:1/"})
    stage.fail()
    assert [outcome for outcome, _, _ in stage.journal()] == ["delayed"]
    stage.pass_time(4.9)
    assert stage.journal() == []
    stage.pass_time(0.2)
    assert ("delayed", "silent: shop: web: failed", "no answer within 5 s") in stage.journal()


def test_oldest_message_is_given_up_when_a_hundred_wait(stage: Stage) -> None:
    stage.receiver.refusals += [REFUSED] * 1000
    stage.notify({"events": ["pool"], "retry_for": "1d"})
    for number in range(102):
        stage.record("pool", "keeper lost", severity="error", message=str(number))
    stage.pass_time(HOUR)
    assert [(outcome, cause) for outcome, _, cause in stage.journal()][1:] == [
        ("given up", "too many are waiting")
    ] * 2
    stage.receiver.refusals.clear()
    stage.pass_time(400)
    assert len(stage.receiver.taken) == 100
    assert "keeper lost" in stage.receiver.taken[0].title


@pytest.mark.parametrize("offset", [-HOUR, HOUR])
def test_setting_the_time_of_day_delays_nothing(stage: Stage, offset: float) -> None:
    stage.receiver.refusals.append(REFUSED)
    stage.notify({"delay": 10})
    stage.fail()
    stage.clock.offset = offset
    stage.pass_time(15)
    assert [round(at) for at in stage.receiver.requests] == [10, 11]


def test_exit_sends_what_waits_within_two_seconds_and_the_next_supervisor_the_rest(stage: Stage) -> None:
    stage.notify({"name": "mail", "delay": "1h"})
    stage.fail()
    stage.end_supervisor()
    assert stage.receiver.texts() == ["web: failed"], "before its delay has passed"
    stage.start_supervisor("web")
    stage.notify({"name": "mail", "delay": "1h"})
    stage.receiver.may_answer.clear()
    stage.fail("other")
    before = stage.loop.time()
    stage.end_supervisor()
    assert stage.loop.time() - before == pytest.approx(2, abs=0.1)
    stage.receiver.may_answer.set()
    stage.start_supervisor("web", "other")
    stage.notify({"name": "mail"})
    stage.pass_time()
    assert stage.receiver.texts()[-1] == "other: failed"


@pytest.mark.parametrize("delay", ["1h", 0])
def test_next_supervisor_sends_what_a_flush_or_a_failed_attempt_has_saved(stage: Stage, delay: Any) -> None:
    """As when a supervisor is replaced, or killed."""
    if delay == 0:
        stage.receiver.refusals.append(REFUSED)
    stage.notify({"delay": delay})
    stage.fail()
    stage.part.flush()
    stage.start_supervisor("web")
    stage.notify({"delay": "1h"})
    stage.pass_time(0.1)
    assert stage.receiver.texts() == ["web: failed"]


@pytest.mark.parametrize(
    ("server", "text"), [("web", "web: running again after 5m"), ("gone", "gone: stopped after 5m")]
)
def test_problem_that_ended_without_a_supervisor_is_resolved(stage: Stage, server: str, text: str) -> None:
    stage.notify({})
    stage.fail(server)
    stage.pass_time(300)
    stage.end_supervisor()
    stage.start_supervisor()
    stage.notify({})
    stage.pass_time(1)
    assert (stage.receiver.taken[-1].body["status"], stage.receiver.texts()[1:]) == ("resolved", [text])


def test_problem_of_a_server_that_still_fails_stays_open(stage: Stage) -> None:
    stage.notify({"repeat": 1000})
    stage.fail()
    stage.end_supervisor()
    stage.start_supervisor("web")
    stage.notify({"repeat": 1000})
    stage.pass_time(990)
    assert stage.receiver.texts() == ["web: failed"]
    stage.pass_time(20)
    assert len(stage.receiver.taken) == 2
    stage.record("lifecycle", "running")
    stage.pass_time(60)
    assert stage.receiver.taken[-1].body["status"] == "resolved"


def test_reload_does_not_interrupt_receivers_that_have_not_changed(stage: Stage) -> None:
    stage.receiver.may_answer.clear()
    stage.notify({"name": "mail"}, {"name": "chat"})
    stage.fail()
    stage.notify({"name": "mail"})
    stage.receiver.may_answer.set()
    stage.pass_time(1)
    assert len(stage.receiver.requests) == 2
    assert stage.journal() == [("sent", "mail: shop: web: failed", "")]


def test_changed_receiver_keeps_its_problems_and_its_queue(stage: Stage) -> None:
    stage.notify({})
    stage.fail()
    stage.receiver.refusals += [REFUSED] * 2
    stage.fail("other")
    stage.pass_time(0.5)
    stage.notify({"repeat": 1000})
    stage.pass_time(60)
    assert stage.receiver.texts() == ["web: failed", "other: failed"]
    stage.record("lifecycle", "running")
    stage.pass_time(60)
    assert stage.receiver.texts()[2:] == ["web: running again after 1m"]


def test_receivers_of_a_test_are_a_list_of_names(stage: Stage) -> None:
    stage.notify({"name": "mail"})
    verb: Any = stage.part.verbs["notify"]
    for names in ("mail", [1]):
        with pytest.raises(SelectorError, match="no such receivers"):
            stage.loop.run_until_complete(verb(SimpleNamespace(options={"receivers": names})))
