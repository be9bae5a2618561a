"""What the dashboard tells those who look."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poolctl.features.dashboard._state_hub import SPAN_SECONDS, Levels, level
from tests.features.dashboard.recorded_pool import RecordedPool
from tests.features.dashboard.stage import TOKEN, Stage, dashboard_of

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


def test_the_first_message_has_the_whole_state_and_the_next_ones_changes(stage: Stage) -> None:
    with stream(stage) as messages:
        pool = until(messages, "pool")
        assert [item["name"] for item in pool["items"]] == ["web-1", "web-2", "web-3"]
        assert pool["about"]["name"] == "shop"
        assert len(pool["series"]["web-1"]["memory_bytes"]) == 60
        stage.pool.become("web-2", state="failed", ready=False, health="ko", message="gone")
        changed = until(messages, "changed")
        assert [item["state"] for item in changed["items"]] == ["failed"]
        assert changed["levels"]["web-2"][-1][1] == "ko"


def test_change_is_sent_before_the_next_poll(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        stage.pool.become("web-1", state="draining", ready=False)
        names = []
        for name, _ in messages:
            names.append(name)
            if name == "changed":
                break
        assert "event" in names


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


def test_pool_that_goes_and_comes_back_is_reported(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        stage.gone()
        assert "no supervisor" in until(messages, "gone")["message"]
        with stream(stage) as others:
            assert "no supervisor" in until(others, "gone")["message"]
        del stage.pool.servers["web-3"]
        stage.back()
        assert [item["name"] for item in until(messages, "pool")["items"]] == ["web-1", "web-2"]


def test_added_and_removed_servers_are_sent_to_viewers(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        del stage.pool.servers["web-1"]
        stage.pool.happened("config", "removed", server="web-1")
        changed = until(messages, "changed")
        assert changed["removed"] == ["web-1"]
        assert changed["order"] == ["web-2", "web-3"]
        with stream(stage) as later:
            assert sorted(until(later, "pool")["levels"]) == ["web-2", "web-3"]


def test_change_of_a_level_without_an_event_is_in_the_history(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        stage.pool.servers["web-1"]["health"] = "warn"
        while "web-1" not in (changed := until(messages, "changed"))["levels"]:
            continue
        assert [word for _, word in changed["levels"]["web-1"]] == ["busy", "ok", "warn"][-2:]


def test_changes_are_in_the_order_of_their_times_and_repeated_ones_left_out() -> None:
    levels = Levels()
    levels.note("web", "ok", 100.0)
    levels.note("web", "ok", 110.0)
    levels.note("web", "ko", 105.04)
    levels.note("web", "busy", 90.0)
    assert levels.since(110.0) == {"web": [(90.0, "busy"), (100.0, "ok"), (105.0, "ko")]}
    assert levels.since(103.0 + SPAN_SECONDS) == {"web": [(100.0, "ok"), (105.0, "ko")]}
    levels.forget(["web", "other"])
    assert levels.since(110.0) == {}


def test_pool_is_asked_nothing_while_no_page_is_open(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
    first = [verb for verb, _ in stage.requests]
    assert first.count("stats") >= 1
    assert first.count("events") <= 2


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


def test_open_streams_are_closed_at_the_end(stage: Stage) -> None:
    with stream(stage) as messages:
        until(messages, "pool")
        stage.end()
        assert [name for name, _ in messages if name not in ("stats", "event")] == []


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
