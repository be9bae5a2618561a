"""Sockets that one epoll instance watches: each is served, whatever happens to the others."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from poolctl.features.gateway.process.streams.socket_events import SocketEvents
from tests.features.gateway.stream_stage import Run, run, until

__all__ = ["run"]


def test_callback_that_fails_does_not_keep_others_from_being_called(run: Run) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        problems: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: problems.append(context))
        events = SocketEvents(loop)
        pairs = [socket.socketpair() for _ in range(3)]
        received: list[bytes] = []

        def fail() -> None:
            pairs[0][0].recv(10)
            raise ValueError("no")

        events.add_reader(pairs[0][0].fileno(), fail)
        for own, _ in pairs[1:]:
            events.add_reader(own.fileno(), lambda own=own: received.append(own.recv(10)))  # type: ignore[misc]
        for number, (_, other) in enumerate(pairs):
            other.send(b"%d" % number)
        await until(lambda: len(received) == 2 and problems)
        assert sorted(received) == [b"1", b"2"]
        assert [str(each["exception"]) for each in problems] == ["no"]
        # A number that is used again belongs to the new socket.
        gone = pairs[2][0].fileno()
        events.closing(gone)
        pairs[2][0].close()
        pairs[1][1].send(b"again")
        await until(lambda: len(received) == 3)
        events.close()
        events.close()
        for pair in pairs:
            for sock in pair:
                sock.close()

    run(scenario())
