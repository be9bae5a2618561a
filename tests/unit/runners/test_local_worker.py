"""Messages of a worker are checked, and one that breaks the protocol is killed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local import local_worker as module
from poolctl.runners.local.fork_verification import Children, Process
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEvents
from poolctl.runners.untrusted_messages import Malformed


class Keeper:
    """Kills the processes that it is told to kill."""

    def __init__(self) -> None:
        self.killed: list[Process] = []

    def kill_after(self, process: Process, exited: asyncio.Future[Exit], seconds: float) -> None:
        self.killed.append(process)


class Heard:
    """What a runner reports by itself."""

    def __init__(self) -> None:
        self.expirations: list[Placement] = []

    def expired(self, placement: Placement) -> None:
        self.expirations.append(placement)


def worker(keeper: Keeper | None = None, events: Heard | None = None, **config: Any) -> LocalWorker:
    server = ServerConfig(name="web", bind="127.0.0.1:8080", app="web:app", **config)
    return LocalWorker(
        cast(Children, keeper or Keeper()),
        cast(RunnerEvents, events),
        Placement.of("web", 1, 0, pid=2),
        server,
        "web",
    )


@pytest.mark.parametrize(
    "message",
    [
        {"event": ["ready"]},
        {"event": {}},
        {"event": "ready", "leaving": "yes"},
        {"event": "ready", "resting": 1},
        {"event": "failed", "message": ["x"]},
    ],
)
def test_value_of_another_type_is_malformed(message: wire.Message) -> None:
    async def scenario() -> None:
        with pytest.raises(Malformed):
            worker().received(message)

    asyncio.run(scenario())


def test_message_of_another_version_is_ignored() -> None:
    async def scenario() -> None:
        worker().received({"event": "of tomorrow", "with": {"more": [1]}})
        worker().received({})

    asyncio.run(scenario())


def test_text_is_shortened_and_without_control_characters() -> None:
    async def scenario() -> None:
        found = worker()
        found.received({"event": "failed", "message": "\x1b]0;title\x07 \ud800 déjà\n" + "x" * 10_000})
        assert found.reason.startswith("\ufffd]0;title\ufffd \ufffd déjà\nxxx")
        assert len(found.reason) == 4000

    asyncio.run(scenario())


def test_served_requests_are_believed_once_and_only_where_there_is_a_limit() -> None:
    async def scenario() -> None:
        for limit, times in ((None, 0), (10, 1)):
            heard = Heard()
            found = worker(events=heard, http={"max_requests": limit})
            found.received({"event": "expired"})
            found.received({"event": "expired"})
            assert len(heard.expirations) == times

    asyncio.run(scenario())


def test_worker_that_closes_its_control_socket_and_lives_on_misbehaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.02)

    async def scenario() -> None:
        for ends in (True, False):
            keeper = Keeper()
            found = worker(keeper)
            ours, theirs = wire.pair()
            found.control_by(ours)
            theirs.close()
            await asyncio.sleep(0)
            if ends:
                found.ended(Exit.from_status(0))
            await asyncio.sleep(0.05)
            assert keeper.killed == ([] if ends else [found.process])
            assert found.breach == ("" if ends else "it closed its control socket")

    asyncio.run(scenario())
