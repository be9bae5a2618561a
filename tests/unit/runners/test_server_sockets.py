"""The workers of a server with several get one page, on which they see each other's connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest

from poolctl import ServerConfig
from poolctl.keeper import wire
from poolctl.runners.local.local_worker import LocalWorker
from poolctl.runners.local.server_sockets import PeerPages
from poolctl.runners.local.zygotes import Children
from poolctl.runners.runner_protocol import Exit, Placement, RunnerEvents


class Placed:
    """A worker, and its end of the control socket."""

    def __init__(self, index: int, *, protocol: str = "plain", **config: Any) -> None:
        server = ServerConfig(name="web", bind="127.0.0.1:8080", app="web:app", **config)
        placement = Placement.of("web", 1, index, pid=2)
        self.worker = LocalWorker(
            cast(Children, None), cast(RunnerEvents, None), placement, server, "", protocol
        )
        ours, self.its = wire.pair()
        self.worker.control_by(ours)
        self.its.setblocking(False)

    def orders(self) -> list[str]:
        """The orders that it has got since; a page is shown by its inode."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while (received := wire.receive(self.its)) is not None:
                message, fds = received
                found.append(" ".join([message["order"], *(str(os.fstat(fd).st_ino) for fd in fds)]))
                for fd in fds:
                    os.close(fd)
        return found

    def close(self) -> None:
        assert self.worker.control is not None
        for sock in (self.its, self.worker.control.sock):
            if isinstance(sock, socket.socket):
                sock.close()


@pytest.fixture
def placed() -> Iterator[list[Placed]]:
    made: list[Placed] = []
    yield made
    for each in made:
        each.close()


def place(pages: PeerPages, placed: list[Placed], index: int, **options: Any) -> Placed:
    made = Placed(index, **options)
    placed.append(made)
    pages.add(made.worker)
    return made


def test_page_is_sent_once_the_worker_has_begun_and_to_all_the_same(placed: list[Placed]) -> None:
    async def scenario() -> None:
        pages = PeerPages()
        first, second = (place(pages, placed, index, workers=2) for index in (0, 1))
        assert first.orders() == second.orders() == []
        first.worker.begin()
        second.worker.begin()
        orders = first.orders()
        assert [each.split()[0] for each in orders] == ["go", "peers"]
        assert second.orders() == orders
        pages.close("tcp:127.0.0.1:8080")

    asyncio.run(scenario())


def test_single_worker_gets_a_page_when_a_second_one_comes(placed: list[Placed]) -> None:
    async def scenario() -> None:
        pages = PeerPages()
        first = place(pages, placed, 0)
        first.worker.begin()
        assert first.orders() == ["go"]
        second = place(pages, placed, 1)
        second.worker.begin()
        assert first.orders() == second.orders()[1:] != []
        pages.close(first.worker.server.key)

    asyncio.run(scenario())


def test_workers_of_another_user_share_no_page_with_the_earlier_ones(placed: list[Placed]) -> None:
    async def scenario() -> None:
        pages = PeerPages()
        first, other = (place(pages, placed, 0, workers=2, protocol=each) for each in ("plain", "plain www"))
        first.worker.begin()
        other.worker.begin()
        sent = [each for each in (*first.orders(), *other.orders()) if each.startswith("peers")]
        assert len(set(sent)) == len(sent)
        pages.close(first.worker.server.key)

    asyncio.run(scenario())


def test_worker_that_has_ended_makes_no_second_one(placed: list[Placed]) -> None:
    async def scenario() -> None:
        pages = PeerPages()
        first = place(pages, placed, 0)
        first.worker.exited.set_result(Exit(status=0))
        second = place(pages, placed, 0)
        second.worker.begin()
        assert second.orders() == ["go"]
        pages.close(second.worker.server.key)

    asyncio.run(scenario())
