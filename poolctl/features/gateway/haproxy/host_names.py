"""Resolves the host names of targets: HAProxy itself would wait for a name server when it starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from poolctl.daemon_threads import in_daemon_thread

from ..repeated_work import RepeatedWork

# How long a change of routes waits for the addresses of new names.
_RESOLVE_TIMEOUT = 1.0
_RESOLVE_INTERVAL = 10.0
_CONNECT_TIMEOUT = 0.5


class HostNames:
    """The addresses of host names, resolved at intervals; `changed` is called when one has changed.

    An unresponsive name server delays only targets with new names: others keep their `addresses`, including those from
    an earlier supervisor.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.addresses: dict[str, str] = {}
        self._changed = changed
        self._following: dict[str, asyncio.Task[None]] = {}
        self._ports: Mapping[str, int] = {}

    async def follow(self, ports: Mapping[str, int]) -> None:
        """Resolve only these names; returns when the new ones are resolved, or after a second.

        `ports` has a port of each host.
        """
        self._ports = ports
        for name in self._following.keys() - ports.keys():
            self._following.pop(name).cancel()
        self.addresses = {name: address for name, address in self.addresses.items() if name in ports}
        new = {name: asyncio.Event() for name in ports.keys() - self._following.keys()}
        for name, tried in new.items():
            self._following[name] = asyncio.ensure_future(self._follow(name, tried))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESOLVE_TIMEOUT):
                for name in new.keys() - self.addresses.keys():
                    await new[name].wait()

    def close(self) -> None:
        """Stop resolving names."""
        for task in self._following.values():
            task.cancel()
        self._following.clear()

    async def _follow(self, name: str, was_tried: asyncio.Event) -> None:
        address, is_reached = self.addresses.get(name, ""), False
        resolving = RepeatedWork(f"the addresses of {name}")
        while True:
            with resolving.attempt(), contextlib.suppress(OSError, RuntimeError, UnicodeError):
                resolve = partial(socket.getaddrinfo, name, None, type=socket.SOCK_STREAM)
                addresses = [str(address[0]) for *_, address in await in_daemon_thread(resolve)]
                if address not in addresses or not is_reached:
                    previous = address
                    address, is_reached = await in_daemon_thread(
                        partial(_choose, addresses, self._ports[name])
                    )
                    if address != previous:
                        self.addresses[name] = address
                        self._changed()
            was_tried.set()
            await asyncio.sleep(_RESOLVE_INTERVAL)


def _choose(addresses: Sequence[str], port: int) -> tuple[str, bool]:
    """Choose an address, and return whether it can be reached. Blocks.

    With IPv4 and IPv6 addresses, the first reachable one: many programs on "localhost" listen on only one of 127.0.0.1
    and ::1. Otherwise the first, untested.
    """
    if len({":" in address for address in addresses}) == 1:
        return addresses[0], True
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection((address, port), _CONNECT_TIMEOUT):
            return address, True
    return addresses[0], False
