"""A helper's end of the link to its supervisor, for helpers that may block. Standard library only.

`runners.supervised_process` is the counterpart for helpers with an event loop.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time

from . import wire

LINK_FD = 3
_RETRY_SECONDS = 0.002


class SupervisorLink:
    """Receives the supervisor's orders and sends it messages. Pings are answered here.

    The keeper holds the supervisor's end too, so the link is closed only when both are gone: then `is_lost` is set.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_lost = False
        self._epoll: select.epoll | None = None

    @classmethod
    def inherited(cls) -> SupervisorLink:
        """The link of a process that the keeper has started."""
        return cls(wire.socket_from_fd(LINK_FD))

    def receive(self) -> tuple[wire.Message, list[int]] | None:
        """The next order with its descriptors, or None if this process should exit.

        Raises BlockingIOError if no order has arrived. An order whose descriptors could not be received, because none
        was free, is answered with an error.
        """
        while not self.is_lost:
            try:
                received = wire.receive(self.sock)
            except BlockingIOError:
                raise
            except wire.WireError as error:
                self.try_send({"t": "error", "id": error.number, "error": str(error)})
                continue
            except OSError:
                received = None
            if received is None:
                self.is_lost = True
            elif received[0].get("t") == "end":
                return None
            elif received[0].get("t") == "ping":
                self.try_send({"t": "pong"})
            else:
                return received
        return None

    def wait_and_receive(self) -> tuple[wire.Message, list[int]] | None:
        """Wait for the next order; see `receive`."""
        if self._epoll is None:
            # A process that waits in epoll needs no ping (see platform.waits_for_events).
            self._epoll = select.epoll()
            self._epoll.register(self.sock, select.EPOLLIN)
        while True:
            self._epoll.poll()
            with contextlib.suppress(BlockingIOError):
                return self.receive()

    def send(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send a message; waits while the supervisor does not read. Raises OSError if there is no supervisor."""
        while True:
            try:
                wire.send(self.sock, message, fds, wait=True)
                return
            except BlockingIOError:  # too many descriptors are in flight
                time.sleep(_RETRY_SECONDS)

    def try_send(self, message: wire.Message) -> None:
        """Send a message without waiting; it is dropped if the supervisor has too many unread ones, or is gone."""
        with contextlib.suppress(OSError):
            wire.send(self.sock, message)

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()
        self.sock.close()
