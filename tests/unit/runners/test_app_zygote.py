"""One app zygote as the runner sees it, with a socket of ours in its place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, cast

import pytest

from poolctl.keeper import wire
from poolctl.runners.local.fork_verification import Children, Process
from poolctl.runners.local.spawn.app_zygote import AppZygote
from poolctl.runners.local.spawn.app_zygotes import AppZygotes
from poolctl.runners.process_link import Link, LinkLost
from poolctl.runners.runner_protocol import WorkerFailed


class Silent:
    """A keeper that is told much and answers nothing."""

    def send(self, message: wire.Message, fds: object = ()) -> None:
        pass

    async def call(self, message: wire.Message, fds: object = ()) -> None:
        raise LinkLost("there is none")


def one(keeper: Link | None = None) -> tuple[AppZygote, socket.socket]:
    ours, theirs = wire.pair()
    theirs.setblocking(False)
    zygote = AppZygote(
        keeper or cast(Link, Silent()), children(), "key", Process(os.getpid(), None), None, "web"
    )
    zygote.follow(ours)
    return zygote, theirs


def children() -> Children:
    """What trusts no zygote, and needs no keeper where the processes are there."""
    return Children(cast(Link, Silent()), 0)


async def asked(theirs: socket.socket) -> wire.Message:
    """The next request that reaches the process."""
    async with asyncio.timeout(60):
        while True:
            try:
                received = wire.receive(theirs)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert received is not None
            return received[0]


def test_zygote_that_is_not_needed_any_more_answers_requests_in_progress() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            zygote.end()
            wire.send(theirs, {"id": request["id"], "pid": os.getppid()})
            assert (await fork).pid == os.getppid()
            assert wire.receive(theirs) is None, "and then it is let go"

    asyncio.run(run())


def test_zygotes_entry_is_kept_at_the_keeper_until_its_forks_are_made() -> None:
    """The keeper shuts down a socket that it drops, and with it the link."""

    async def run() -> None:
        ours, keeper = wire.pair()
        zygote, theirs = one(Link(ours))
        zygote.up.set_result("")
        with theirs, keeper:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            zygote.end()
            with pytest.raises(BlockingIOError):
                wire.receive(keeper)
            wire.send(theirs, {"id": request["id"], "pid": os.getppid()})
            await fork
            assert (await asked(keeper))["op"] == "drop"

    asyncio.run(run())


@pytest.mark.parametrize("newer_first", [True, False])
def test_later_of_two_imports_stays_in_either_order_of_completion(newer_first: bool) -> None:
    async def run() -> None:
        ours, keeper = wire.pair()
        zygotes = AppZygotes(Link(ours), children(), *[cast(Any, None)] * 3)
        with contextlib.ExitStack() as ends:
            ends.enter_context(ours)
            ends.enter_context(keeper)
            process = {}
            for began in (2.0, 1.0) if newer_first else (1.0, 2.0):
                link, process[began] = wire.pair()
                ends.enter_context(process[began])
                meta = {"key": "key", "asked_at": began, "pid": os.getpid(), "server": "web"}
                zygotes.adopt("key.1", meta, [link.detach()])
                wire.send(process[began], {"event": "up"})
                await asyncio.wait([making.task for making in zygotes._making.values()])
            for each in process.values():
                assert [await asked(each), await asked(each)] == [{"order": "go"}, {"op": "ping"}]
            assert wire.receive(process[1.0]) is None
            with pytest.raises(BlockingIOError):
                wire.receive(process[2.0])
            zygotes._present["key"].link.close()

    asyncio.run(run())


def test_zygote_without_waiters_is_closed_at_once() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            zygote.end()
            assert wire.receive(theirs) is None

    asyncio.run(run())


def test_refused_fork_and_unanswered_fork_are_distinguished() -> None:
    async def run() -> None:
        zygote, theirs = one()
        refused, lost = (
            asyncio.ensure_future(zygote.fork([])),
            asyncio.ensure_future(zygote.fork([])),
        )
        request = await asked(theirs)
        wire.send(theirs, {"id": request["id"], "error": "cannot fork: Resource temporarily unavailable"})
        with pytest.raises(WorkerFailed, match="no worker can be forked: cannot fork"):
            await refused
        theirs.close()
        with pytest.raises(LinkLost):
            await lost

    asyncio.run(run())


def test_zygote_is_usable_or_gives_the_reason_or_has_exited() -> None:
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
        assert zygote._reason == "cannot import it"

    asyncio.run(run())


def test_zygote_that_names_a_process_it_cannot_have_forked_is_cut_off() -> None:
    async def run() -> None:
        zygote, theirs = one()
        with theirs:
            fork = asyncio.ensure_future(zygote.fork([]))
            request = await asked(theirs)
            wire.send(theirs, {"id": request["id"], "pid": "word"})
            with pytest.raises(
                WorkerFailed, match="its preloaded application answered with a message with an inv"
            ):
                await fork
            assert wire.receive(theirs) is None, "and is let go"

    asyncio.run(run())
