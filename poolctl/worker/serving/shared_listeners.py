"""Accepts from the listeners that a server's workers share, while there is room for more connections."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import uvicorn

from poolctl.keeper import handover
from poolctl.listeners.stop_accepting import close, stop_reading

from .adoption import Adoption
from .server_state import PoolServerState

# A full worker accepts again when this part of its connections has closed, or a moment after the first one: opening
# and closing a listener costs as much as several requests.
_PART = 16
_ROOM_SECONDS = 0.05
_HANDSHAKES_SECONDS = 1.0
# Descriptors that are left to probes, to files of the application and to connections that are accepted in one go.
_LEAST_RESERVE = 16
_RESERVED_PART = 16
_OPEN_AT_START = 64  # where /proc cannot tell
_AT_ONCE = 16
_ROOM_PART = 4

MakeProtocol = Callable[[], asyncio.Protocol]


class SharedListeners:
    """The listeners and the adoption pair of one worker: open while it should accept, and has room.

    A full worker refuses nothing: connections wait in the backlog for other workers. `most` is how many it may have;
    None for as many as its descriptors allow, minus a reserve.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: PoolServerState,
        make_protocol: MakeProtocol,
        *,
        adoption: Adoption | None,
        on_taken: Callable[[handover.Connection], None],
        most: int | None,
    ) -> None:
        self.servers: list[asyncio.base_events.Server] = []
        self._config = config
        self._server_state = server_state
        self._make_protocol = make_protocol
        self._adoption = adoption
        self._on_taken = on_taken
        self._most = most
        self._listeners: Sequence[socket.socket] = ()
        self._wanted = self._full = self._ended = False
        self._lock = asyncio.Lock()  # held while `servers` is opened or closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._room_timer: asyncio.TimerHandle | None = None
        self._handshake_timer: asyncio.TimerHandle | None = None

    async def begin(self, listeners: Sequence[socket.socket], *, wanted: bool) -> None:
        """Accept from the listeners now, or with `wanted` false once `want` is called."""
        self._listeners = listeners
        self._wanted = wanted
        if self._most is None:
            self._most = connections_by_descriptors()
        self._server_state.limit_connections(self._most, self._fill)
        await self._settle()

    @property
    def settled(self) -> bool:
        """Whether no listener is being opened or closed."""
        return not self._tasks

    def want(self, wanted: bool) -> None:
        """Accept from now on, or leave new connections to other workers."""
        self._wanted = wanted
        self._do(self._settle())

    async def renew(self, context: ssl.SSLContext) -> None:
        """Use another TLS context for new handshakes."""
        async with self._lock:
            if self._ended:
                return
            self._config.ssl = context
            if self.servers:
                # The new ones accept before the old ones stop: both use the same sockets.
                before = self.servers
                self.servers = await self._accept()
                await close(before)
        await self._settle()

    async def end(self) -> None:
        """Stop accepting for good."""
        self._ended = True
        for timer in (self._room_timer, self._handshake_timer):
            if timer is not None:
                timer.cancel()
        if self._adoption is not None:
            self._adoption.close()
        async with self._lock:
            await close(self.servers)
        await asyncio.gather(*self._tasks)

    def _fill(self) -> None:
        """Accept nothing more until there is room: this connection is the last one."""
        if self._full or self._ended:
            return
        if self._server_state.expects:
            gc.collect(1)  # failed handshakes are counted until their objects are freed
            if self._server_state.room() > 0:
                return
        self._full = True
        self._recheck_handshakes()
        self._server_state.watch_room(self._room)
        if self._adoption is not None:
            self._adoption.close()
        # Immediately: the next connection is for another worker.
        before, self.servers = self.servers, []
        for server in before:
            stop_reading(server.sockets)
        self._do(close(before))

    def _room(self) -> None:
        """A connection of a full worker has ended."""
        assert self._most is not None
        if self._server_state.open_connections <= self._most - max(1, self._most // _PART):
            self._accept_again()
        elif self._room_timer is None:
            self._room_timer = asyncio.get_running_loop().call_later(_ROOM_SECONDS, self._accept_again)

    def _recheck_handshakes(self) -> None:
        # Failed handshakes are not reported.
        if self._full and self._server_state.expects:
            self._handshake_timer = asyncio.get_running_loop().call_later(
                _HANDSHAKES_SECONDS, self._check_handshakes
            )

    def _check_handshakes(self) -> None:
        gc.collect()
        self._accept_again()
        self._recheck_handshakes()

    def _accept_again(self) -> None:
        if self._room_timer is not None:
            self._room_timer.cancel()
            self._room_timer = None
        if self._full and self._server_state.room() > 0:
            self._full = False
            self._server_state.watch_room(None)
            self._do(self._settle())

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _settle(self) -> None:
        """Open or close the listeners, as required by the current state."""
        async with self._lock:
            while not self._ended and (self._wanted and not self._full) is not bool(self.servers):
                if self.servers:
                    before, self.servers = self.servers, []
                    if self._adoption is not None:
                        self._adoption.close()
                    await close(before)
                else:
                    self.servers = await self._accept()
                    if self._adoption is not None and not self._full:
                        self._adoption.open(self._on_taken)

    async def _accept(self) -> list[asyncio.base_events.Server]:
        heads, config = self._server_state.heads, self._config
        loop = asyncio.get_running_loop()
        sockets = [SharedListener(listener, self._server_state.room) for listener in self._listeners]
        try:
            return [
                await loop.create_server(
                    self._make_protocol,
                    sock=sock,
                    ssl=config.ssl,
                    backlog=config.backlog,
                    ssl_handshake_timeout=None if config.ssl is None or heads is None else heads.seconds,
                )
                for sock in sockets
            ]
        except BaseException:
            # Cancelled at the wrong moment, create_server leaves the loop a reader on a socket that is closed.
            stop_reading(sockets)
            for sock in sockets:
                sock.close()
            raise


class SharedListener(socket.socket):
    """A listener from which asyncio accepts a few connections at once, instead of as many as there are.

    Some iterations pass until they are counted: a worker accepts at once only a part of what it has room for.
    """

    def __init__(self, like: socket.socket, room: Callable[[], int]) -> None:
        # Not like.dup(): it makes the new socket blocking for a moment, and with it, because they share one open file,
        # the listener of every other worker; one that calls accept() just then waits there for ever.
        numbers: Any = super(socket.socket, like)
        self._kind = numbers.family, numbers.type, numbers.proto
        super().__init__(*self._kind, fileno=os.dup(like.fileno()))
        self._room = room
        self._at_once = 1

    def accept(self) -> tuple[socket.socket, Any]:
        """Like socket.accept(); sometimes raises BlockingIOError early, so that the loop goes on with other work."""
        if not self._at_once:
            self._at_once = max(1, min(_AT_ONCE, self._room() // _ROOM_PART))
            raise BlockingIOError
        self._at_once -= 1
        fd, address = self._accept()  # type: ignore[attr-defined]
        return socket.socket(*self._kind, fileno=fd), address


def connections_by_descriptors() -> int:
    """How many connections this process has descriptors for, in addition to the open ones and a reserve."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        # Since Linux 6.2 the directory's size is how many there are; before that it is 0.
        open_now = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        open_now = _OPEN_AT_START
    return max(1, soft - open_now - max(_LEAST_RESERVE, soft // _RESERVED_PART))
