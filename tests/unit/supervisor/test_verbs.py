"""Orders and what comes in between them: each command ends, and says what became of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl.control.answers import ProgressLine
from poolctl.control.control_server import Request
from poolctl.monitor.journal import JournalEvent
from poolctl.runners.runner_protocol import Exit
from tests.unit.core.ordered_core import run, turns, web
from tests.unit.runners.scripted_runner import BREAKS, FAILS, NEVER
from tests.unit.supervisor.desk import Desk

QUICK = {"backoff": {"initial": 0, "max": 0}, "limit": 2}


async def test_start_of_a_server_that_a_window_keeps_asleep_warns_and_names_the_remedy() -> None:
    desk = Desk(web("a", scale={"min": 0, "asleep": ["* * * * *"]}), web("b"))
    assert (await desk.ask("start"))["warnings"] == []
    answer = await desk.ask("start", "a", "b")
    assert (answer["exit_code"], desk.states()) == (0, {"a": "sleeping", "b": "running"})
    assert answer["warnings"] == ["a is kept asleep; `poolctl scale a 1` runs it in spite of that"]
    await desk.ask("scale", "a", workers=1)
    assert desk.states()["a"] == "running"


async def test_start_while_the_server_stops_starts_a_worker_next_to_the_leaving_one() -> None:
    desk = Desk(web())
    await desk.ask("start")
    desk.runner.may_end.clear()
    stopping = desk.begin("stop", "web")
    await turns()
    assert desk.states() == {"web": "stopping"}
    answer = await desk.ask("start", "web")
    assert answer["exit_code"] == 0
    assert len(desk.runner.running) == 2
    desk.runner.may_end.set()
    stopped = await stopping
    assert stopped["exit_code"] == 1
    assert "start" in stopped["errors"][0]["message"]
    await turns()
    assert desk.states() == {"web": "running"}
    assert len(desk.runner.running) == 1
    assert len(desk.core.entries["web"].observed.workers) == 1


async def test_a_stop_while_the_server_starts_ends_both_commands() -> None:
    desk = Desk(web(), web("other"), web=NEVER)
    starting = desk.begin("start")
    await turns()
    answer = await desk.ask("stop", "web")
    assert answer["exit_code"] == 0
    started = await asyncio.wait_for(starting, 60)
    assert started["exit_code"] == 1
    (error,) = started["errors"]
    assert error["name"] == "web"
    assert "stop" in error["message"]
    assert desk.states() == {"web": "stopped", "other": "running"}


async def test_a_stop_while_the_worker_is_being_placed() -> None:
    desk = Desk(web())
    desk.runner.may_place = asyncio.Event()
    desk.begin("start")
    await turns()
    stopping = desk.begin("stop", "web")
    await turns()
    assert not stopping.done()
    desk.runner.may_place.set()
    assert (await stopping)["exit_code"] == 0
    assert desk.states() == {"web": "stopped"}
    assert not desk.runner.running
    assert not desk.runner.opened


async def test_listener_that_cannot_be_opened_and_is_no_longer_wanted_is_no_failure() -> None:
    desk = Desk(web())
    desk.runner.unopenable.add("web")
    desk.runner.may_open.clear()
    desk.begin("start")
    await turns()
    stopping = desk.begin("stop", "web")
    await turns()
    desk.runner.may_open.set()
    answer = await stopping
    assert (answer["exit_code"], answer["errors"]) == (0, [])
    assert desk.states() == {"web": "stopped"}


@pytest.mark.parametrize("behaviour", [FAILS, BREAKS])
async def test_a_worker_that_fails_in_whatever_way_is_a_failure_of_the_start(behaviour: str) -> None:
    desk = Desk(web(), web("other"), web=behaviour)
    answer = await desk.ask("start")
    assert answer["exit_code"] == 1
    assert [(error["name"], error["code"]) for error in answer["errors"]] == [("web", 1323)]
    await turns()
    assert desk.states() == {"web": "failed", "other": "running"}
    assert not [worker for worker in desk.runner.running if worker.startswith("web.")]


async def test_a_start_says_that_a_server_has_failed_when_it_refuses_connections() -> None:
    desk = Desk(web(), web=FAILS)
    desk.runner.may_close.clear()
    starting = desk.begin("start")
    await turns()
    assert not starting.done()
    desk.runner.may_close.set()
    assert (await starting)["exit_code"] == 1
    assert not desk.runner.opened


@pytest.mark.parametrize("step", ["open", "place", "wait_until_ready"])
def test_unexpected_error_is_a_failure_too(step: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        desk = Desk(web(), web("other"))
        as_it_was = getattr(desk.runner, step)

        async def broken(about: Any, *more: Any, **options: Any) -> Any:
            if getattr(about, "server", getattr(about, "name", "")) == "web":
                raise ZeroDivisionError("who would have thought")
            return await as_it_was(about, *more, **options)

        setattr(desk.runner, step, broken)
        answer = await desk.ask("start")
        assert answer["exit_code"] == 1
        assert "who would have thought" in answer["errors"][0]["message"]
        await turns()
        assert desk.states() == {"web": "failed", "other": "running"}
        assert (await desk.ask("stop"))["exit_code"] == 0

    run(scenario())
    assert "ZeroDivisionError" in caplog.text


async def test_disabled_or_failed_dependency_is_named_and_not_waited_for() -> None:
    desk = Desk(
        web("db", disabled=True), web("bad"), web("a", depends_on=["db"]), web("b", depends_on=["bad"]),
        web("c", depends_on=["b"]), bad=FAILS,
    )  # fmt: skip
    answer = await desk.ask("start")
    messages = {error["name"]: error["message"] for error in answer["errors"]}
    assert answer["exit_code"] == 1
    assert messages.keys() == {"a", "bad", "b", "c"}
    assert "db" in messages["a"]
    assert "bad" in messages["b"]
    assert "b" in messages["c"]
    for shown in (await desk.ask("status"), await desk.ask("wait", timeout=0.01)):
        (blocked,) = [error for error in shown["errors"] if error["name"] == "a"]
        assert (blocked["message"], blocked["hint"]) == (
            "waits for db, which is disabled",
            "poolctl enable db",
        )


async def test_restart_during_a_crash_ends_with_one_worker() -> None:
    desk = Desk(web(restart="always"))
    await desk.ask("start")
    restarting = desk.begin("restart")
    (worker,) = desk.runner.running
    desk.runner.end(worker, Exit.from_signal(9))
    answer = await restarting
    assert answer["exit_code"] == 0, answer
    await turns()
    assert len(desk.runner.running) == 1
    assert desk.states() == {"web": "running"}


async def test_two_restarts_at_once_end_with_the_newest_generation() -> None:
    desk = Desk(web(workers=3))
    await desk.ask("start")
    answers = await asyncio.gather(*(desk.ask("restart") for _ in range(3)))
    assert [answer["exit_code"] for answer in answers] == [0, 0, 0]
    await turns()
    assert len(desk.runner.running) == 3
    # One replacement serves all who asked before it was begun.
    assert {worker.split(".")[1] for worker in desk.runner.running} == {"2"}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"selector": {"targets": ["nobody"]}}, 4),
        ({"selector": {"name": ["("]}}, 2),
        ({"selector": {"targets": [7]}}, 2),
    ],
)
async def test_every_verb_answers_to_a_selector_without_a_match(body: Any, code: int) -> None:
    from poolctl.control.control_server import Request

    desk = Desk(web())
    for verb in ("list", "start", "wait", "status", "show", "restart", "stop", "nonsense"):
        answer = await asyncio.wait_for(desk.verbs.handle(Request(verb, body, 1, 0), lambda line: None), 20)
        assert answer.exit_code == (2 if verb == "nonsense" else code)


@pytest.mark.slow
def test_a_long_chain_of_dependencies_and_a_dense_one_fail_at_once() -> None:
    async def scenario() -> None:
        chain = [web("bad")]
        for number in range(1500):
            before = chain[-1].name
            chain.append(web(f"c{number}", bind=f"127.0.0.1:{20_000 + number}", depends_on=[before]))
        answer = await asyncio.wait_for(Desk(*reversed(chain), bad=FAILS).ask("start"), 30)
        assert len(answer["errors"]) == len(chain)

    async def dense() -> None:
        levels = [[web("bad"), web("worse")]]
        for number in range(40):
            before = [level.name for level in levels[-1]]
            levels.append(
                [
                    web(f"{side}{number}", bind=f"127.0.0.1:{port + number}", depends_on=before)
                    for side, port in (("l", 20_000), ("r", 30_000))
                ]
            )
        servers = [server for level in reversed(levels) for server in level]
        answer = await asyncio.wait_for(Desk(*servers, bad=FAILS, worse=FAILS).ask("start"), 30)
        assert len(answer["errors"]) == len(servers)

    run(scenario())
    run(dense())


async def handled(desk: Desk, name: str, **body: Any) -> Any:
    lines: list[ProgressLine] = []
    return await desk.verbs.handle(Request(name, body, 2**22 + 1, 4_000_000), lines.append)


def audit(desk: Desk) -> list[JournalEvent]:
    events: list[JournalEvent] = []
    desk.events.subscribe(lambda event: events.append(event) if event.kind == "audit" else None)
    return events


async def test_verb_that_is_unknown_is_answered_with_those_that_are_known() -> None:
    desk = Desk(web())
    assert not desk.verbs.used
    answer = await handled(desk, "party")
    (error,) = answer.errors
    assert (answer.exit_code, error.error) == (2, "ErrorUsage")
    assert error.message.startswith("this supervisor does not know 'party' (protocol ")
    verbs = error.hint.removeprefix("it knows: ").split(", ")
    assert verbs == sorted(verbs)
    assert {"ping", "list", "start", "upgrade", "reload"} <= {*verbs}
    assert desk.verbs.used


async def test_ping_has_the_identity_and_the_build_as_soon_as_it_is_known() -> None:
    desk = Desk(web())
    answer = await handled(desk, "ping")
    assert (answer.keeper_pid, answer.build) == (1, "")
    digest = await desk.verbs.build.digest()
    assert (await handled(desk, "ping")).build == digest


async def test_unknown_key_of_the_selector_is_a_usage_error() -> None:
    answer = await handled(Desk(web()), "list", selector={"wat": []})
    assert [error.message for error in answer.errors] == ["unknown key 'wat' in the selector"]
    assert answer.exit_code == 2


async def test_command_is_recorded_with_who_gave_it_what_it_named_and_how_it_ended() -> None:
    desk = Desk(web("a"), web("b"))
    events = audit(desk)
    by = {"command": "c" * 300, "address": "10.0.0.7", "other": "x", "empty": ""}
    await handled(desk, "start", selector={"targets": ["a"], "not": True, "tag": []}, by=by)
    await handled(desk, "stop", selector={"targets": ["nobody"]})
    await handled(desk, "scale", selector={"targets": ["a"]}, options={"workers": 2})
    await handled(desk, "scale", options={"all": True, "auto": True})
    await handled(desk, "drain", options={"all": True})
    await handled(desk, "remove")
    await handled(desk, "list")
    await handled(desk, "reload", options={"dry_run": True})
    desk.events.flush()
    assert [event.message for event in events[::2]] == [
        "start a --not", "stop nobody", "scale a 2", "scale --all --auto", "drain --all", "remove",
    ]  # fmt: skip
    assert [event.event for event in events] == [
        "start", "start done", "stop", "stop failed", "scale", "scale done", "scale", "scale failed",
        "drain", "drain done", "remove", "remove failed",
    ]  # fmt: skip
    who = events[0].by
    assert who is not None
    assert (who["uid"], who["user"], who["command"], who["address"]) == (
        4_000_000, "4000000", "c" * 200, "10.0.0.7",
    )  # fmt: skip
    assert "other" not in who
    done, failed = events[1], events[3]
    assert (done.cause, done.detail["exit_code"], done.detail["servers"]) == ("", 0, ["b"])
    assert done.detail["duration_seconds"] >= 0
    assert (failed.cause, failed.detail["exit_code"]) == ("no server matches 'nobody'", 4)
    assert events[-1].detail["exit_code"] == 2


async def test_client_that_leaves_has_abandoned_its_command() -> None:
    desk = Desk(web(), web=NEVER)
    events = audit(desk)
    task = asyncio.ensure_future(handled(desk, "start"))
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    desk.events.flush()
    assert (events[-1].event, events[-1].cause) == ("start abandoned", "the client disconnected")
    assert events[-1].detail.get("exit_code") is None
