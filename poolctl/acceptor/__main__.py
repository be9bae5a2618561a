"""Accepts connections from sockets that an application shares, and sends them to the supervisor.

Calls on a shared socket may block: the application may set its listener to blocking and accept a connection before
this process does, or it may hand over a descriptor whose close(2) blocks (FUSE). The supervisor must not block, so this
process makes the calls. A timer (setitimer(2)) kills it if a call takes too long, and the supervisor starts a new one.
Uses only the standard library.

A request carries a socket, the operation on it (`accept`, or `take` a handed-over connection), the maximum number of
connections, the request's number `n` and the server's `key`. Each connection is sent in a separate message.
The message `done` follows, with the flags `empty` (no connection is left in the socket), `junk` (it held something
other than connections) and `full` (no descriptor was free). The keeper process holds a duplicate of the supervisor's
end of the request socket: after a restart of the supervisor, the new one reads the remaining answers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Iterator

from ..keeper import connection_handover, wire
from ..platform import name_process, raise_descriptor_limit

REQUESTS_FD = 3
DEADLINE_SECONDS = 0.5
_IN_FLIGHT_SECONDS = 0.002


def main() -> None:
    """Answer the requests that arrive on descriptor 3, until its other end is closed."""
    name_process("poolctl-accept")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    raise_descriptor_limit()
    with contextlib.suppress(OSError), wire.socket_from_fd(REQUESTS_FD) as requests:
        serve(requests)


def serve(requests: socket.socket) -> None:
    """Answer the supervisor's requests until it closes the connection. Raises OSError if an answer cannot be sent."""
    _send(requests, {"t": "up"})
    while (received := wire.receive(requests, wait=True)) is not None:
        message, (fd,) = received
        with socket.socket(fileno=fd) as shared:
            forward_connections_to_supervisor(requests, message, shared)


def forward_connections_to_supervisor(
    requests: socket.socket, message: wire.Message, shared: socket.socket
) -> None:
    """Take connections from the application's socket `shared`; send each to the supervisor, and at the end `done`."""
    empty = junk = full = False
    next_one = _accept_nowait if message["op"] == "accept" else connection_handover.receive_connection
    for _ in range(message["most"]):
        try:
            with _exit_on_timeout():
                found = next_one(shared)
        except BlockingIOError:
            empty = True
        except wire.WireError:
            junk = True
            continue
        except (connection_handover.NoRoom, OSError):
            full = True
        else:
            if found is not None:
                with found:
                    _send_connection(requests, message, found)
                continue
            empty = True
        break
    _send(requests, {"t": "done", "n": message["n"], "empty": empty, "junk": junk, "full": full})


def _send_connection(requests: socket.socket, message: wire.Message, found: socket.socket) -> None:
    part: wire.Message = {}
    fds = [found.fileno()]
    if isinstance(found, connection_handover.Connection):
        part, fds = found.to_message()
    try:
        _send(requests, {"t": "conn", "n": message["n"], "key": message["key"], **part}, fds)
    finally:
        for fd in fds[1:]:
            os.close(fd)


def _accept_nowait(listener: socket.socket) -> socket.socket:
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    if not poll.poll(0):
        raise BlockingIOError
    # Workers need it to be non-blocking as well.
    os.set_blocking(listener.fileno(), False)
    try:
        return listener.accept()[0]
    except ConnectionAbortedError as error:
        raise BlockingIOError from error


@contextlib.contextmanager
def _exit_on_timeout() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_REAL, DEADLINE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _send(requests: socket.socket, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
    while True:
        try:
            wire.send(requests, message, fds, wait=True)
            return
        except BlockingIOError:  # too many descriptors are in flight
            time.sleep(_IN_FLIGHT_SECONDS)
