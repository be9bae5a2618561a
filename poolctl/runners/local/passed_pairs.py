"""Tracks the adoption pairs into which a gateway puts connections.

A pair is closed only after the gateway has stopped using it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any

from poolctl.keeper import wire
from poolctl.platform import close_promptly

from ..routing_protocol import Gateway

# Until the first table of a supervisor that took over a gateway; longer than a gateway may take to let go of a pair.
_PUBLISHED_SECONDS = 2.0
_MOST_IN_A_PAIR = 1024


class PassedPairs:
    """The adoption pairs that a gateway uses, by the canonical address of their server; empty without a gateway."""

    def __init__(self) -> None:
        self._names: Mapping[str, str] = MappingProxyType({})
        self._gateway: Gateway | None = None
        self._give_back: socket.socket | None = None
        self._published: asyncio.Event | None = None
        self._hidden: set[str] = set()
        self._shown: dict[str, socket.socket] = {}  # the pairs that the gateway has
        self._tasks: set[asyncio.Task[None]] = set()

    def expect(self) -> None:
        """Assume that the previous supervisor's gateway may use any pair, until `publish` is called."""
        self._published = asyncio.Event()
        asyncio.get_running_loop().call_later(_PUBLISHED_SECONDS, self._published.set)

    def publish(
        self, names: Mapping[str, str], gateway: Gateway | None, give_back: socket.socket | None
    ) -> None:
        """Let the gateway use the pairs of these servers. `names` are the servers' names by key."""
        self._names, self._gateway, self._give_back = names, gateway, give_back
        self._hidden &= names.keys()
        self._shown = {key: give for key, give in self._shown.items() if key in names}
        if self._published is not None:
            self._published.set()
            self._published = None

    def uses(self, key: str) -> bool:
        """Whether the gateway uses, or may use, this server's pair."""
        return key in self._names or self._published is not None

    def opened(self, key: str, give: socket.socket) -> None:
        """Note the server's new pair, and pass it to the gateway if the server has a route."""
        if self._gateway is not None and key in self._names and key not in self._hidden:
            self._shown[key] = give
            self._gateway.pair_opened(self._names[key], give)

    def show(self, key: str) -> None:
        """Allow the gateway to use the server's pair, beginning with the next pair that is `opened`."""
        self._hidden.discard(key)

    def hide(self, key: str) -> None:
        """Withdraw the server's pair from the gateway, which then proxies the server's requests."""
        self._hidden.add(key)
        give = self._shown.pop(key, None)
        if give is not None and self._gateway is not None:
            self._background(self._gateway.withdraw(self._names[key], give))

    async def leaving(self, key: str) -> None:
        """Return once the gateway knows that workers of this server leave without being replaced."""
        if self._published is not None:
            await self._published.wait()
        if self._gateway is not None and key in self._names:
            await self._gateway.leaving(self._names[key])

    async def withdraw(self, key: str, give: socket.socket, take: socket.socket) -> None:
        """Return once the gateway has stopped using the pair and has taken back the waiting connections.

        The caller closes both ends. Returns at once if the gateway does not use the pair.
        """
        if self._published is not None:
            await self._published.wait()
        if self._gateway is not None and key in self._names:
            if self._shown.get(key) is give:
                del self._shown[key]
            await self._gateway.withdraw(self._names[key], give)
            if self._give_back is not None:
                _move(take, self._give_back)

    def take_back(self, take: socket.socket) -> None:
        """Return the connections that wait in this pair to the gateway."""
        if self._give_back is not None:
            _move(take, self._give_back)

    def retire(self, key: str, give: socket.socket, take: socket.socket) -> None:
        """Close a replaced pair in the background, once the gateway has stopped using it."""
        if not self.uses(key):
            give.close()
            take.close()
            return
        self._background(self._retire(key, give, take))

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _retire(self, key: str, give: socket.socket, take: socket.socket) -> None:
        with give, take:
            await self.withdraw(key, give, take)


def empty(take: socket.socket) -> None:
    """Close every connection that is queued in the pair."""
    _move(take, None)


def _move(take: socket.socket, give: socket.socket | None) -> None:
    """Move queued connections to the pair `give`. Excess connections are closed, or all of them if `give` is None."""
    # Bounded to the pair's capacity: an application may go on filling it.
    for _ in range(_MOST_IN_A_PAIR):
        try:
            received = wire.receive(take)
        except wire.WireError:
            continue
        except OSError:
            return
        if received is None:
            return
        message, fds = received
        try:
            if give is not None and message.get("t") == "conn":
                wire.send(give, message, fds)
        except (OSError, wire.WireError):
            pass
        finally:
            for fd in fds:
                close_promptly(fd)
