"""What the connections of one worker share, without a clock that ticks.

uvicorn wakes every worker ten times a second to refresh its date header and to look at counters: 100 idle workers
cost 6 % of a core that way and nothing this way, because here each value is made when it is asked for.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Hashable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from uvicorn.server import ServerState

from .adopt import Adoption

if TYPE_CHECKING:
    from .counting import Batch

Header = tuple[bytes, bytes]


class Watched(set[Any]):
    """A set that calls `on_empty` when its last member leaves, and `on_add` before each new one."""

    def __init__(self, on_empty: Callable[[], None], on_add: Callable[[], None]) -> None:
        super().__init__()
        self._on_empty = on_empty
        self._on_add = on_add

    def add(self, element: Hashable) -> None:
        self._on_add()
        super().add(element)

    def discard(self, element: Hashable) -> None:
        super().discard(element)
        if not self:
            self._on_empty()

    def remove(self, element: Hashable) -> None:
        super().remove(element)
        if not self:
            self._on_empty()


class Accounts(ServerState):
    """uvicorn's shared state: connections, tasks, request count and default headers.

    `on_change` is called when connections or tasks run out, `on_limit` at each multiple of `max_requests`,
    `on_activity` when a connection or a request comes, and when there is no request left.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._headers: list[Header] = []
        self._static: list[Header] = []
        self._second = -1
        self._requests = 0
        self.date_header = True
        self.tally: memoryview | None = None  # the page on which is counted
        self.batch: Batch | None = None  # what is not on it yet
        self.max_requests: int | None = None
        self.on_limit: Callable[[], None] = lambda: None
        self.draining = False  # every answer is the last one of its connection
        self.heirs: Adoption | None = None  # where connections go, while they are given away
        super().__init__()
        self.on_activity: Callable[[], None] | None = None
        self._on_change = on_change
        self._expected: set[weakref.ref[Any]] = set()
        self.watch_connections(Watched)
        self.tasks = Watched(self._no_tasks, self._active)

    def watch_connections(self, made: Callable[[Callable[[], None], Callable[[], None]], Watched]) -> None:
        """Keep the connections, of which there are none yet, in such a set."""
        self.connections = made(self._on_change, self._active)

    def expect(self, connection: object) -> None:
        """Note an accepted connection that has its handshake before it; one that fails is noted by its being gone."""
        self._expected.add(weakref.ref(connection, self._no_longer_expected))

    def arrived(self, connection: object) -> None:
        """It is a connection now, or none."""
        if self._expected:
            self._no_longer_expected(weakref.ref(connection, self._no_longer_expected))

    @property
    def expects(self) -> bool:
        """Whether an accepted connection is still in its handshake."""
        return bool(self._expected)

    def _no_longer_expected(self, connection: weakref.ref[Any]) -> None:
        self._expected.discard(connection)
        self._on_change()

    def _active(self) -> None:
        if self.on_activity is not None:
            self.on_activity()

    def _no_tasks(self) -> None:
        self._active()
        self._on_change()

    @property
    def default_headers(self) -> list[Header]:
        """The headers of every response; the date is computed at most once a second (RFC 9110 §6.6.1)."""
        now = int(time.time())
        if now != self._second:
            self._second = now
            date = [(b"date", formatdate(now, usegmt=True).encode())] if self.date_header else []
            self._headers = date + self._static
        return self._headers

    @default_headers.setter
    def default_headers(self, headers: list[Header]) -> None:
        self._static = headers
        self._second = -1

    @property
    def total_requests(self) -> int:
        return self._requests

    @total_requests.setter
    def total_requests(self, count: int) -> None:
        self._requests = count
        if self.max_requests is not None and count % self.max_requests == 0:
            self.on_limit()
