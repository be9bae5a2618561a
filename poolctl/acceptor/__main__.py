"""Accepts connections from sockets that an application shares, and sends them to the supervisor.

Calls on a shared socket may block: the application may set its listener to blocking and accept a connection before
this process does, or it may hand over a descriptor whose close(2) blocks (FUSE). The supervisor must not block, so this
process makes the calls. A timer (setitimer(2)) kills it if a call takes too long, and the supervisor starts a new one.
Uses only the standard library.

A request carries a socket, the operation on it (`accept`, or `take` a handed-over connection), the maximum number of
connections, the request's number `n` and the server's `key`. Each connection is sent in a separate message.
The answer follows, with the flags `empty` (no connection is left in the socket), `junk` (it held something other than
connections) and `full` (no descriptor was free). The keeper process holds a duplicate of the supervisor's end of the
link: after a restart of the supervisor, the new one reads the remaining answers.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterator

from ..keeper import connection_handover, wire
from ..keeper.supervisor_link import SupervisorLink
from ..platform import name_process, raise_descriptor_limit

DEADLINE_SECONDS = 0.5


def main() -> None:
    """Answer the supervisor's requests until it orders the end, or keeper and supervisor are gone."""
    name_process("poolctl-accept")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    raise_descriptor_limit()
    with contextlib.suppress(OSError), contextlib.closing(SupervisorLink.inherited()) as link:
        serve(link)


def serve(link: SupervisorLink) -> None:
    """Answer the supervisor's requests until this process should exit. Raises OSError if an answer cannot be sent."""
    link.send({"t": "up"})
    while (received := link.wait_and_receive()) is not None:
        message, (fd,) = received
        with socket.socket(fileno=fd) as shared:
            forward_connections_to_supervisor(link, message, shared)


def forward_connections_to_supervisor(
    link: SupervisorLink, message: wire.Message, shared: socket.socket
) -> None:
    """Take connections from the application's socket `shared`; send each to the supervisor, and then the answer."""
    empty = junk = full = False
    next_one = _accept_nowait if message["t"] == "accept" else connection_handover.receive_connection
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
                    _send_connection(link, message, found)
                continue
            empty = True
        break
    link.send({"id": message["id"], "empty": empty, "junk": junk, "full": full})


def _send_connection(link: SupervisorLink, message: wire.Message, found: socket.socket) -> None:
    part = found.to_message() if isinstance(found, connection_handover.Connection) else {}
    link.send({"t": "conn", "n": message["n"], "key": message["key"], **part}, [found.fileno()])


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
