"""Fetches connections through the process that calls accept(2), which may block."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from poolctl.bootstrap import command
from poolctl.keeper import fd_store, wire
from poolctl.keeper.connection_handover import Connection, from_message

from ..helper_process import HelperKind, HelperOwner, HelperProcess, Helpers
from ..process_link import HasDescriptor, LinkLost, NoAnswer, Refused

# The kinds of a request: for a listener's connections, and for those in the pair of a server's workers.
ACCEPT, TAKE = "accept", "take"
# Longer than the helper's own limit, for a helper that was stopped or gets no processor time.
_SILENT_SECONDS = 1.0


class FetchOutcome(NamedTuple):
    """How a request for connections, sent to the accept helper, has ended.

    `failed`: the helper was lost during the request, so the state of the socket is unknown. `blocked`, only with
    `failed`: because a call on the socket has blocked.
    """

    empty: bool = False
    junk: bool = False  # the pair contained something that is not a connection
    full: bool = False  # no descriptor was left
    failed: bool = False
    blocked: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ConnectionRequest:
    """A request for connections of the server `key`; `kind` is ACCEPT or TAKE.

    `on_connection` is called with each connection, and then `on_end` once.
    """

    kind: str
    key: str
    on_connection: Callable[[Connection], None]
    on_end: Callable[[FetchOutcome], None]


ACCEPT_HELPER = HelperKind(
    name="accept",
    label="the accept helper",
    argv=(*command(sys.executable, "acceptor", isolated=True),),
    entry=fd_store.ACCEPTOR,
    on_demand=True,
    ready_seconds=10.0,
)


class AcceptHelper(HelperOwner[HelperProcess]):
    """Accepts connections for all servers through one helper process.

    The process is started when it is first needed. It outlives its supervisor, and may send connections that an earlier
    supervisor requested: `returned` is then called with the server's key and the connection. Must be created on the
    running loop.
    """

    def __init__(self, helpers: Helpers, returned: Callable[[str, Connection], None]) -> None:
        self._helper = helpers.add(ACCEPT_HELPER, self, HelperProcess)
        self._on_returned = returned
        self._numbers = itertools.count(time.monotonic_ns())  # greater than an earlier supervisor's numbers
        self._requests: dict[int, ConnectionRequest] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_lost: HelperProcess | None = None

    def warm(self) -> None:
        """Begin to start the helper process, unless it runs or is starting."""
        self._helper.start()

    async def adopt(self) -> None:
        """Use the previous supervisor's helper process, if there is one. Raises LinkLost."""
        await self._helper.adopt()

    def fetch(self, request: ConnectionRequest, sock: HasDescriptor, most: int) -> None:
        """Have the helper process take up to `most` connections from `sock`, a listener or one end of a socket pair.

        Does not wait.
        """
        asking = asyncio.ensure_future(self._fetch(request, sock, most))
        self._tasks.add(asking)
        asking.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Let the helper process end. Pending requests get no result."""
        for asking in self._tasks:
            asking.cancel()
        self._helper.close()

    async def _fetch(self, request: ConnectionRequest, sock: HasDescriptor, most: int) -> None:
        number = next(self._numbers)
        self._requests[number] = request
        try:
            outcome = await self._ask(number, request, sock, most)
        finally:
            del self._requests[number]
        request.on_end(outcome)

    async def _ask(
        self, number: int, request: ConnectionRequest, sock: HasDescriptor, most: int
    ) -> FetchOutcome:
        try:
            process = await self._helper.wait_until_up()
        except LinkLost as error:
            # If no descriptor is free here, another try may succeed.
            full = isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, TimeoutError)
            return FetchOutcome(full=full, failed=not full)
        if sock.fileno() < 0:
            return FetchOutcome(empty=True)  # closed since
        message = {"t": request.kind, "n": number, "key": request.key, "most": most}
        try:
            reply, _ = await process.ask(message, [sock], patience_seconds=_SILENT_SECONDS)
        except Refused:
            return FetchOutcome(full=True)  # no descriptor was free there
        except NoAnswer:
            return FetchOutcome(failed=True)
        except LinkLost:
            # Its own time limit ends it during the first request. Any other cause says nothing about the socket.
            is_first, self._last_lost = process is not self._last_lost, process
            exit_ = await process.wait_briefly_for_exit()
            timed_out = exit_ is not None and exit_.signal == signal.SIGALRM
            return FetchOutcome(failed=True, blocked=is_first and timed_out)
        return FetchOutcome(reply["empty"], reply["junk"], reply["full"])

    def received(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("t") != "conn":
            super().received(message, fds)
            return
        try:
            sock = from_message(message, fds)
        except wire.WireError:
            return  # its client has gone
        request = self._requests.get(message["n"])
        if request is None:
            self._on_returned(message["key"], sock)
        else:
            request.on_connection(sock)
