"""Changes of servers: their causes, the events that report them, and the queue of the servers to decide on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Protocol

from .server_entry import Cause, Entry

BATCH = 8


class Recorder(Protocol):
    """Records the events of servers: changes of their health, expired certificates, runs, starts that time out."""

    def record(
        self,
        kind: str,
        event: str,
        *,
        server: str = "",
        message: str = "",
        cause: str = "",
        by: Mapping[str, object] | None = None,
        before: object = None,
        after: object = None,
        **detail: object,
    ) -> None:
        """Record the event; never raises, never blocks. `detail` holds the server's `bind`, and perhaps a worker."""
        ...


CURRENT_CAUSE: ContextVar[Cause | None] = ContextVar("cause", default=None)
# The core decides in this context: work that begins there outlasts the command that caused it.
NO_CAUSE = Context()


@contextmanager
def caused_by(cause: str, by: Mapping[str, object] | None = None) -> Iterator[None]:
    """Within this block every change of a server has this cause."""
    token = CURRENT_CAUSE.set(Cause(cause, by))
    try:
        yield
    finally:
        CURRENT_CAUSE.reset(token)


class Workqueue:
    """Entries that may have changed, each once, in the order of the changes.

    Entries with a finished action come first: of a hundred servers, the first are being forked while the sockets of the
    last are opened.
    """

    def __init__(self) -> None:
        self.commanded: set[str] = set()  # the names of servers that a command or a request has selected
        self._changed: dict[str, Entry] = {}
        self._progressed: dict[str, Entry] = {}
        self._others: dict[str, Entry] = {}
        self._settle: Callable[[], None] | None = None
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._progressed or self._others)

    def feed(self, settle: Callable[[], None]) -> None:
        """Call `settle` before the loop sleeps, whenever an entry is queued."""
        self._settle = settle

    def touch(self, entry: Entry, *, progressed: bool = False) -> None:
        """Decide on the entry, which has changed, before the loop sleeps; it notes the cause of the change.

        `progressed`: an action of its own has finished.
        """
        self.add(entry, progressed=progressed)
        self._changed[entry.name] = entry
        if cause := CURRENT_CAUSE.get():
            entry.desired.cause = cause
            self.commanded.add(entry.name)
        self.schedule()

    def note(self, entry: Entry) -> None:
        """The entry has changed in a way that affects no decision."""
        self._changed[entry.name] = entry

    def take_changed(self) -> list[Entry]:
        """The entries that have changed since the last call."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def schedule(self) -> None:
        """Have the entries decided on before the loop sleeps."""
        if self._settle is not None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._begin, context=NO_CAUSE)

    def _begin(self) -> None:
        self._scheduled = False
        assert self._settle is not None
        self._settle()

    def add(self, entry: Entry, *, progressed: bool = False) -> None:
        """Decide on the entry when its turn comes."""
        (self._progressed if progressed else self._others)[entry.name] = entry

    def update(self, entries: Iterable[Entry]) -> None:
        """Decide on all of them when their turns come."""
        for entry in entries:
            self.add(entry)

    def batch(self) -> Iterator[Entry]:
        """The entries to decide on before the loop turns, including those added meanwhile.

        The first is one without a finished action, so that none starves.
        """
        for place in range(BATCH):
            if not self:
                return
            queue = self._progressed if self._progressed and (place or not self._others) else self._others
            entry = queue.pop(next(iter(queue)))
            self._progressed.pop(entry.name, None)
            self._others.pop(entry.name, None)
            yield entry

    def run(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """Begin the work; it is kept until it has ended."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
