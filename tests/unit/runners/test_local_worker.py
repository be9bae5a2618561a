"""What a worker may say of itself, and what is made of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local.workers import local_worker as module
from poolctl.runners.local.workers.local_worker import LocalWorker
from poolctl.runners.protocol import Exit, Placement
from poolctl.runners.untrusted import Malformed


def worker(**config: Any) -> LocalWorker:
    server = ServerConfig(name="web", bind="127.0.0.1:8080", app="web:app", **config)
    return LocalWorker(Placement.of("web", 1, 0, pid=2), server, "web")


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


def test_text_is_shortened_and_drives_no_terminal() -> None:
    async def scenario() -> None:
        found = worker()
        found.received({"event": "failed", "message": "\x1b]0;title\x07 \ud800 déjà\n" + "x" * 10_000})
        assert found.reason.startswith("\ufffd]0;title\ufffd \ufffd déjà\nxxx")
        assert len(found.reason) == 4000

    asyncio.run(scenario())


def test_served_requests_are_believed_once_and_only_where_there_is_a_limit() -> None:
    async def scenario() -> None:
        for limit, times in ((None, 0), (10, 1)):
            found, heard = worker(http={"max_requests": limit}), []
            found.on_expired = lambda heard=heard: heard.append(1)  # type: ignore[misc]
            found.received({"event": "expired"})
            found.received({"event": "expired"})
            assert len(heard) == times

    asyncio.run(scenario())


def test_worker_that_closes_its_control_socket_and_lives_on_misbehaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_END_SECONDS", 0.02)

    async def scenario() -> None:
        for ends in (True, False):
            found, breaches = worker(), []
            found.on_breach = lambda breaches=breaches: breaches.append(1)  # type: ignore[misc]
            ours, theirs = wire.pair()
            found.control_by(ours)
            theirs.close()
            await asyncio.sleep(0)
            if ends:
                found.ended(Exit.from_status(0))
            await asyncio.sleep(0.05)
            assert breaches == ([] if ends else [1])
            assert found.breach == ("" if ends else "it closed its control socket")

    asyncio.run(scenario())
