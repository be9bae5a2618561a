"""What could not be sent is sent again, less and less often, and some day no more."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolctl.config import Tables
from poolctl.features.notify import notifications
from poolctl.features.notify._problem_tracker import Message
from poolctl.features.notify._send import SendFailed
from poolctl.features.notify.notifications import MAX_WAITING, Notifications, Outbox
from poolctl.features.notify.table import Notify
from poolctl.monitor.journal import JournalEvent
from poolctl.selection.selector import SelectorError
from poolctl.states import Status
from tests.manual_clock import ManualClock
from tests.unit.core.ordered_core import web
from tests.unit.supervisor.desk import Desk, part_site


def message(title: str = "a") -> Message:
    return Message("problem", "error", title, ("line",), 5.0, (JournalEvent("", 1, "lifecycle", "running"),))


def test_attempts_are_spaced_by_twice_the_time_up_to_five_minutes() -> None:
    box = Outbox(10_000)
    box.put(message(), 0)
    now, waits = 0.0, []
    for _ in range(11):
        assert box.due(now) == message()
        assert box.retry_or_drop(now)
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
        box.retry_or_drop(0, jitter=jitter)
        assert box.next_at() == wait


def test_receiver_may_delay_the_next_attempt_by_an_hour_at_most() -> None:
    for asked, wait in ((30.0, 30), (1e9, 3600)):
        box = Outbox(10_000)
        box.put(message(), 0)
        assert box.retry_or_drop(0, after_seconds=asked)
        assert box.next_at() == wait


def test_message_that_cannot_be_sent_in_time_is_dropped_and_the_next_one_sent() -> None:
    box = Outbox(2.5)
    box.put(message("a"), 0)
    box.put(message("b"), 0)
    assert box.retry_or_drop(0)
    assert not box.retry_or_drop(1), "the next attempt would be at 3"
    assert box.due(1) == message("b")
    assert not box.retry_or_drop(1, again=False)
    assert box.next_at() is None


def test_oldest_message_is_dropped_when_a_hundred_wait() -> None:
    box = Outbox(100)
    for number in range(MAX_WAITING):
        assert box.put(message(str(number)), 0) is None
    assert box.put(message("last"), 0) == message("0")
    assert box.due(0) == message("1")


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


class Receivers:
    """The part of the supervisor, with receivers that accept or refuse messages as a test says."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[str, str]] = []  # receiver and title
        self.refusal: SendFailed | None = None
        self.desk = Desk(web("web"))
        configuration = SimpleNamespace(name="shop", environment={}, files=["/srv/pool.toml"])
        environment = SimpleNamespace(configuration=configuration, state_directory=str(directory))
        self.site = part_site(self.desk.core, self.desk.events, environment)
        self.events: list[JournalEvent] = []
        self.desk.events.subscribe(self.events.append)
        self.part = Notifications(self.site)
        receivers = self

        class Recording:
            def __init__(self, notify: Notify, part: Notifications) -> None:
                self.label = notify.label

            async def send(self, message: Message) -> None:
                if receivers.refusal is not None:
                    raise receivers.refusal
                receivers.sent.append((self.label, message.title))

        monkeypatch.setattr(notifications, "NotificationSender", Recording)

    def follow(self, *names: str) -> None:
        tables = [Notify(type="webhook", name=each, url="http://127.0.0.1:1/") for each in names]
        self.part.apply_tables(Tables(notify=tuple(tables)))

    def reported(self) -> list[tuple[str, str, str]]:
        """The events of notifications since the last time: what, its message and its cause."""
        self.desk.events.flush()
        found = [(each.event, each.message, each.cause) for each in self.events if each.kind == "notify"]
        self.events.clear()
        return found

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0)


