"""Items in the order of their last use, with one timer for the limit on idle time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar


class Used(Protocol):
    """A connection or session; `used` is when it last moved bytes."""

    used: float


Key = TypeVar("Key")
Item = TypeVar("Item", bound=Used)


class IdleOrder(Generic[Key, Item]):
    """Items by key, the longest idle first. An item that is idle for `seconds` (0: no limit) is given to `expire`.

    The callback has to remove it. Times refer to `now`; the loop's timer only says when to look.
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
        # Read with every datagram.
        self.get = self._items.get

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """A snapshot: items may be removed meanwhile."""
        return iter(list(self._items.values()))

    def add(self, key: Key, item: Item) -> None:
        """Add the item, or mark it as used last."""
        item.used = self._now()
        self._items[key] = item
        if self._timer is None:
            self._arm()

    def use(self, key: Key, item: Item) -> None:
        """Mark the item as used now, because it has moved bytes."""
        item.used = self._now()
        self._items.move_to_end(key)

    def remove(self, key: Key) -> None:
        """Remove the item of this key; an unknown key is ignored."""
        self._items.pop(key, None)
        if not self._items and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def oldest(self) -> Item:
        """The item that is idle longest. Raises StopIteration if there is no item."""
        return next(iter(self._items.values()))

    def limit(self, seconds: float) -> None:
        """Change how long an item may be idle."""
        if seconds != self._seconds:
            self._seconds = seconds
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._timer = None
        if self._items and self._seconds:
            left = self.oldest().used + self._seconds - self._now()
            self._timer = self._loop.call_later(max(left, 0.0), self._look)

    def _look(self) -> None:
        limit = self._now() - self._seconds
        while self._items and (item := self.oldest()).used <= limit:
            self._expire(item)
        if self._timer is not None:
            self._timer.cancel()
        self._arm()
