"""Holds connections until their target can be reached, then proxies them to it."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from poolctl.json_form import Table, from_json

_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 0.05, 1.0
_CONNECT_SECONDS = 5.0
_BYTES = 64 * 1024
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_PEER = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)


@dataclass(frozen=True, slots=True, kw_only=True)
class AwaitedTarget:
    """A target that clients wait for, at most `seconds`.

    `address` is (HOST, PORT), or (PATH,) of a Unix socket. While the target is `down`, the forwarder does not connect,
    and the address may be empty. If there is a `problem`, the target cannot start: connections are closed at once.
    `answered` is the number of the last wake that the supervisor has handled. A connection with this or an earlier
    number is tried once more, or repeatedly while the target is `coming`.
    """

    key: str
    address: tuple[str, ...]
    seconds: float
    down: bool = False
    coming: bool = True
    answered: int = 0
    problem: str = ""

    async def connect(self) -> _Stream:
        """Connect to the target. Raises OSError."""
        async with asyncio.timeout(_CONNECT_SECONDS):
            if len(self.address) == 1:
                return await asyncio.open_unix_connection(self.address[0])
            host, port = self.address
            return await asyncio.open_connection(host, int(port))


class WaitingRoom:
    """Accepts connections for one target, and proxies each once the target can be reached. Owns `listener`.

    `wake(key, number)` is called for each connection that begins to wait, and again when the target goes down while
    connections wait. Connections from processes of other users than `uids` are closed: any process can reach the
    abstract socket. `connections` gets a task for each open connection.
    """

    def __init__(
        self,
        listener: socket.socket,
        target: AwaitedTarget,
        uids: frozenset[int],
        wake: Callable[[str, int], None],
        connections: set[asyncio.Task[None]],
    ) -> None:
        self._listener = listener
        self._uids = uids
        self._wake = wake
        self._wakes = target.answered
        self._target = target
        self._changed = asyncio.Event()  # set and replaced at each change of the target
        self._connections = connections
        self._waiting: dict[socket.socket, asyncio.Task[None]] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._start_accepting()

    def change(self, value: Table) -> None:
        """Use this state of the target, an AwaitedTarget, from now on, also for waiting connections."""
        previous, self._target = self._target, from_json(AwaitedTarget, value)
        if self._waiting and self._target.down and not previous.down:
            self._wake(self._target.key, self._wakes)
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def stop_accepting(self) -> None:
        """Leave further connections to other processes with this listener; open connections stay."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()

    def take_waiting(self, limit: int) -> list[socket.socket]:
        """Stop accepting, and return at most `limit` waiting connections; the caller then owns them."""
        self.stop_accepting()
        taken = [*self._waiting][:limit]
        for client in taken:
            self._waiting.pop(client).cancel()
        return taken

    def _start_accepting(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:  # another process has accepted it
            return
        except OSError:  # no descriptor is free, or the client has disconnected
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listener.fileno())
            self._pause = loop.call_later(_FIRST_PAUSE_SECONDS, self._start_accepting)
            return
        _, uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid in self._uids:
            self.admit(client)
        else:
            client.close()

    def admit(self, client: socket.socket) -> None:
        """Serve this connection, and own it from now on."""
        client.setblocking(False)
        task = asyncio.ensure_future(self._serve(client))
        self._waiting[client] = task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket) -> None:
        target = None
        try:
            target = await self._reach(client)
        finally:
            was_taken = self._waiting.pop(client, None) is None
            if target is None and not was_taken:
                client.close()
        if target is not None:
            await _copy_both_ways(await asyncio.open_unix_connection(sock=client), target)

    async def _reach(self, client: socket.socket) -> _Stream | None:
        """A connection to the target; None if it cannot be reached in time, or the client has disconnected."""
        self._wakes += 1
        number = self._wakes
        self._wake(self._target.key, number)
        loop, delay = asyncio.get_running_loop(), _FIRST_PAUSE_SECONDS
        deadline = loop.time() + self._target.seconds
        while not (self._target.problem or _has_disconnected(client) or loop.time() >= deadline):
            target, changed = self._target, self._changed
            if not target.down:
                with contextlib.suppress(OSError):
                    return await target.connect()
                if not target.coming and target.answered >= number:
                    break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), delay)
            delay = min(2 * delay, _MAX_PAUSE_SECONDS)
        return None


def _has_disconnected(client: socket.socket) -> bool:
    """Whether the peer has closed the connection. A client that shut down only its sending side still waits."""
    poll = select.poll()
    poll.register(client.fileno(), 0)  # errors and hang-ups are always reported
    return bool(poll.poll(0))


async def _copy_both_ways(one: _Stream, other: _Stream) -> None:
    """Copy until both ends have closed their sides, or a connection fails; then close both."""
    try:
        await asyncio.gather(_copy(one, other), _copy(other, one))
    finally:
        for _, writer in (one, other):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _copy(source: _Stream, sink: _Stream) -> None:
    try:
        while data := await source[0].read(_BYTES):
            sink[1].write(data)
            await sink[1].drain()
        sink[1].write_eof()
    except OSError:
        for _, writer in (source, sink):
            writer.transport.abort()