Play = Callable[[Callable[[Receivers], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Play:
    def run(scene: Callable[[Receivers], Coroutine[Any, Any, None]]) -> None:
        async def work() -> None:
            receivers = Receivers(tmp_path, monkeypatch)
            try:
                await scene(receivers)
            finally:
                await receivers.part.aclose()

        asyncio.run(asyncio.wait_for(work(), 60))

    return run


def test_message_is_sent_to_its_receiver_and_reported(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail", "chat")
        (mail, _) = receivers.part._deliveries.values()
        mail._queue_and_save(message("web failed"))
        mail._news.set()
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "web failed")]
        await receivers.until(lambda: not mail.to_dict())
        assert receivers.reported() == [("sent", "mail: web failed", "")]

    play(scene)


def test_event_is_sent_by_a_delivery_that_had_nothing_to_wait_for(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        mail = Notify(type="webhook", name="mail", url="http://127.0.0.1:1/", delay=0)
        receivers.part.apply_tables(Tables(notify=(mail,)))
        for _ in range(10):
            await asyncio.sleep(0)
        receivers.desk.events.record("pool", "keeper lost", severity="error")
        receivers.desk.events.flush()
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "shop: keeper lost")]

    play(scene)


def test_refused_message_is_reported_once_and_given_up_if_it_will_never_be_taken(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        mail._queue_and_save(message("a"))
        receivers.refusal = SendFailed("status 503", again=True)
        for _ in range(2):
            await mail._attempt(message("a"))
        assert receivers.reported() == [("delayed", "mail: a", "status 503")]
        receivers.refusal = SendFailed("status 400", again=False)
        await mail._attempt(message("a"))
        assert receivers.reported() == [("given up", "mail: a", "status 400")]

    play(scene)


@pytest.mark.parametrize("jump_seconds", [-3600.0, 3600.0])
def test_pause_before_another_try_does_not_depend_on_the_time_of_day(play: Play, jump_seconds: float) -> None:
    async def scene(receivers: Receivers) -> None:
        clock = receivers.desk.core.clock = ManualClock()
        receivers.part = Notifications(receivers.site)
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        mail._queue_and_save(message("a"))
        receivers.refusal = SendFailed("status 503", again=True)
        await mail._attempt(message("a"))
        clock._time_seconds += jump_seconds
        assert mail._outbox.due(receivers.part.now()) is None
        clock.advance(2)
        due = mail._outbox.due(receivers.part.now())
        assert due is not None
        assert due.title == "a"
        receivers.refusal = None

    play(scene)


@pytest.mark.slow
def test_oldest_of_too_many_messages_is_given_up_and_reported(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        for number in range(MAX_WAITING + 1):
            mail._queue_and_save(message(str(number)))
        assert receivers.reported() == [("given up", "mail: 0", "too many are waiting")]

    play(scene)


def test_messages_that_were_not_sent_are_left_to_a_successor_on_the_disk(play: Play, tmp_path: Path) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        mail._queue_and_save(message("a"))
        left = json.loads((tmp_path / "notify.json").read_text())
        assert list(left) == ["mail"]
        assert [each["title"] if isinstance(each, dict) else each for each in left["mail"]["waiting"]]
        successor = Notifications(receivers.site)
        successor.apply_tables(
            Tables(notify=(Notify(type="webhook", name="mail", url="http://127.0.0.1:1/"),))
        )
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "a")]
        await receivers.until(lambda: not os.path.exists(receivers.part._path))
        await successor.aclose()
        mail._outbox.remove_first()

    play(scene)


def test_receiver_that_has_not_changed_is_not_interrupted(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.part.apply_tables(Tables())
        assert receivers.part._unsubscribe is None, "no receiver yet"
        receivers.follow("mail", "chat")
        mail = receivers.part._deliveries["mail"]
        receivers.follow("mail")
        assert receivers.part._deliveries == {"mail": mail}
        receivers.part.apply_tables(
            Tables(notify=(Notify(type="webhook", name="mail", url="http://127.0.0.1:2/"),))
        )
        assert receivers.part._deliveries["mail"] is not mail
        await asyncio.wait([mail._task])

    play(scene)


def test_facts_of_the_pool_are_those_of_its_configuration(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        part = receivers.part
        facts = part.facts()
        assert (facts.name, facts.directory, facts.environment) == ("shop", "/srv", {})
        assert (facts.tags("web"), facts.tags("other")) == (
            receivers.desk.core.entries["web"].config.tags,
            (),
        )

    play(scene)


def ended(state: str, kind: str = "lifecycle") -> JournalEvent:
    return JournalEvent("", 0, kind, state, "web", after=state)


def replace_entry(receivers: Receivers, state: str, health: Status = Status.KO) -> Any:
    """Give the pool's server this state and health."""
    entries: Any = receivers.desk.core.entries
    config = entries["web"].config
    entries["web"] = SimpleNamespace(name="web", state=state, health=health, config=config, ended=False)
    return entries["web"]


def test_problem_is_composed_after_the_delay_and_its_end_is_sent_too(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.record(ended("failed"))
        await asyncio.sleep(0)
        assert receivers.sent == [], "others may follow within the delay"
        receivers.desk.clock.advance(mail.notify.delay)
        mail._news.set()
        await receivers.until(lambda: receivers.sent)
        assert list(mail.to_dict()["open"]) == ["state web"]
        mail.record(ended("running"))
        receivers.desk.clock.advance(30 * mail.notify.delay)
        mail._news.set()
        await receivers.until(lambda: len(receivers.sent) == 2)
        assert mail.to_dict() == {}
        first, second = (title for _, title in receivers.sent)
        assert first == "shop: web: failed"
        assert second == "shop: web: running again"

    play(scene)


@pytest.mark.parametrize("is_flushed", [True, False])
def test_message_is_composed_at_once_and_sent_when_the_supervisor_exits(play: Play, is_flushed: bool) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.record(ended("failed"))
        if is_flushed:
            receivers.part.flush()
            assert len(mail.to_dict()["waiting"]) == 1
        await receivers.part.aclose()
        assert [name for name, _ in receivers.sent] == ["mail"]

    play(scene)


def predecessor(directory: Path, *keys: str) -> None:
    """Leave these problems as a supervisor that has exited does."""
    problem = {"severity": "error", "since": 1.0, "told": "error", "told_at": 2.0}
    left = {
        key: {**problem, "event": ended("failed")._replace(server=key.split()[1]).to_json()} for key in keys
    }
    (directory / "notify.json").write_text(json.dumps({"mail": {"open": left, "waiting": []}}))


def test_problem_of_a_server_that_is_gone_or_runs_has_ended_while_there_was_no_supervisor(
    play: Play, tmp_path: Path
) -> None:
    async def scene(receivers: Receivers) -> None:
        predecessor(tmp_path, "state gone", "state web")
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        receivers.desk.clock.advance(30 * mail.notify.delay)
        mail._news.set()
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "shop: 2 resolved (gone, web)")]
        assert mail.to_dict() == {}

    play(scene)


@pytest.mark.parametrize("state", ["failed", "backoff"])
def test_problem_of_a_server_that_is_still_failing_stays_open(play: Play, tmp_path: Path, state: str) -> None:
    async def scene(receivers: Receivers) -> None:
        replace_entry(receivers, state)
        predecessor(tmp_path, "state web")
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        assert list(mail.to_dict()["open"]) == ["state web"]

    play(scene)


def test_unhealthy_server_is_resolved_once_its_health_has_been_probed(play: Play, tmp_path: Path) -> None:
    async def scene(receivers: Receivers) -> None:
        core = receivers.desk.core
        entry = replace_entry(receivers, "running")
        predecessor(tmp_path, "health web", "health gone")
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        (observer,) = [each for each in core.observers if each == receivers.part._record_if_recovered]
        entry.health = Status.WARN
        observer(entry)
        assert observer in core.observers
        entry.health = Status.OK
        observer(entry)
        assert observer not in core.observers
        receivers.desk.clock.advance(30 * mail.notify.delay)
        mail._news.set()
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "shop: 2 resolved (gone, web)")]

    play(scene)


