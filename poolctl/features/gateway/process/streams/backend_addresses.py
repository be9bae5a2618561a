"""Where the sockets of a stream connect to: the addresses behind an endpoint, names resolved and remembered."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from typing import Any, NamedTuple

from ..endpoint import Endpoint

logger = logging.getLogger("poolctl.gateway")

# A name is resolved again in the background when it is used after this time; until then its last addresses serve.
FRESH_SECONDS = 30.0
_TRY_AGAIN_SECONDS = 1.0


class SocketAddress(NamedTuple):
    """The family of a socket, and the argument of its connect()."""

    family: int
    address: Any


class _Name:
    __slots__ = ("addresses", "due", "problem", "resolving")

    def __init__(self) -> None:
        self.addresses: tuple[SocketAddress, ...] = ()
        self.due = 0.0
        self.problem = ""
        self.resolving: asyncio.Task[None] | None = None


class BackendAddresses:
    """The addresses of endpoints, for sockets of one kind. A name is resolved in a thread, once for all that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, kind: int) -> None:
        self._loop = loop
        self._kind = kind
        self._names: dict[Endpoint, _Name] = {}

    def close(self) -> None:
        """Cancel the name resolution in progress."""
        for name in self._names.values():
            if name.resolving is not None:
                name.resolving.cancel()

    def known(self, endpoint: Endpoint) -> tuple[SocketAddress, ...] | None:
        """The addresses; None for a name that is not resolved yet: see `wait`."""
        if (literal := _literal(endpoint)) is not None:
            return literal
        name = self._names.setdefault(endpoint, _Name())
        if name.resolving is None and self._loop.time() >= name.due:
            name.resolving = self._loop.create_task(self._resolve(endpoint, name))
        return name.addresses or None

    async def wait(self, endpoint: Endpoint) -> tuple[SocketAddress, ...]:
        """The addresses of the endpoint, empty if its name cannot be resolved."""
        known = self.known(endpoint)
        if known is not None:
            return known
        name = self._names[endpoint]
        if name.resolving is not None:
            await asyncio.wait({name.resolving})
        return name.addresses

    async def _resolve(self, endpoint: Endpoint, name: _Name) -> None:
        problem, seconds = "", FRESH_SECONDS
        try:
            found = await self._loop.getaddrinfo(endpoint.host, endpoint.port, type=self._kind)
            name.addresses = tuple(SocketAddress(family, address) for family, _, _, _, address in found)
        except (OSError, UnicodeError) as error:
            # The addresses of before go on serving: a name server that is away takes no backend down.
            problem, seconds = str(error), _TRY_AGAIN_SECONDS
            if problem != name.problem:
                logger.warning("cannot resolve %s: %s", endpoint.host, error)
        finally:
            name.problem, name.due, name.resolving = problem, self._loop.time() + seconds, None


@functools.lru_cache(256)
def _literal(endpoint: Endpoint) -> tuple[SocketAddress, ...] | None:
    """The address of an endpoint that needs no look-up."""
    if endpoint.kind == "unix":
        return (SocketAddress(socket.AF_UNIX, endpoint.path),)
    if endpoint.kind != "tcp":
        return ()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, endpoint.host)
        except OSError:
            continue
        return (SocketAddress(family, (endpoint.host, endpoint.port)),)
    return None
