"""Queues the pool's events on the supervisor's loop, and passes them in batches to the journal and subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from poolctl.clock import Clock, RateLimit
from poolctl.config import masked_text
from poolctl.logs.log_line import stamp

from .journal import Journal, JournalEvent, newest_number_and_damage

# Long enough to batch many events, short enough not to be noticed.
_GATHER_SECONDS = 0.02

# Per server: a burst large enough for a restart of thousands of workers, and a low rate in the long run.
_BURST, _PER_SECOND = 10_000, 20
_MAX_TEXT_LENGTH = 4096
_MAX_SERVERS = 20_000

Subscriber = Callable[[JournalEvent], None]

logger = logging.getLogger("poolctl.supervisor")


class EventBus:
    """`record` queues an event; within 20 ms all queued events go to the journal and to the subscribers.

    Before `write_to` they only go to the subscribers. Used on one event loop only; nothing here raises or blocks.
    """

    def __init__(self, clock: Clock) -> None:
        self.journal: Journal | None = None
        self._clock = clock
        self._seq = 0
        self._pending: list[JournalEvent] = []
        self._timer: asyncio.TimerHandle | None = None
        self._subscribers: list[Subscriber] = []
        self._allowances: dict[str, RateLimit] = {}
        self._dropped: dict[str, int] = {}

    @property
    def seq(self) -> int:
        """The number of the newest event. Numbers continue for as long as the journal exists."""
        return self._seq

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
        """Record an event. The arguments must not be changed afterwards.

        `kind` is one of journal.KINDS, `event` a few words; JournalEvent describes the other arguments.
        """
        if server and not self._take_event_allowance(server):
            return
        if isinstance(output := detail.get("output"), list):  # the output of a program
            detail["output"] = [_sanitized(line) for line in output]
        self._seq += 1
        time, message, cause = stamp(self._clock.time()), _sanitized(message), _sanitized(cause)
        self._pending.append(
            JournalEvent(time, self._seq, kind, event, server, message, cause, by, before, after, detail)
        )
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if self._timer is None:
            self._timer = loop.call_later(_GATHER_SECONDS, self.flush)

    def _take_event_allowance(self, server: str) -> bool:
        """Whether the rate limit allows another event of this server; if so, first records how many were dropped."""
        if len(self._allowances) > _MAX_SERVERS:
            self._allowances.clear()  # mostly of removed servers
        allowance = self._allowances.setdefault(server, RateLimit(_BURST, _PER_SECOND))
        if not allowance.take(1, self._clock.monotonic()):
            self._dropped[server] = self._dropped.get(server, 0) + 1
            return False
        left_out = self._dropped.pop(server, 0)
        if left_out:
            message = f"{left_out:,} events of {server} were left out: too many at once"
            self.record("pool", "events left out", server=server, message=message, lost=left_out)
        return True

    def write_to(self, journal: Journal) -> int:
        """Write events to this journal from now on; returns the number of damaged lines at its end.

        Event numbers continue after the newest event of this queue or of the journal, whichever is higher.
        """
        self.close()
        self.journal = journal
        with contextlib.suppress(OSError):  # a journal that cannot be read can rarely be written
            number, damaged = newest_number_and_damage(journal.path)
            self._seq = max(self._seq, number)
            return damaged
        return 0

    @property
    def problem(self) -> str:
        """Why the last events could not be written to the journal; "" if they were."""
        journal = self.journal
        if journal is None or not journal.lost:
            return ""
        count = "1 event" if journal.lost == 1 else f"{journal.lost} events"
        return f"{count} could not be written to {journal.path}: {journal.error}"

    def subscribe(self, fn: Subscriber) -> Callable[[], None]:
        """Register `fn` to be called with each event from now on. Returns a function that ends the subscription."""
        self._subscribers.append(fn)

        def end() -> None:
            if fn in self._subscribers:
                self._subscribers.remove(fn)

        return end

    def flush(self) -> None:
        """Write and deliver the queued events now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._pending = self._pending, []
        if not events:
            return
        if self.journal is not None:
            self._write(self.journal, events)
        for event in events:
            for subscriber in list(self._subscribers):
                try:
                    subscriber(event)
                except Exception:
                    logger.exception("an event could not be delivered")

    def _write(self, journal: Journal, events: list[JournalEvent]) -> None:
        lost_before = journal.lost
        journal.append(events)
        if journal.lost and not lost_before:
            logger.error("events are not written to %s: %s", journal.path, journal.error)
        elif lost_before and not journal.lost:
            message = f"{lost_before} events could not be written"
            self.record("pool", "events lost", message=message, lost=lost_before)

    def close(self) -> None:
        """Write the queued events, and close the journal."""
        self.flush()
        if self.journal is not None:
            self.flush()  # again: the first may have recorded that events were lost
            self.journal.close()


def _sanitized(text: str) -> str:
    """The text, which may come from an application: shortened, and with passwords in URLs masked."""
    return masked_text(text if len(text) <= _MAX_TEXT_LENGTH else f"{text[:_MAX_TEXT_LENGTH]}…")
