"""Common parts of TCP and UDP streams: the addresses of backends, and clients in the order of their last use."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ..settings import Endpoint

logger = logging.getLogger("poolctl.gateway")

# A name that is used after this time is resolved again in the background; meanwhile its last addresses are used.
FRESH_SECONDS = 30.0
_TRY_AGAIN_SECONDS = 1.0


class HasIdleTime(Protocol):
    """A connection or session; `used` is the time at which it last transferred data."""

    used: float


Key = TypeVar("Key")
Item = TypeVar("Item", bound=HasIdleTime)


class IdleTracker(Generic[Key, Item]):
    """Items by key, longest idle first. Calls `expire` with an item that was idle for `seconds` (0: no limit).

    The callback has to remove the item. Idle times are measured with `now`; the loop's timer only triggers the check.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float],
        seconds: float,
        expire: Callable[[Item], None],
    ) -> None:
        self._loop = loop
        self._now = now
        self._seconds = seconds
        self._expire = expire
        self._items: OrderedDict[Key, Item] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        # Called for every datagram.
        self.get = self._items.get

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """Iterate over a snapshot, so that items may be removed meanwhile."""
        return iter(list(self._items.values()))

    def add(self, key: Key, item: Item) -> None:
        """Add an item with a new key. The item's idle time begins now."""
        item.used = self._now()
        self._items[key] = item
        if self._timer is None:
            self._arm()

    def record_activity(self, key: Key, item: Item) -> None:
        """Record that the connection or session `item` is transferring data, so that its idle time begins now."""
        item.used = self._now()
        self._items.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Remove the item of this key; an unknown key is ignored."""
        self._items.pop(key, None)
        if not self._items:
            self._arm()
            if self._emptied is not None and not self._emptied.done():
                self._emptied.set_result(None)

    async def wait_until_empty(self, seconds: float) -> None:
        """Wait until all items have been removed, for at most `seconds`."""
        if self._items:
            self._emptied = self._loop.create_future()
            await asyncio.wait({self._emptied}, timeout=seconds)

    def oldest(self) -> Item:
        """The item that has been idle longest. Raises StopIteration if there are no items."""
        return next(iter(self._items.values()))

    def set_idle_limit(self, seconds: float) -> None:
        """Set the number of seconds that a connection or session may be idle before it expires; 0 is no limit."""
        if seconds != self._seconds:
            self._seconds = seconds
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._items and self._seconds:
            left = self.oldest().used + self._seconds - self._now()
            self._timer = self._loop.call_later(max(left, 0.0), self._expire_idle)

    def _expire_idle(self) -> None:
        limit = self._now() - self._seconds
        while self._items and (item := self.oldest()).used <= limit:
            self._expire(item)
        self._arm()


class AddressWithFamily(NamedTuple):
    """The family of a socket, and the argument of its connect()."""

    family: int
    address: Any


class _ResolvedName:
    def __init__(self) -> None:
        self.addresses: tuple[AddressWithFamily, ...] = ()
        self.due = 0.0
        self.problem = ""
        self.resolving: asyncio.Task[None] | None = None


class BackendAddresses:
    """The addresses of endpoints, for sockets of one kind (SOCK_STREAM or SOCK_DGRAM).

    A name is resolved in a thread, once for all waiting callers.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, kind: int) -> None:
        self._loop = loop
        self._kind = kind
        self._names: dict[Endpoint, _ResolvedName] = {}

    def close(self) -> None:
        """Cancel the name resolutions in progress. This object holds nothing else to close."""
        for name in self._names.values():
            if name.resolving is not None:
                name.resolving.cancel()

    def get_or_start_resolving(self, endpoint: Endpoint) -> tuple[AddressWithFamily, ...] | None:
        """The addresses of the endpoint, or None for a name that was not resolved yet (see `wait`)."""
        if (literal := _literal(endpoint)) is not None:
            return literal
        name = self._names.setdefault(endpoint, _ResolvedName())
        if name.resolving is None and self._loop.time() >= name.due:
            name.resolving = self._loop.create_task(self._resolve(endpoint, name))
        return name.addresses or None

    async def wait_for_addresses(self, endpoint: Endpoint) -> tuple[AddressWithFamily, ...]:
        """The addresses of the endpoint, after waiting until its name is resolved; empty if that fails."""
        known = self.get_or_start_resolving(endpoint)
        if known is not None:
            return known
        name = self._names[endpoint]
        if name.resolving is not None:
            await asyncio.wait({name.resolving})
        return name.addresses

    async def _resolve(self, endpoint: Endpoint, name: _ResolvedName) -> None:
        problem, seconds = "", FRESH_SECONDS
        try:
            found = await self._loop.getaddrinfo(endpoint.host, endpoint.port, type=self._kind)
            name.addresses = tuple(AddressWithFamily(family, address) for family, _, _, _, address in found)
        except (OSError, UnicodeError) as error:
            # The previous addresses stay in use: the failure of a name server takes no backend down.
            problem, seconds = str(error), _TRY_AGAIN_SECONDS
            if problem != name.problem:
                logger.warning("cannot resolve %s: %s", endpoint.host, error)
        finally:
            name.problem, name.due, name.resolving = problem, self._loop.time() + seconds, None


@functools.lru_cache(256)
def _literal(endpoint: Endpoint) -> tuple[AddressWithFamily, ...] | None:
    """The endpoint's address if no name must be resolved; None if its host is a name, () if it has no address."""
    if endpoint.kind == "unix":
        return (AddressWithFamily(socket.AF_UNIX, endpoint.path),)
    if endpoint.kind != "tcp":
        return ()
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, endpoint.host)
        except OSError:
            continue
        return (AddressWithFamily(family, (endpoint.host, endpoint.port)),)
    return None
