"""Accepts a worker's connections from the listeners and the adoption pair, which the workers of a server share.

Through the adoption pair, a socket pair, workers hand over connections. A full worker stops reading from both, but
refuses nothing: connections wait in the backlog, or in the pair, for other workers.

Usually asyncio's server accepts connections. With TLS it would begin the handshake at once, after which a connection
cannot be handed over; with `http.max_connections` it would exceed the limit, because it counts connections only some
iterations after it has accepted them. In both cases a `OneByOneAcceptor` gives each connection to the worker unread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import resource
import select
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine, Sequence
from time import monotonic
from typing import Any, NamedTuple, Protocol

import uvicorn

from poolctl.keeper import connection_handover
from poolctl.keeper.connection_handover import Connection
from poolctl.keeper.wire import WireError
from poolctl.platform import close_promptly, peer_has_closed

from .connection_balancer import ConnectionBalancer
from .connection_state import PoolServerState
from .http1_connection import Http1Connection
from .uvicorn_parts import State

Socket = socket.socket  # an application may replace it, as gevent and PySocks do

# A full worker accepts again once a sixteenth of its connections has closed, or some time after the first has closed,
# because opening and closing a listener costs as much as several requests.
_ROOM_DIVISOR = 16
_ROOM_SECONDS = 0.05
_TAKE_AGAIN_SECONDS = 0.1
# Descriptors kept free for probes, files of the application, and connections accepted in one loop iteration.
_MIN_RESERVE = 16
_RESERVE_DIVISOR = 16
_OPEN_AT_START = 64  # assumed where /proc is not readable
_MAX_BATCH = 16
# How long a woken worker expects connections in its pair that have waited for it to wake.
_WAKE_SECONDS = 1.0
_BATCH_DIVISOR = 4
_RETRY_SECONDS = 1.0  # the same as asyncio's
_MIN_HANDSHAKE_SECONDS = 0.1

_Work = Coroutine[Any, Any, object]  # the creation of a transport

logger = logging.getLogger("uvicorn.error")


class Listening(Protocol):
    """Accepts from one listener; asyncio.Server implements it."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The duplicated listening sockets that the event loop watches."""

    def close(self) -> None:
        """Stop accepting."""


