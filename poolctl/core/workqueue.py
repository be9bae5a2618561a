"""Queues servers for decisions, and attributes their changes to what has caused them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context, ContextVar
from typing import Any, Protocol

from .server_entry import Entry
from .server_state import Cause

BATCH = 8


class Recorder(Protocol):
    """Records the events of servers: changes of their health, expired certificates, runs, starts that time out."""

    def record(self, kind: str, event: str, **detail: Any) -> None:
        """Record an event. `kind` is a category, such as "health"; `event` says what happened, such as "run failed".

        `detail` has the event's fields: `server`, which is required, and `bind`, `message`, `cause`, `by`, `before`,
        `after`, `worker` and others. Never raises or blocks.
        """


CURRENT_CAUSE: ContextVar[Cause | None] = ContextVar("cause", default=None)
# The core decides in an empty context, because the work that it starts outlasts the command that caused it.
NO_CAUSE = Context()


@contextmanager
def caused_by(cause: str, by: Mapping[str, object] | None = None) -> Iterator[None]:
    """Context manager: changes of servers in its block are attributed to this cause and author (see Cause)."""
    token = CURRENT_CAUSE.set(Cause(cause, by))
    try:
        yield
    finally:
        CURRENT_CAUSE.reset(token)


class Workqueue:
    """A queue of entries that may have changed. An entry is queued only once, at the place of its first change.

    Entries with a finished action come first: when many servers start, one with an open listener can start its workers
    before all listeners are open.
    """

    def __init__(self, process: Callable[[], None] | None = None) -> None:
        """Create a queue. After `touch` or `schedule`, `process` is called before the event loop sleeps."""
        self.commanded: set[str] = set()  # the names of servers that a command or a request has selected
        self._changed: dict[str, Entry] = {}
        self._progressed: dict[str, Entry] = {}
        self._others: dict[str, Entry] = {}
        self._process = process
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()

    def __bool__(self) -> bool:
        return bool(self._progressed or self._others)

    def touch(self, entry: Entry, *, progressed: bool = False) -> None:
        """Queue an entry that has changed: its next actions are decided before the event loop sleeps.

        Within a `with caused_by(…)` block, the change is attributed to the cause given there. `progressed` means that
        an action on the entry has finished; the entry then precedes entries without a finished action.
        """
        self.add(entry, progressed=progressed)
        self._changed[entry.name] = entry
        if cause := CURRENT_CAUSE.get():
            entry.desired.cause = cause
            self.commanded.add(entry.name)
        self.schedule()

    def note(self, entry: Entry) -> None:
        """Record a change that cannot lead to actions: `take_changed` returns the entry, but it is not queued."""
        self._changed[entry.name] = entry

    def take_changed(self) -> list[Entry]:
        """The entries that have changed since the last call."""
        changed = list(self._changed.values())
        self._changed.clear()
        return changed

    def schedule(self) -> None:
        """Have `process` called before the event loop sleeps, to decide on the queued entries."""
        if self._process is not None and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._process_scheduled, context=NO_CAUSE)

    def _process_scheduled(self) -> None:
        self._scheduled = False
        assert self._process is not None
        self._process()

    def add(self, entry: Entry, *, progressed: bool = False) -> None:
        """Queue the entry, so that `take_batch` yields it; `schedule` is not called. For `progressed`, see `touch`."""
        (self._progressed if progressed else self._others)[entry.name] = entry

    def add_all(self, entries: Iterable[Entry]) -> None:
        """Queue the entries, so that `take_batch` yields them; `schedule` is not called."""
        for entry in entries:
            self.add(entry)

    def take_batch(self) -> Iterator[Entry]:
        """Take at most BATCH entries from the queue, including entries queued meanwhile.

        First comes one entry without a finished action, so that these are not starved; then all entries with a finished
        action; then the others.
        """
        for position in range(BATCH):
            if not self:
                return
            queue = self._progressed if self._progressed and (position or not self._others) else self._others
            entry = queue.pop(next(iter(queue)))
            self._progressed.pop(entry.name, None)
            self._others.pop(entry.name, None)
            yield entry

    def run(self, work: Awaitable[None]) -> asyncio.Task[None]:
        """Run the coroutine as a task, and keep a reference until it has ended. An exception is logged."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "an action on a server has failed", "exception": error, "task": task}
            )
