"""A read-only registry of a running pool's current routes.

The supervisor sends its route table, without secrets, as a sealed file in memory. It is mapped into this process, so
that look-ups are local. On a connection that stays open, the supervisor reports the generation of each new table; a
look-up then fetches that table first.
"""

from __future__ import annotations

import contextlib
import os
import threading
from socket import MSG_CMSG_CLOEXEC, recv_fds, socket
from time import monotonic
from typing import TYPE_CHECKING, Self

from poolctl.control.client import AnswerReader, Client, SupervisorEnded, raise_for_errors, read_messages
from poolctl.errors import ControlError, PoolError, PoolMonitorError
from poolctl.routing.registry import TableRegistry
from poolctl.routing.route_table import RouteTable

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERB = "registry"
# The pause before another attempt if the supervisor cannot be reached, or the pool has no gateway.
_RETRY_SECONDS = 0.5
_READ_BYTES = 65536


class PoolRouteRegistry(TableRegistry):
    """The current routes of a running pool; secrets in them are masked. Close it, or use `with`.

    While no supervisor answers, it keeps the last known routes. It is empty for a pool without a gateway.
    """

    def __init__(self, client: Client) -> None:
        """Connect and wait for the routes. Raises NoSupervisor, another ControlError, PoolError, or OSError."""
        super().__init__(self._current_table)
        self._client = client
        self._lock = threading.Lock()
        self._latest: RouteTable | None = None
        self._stream: _GenerationStream | None = None
        self._retry_at = 0.0  # monotonic
        self._closed = False
        self._connect_and_fetch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __del__(self) -> None:
        if (stream := getattr(self, "_stream", None)) is not None:
            stream.close()

    @property
    def connected(self) -> bool:
        """Whether the connection to the supervisor is open."""
        self._current_table()
        return self._stream is not None

    def close(self) -> None:
        """Disconnect. The registry keeps its current routes."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def _current_table(self) -> RouteTable | None:
        with self._lock:
            if not self._closed:
                try:
                    self._update()
                except (ControlError, PoolError, OSError):
                    self._disconnect()
                    self._retry_at = monotonic() + _RETRY_SECONDS
            return self._latest

    def _update(self) -> None:
        stream = self._stream
        if stream is not None and stream.pid == os.getpid():
            try:
                generation = stream.receive_newest_nowait()
            except SupervisorEnded:
                self._retry_at = 0.0  # try at once, because the next supervisor may already run
            else:
                self._refresh_table(generation)
                return
        self._disconnect()  # after a fork, the connection belongs to the parent
        if monotonic() >= self._retry_at:
            self._connect_and_fetch()

    def _connect_and_fetch(self) -> None:
        stream = _GenerationStream(self._client)
        try:
            self._refresh_table(stream.receive_first())
        except BaseException:
            stream.close()
            raise
        if stream.is_complete:
            stream.close()
            self._retry_at = monotonic() + _RETRY_SECONDS
        else:
            self._stream = stream

    def _refresh_table(self, generation: int) -> None:
        """Fetch and map the supervisor's route table, unless the mapped one has the given generation number."""
        if generation == (0 if self._latest is None else self._latest.generation):
            return
        fd = _receive_table_descriptor(self._client)
        if fd is None:
            self._latest = None
            return
        try:
            # The previous table stays mapped as long as its routes are read.
            self._latest = RouteTable(fd)
        finally:
            os.close(fd)

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _GenerationStream:
    """Receives, over one connection, the generation number of each new route table of a supervisor."""

    def __init__(self, client: Client) -> None:
        self.pid = os.getpid()
        self.is_complete = False  # a pool without a gateway reports nothing further
        self._path = client.socket_path
        self._generation: int | None = None
        self._answer = AnswerReader(_VERB)
        self._socket = client.open(_VERB, {"options": {"follow": True}})

    def receive_first(self) -> int:
        """Wait for the first generation number; return it. Raises TimeoutError and as `receive_newest_nowait`."""
        while self._generation is None:
            self._read(self._socket.recv(_READ_BYTES))
        self._socket.setblocking(False)
        return self._generation

    def receive_newest_nowait(self) -> int:
        """Read what the supervisor has sent, without waiting; return the newest generation number, or 0 if none came.

        Raises SupervisorEnded once the connection has ended, OSError if it is broken. Raises ControlError if the
        supervisor has refused the request or sent something else, PoolError if its answer has errors.
        """
        with contextlib.suppress(BlockingIOError):
            while True:
                self._read(self._socket.recv(_READ_BYTES))
        return self._generation or 0

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()

    def _read(self, chunk: bytes) -> None:
        if not chunk:
            raise SupervisorEnded(self._path)
        for message in self._answer.feed(chunk):
            if "result" in message:
                self.is_complete = True
                message = raise_for_errors(_VERB, message["result"], PoolMonitorError)
                self._generation = int(message.get("generation", 0))
            elif "generation" in message:
                self._generation = int(message["generation"])


def _receive_table_descriptor(client: Client) -> int | None:
    """Return a descriptor of the supervisor's route table, which the caller closes; None if the pool has no table."""
    connection = client.open(_VERB, {})
    fds: list[int] = []
    try:
        for message in read_messages(_VERB, _receive_chunks_and_descriptors(connection, fds)):
            if "result" in message:
                raise_for_errors(_VERB, message["result"], PoolMonitorError)
                return fds.pop() if fds else None
    finally:
        connection.close()
        for fd in fds:
            os.close(fd)
    raise SupervisorEnded(client.socket_path)


def _receive_chunks_and_descriptors(connection: socket, fds: list[int]) -> Iterator[bytes]:
    """Yield the data as it arrives; descriptors are added to `fds`."""
    while True:
        data, received, _, _ = recv_fds(connection, _READ_BYTES, 1, MSG_CMSG_CLOEXEC)
        fds += received
        if not data:
            return
        yield data
