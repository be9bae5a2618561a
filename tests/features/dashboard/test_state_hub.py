"""What the dashboard tells those who look."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.dashboard._state_hub import (
    FIGURES,
    SERIES,
    SPAN_SECONDS,
    Hub,
    StatusLevelHistory,
    level,
)
from poolctl.logs.log_line import stamp
from poolctl.monitor.journal import JournalEvent
from tests.asyncio_server import hang_up, start_server
from tests.features.dashboard.recorded_pool import RecordedPool
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of
from tests.manual_clock import ManualClock
from tests.stand_in import Send, respond, result
from tests.virtual_loop import VirtualLoop

Message = tuple[str, Any]


@contextmanager
def stream(stage: Stage, path: str = "stream") -> Iterator[Iterator[Message]]:
    """The messages of a stream as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", stage.port, timeout=60)
    connection.request("GET", f"/poolctl/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")

    def messages() -> Iterator[Message]:
        name = ""
        while line := response.readline().decode().rstrip("\n"):
            pass
        while raw := response.readline():
            line = raw.decode().rstrip("\n")
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, json.loads(line.removeprefix("data: "))

    try:
        yield messages()
    finally:
        connection.close()


def until(messages: Iterator[Message], wanted: str) -> Any:
    """The document of the next message of that name."""
    return next(document for name, document in messages if name == wanted)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with dashboard_of(RecordedPool(3)) as found:
        yield found


def test_the_last_hour_of_history_comes_from_the_journal(stage: Stage) -> None:
    stage.pool.become("web-1", ago_seconds=600, state="failed", ready=False, health="ko")
    stage.pool.become("web-1", ago_seconds=300, state="running", ready=True, health="ok")
    stage.pool.happened("health", "warn", server="web-1", after="warn", ago_seconds=100)
    stage.pool.servers["web-1"]["health"] = "warn"
    stage.pool.happened("lifecycle", "starting", server="web-2", after="starting", ago_seconds=60)
    stage.pool.happened("wake", "running", server="web-2", after="running", ago_seconds=59)
    with stream(stage) as messages:
        levels = until(messages, "pool")["levels"]
    assert [word for _, word in levels["web-1"]] == ["ok", "ko", "ok", "warn"]
    assert [word for _, word in levels["web-2"]] == ["ok", "busy", "ok"]


def test_changes_are_in_the_order_of_their_times_and_repeated_ones_left_out() -> None:
    levels = StatusLevelHistory()
    levels.add("web", "ok", 100.0)
    levels.add("web", "ok", 110.0)
    levels.add("web", "ko", 105.04)
    levels.add("web", "busy", 90.0)
    assert levels.since(110.0) == {"web": [(90.0, "busy"), (100.0, "ok"), (105.0, "ko")]}
    for begin in (100.0, 103.0):  # what was before 100 is over by then
        assert levels.since(begin + SPAN_SECONDS) == {"web": [(100.0, "ok"), (105.0, "ko")]}
    levels.forget(["web", "other"])
    assert levels.since(110.0) == {}


def test_a_log_is_followed(stage: Stage) -> None:
    log = Path(stage.logs, "web-1.log")
    log.write_text("2026-11-20T08:47:34.123456Z first\n")
    with stream(stage, "logs?server=web-1") as messages:
        assert until(messages, "lines") == [["2026-11-20T08:47:34.123456Z", "web-1", "first", ""]]
        with log.open("a") as file:
            file.write("2026-11-20T08:47:35.123456Z <b>second</b>\n")
        assert until(messages, "lines")[0][2] == "<b>second</b>"
        with log.open("a") as file:
            file.write('2026-11-20T08:47:36.123456Z {"level": "error", "message": "no", "order": 7}\n')
        assert until(messages, "lines")[0][2:] == ["ERROR no order=7", "error"]


@pytest.mark.parametrize(
    ("state", "ready", "health", "word"),
    [
        ("running", True, "ok", "ok"),
        ("running", True, "unknown", "ok"),
        ("running", True, "warn", "warn"),
        ("running", False, "ko", "ko"),
        ("running", False, "unknown", "busy"),
        ("starting", False, "unknown", "busy"),
        ("draining", False, "ok", "busy"),
        ("sleeping", False, "unknown", "asleep"),
        ("backoff", False, "unknown", "ko"),
        ("failed", False, "ko", "ko"),
        ("stopped", False, "unknown", "off"),
        ("completed", True, "unknown", "ok"),  # a job that has done what it should
        ("disabled", False, "unknown", "off"),
    ],
)
def test_the_level_follows_from_state_readiness_and_health(
    state: str, ready: bool, health: str, word: str
) -> None:
    assert level(state, ready, health) == word


