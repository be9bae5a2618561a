"""Ends what is left of a pool whose keeper and supervisor were both killed, before a new one opens its addresses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence

from poolctl.daemon_threads import in_daemon_thread
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.left_overs import LeftOver, ProcessNote, end_left_overs, left_over_text, living

logger = logging.getLogger("poolctl.supervisor")


class KilledPool:
    """The processes `left` by a killed pool, and messages about them for the client that starts the pool."""

    def __init__(self, events: EventBus) -> None:
        self.left: Sequence[ProcessNote] = ()
        self._notices: list[str] = []
        self._events = events
        self._ending: asyncio.Task[None] | None = None

    async def end(self, notes: Sequence[ProcessNote], own_pids: Collection[int | None]) -> None:
        """End these processes, except processes with `own_pids`; return once all have stopped listening.

        Workers that finish their requests, and HAProxy, may end later.
        """
        foreign = [note for note in notes if note.pid not in own_pids]
        self.left = await in_daemon_thread(lambda: living(foreign)) if foreign else ()
        if self.left:
            released = asyncio.Event()
            self._ending = asyncio.ensure_future(self._end(self.left, released))
            await released.wait()

    async def _end(self, left: Sequence[ProcessNote], released: asyncio.Event) -> None:
        loop, reported = asyncio.get_running_loop(), list[str]()

        def begin_new_pool() -> None:
            self._report(reported)
            released.set()

        def on_released(sessions: Sequence[LeftOver]) -> None:
            reported.extend(_messages(sessions))
            loop.call_soon_threadsafe(begin_new_pool)

        try:
            ended = await in_daemon_thread(lambda: end_left_overs(left, on_released=on_released))
            warnings = [warning for session in ended for warning in session.warnings]
            self._report([warning for warning in warnings if warning not in reported])
        except Exception:
            logger.exception("what a killed pool has left could not be ended")
        finally:
            released.set()

    def _report(self, messages: Sequence[str]) -> None:
        self._notices += messages
        for message in messages:
            logger.warning(message)
            self._events.record("pool", "left over", message=message, severity="warning")

    def take_notices(self) -> list[str]:
        """The messages that no client has been told yet."""
        notices, self._notices = self._notices, []
        return notices


def _messages(sessions: Sequence[LeftOver]) -> list[str]:
    finishing = ", ".join(dict.fromkeys(session.note.label for session in sessions if session.pidfds))
    warnings = [warning for session in sessions if not session.pidfds for warning in session.warnings]
    if not (labels := [session.note.label for session in sessions if session.is_ours]):
        return warnings
    outcome = f"still finishing: {finishing}" if finishing else "ended"
    return [f"{left_over_text(labels)}; {outcome}", *warnings]
