"""The problems that `run` reports, from the pool's events."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from poolctl.cli.run_session._pool_events import PoolEventFollower
from poolctl.logs.log_line import seconds_of
from poolctl.monitor.journal import MAX_LINES
from tests.stand_in import Send, result, stand_in

KINDS = ["lifecycle", "recovery", "pool"]


def journal(seq: int, kind: str = "lifecycle", server: str = "web", **more: Any) -> dict[str, Any]:
    members = {"event": "worker ended", "time": "2026-01-31T12:00:00Z", "message": "", "severity": "info"}
    return {"seq": seq, "kind": kind, "server": server, **members, **more}


def test_each_problem_is_reported_once_with_its_level_and_deaths_are_kept(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "control.sock"
    sent = [
        journal(1),
        journal(2, cause="killed by SIGKILL", next="it is restarted at once"),
        journal(3, message="exited with status 7", next="it stays down: poolctl logs web"),
        journal(4, "recovery", message="restarted", severity="warning"),
        journal(5, "pool", "", message="the disk is full", severity="error"),
        journal(6, "pool", message="all is well"),
        journal(2, cause="killed by SIGKILL", next="it is restarted at once"),
    ]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        for event in sent:
            send({"event": event})
        return result()

    reported: list[tuple[str, str]] = []
    with stand_in(path, answer) as requests:
        events = PoolEventFollower(str(path), lambda event, line, level: reported.append((line, level)))
        asyncio.run(events.catch_up())
    ((verb, body),) = requests
    since = body["options"].pop("since")
    assert 0 <= time.time() - seconds_of(since) < 60, "no events of earlier runs"
    assert (verb, body["options"]) == (
        "events", {"after": 0, "lines": MAX_LINES, "follow": False, "kind": KINDS},
    )  # fmt: skip
    assert reported[:2] == [
        ("web: killed by SIGKILL; it is restarted at once", "warning"),
        ("web: exited with status 7; it stays down: poolctl logs web", "error"),
    ]
    assert [(line.partition(":")[0], level) for line, level in reported[2:]] == [
        ("web", "warning"), (reported[3][0].partition(":")[0], "error"),
    ]  # fmt: skip
    assert "the disk is full" in reported[3][0]
    assert [each.reason for each in events.died["web"]] == ["killed by SIGKILL", "exited with status 7"]


def test_death_of_a_known_reason_does_not_repeat_it_where_this_is_wanted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "control.sock"
    causes = ["no disk", "no disk", "no memory"]

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any]:
        for at, cause in enumerate(causes, 1):
            send({"event": journal(at, cause=cause, next="restarting")})
        send({"event": journal(4, "pool", "", message="stopping: no memory", severity="error")})
        return result()

    lines: list[str] = []
    with stand_in(path, answer):
        events = PoolEventFollower(str(path), lambda event, line, level: lines.append(line), brief=True)
        asyncio.run(events.catch_up())
    assert lines == [
        "web: no disk; restarting", "web: died again for the same reason; restarting", "web: no memory; restarting",
        "worker ended: stopping",
    ]  # fmt: skip
    assert [each.reason for each in events.died["web"]] == causes


def test_events_are_followed_again_where_they_ended_when_the_supervisor_is_replaced(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("s") / "control.sock"

    async def answer(verb: str, body: dict[str, Any], send: Send) -> dict[str, Any] | None:
        send({"event": journal(len(requests), cause="x", next="y")})
        return None

    async def follow() -> None:
        events = PoolEventFollower(str(path), lambda event, line, level: None)
        events.start()
        while len(requests) < 3:
            await asyncio.sleep(0.001)
        await events.finish()

    with stand_in(path, answer) as requests:
        asyncio.run(asyncio.wait_for(follow(), 60))
        asked = [body["options"] for _, body in requests]
    assert (asked[0]["after"], asked[0]["follow"]) == (0, True)
    assert asked[1] == {"after": 1, "lines": MAX_LINES, "follow": True, "kind": KINDS}
    assert asked[2]["after"] == 2