def test_server_without_a_verdict_is_judged_by_its_readiness() -> None:
    assert (level("running", True), level("running", False)) == ("ok", "busy")


def test_only_figures_that_have_changed_are_sent_again(stage: Stage) -> None:
    stage.pool.become("web-2", state="stopped", ready=False, health="unknown")
    with stream(stage) as messages:
        assert until(messages, "pool")["figures"].keys() == {"web-1", "web-2", "web-3"}
        assert until(messages, "stats")["servers"].keys() == {"web-1", "web-3"}


def test_reason_of_a_failing_server_is_sent_and_gone_when_it_runs(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        stage.pool.become("web-2", state="failed", ready=False, health="ko")
        (item,) = until(messages, "changed")["items"]
        assert item["reason"] == "exited with status 3 before it was ready"
        stage.pool.become("web-2", state="starting", ready=False, health="unknown")
        (item,) = until(messages, "changed")["items"]
        assert item["reason"] == "exited with status 3 before it was ready", "it is being restarted"
        with stream(stage) as others:
            shown = {each["name"]: each.get("reason") for each in until(others, "pool")["items"]}
            assert shown == {"web-1": None, "web-2": item["reason"], "web-3": None}
        stage.pool.become("web-2", state="running", ready=True, health="ok")
        (item,) = until(messages, "changed")["items"]
        assert "reason" not in item


@pytest.mark.parametrize(("on_demand", "word"), [(None, "warn"), (True, "off")])
def test_server_that_has_ended_by_itself_is_sent_with_its_last_line(
    stage: Stage, on_demand: bool | None, word: str
) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        end = {"status": 0, "signal": None, "at": None}
        stopped = {"state": "stopped", "ready": False, "health": "unknown", "on_demand": on_demand}
        stage.pool.become("web-2", **stopped, ended=end, last_line="no jobs")
        (item,) = until(messages, "changed")["items"]
        assert (item["state"], item["ended"], item["level"]) == ("stopped", end, word)
        assert item["reason"] == 'ended with status 0; last line: "no jobs"'


class Watching:
    """A hub on a loop whose time passes at once; `asked` are its questions to the pool with their times.

    The pool may hang or end before it answers; `lines` are the events that it sends while they are followed.
    """

    def __init__(self, directory: Path) -> None:
        self.loop = VirtualLoop()
        self.clock = ManualClock()
        self.pool = RecordedPool(2)
        self.pool.events.clear()
        self.asked: list[tuple[float, str]] = []
        self.fault = ""
        self.lines: asyncio.Queue[Any] = asyncio.Queue()
        path = str(directory / "control.sock")
        self._server = self.loop.run_until_complete(start_server(partial(respond, self._answer, []), path))
        self.hub = Hub(path, self.clock)

    async def _answer(self, verb: str, body: Any, send: Send) -> dict[str, Any] | None:
        if verb == "events":
            return await self._send_events(body["options"], send)
        self.asked.append((round(self.loop.time(), 3), verb))
        if self.fault == "hangs":
            await asyncio.Event().wait()
        return None if self.fault == "ends" else await self.pool.answer(verb, body, send)

    async def _send_events(self, options: dict[str, Any], send: Send) -> dict[str, Any]:
        while options.get("follow"):
            send({"event": await self.lines.get()})
        assert options == {"since": stamp(self.clock.time() - 3600.0), "after": 0}
        for event in self.pool.events:
            send({"event": event})
        return result()

    def view(self) -> Viewer:
        return Viewer(self)

    def pass_time(self, seconds: float = 0.0) -> None:
        for moment in (*[0.0] * 10, seconds, *[0.0] * 10):  # for what is sent over sockets
            self.loop.pass_time(moment)

    def times(self, verb: str = "stats") -> list[float]:
        """When the pool was asked this since the last time."""
        found = [at for at, asked in self.asked if asked == verb]
        self.asked = [each for each in self.asked if each[1] != verb]
        return found

    def happened(self, number: int) -> None:
        event = {
            "schema": 1,
            "time": stamp(self.clock.time()),
            "seq": number,
            "kind": "pool",
            "event": "reloaded",
        }
        self.lines.put_nowait(event)

    def close(self) -> None:
        self.loop.run_until_complete(hang_up(self._server))
        self.loop.close()


class Viewer:
    """A viewer of the page, with the messages that it got."""

    def __init__(self, watching: Watching) -> None:
        self.messages: list[Message] = []
        self._watching = watching
        self._task = watching.loop.create_task(self._read())
        watching.pass_time()

    async def _read(self) -> None:
        async with contextlib.aclosing(self._watching.hub.view()) as messages:
            async for text in messages:
                *events, rest = text.split("\n\n")
                assert rest == ""
                for name, data in (event.split("\n") for event in events):
                    self.messages.append(
                        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
                    )

    def names(self) -> list[str]:
        """The names of the messages since the last time; not of the series, which come with the whole state."""
        found = [name for name, _ in self.messages if name != "series"]
        self.messages.clear()
        return found

    @property
    def is_over(self) -> bool:
        return self._task.done()

    def leave(self) -> None:
        self._task.cancel()
        self._watching.pass_time()


@pytest.fixture
def watching(short_path: Path) -> Iterator[Watching]:
    made = Watching(short_path)
    yield made
    made.close()


def test_pool_is_queried_every_two_seconds_for_all_viewers_together(watching: Watching) -> None:
    first = watching.view()
    assert first.names() == ["pool"]
    second = watching.view()
    assert second.names() == ["pool"]
    watching.pass_time(5.0)
    assert watching.times() == [0.0, 2.0, 4.0]
    assert watching.times("ping") == [0.0]
    assert first.names() == second.names() == ["stats", "stats"]


def test_whole_state_is_the_first_message(watching: Watching) -> None:
    watching.pool.changed_files = None
    (name, whole), (second, series) = watching.view().messages
    assert (name, second) == ("pool", "series")
    assert whole["about"] == {
        "name": "shop", "version": "1.0", "python": "", "supervisor_pid": 4711, "files": ["/srv/pool.toml"],
    }  # fmt: skip
    now = watching.clock.time()
    assert (whole["now"], whole["interval_seconds"], whole["span_seconds"]) == (now, 2.0, 3600.0)
    assert (whole["files"], whole["events"]) == ("", [])
    assert whole["levels"] == {"web-1": [[now, "ok"]], "web-2": [[now, "ok"]]}
    assert [(each["name"], each["level"], each["state"]) for each in whole["items"]] == [
        ("web-1", "ok", "running"), ("web-2", "ok", "running"),
    ]  # fmt: skip
    assert [*whole["figures"]] == [*series] == ["web-1", "web-2"]
    assert {*whole["figures"]["web-1"]} == {*FIGURES}
    assert {*series["web-1"]} == {*SERIES}
    digits = [len(str(value).replace(".", "").strip("0")) for value in series["web-1"]["latency_p99_seconds"]]
    assert max(digits) <= 4


def test_pool_is_queried_a_little_longer_when_the_last_viewer_has_left(watching: Watching) -> None:
    viewer = watching.view()
    watching.pass_time(1.0)
    viewer.leave()
    watching.pass_time(20.0)
    # Up to three further intervals, so that a page that is loaded again finds everything.
    assert watching.times() == [0.0, 2.0, 4.0]
    again = watching.view()
    assert again.names() == ["pool"]
    assert watching.times("ping") == [0.0, 21.0]


def test_reloaded_page_gets_the_state_that_is_known(watching: Watching) -> None:
    viewer = watching.view()
    watching.pass_time(1.0)
    viewer.leave()
    watching.pass_time(2.0)
    assert watching.view().names() == ["pool"]
    watching.pass_time(20.0)
    assert watching.times("ping") == [0.0]
    assert watching.times() == [0.0, *(2.0 * number for number in range(1, 12))]


def test_events_in_quick_succession_are_one_query_soon_after(watching: Watching) -> None:
    viewer = watching.view()
    watching.pass_time(0.7)
    viewer.names()
    watching.times()
    watching.pool.servers["web-1"]["health"] = "warn"
    for number in range(1, 4):
        watching.happened(number)
    watching.pass_time(0.05)
    assert viewer.names() == ["event"] * 3
    assert watching.times() == []
    watching.pass_time(0.06)
    assert (watching.times(), viewer.names()) == ([0.8], ["changed", "stats"])
    watching.pass_time(2.5)
    assert watching.times() == [2.8]
    assert [each["seq"] for each in watching.view().messages[0][1]["events"]] == [1, 2, 3]


def test_pool_that_does_not_answer_is_asked_again_after_half_a_second_and_reported_once(
    watching: Watching,
) -> None:
    watching.fault = "ends"
    viewer = watching.view()
    now = watching.clock.time()
    ((name, gone),) = viewer.messages
    assert (name, gone["now"]) == ("gone", now)
    assert "ended" in gone["message"]
    watching.pass_time(1.1)
    assert watching.times("ping") == [0.0, 0.5, 1.0]
    assert viewer.names() == ["gone"]
    other = watching.view()
    assert other.messages == [("gone", gone)]
    watching.fault = "hangs"
    watching.pass_time(11.0)
    assert viewer.messages == [("gone", {"message": "it does not answer", "now": now})]
    viewer.names()
    watching.fault = ""
    watching.pass_time(11.0)
    assert (viewer.names(), other.names()) == (["pool"], ["gone", "gone", "pool"])
    watching.fault = "ends"
    watching.pass_time(2.0)
    assert viewer.names() == ["gone"]


def test_changed_servers_are_sent_with_their_levels_and_order(watching: Watching) -> None:
    viewer = watching.view()
    viewer.names()
    del watching.pool.servers["web-1"]
    watching.pool.servers["web-2"].update(health="warn", uptime_seconds=7.0)
    watching.clock.advance(100.0)
    watching.pass_time(2.0)
    (name, changed), (other, stats) = viewer.messages
    now = watching.clock.time()
    assert (name, other) == ("changed", "stats")
    (item,) = changed.pop("items")
    assert (item["name"], item["health"], item["level"], item["uptime_seconds"]) == (
        "web-2",
        "warn",
        "warn",
        7.0,
    )
    assert changed == {
        "removed": ["web-1"], "order": ["web-2"], "levels": {"web-2": [[now - 100, "ok"], [now, "warn"]]},
    }  # fmt: skip
    assert (stats["now"], [*stats["servers"]]) == (now, ["web-2"])
    assert [*watching.view().messages[0][1]["levels"]] == ["web-2"]
    viewer.messages.clear()
    watching.pool.servers["web-2"]["uptime_seconds"] = 9.0
    watching.pass_time(2.0)
    assert viewer.names() == ["stats"], "the uptime alone is no change"


def test_files_that_have_changed_are_reported_once(watching: Watching) -> None:
    viewer = watching.view()
    viewer.names()
    watching.pool.changed_files = {"files": ["/srv/pool.toml"]}
    watching.pass_time(4.5)
    assert [name for name, _ in viewer.messages] == ["stats", "files", "stats"]
    assert viewer.messages[1][1]["message"].startswith("pool.toml has changed since the pool read it")
    watching.pool.changed_files = None
    watching.pass_time(2.0)
    assert viewer.messages[-1] == ("files", {"message": ""})


def test_viewer_that_is_too_slow_is_disconnected_and_others_are_not(watching: Watching) -> None:
    async def read(count: int) -> list[str]:
        async with contextlib.aclosing(watching.hub.view()) as messages:
            found = [await anext(messages)]
            await asyncio.sleep(3.0)
            async for each in messages:
                found.append(each)
                if len(found) == count:
                    break
            return found

    viewer = watching.view()
    slow = watching.loop.create_task(read(1000))
    watching.pass_time(0.5)
    for number in range(1, 251):
        watching.happened(number)
        watching.pass_time()
    assert viewer.names().count("event") == 250
    watching.pass_time(4.0)
    # 200 places, the last of which is for the end.
    assert slow.done()
    assert len(slow.result()) == 200
    assert not viewer.is_over


def test_history_of_a_server_is_bounded() -> None:
    levels = StatusLevelHistory()
    for number in range(401):
        levels.add("web", ("ok", "ko")[number % 2], float(number))
    found = levels.since(400.0)["web"]
    assert (len(found), found[0], found[-1]) == (400, (1.0, "ko"), (400.0, "ok"))


@pytest.mark.parametrize(
    ("event", "levels"),
    [
        ({"kind": "lifecycle", "after": "running", "server": "a"}, {"a": [(7.0, "ok")]}),
        ({"kind": "wake", "after": "starting", "server": "a"}, {"a": [(7.0, "busy")]}),
        ({"kind": "lifecycle", "after": "odd", "server": "a"}, {}),
        ({"kind": "health", "after": "ko", "server": "a"}, {"a": [(7.0, "ko")]}),
        ({"kind": "health", "after": "running", "server": "a"}, {}),
        ({"kind": "pool", "after": "running", "server": "a"}, {}),
        ({"kind": "lifecycle", "after": "running", "server": ""}, {}),
    ],
)
def test_level_is_taken_from_events_about_states_and_health(
    event: dict[str, str], levels: dict[str, list[tuple[float, str]]]
) -> None:
    found = StatusLevelHistory()
    found.add_event(
        JournalEvent.from_json({"schema": 1, "time": stamp(7.0), "seq": 1, "event": "x", **event})
    )
    assert found.since(7.0) == levels
