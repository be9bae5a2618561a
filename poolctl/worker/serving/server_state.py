"""What the connections of one worker share, without a periodic timer.

uvicorn wakes every worker ten times a second to refresh its date header and to check counters: 100 idle workers
cost 6 % of a core that way and nothing this way, because here each value is computed when it is needed.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from .adoption import Adoption
from .uvicorn_parts import ServerState

if TYPE_CHECKING:
    from .counting import Batch
    from .request_heads import Heads
import asyncio

Header = tuple[bytes, bytes]

_DAYS = (b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun")
_MONTHS = (
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
)  # fmt: skip
_HANDSHAKE_SECONDS = 60.0  # of the event loops
_MARGIN_SECONDS = 1.0


class Watched(set[Any]):
    """A set that calls `on_empty` when its last member leaves, `on_add` before each new one, `on_leave` after each."""

    def __init__(self, on_empty: Callable[[], None], on_add: Callable[[], None]) -> None:
        super().__init__()
        self._on_empty = on_empty
        self._on_add = on_add
        self.on_leave: Callable[[], None] | None = None

    def add(self, element: Hashable) -> None:
        self._on_add()
        super().add(element)

    def discard(self, element: Hashable) -> None:
        super().discard(element)
        if self.on_leave is not None:
            self.on_leave()
        if not self:
            self._on_empty()

    def remove(self, element: Hashable) -> None:
        super().remove(element)
        if self.on_leave is not None:
            self.on_leave()
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
        self.heads: Heads | None = None  # None: no time limit for heads
        self.max_requests: int | None = None
        self.on_limit: Callable[[], None] = lambda: None
        self.draining = False  # every answer is the last one of its connection
        self.heirs: Adoption | None = None  # where connections go, while they are given away
        super().__init__()
        self.on_activity: Callable[[], None] | None = None
        self._on_change = on_change
        self.expected: dict[weakref.ref[Any], float] = {}  # the time by which it has succeeded or failed
        self._most_connections = sys.maxsize
        self._on_full: Callable[[], None] = lambda: None
        self.watch_connections(Watched)
        self.tasks = Watched(self._no_tasks, self._active)

    def watch_connections(self, made: Callable[[Callable[[], None], Callable[[], None]], Watched]) -> None:
        """Keep the connections, of which there are none yet, in such a set."""
        self.connections = made(self._on_change, self._connected)

    def limit_connections(self, most: int, on_full: Callable[[], None]) -> None:
        """Call `on_full` with the connection that is the last one for which there is room."""
        self._most_connections = most
        self._on_full = on_full

    @property
    def open_connections(self) -> int:
        """How many there are, those in their handshake included."""
        return len(self.connections) + (len(self.expected) if self.expects else 0)

    def room(self) -> int:
        """For how many more connections there is room."""
        return self._most_connections - self.open_connections

    def watch_room(self, on_leave: Callable[[], None] | None) -> None:
        """Call `on_leave` whenever a connection has ended."""
        connections: Any = self.connections
        connections.on_leave = on_leave

    def expect(self, connection: object) -> None:
        """Note an accepted connection whose handshake has not finished.

        A failed one is noticed when its objects are freed, or when the time for a handshake is over.
        """
        seconds = _HANDSHAKE_SECONDS if self.heads is None else self.heads.seconds + _MARGIN_SECONDS
        ends = time.monotonic() + seconds
        self.expected[weakref.ref(connection, self._no_longer_expected)] = ends
        if self.open_connections >= self._most_connections:
            self._on_full()

    def handshake_is_over(self, connection: object) -> float | None:
        """The handshake is complete. Returns when its first head is due, if that was set at its accept."""
        if not self.expected:
            return None
        ends = self.expected.pop(weakref.ref(connection), None)
        self._on_change()
        return None if ends is None or self.heads is None else ends - _MARGIN_SECONDS

    @property
    def expects(self) -> bool:
        """Whether an accepted connection is still in its handshake."""
        now = time.monotonic()
        for oldest, ends in list(self.expected.items()):
            if ends > now:
                return True
            self.expected.pop(oldest, None)
        return False

    def _no_longer_expected(self, connection: weakref.ref[Any]) -> None:
        # The garbage collector calls it too: at any time, perhaps without a running loop.
        self.expected.pop(connection, None)
        self._on_change()

    def _active(self) -> None:
        if self.on_activity is not None:
            self.on_activity()

    def _connected(self) -> None:
        if len(self.connections) + len(self.expected) + 1 >= self._most_connections:
            self._on_full()
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
            date = [(b"date", _http_date(now))] if self.date_header else []
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


def _http_date(seconds: int) -> bytes:
    """The time in the format of HTTP (RFC 9110 §5.6.7)."""
    # email.utils.formatdate() says the same; its first call in a worker copied twenty pages.
    year, month, day, hour, minute, second, weekday, *_ = time.gmtime(seconds)
    date = _DAYS[weekday], day, _MONTHS[month - 1], year, hour, minute, second
    return b"%b, %02d %b %04d %02d:%02d:%02d GMT" % date


class Idleness:
    """Tells when no request, WebSocket or stream has been under way, and no connection has come, for so many seconds.

    `tell(True)` once when that is so, `tell(False)` once when it ends; and so on until `end`.
    """

    def __init__(self, accounts: Accounts, seconds: float, tell: Callable[[bool], None]) -> None:
        self._accounts = accounts
        self._seconds = seconds
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self.idle = False
        accounts.on_activity = self._active
        self._timer = self._loop.call_later(seconds, self._look)

    def end(self) -> None:
        """Tell nothing more."""
        self._accounts.on_activity = None
        self._timer.cancel()

    def _active(self) -> None:
        self._since = self._loop.time()
        if self.idle:
            self.idle = False
            self._timer = self._loop.call_at(self._since + self._seconds, self._look)
            self._tell(False)

    def _look(self) -> None:
        due = self._since + self._seconds
        if self._accounts.tasks:
            # The end of what is under way is activity too.
            due = self._loop.time() + self._seconds
        elif self._loop.time() >= due:
            self.idle = True
            self._tell(True)
            return
        self._timer = self._loop.call_at(due, self._look)
