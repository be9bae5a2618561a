"""The supervisor's side of the accept helper (see poolctl.acceptor): requests, answers, and timeouts."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable
from signal import SIGKILL
from typing import NamedTuple, Protocol

from poolctl.bootstrap import command
from poolctl.keeper import fd_store, wire
from poolctl.keeper.connection_handover import Connection, from_message

from ...process_link import HasDescriptor, Link, LinkLost, Receiver, spawn

# Longer than the helper's own limit: it can be stopped, or get no processor.
_SILENT_SECONDS = 1.0
_START_SECONDS = 10.0

ACCEPT, TAKE = "accept", "take"


class Fetched(NamedTuple):
    """The result of a request to the accept helper.

    `failed`: the socket's state is unknown. `blocked`: it is unknown because a call on the socket blocks.
    """

    empty: bool = False
    junk: bool = False  # it contained something that is not a connection
    full: bool = False  # no descriptor was left
    failed: bool = False
    blocked: bool = False


class Fetch(Protocol):
    """A request for connections of the server `key`, from its listener (ACCEPT) or from its pair (TAKE)."""

    kind: str
    key: str

    def arrived(self, sock: Connection) -> None:
        """Receive one of the requested connections."""
        ...

    def ended(self, found: Fetched) -> None:
        """Receive the result, once, after all connections have arrived."""
        ...


class AcceptHelper(Receiver):
    """Takes connections through one helper process, which all servers share.

    The keeper starts the process when it is first needed; it then keeps running. `returned` gets the connections that
    an earlier supervisor had requested, with the keys of their servers. Belongs to the running loop; no method blocks.
    """

    def __init__(self, keeper: Link, directory: str, returned: Callable[[str, Connection], None]) -> None:
        self._keeper = keeper
        self._returned = returned
        self._output = os.path.join(directory, "helpers.log")
        self._numbers = itertools.count(time.monotonic_ns())  # none of an earlier supervisor's
        self._requests: dict[int, Fetch] = {}
        self._link: Link | None = None
        self._up = False
        self._pid: int | None = None
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def warm(self) -> None:
        """Start the helper process before it is needed."""
        if self._link is None:
            ours, theirs = wire.pair()
            self._up, self._pid = False, None
            self._link = Link(ours, self)
            self._starting = asyncio.ensure_future(self._start(self._link, theirs))

    def adopt(self, meta: wire.Message, fd: int) -> list[HasDescriptor]:
        """Adopt the previous supervisor's helper, with the messages from it that have not been read."""
        self._pid, self._up = int(meta["pid"]), True
        self._link = Link(wire.over(fd), self)
        return [self._link.sock]

    def fetch(self, fetch: Fetch, sock: HasDescriptor, most: int) -> None:
        """Take connections out of a listener or a pair."""
        self.warm()
        assert self._link is not None
        number = next(self._numbers)
        self._requests[number] = fetch
        self._link.send({"op": fetch.kind, "n": number, "key": fetch.key, "most": most}, [sock])
        if self._timer is None:
            self._set_timer()

    def close(self) -> None:
        """Stop the helper process. Pending requests get no result."""
        self._requests.clear()
        if self._link is not None:
            self._link.close()
            self._forget()

    async def _start(self, link: Link, theirs: socket.socket) -> None:
        argv = command(sys.executable, "acceptor", isolated=True)
        try:
            pid = await spawn(self._keeper, argv, self._output, theirs)
        except LinkLost:
            return  # its exit also closes the link
        if link is self._link:
            self._pid = pid
            self._keeper.send({"op": "put", "name": fd_store.ACCEPTOR, "meta": {"pid": pid}}, [link.sock])
        else:
            self._kill(pid)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        request = self._requests.get(message.get("n", 0))
        self._set_timer()
        if message["t"] == "up":
            self._up = True
        elif message["t"] == "conn":
            try:
                sock = from_message(message, fds)
            except wire.WireError:
                return  # its client has gone
            if request is None:
                self._returned(message["key"], sock)
            else:
                request.arrived(sock)
        elif message["t"] == "done" and request is not None:
            del self._requests[message["n"]]
            self._set_timer()
            request.ended(Fetched(message["empty"], message["junk"], message["full"]))

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._requests:
            patience_seconds = _SILENT_SECONDS if self._up else _START_SECONDS
            self._timer = asyncio.get_running_loop().call_later(patience_seconds, self._on_silence)

    def _on_silence(self) -> None:
        link, pid = self._link, self._pid
        assert link is not None
        heard = link.heard
        # Answers that arrived while this process did not run.
        link.read_rest()
        if link is self._link and self._requests and link.heard == heard:
            link.close()
            if pid is not None:
                self._kill(pid)
            self._give_up(blocked=False)

    def _kill(self, pid: int) -> None:
        self._keeper.send({"op": "signal", "pid": pid, "signal": SIGKILL, "group": True})

    def lost(self) -> None:
        """See Receiver."""
        # Most likely by its own deadline: it was working on the first request.
        self._give_up(blocked=self._up)

    def _give_up(self, *, blocked: bool) -> None:
        """Replace the helper process, unless it never started. Pending requests get no result."""
        requests, self._requests = self._requests, {}
        was_up = self._up
        self._forget()
        if was_up:
            self.warm()
        for place, request in enumerate(requests.values()):
            request.ended(Fetched(failed=True, blocked=blocked and place == 0))

    def _forget(self) -> None:
        self._keeper.send({"op": "drop", "name": fd_store.ACCEPTOR})
        self._link = None
        self._up = False
        self._set_timer()