class BatchLimitedListener(socket.socket):
    """A listener that accepts only a few connections in each iteration of the event loop.

    asyncio counts a connection only some iterations after accepting it, so accepting more could exceed the limit.
    """

    def __init__(self, like: socket.socket, server_state: PoolServerState) -> None:
        # Not like.dup(): for a moment it makes the new socket blocking, and with it every other worker's listener,
        # because all share one open file; a worker that calls accept() at that moment blocks forever.
        numbers: Any = super(Socket, like)
        self._kind = numbers.family, numbers.type, numbers.proto
        super().__init__(*self._kind, fileno=os.dup(like.fileno()))
        self._server_state = server_state
        self._left_in_batch = 1

    def accept(self) -> tuple[socket.socket, object]:
        """Like socket.accept(), but after a few calls raises BlockingIOError once, to let the loop do other work."""
        if not self._left_in_batch:
            self._left_in_batch = max(1, min(_MAX_BATCH, self._server_state.room() // _BATCH_DIVISOR))
            raise BlockingIOError
        self._left_in_batch -= 1
        fd, address = self._accept()  # type: ignore[attr-defined]
        return Socket(*self._kind, fileno=fd), address

    def accept_without_batch_limit(self) -> Connection:
        """Accept the next connection. Raises OSError; BlockingIOError if no connection is waiting."""
        fd, _ = self._accept()  # type: ignore[attr-defined]
        return Connection(*self._kind, fd)


class OneByOneAcceptor:
    """Accepts a connection in each iteration of the event loop, until it is closed or `stop_reading` is called for it.

    It accepts while `has_room` returns True. `serve` gets each connection unread, and owns it.
    """

    def __init__(
        self,
        listener: BatchLimitedListener,
        serve: Callable[[Connection], None],
        has_room: Callable[[], bool],
    ) -> None:
        self.sockets = (listener,)
        self._listener = listener
        self._serve = serve
        self._has_room = has_room
        self._retry: asyncio.TimerHandle | None = None
        self._begin()

    def close(self) -> None:
        stop_reading(self.sockets)
        if self._retry is not None:
            self._retry.cancel()
        self._listener.close()

    def _begin(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        # Only one: a handshake takes far longer, and another worker may accept the next connection.
        if not self._has_room():
            return
        try:
            sock = self._listener.accept_without_batch_limit()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:  # usually because no descriptor is free
            logger.warning("no connection can be accepted: %s", error)
            stop_reading(self.sockets)
            self._retry = asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._begin)
            return
        self._serve(sock)


def stop_reading(listeners: Sequence[socket.socket]) -> None:
    """Stop accepting from these listeners; accepted connections continue."""
    loop = asyncio.get_running_loop()
    for listener in listeners:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_reader(listener.fileno())


async def close_all(listening: Sequence[Listening]) -> None:
    """Stop accepting, without losing an accepted connection."""
    # asyncio's Server.close() destroys accepted connections without a protocol, so it is called a few loop iterations
    # after the last accept.
    for server in listening:
        stop_reading(server.sockets)
    for _ in range(3):
        await asyncio.sleep(0)
    for server in listening:
        server.close()
    await asyncio.sleep(0)


class ConnectionsAwaitingProtocol:
    """Accepted connections without a protocol object.

    Sets `server_state.changed` when a connection gets its protocol object, or fails.
    """

    def __init__(self, server_state: PoolServerState) -> None:
        self._server_state = server_state
        # By coroutine: the future that it awaits, and the protocol object of a connection in a TLS handshake.
        self._waiting: dict[_Work, tuple[asyncio.Future[object], asyncio.Protocol | None]] = {}

    def __len__(self) -> int:
        """The number of connections without a protocol object, except those in a TLS handshake."""
        return len(self._waiting) - len(self._server_state.expected)

    def shake_hands(
        self, protocol: asyncio.Protocol, sock: socket.socket, context: ssl.SSLContext, due: float
    ) -> None:
        """Begin TLS on a connection that then gets this protocol.

        The handshake and the first head must be complete at `due`, in seconds of the system's monotonic clock.
        """
        self._server_state.record_handshake_start(protocol, due)
        seconds = max(_MIN_HANDSHAKE_SECONDS, due - monotonic())
        self._connect_accepted_socket(
            lambda: protocol, sock, protocol, ssl=context, ssl_handshake_timeout=seconds
        )

    def attach(self, make: Callable[[], asyncio.BaseProtocol], sock: socket.socket) -> None:
        """Attach the protocol that `make` returns to the connection, without TLS."""
        self._connect_accepted_socket(make, sock, None)

    def cancel(self) -> None:
        """Close the connections without an attached protocol object, such as during a TLS handshake."""
        for future, _ in list(self._waiting.values()):
            future.cancel()

    def cancel_handshake(self, protocol: object) -> None:
        """Close the connection in a TLS handshake that would get this protocol object."""
        for future, expected in self._waiting.values():
            if expected is protocol:
                future.cancel()
                return

    def _connect_accepted_socket(
        self, make: Callable[[], Any], sock: socket.socket, expected: asyncio.Protocol | None, **tls: Any
    ) -> None:
        work = asyncio.get_running_loop().connect_accepted_socket(make, sock, **tls)
        # Without a task, which would take half as long again and begin only in the next loop iteration.
        try:
            self._await(work, expected)
        except Exception:
            if sock.fileno() != -1:  # from Python 3.14 on, asyncio has closed it
                close_promptly(sock.detach())
            self._end(expected)

    def _await(self, work: _Work, expected: asyncio.Protocol | None) -> None:
        future = work.send(None)
        self._waiting[work] = future, expected
        future.add_done_callback(functools.partial(self._continue, work, expected))

    def _continue(self, work: _Work, expected: asyncio.Protocol | None, _: object) -> None:
        del self._waiting[work]
        try:
            self._await(work, expected)
        except (Exception, asyncio.CancelledError):  # StopIteration means that it has returned
            self._end(expected)

    def _end(self, expected: asyncio.Protocol | None) -> None:
        self._server_state.forget_unfinished_handshake(expected)  # no effect after a complete handshake
        self._server_state.changed.set()


class AdoptionPair(NamedTuple):
    """A socket pair through which workers hand over connections with their unread bytes, unnoticed by clients.

    A worker must not make either socket non-blocking: this would affect all workers, which share the open file.
    """

    give: socket.socket
    take: socket.socket


class ConnectionAcceptor:
    """The acceptor of a worker's connections: from its listeners, and from other workers that hand over connections.

    Other workers hand over connections through the socket pair `adoption`. `most` is the maximum number of connections;
    None stands for the number of free descriptors, minus a reserve. `accepted` holds the connections that have no
    protocol object yet. If `woken` is true, the worker was started because connections were waiting, and a waiting
    connection is closed unserved if its client has disconnected.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: PoolServerState,
        *,
        adoption: AdoptionPair | None,
        most: int | None,
        woken: bool = False,
    ) -> None:
        self.servers: Sequence[Listening] = ()
        self._woken = woken  # connections that have waited for it to wake may still arrive
        self._config = config
        self._server_state = server_state
        self._adoption = adoption
        self._most = most
        self._is_limited = most is not None
        self.accepted = ConnectionsAwaitingProtocol(server_state)
        self._app_state: State = {}
        self._listeners: Sequence[socket.socket] = ()
        self._accepting = self._full = self._ended = self._taking = False
        self._pauses = 0  # the pauses so far in which it left the next connection of the pair to others
        self._lock = asyncio.Lock()  # held while `servers` is opened or closed
        self._tasks: set[asyncio.Task[None]] = set()
        self._room_timer: asyncio.TimerHandle | None = None
        self._take_timer: asyncio.TimerHandle | None = None

    async def begin(self, listeners: Sequence[socket.socket], app_state: State, *, accepting: bool) -> None:
        """Accept from the listeners now or, if `accepting` is false, once `set_accepting` is called.

        The application finds `app_state` in the scope of each connection.
        """
        self._listeners = listeners
        self._app_state = app_state
        self._accepting = accepting
        if self._most is None:
            self._most = connection_limit_by_descriptors()
        self._server_state.most_connections, self._server_state.on_full = (
            self._most,
            self._pause_accepting_while_full,
        )
        await self._apply_accepting_state()

    def set_accepting(self, accepting: bool) -> None:
        """Begin to accept connections, or stop and leave them to other workers. Does not wait."""
        self._accepting = accepting
        self._start_background_task(self._apply_accepting_state())

    async def end(self) -> None:
        """Stop accepting permanently; returns when the listeners are closed."""
        self._ended = True
        self._stop_taking_handovers()
        async with self._lock:
            await close_all(self.servers)
        await asyncio.gather(*self._tasks)

    def _pause_accepting_while_full(self) -> None:
        """Stop accepting because the limit of connections is reached; resumes when connections have closed."""
        if self._full or self._ended:
            return
        self._full = True
        self._server_state.connections.on_leave = self._accept_again_now_or_soon
        self._stop_taking_handovers()
        # Now, not in the background task: another worker should accept the next connection.
        before, self.servers = self.servers, ()
        for server in before:
            stop_reading(server.sockets)
        self._start_background_task(close_all(before))

    def _accept_again_now_or_soon(self) -> None:
        assert self._most is not None
        if self._server_state.open_connections <= self._most - max(1, self._most // _ROOM_DIVISOR):
            self._accept_again_if_room()
        elif self._room_timer is None:
            self._room_timer = asyncio.get_running_loop().call_later(
                _ROOM_SECONDS, self._accept_again_if_room
            )

    def _accept_again_if_room(self) -> None:
        if self._room_timer is not None:
            self._room_timer.cancel()
            self._room_timer = None
        if self._full and self._server_state.room() > 0:
            self._full = False
            self._server_state.connections.on_leave = None
            self._start_background_task(self._apply_accepting_state())

    def _start_background_task(self, work: Coroutine[object, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _apply_accepting_state(self) -> None:
        async with self._lock:
            while not self._ended and (self._accepting and not self._full) is not bool(self.servers):
                if self.servers:
                    before, self.servers = self.servers, ()
                    self._stop_taking_handovers()
                    await close_all(before)
                else:
                    self.servers = await self._start_accepting_servers()
                    if not (self._full or self._ended):
                        self._start_taking_handovers()

    async def _start_accepting_servers(self) -> list[Listening]:
        if self._woken:
            await self._accept_waiting()
            if self._full or self._ended:
                return []
        config = self._config
        loop = asyncio.get_running_loop()
        make = protocol_factory(config, self._server_state, self._app_state)
        sockets = [BatchLimitedListener(listener, self._server_state) for listener in self._listeners]
        try:
            if self._is_limited or config.ssl is not None:
                # As asyncio's server does: a listener that was opened beside another is only bound so far.
                for sock in sockets:
                    sock.listen(config.backlog)
                return [OneByOneAcceptor(sock, self._serve_accepted, self._has_room) for sock in sockets]
            return [await loop.create_server(make, sock=sock, backlog=config.backlog) for sock in sockets]
        except BaseException:
            # If create_server is cancelled at the wrong moment, the loop keeps a reader for a closed socket.
            stop_reading(sockets)
            for sock in sockets:
                sock.close()
            raise

    async def _accept_waiting(self) -> None:
        """Accept the backlog, closing connections whose clients have left: asyncio's server would serve them."""
        asyncio.get_running_loop().call_later(_WAKE_SECONDS, self._end_wake)
        for listener in self._listeners:
            with BatchLimitedListener(listener, self._server_state) as backlog:
                waiting = select.poll()
                waiting.register(backlog, select.POLLIN)
                for number in range(self._config.backlog + 1):
                    if self._full or self._ended or not self._has_room():
                        break
                    # Polled first, because a process that shares the listener may have made it blocking.
                    if not waiting.poll(0):
                        break
                    try:
                        sock = backlog.accept_without_batch_limit()
                    except OSError:
                        break
                    if peer_has_closed(sock):
                        close_promptly(sock.detach())
                    else:
                        self._serve_accepted(sock)
                    if number % _MAX_BATCH == 0:
                        await asyncio.sleep(0)
        while self.accepted:
            await asyncio.sleep(0)

    def _serve_accepted(self, sock: Connection) -> None:
        if self._config.ssl is None:
            make = protocol_factory(self._config, self._server_state, self._app_state)
            self.accepted.attach(make, sock)
            return
        due = sock.until = monotonic() + self._server_state.head_timeouts.seconds
        balancer = self._server_state.balancer
        if balancer is not None and balancer.hand_over_if_too_many(sock):
            sock.close()
        else:
            self._shake_hands(sock, due)

    def _has_room(self) -> bool:
        # Connections without TLS that have no protocol yet are not counted as open.
        return self._server_state.room() > len(self.accepted)

    def _end_wake(self) -> None:
        self._woken = self._full  # a full worker has not accepted all waiting connections yet

    def _start_taking_handovers(self) -> None:
        self._taking = True
        self.publish_taking_handovers()
        if self._adoption is not None:
            asyncio.get_running_loop().add_reader(self._adoption.take.fileno(), self._take_one_handover)

    def _stop_taking_handovers(self) -> None:
        """Stop accepting connections that workers hand over; those already sent wait for other workers."""
        self._taking = False
        self.publish_taking_handovers()
        if self._take_timer is not None:
            self._take_timer.cancel()
        if self._adoption is not None:
            asyncio.get_running_loop().remove_reader(self._adoption.take.fileno())

    def publish_taking_handovers(self) -> None:
        """Publish to the other workers whether this worker accepts connections that they hand over."""
        if self._server_state.balancer is not None:
            self._server_state.balancer.publish_accepting(self._taking)

    def _take_one_handover(self) -> None:
        # One per loop iteration, so that workers share a burst.
        assert self._adoption is not None
        balancer = self._server_state.balancer
        if balancer is not None and self._pause_for_others(balancer):
            return
        if not self._has_room():
            return
        try:
            taken = connection_handover.receive_connection(self._adoption.take)
        except connection_handover.NoRoom:
            self._stop_taking_handovers()
            self._take_timer = asyncio.get_running_loop().call_later(
                _TAKE_AGAIN_SECONDS, self._start_taking_handovers
            )
            return
        except (BlockingIOError, InterruptedError, WireError):
            return  # usually another worker was faster
        except OSError:
            taken = None
        if taken is None:
            self._stop_taking_handovers()
        else:
            self._adopt(taken)

    def _pause_for_others(self, balancer: ConnectionBalancer) -> bool:
        """Return whether other workers should take the next handed-over connection; if so, take none for a moment."""
        seconds = balancer.pause_seconds(len(self.accepted), self._pauses)
        self._pauses = self._pauses + 1 if seconds else 0
        if seconds and self._adoption is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._adoption.take.fileno())
            self._take_timer = loop.call_later(seconds, self._start_taking_handovers)
        return bool(seconds)

    def _adopt(self, taken: Connection) -> None:
        if self._woken and peer_has_closed(taken):
            close_promptly(taken.detach())
            return
        balancer = self._server_state.balancer
        if balancer is not None:
            balancer.note_taken()
        if self._config.ssl is None:
            make = functools.partial(self._make_adopted_protocol, taken.until, taken.idle, taken.received)
            self.accepted.attach(make, taken)
        elif taken.received:
            close_promptly(taken.detach())  # a TLS connection is passed on before any byte is read
        else:
            limit = monotonic() + self._server_state.head_timeouts.seconds
            self._shake_hands(taken, limit if taken.until is None or taken.idle else min(taken.until, limit))

    def _shake_hands(self, sock: socket.socket, due: float) -> None:
        assert self._config.ssl is not None
        self.accepted.shake_hands(self._make_protocol(), sock, self._config.ssl, due)

    def _make_adopted_protocol(
        self, until: float | None, between_requests: bool, received: bytes
    ) -> asyncio.Protocol:
        if received:
            return ReplayProtocol(self._make_adopted_protocol(None, False, b""), received, self._server_state)
        protocol = self._make_protocol()
        if isinstance(protocol, Http1Connection):
            protocol.set_read_deadline(until, between_requests=between_requests)
        return protocol  # type: ignore[no-any-return]

    def _make_protocol(self) -> Any:
        return protocol_factory(self._config, self._server_state, self._app_state)()


class ReplayProtocol(asyncio.Protocol):
    """The first protocol of a handed-over connection. Passes `received`, read by another worker, on to `protocol`."""

    def __init__(self, protocol: asyncio.Protocol, received: bytes, server_state: PoolServerState) -> None:
        self._protocol = protocol
        self._received = received
        self._server_state = server_state

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.set_protocol(self._protocol)
        self._protocol.connection_made(transport)
        self._server_state.stays = True
        try:
            self._protocol.data_received(self._received)
        finally:
            self._server_state.stays = False


def protocol_factory(
    config: uvicorn.Config, server_state: PoolServerState, app_state: State
) -> Callable[[], Any]:
    """A function that creates the protocol of each new connection."""
    protocol_class: Any = config.http_protocol_class
    return functools.partial(protocol_class, config=config, server_state=server_state, app_state=app_state)


def connection_limit_by_descriptors() -> int:
    """The number of further connections that the limit of open descriptors allows, minus a reserve; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        # Since Linux 6.2 the directory's size is the number of descriptors; before that it is 0.
        open_now = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:
        open_now = _OPEN_AT_START
    return max(1, soft - open_now - max(_MIN_RESERVE, soft // _RESERVE_DIVISOR))
