"""The verb `events`: events of the journal, then new ones for as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from functools import partial

from poolctl.control.answers import EventsResult, ProgressLine
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import KINDS, MOST_LINES, EventFilter, parse_filter, recent
from poolctl.pool.select import Selector, SelectorError

from .selection import Selection

_SHAPE = f"since as in the journal, lines and after as numbers, kind as a list of {', '.join(KINDS)}"


class EventStream:
    """Sends events as lines of progress."""

    def __init__(self, core: Core, events: Events) -> None:
        self._events = events
        self._selection = Selection(core)
        self._over = asyncio.Event()

    async def events(self, selector: Selector, options: Document, progress: Progress) -> EventsResult:
        """Send the last `lines` matching events (10,000 at most), and with `follow` each new one.

        The result names the journal and the number of its last event.
        """
        names = None if selector.selects_all else {entry.name for entry in self._selection.of(selector)}
        wanted, lines = _wanted(names, options)
        events = self._events
        events.flush()
        if wanted.after > events.seq:
            # The number is of a journal that has been removed.
            wanted = wanted._replace(after=0)
        queue: asyncio.Queue[Document] = asyncio.Queue()
        end = events.subscribe(partial(_offer, queue, wanted))
        try:
            path = events.journal.path if events.journal is not None else ""
            if path:
                # In a thread: a journal may be large, and its disk slow. New events are queued meanwhile.
                past = wanted._replace(until=events.seq)
                for event in await asyncio.to_thread(recent, path, past, lines) if events.seq else ():
                    progress(ProgressLine(event=event))
            if options.get("follow"):
                await self._follow(queue, progress)
        finally:
            end()
        return EventsResult(seq=events.seq, path=path)

    async def _follow(self, queue: asyncio.Queue[Document], progress: Progress) -> None:
        over = asyncio.ensure_future(self._over.wait())
        try:
            while not over.done():
                coming = asyncio.ensure_future(queue.get())
                await asyncio.wait({coming, over}, return_when=asyncio.FIRST_COMPLETED)
                if coming.done():
                    progress(ProgressLine(event=coming.result()))
                coming.cancel()
        finally:
            over.cancel()

    def end(self) -> None:
        """End all streams, because the supervisor ends."""
        self._over.set()


def _offer(queue: asyncio.Queue[Document], wanted: EventFilter, event: Document) -> None:
    if wanted.matches(event):
        queue.put_nowait(event)


def _wanted(names: Collection[str] | None, options: Document) -> tuple[EventFilter, int]:
    """Raises SelectorError for options of another shape than the protocol's."""
    lines = options.get("lines", MOST_LINES)
    wanted = parse_filter(
        servers=names, kinds=options.get("kind"), since=options.get("since"), after=options.get("after")
    )
    if wanted is None or not isinstance(lines, int) or isinstance(lines, bool) or lines < 0:
        raise SelectorError("events: what is wanted?", hint=_SHAPE)
    return wanted, min(lines, MOST_LINES)
