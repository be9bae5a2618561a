"""Resolves the host names of targets outside HAProxy, which would wait for a name server when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from poolctl.runners.listener_opener import in_daemon_thread

from ..repeated_work import RepeatedWork

# How long a change of routes waits for the addresses of new names, and when they are resolved again.
_RESOLVES_SECONDS, _RESOLVES_AGAIN_SECONDS = 1.0, 10.0
_CONNECT_SECONDS = 0.5


class HostNames:
    """The addresses of host names, resolved at intervals; `changed` is called when one of them has changed.

    A name server that does not answer delays only the targets with new names: others keep their `addresses`, also
    those that an earlier supervisor has found.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.addresses: dict[str, str] = {}
        self._changed = changed
        self._following: dict[str, asyncio.Task[None]] = {}
        self._ports: Mapping[str, int] = {}

    async def follow(self, ports: Mapping[str, int]) -> None:
        """Resolve these names, and no others; returns when new ones are known, or after a second.

        Each has a port of its host.
        """
        self._ports = ports
        for gone in self._following.keys() - ports.keys():
            self._following.pop(gone).cancel()
        self.addresses = {name: each for name, each in self.addresses.items() if name in ports}
        new = {name: asyncio.Event() for name in ports.keys() - self._following.keys()}
        for name, tried in new.items():
            self._following[name] = asyncio.ensure_future(self._follow(name, tried))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESOLVES_SECONDS):
                for name in new.keys() - self.addresses.keys():
                    await new[name].wait()

    def close(self) -> None:
        """Stop resolving names."""
        for task in self._following.values():
            task.cancel()
        self._following.clear()

    async def _follow(self, name: str, tried: asyncio.Event) -> None:
        known, is_reached = self.addresses.get(name, ""), False
        resolving = RepeatedWork(f"the addresses of {name}")
        while True:
            with resolving.attempt(), contextlib.suppress(OSError, RuntimeError, UnicodeError):
                found, port = await in_daemon_thread(lambda: _resolve(name)), self._ports[name]
                if known not in found or not is_reached:
                    before = known
                    known, is_reached = await in_daemon_thread(partial(_choose, found, port))
                    if known != before:
                        self.addresses[name] = known
                        self._changed()
            tried.set()
            await asyncio.sleep(_RESOLVES_AGAIN_SECONDS)


def _resolve(name: str) -> list[str]:
    """The addresses of a host name. Blocks; raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]


def _choose(addresses: Sequence[str], port: int) -> tuple[str, bool]:
    """The first of a host's addresses, and whether it serves; of two families, the first one that serves. Blocks.

    Many programs on "localhost" listen on 127.0.0.1 or on ::1 alone.
    """
    if len({":" in each for each in addresses}) == 1:
        return addresses[0], True
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection((address, port), _CONNECT_SECONDS):
            return address, True
    return addresses[0], False