def test_verb_sends_a_test_to_the_named_receivers(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], Any]] = []

    async def send(receivers: Any, names: Any, facts: Any) -> str:
        asked.append(([each.name for each in receivers], names))
        return "sent"

    async def scene(receivers: Receivers) -> None:
        monkeypatch.setattr(notifications, "send_test", send)
        receivers.follow("mail", "chat")
        assert list(receivers.part.verbs) == ["notify"]
        verb: Any = receivers.part.verbs["notify"]
        assert await verb(SimpleNamespace(options={"receivers": ["chat"]})) == "sent"
        assert await verb(SimpleNamespace(options={})) == "sent"
        assert asked == [(["mail", "chat"], ["chat"]), (["mail", "chat"], [])]
        for names in ("chat", [1]):
            with pytest.raises(SelectorError, match="no such receivers"):
                await verb(SimpleNamespace(options={"receivers": names}))

    play(scene)


def test_state_of_a_receiver_that_is_replaced_goes_on_with_its_successor(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        mail._queue_and_save(message("a"))
        changed = Notify(type="webhook", name="mail", url="http://127.0.0.1:2/")
        receivers.part.apply_tables(Tables(notify=(changed,)))
        await receivers.until(lambda: receivers.sent)
        assert receivers.sent == [("mail", "a")]

    play(scene)


def test_message_that_is_taken_after_a_refusal_is_reported_and_the_next_refusal_too(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        refusal = SendFailed("status 503", again=True)
        for receivers.refusal in (refusal, None, refusal):
            if mail._outbox.next_at() is None:
                mail._queue_and_save(message("a"))
            await mail._attempt(message("a"))
        assert receivers.reported() == [
            ("delayed", "mail: a", "status 503"), ("sent", "mail: a", ""), ("delayed", "mail: a", "status 503"),
        ]  # fmt: skip

    play(scene)


def test_title_of_news_names_its_status_and_only_what_is_sent_is_no_warning(play: Play) -> None:
    async def scene(receivers: Receivers) -> None:
        receivers.follow("mail")
        (mail,) = receivers.part._deliveries.values()
        mail.stop()
        for status in ("news", "problem", "resolved"):
            mail._queue_and_save(message("a")._replace(status=status))
            await mail._attempt(message("a")._replace(status=status))
        receivers.desk.events.flush()
        found = [(each.message, each.severity) for each in receivers.events if each.kind == "notify"]
        assert found == [("mail: news: a", "info"), ("mail: a", "info"), ("mail: a", "info")]
        mail._queue_and_save(message("a"))
        receivers.refusal = SendFailed("no", again=False)
        await mail._attempt(message("a"))
        receivers.desk.events.flush()
        assert receivers.events[-1].severity == "warning"
        assert receivers.events[-1].detail["receiver"] == "mail"

    play(scene)
