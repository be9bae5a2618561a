"""One app zygote as the runner sees it, with a socket of ours in its place."""

from __future__ import annotations

import asyncio
import socket

import pytest

from poolctl.keeper import wire
from poolctl.runners.link import Link, LinkLost
from poolctl.runners.protocol import WorkerFailed
from poolctl.runners.spawning.app_zygote import AppZygote


def one() -> tuple[AppZygote, socket.socket]:
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    zygote = AppZygote("key", 0.0, 1, "web")
    zygote.link = Link(ours, zygote.heard, zygote.ended)
    return zygote, theirs


async def asked(theirs: socket.socket) -> wire.Message:
    """The next request that reaches the process."""
    async with asyncio.timeout(5):
        while True:
            try:
                received = wire.receive(theirs)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            return received[0]


def test_one_that_is_not_needed_any_more_answers_who_has_asked_already() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            zygote.after_forks(zygote.link.close)
            wire.send(theirs, {"id": request["id"], "pid": 42})
            assert await fork == 42
            assert wire.receive(theirs) is None, "and then it is let go"

    asyncio.run(run())


def test_one_that_nobody_waits_for_is_let_go_at_once() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            zygote.after_forks(zygote.link.close)
            assert wire.receive(theirs) is None

    asyncio.run(run())


def test_a_fork_that_is_refused_or_that_nobody_answers_is_told_apart() -> None:
    async def run() -> None:
        zygote, theirs = one()
        refused, lost = asyncio.ensure_future(zygote.fork([])), asyncio.ensure_future(zygote.fork([]))
        request = await asked(theirs)
        wire.send(theirs, {"id": request["id"], "error": "cannot fork: Resource temporarily unavailable"})
        with pytest.raises(WorkerFailed, match="no worker can be forked: cannot fork"):
            await refused
        theirs.close()
        with pytest.raises(LinkLost):
            await lost

    asyncio.run(run())


def test_it_is_of_use_or_says_why_not_or_has_ended() -> None:
    async def run() -> None:
        for message, problem in (({"event": "up"}, ""), ({"event": "unusable", "problem": "no"}, "no")):
            zygote, theirs = one()
            with theirs:
                wire.send(theirs, message)
                assert await zygote.up == problem
            zygote.link.close()
        zygote, theirs = one()
        wire.send(theirs, {"event": "failed", "message": "cannot import it"})
        theirs.close()
        with pytest.raises(LinkLost):
            await zygote.up
        assert zygote.reason == "cannot import it"

    asyncio.run(run())
