"""Determines which servers a window keeps awake or asleep now, with one timer for the next change."""

from __future__ import annotations

import asyncio

from poolctl.clock import Clock
from poolctl.config import ServerConfig
from poolctl.time_windows import NO_PERIOD, Period, period_at, time_zone, until_text

from .decision_input import ASLEEP, AWAKE
from .server_changes import Workqueue
from .server_entry import Entry

# The loop's clock does not know that the machine was suspended, or that its time was set.
_LONGEST_WAIT_SECONDS = 3600.0


class SleepWindows:
    """The windows of all servers; an entry is queued when one of its windows begins or ends."""

    def __init__(self, clock: Clock, queue: Workqueue) -> None:
        self._clock = clock
        self._queue = queue
        # Most servers with windows share the windows of [defaults].
        self._periods: dict[tuple[object, ...], tuple[float, Period]] = {}
        self._entries: dict[str, Entry] = {}
        self._timer: asyncio.TimerHandle | None = None

    def review(self, entry: Entry) -> None:
        """Update the entry's window to the current time; called before each decision about it."""
        scale = entry.config.scale
        if not (scale.awake or scale.asleep) or entry.removed:
            if self._entries.pop(entry.name, None) is not None:
                entry.observed.window = NO_PERIOD
            return
        self._entries[entry.name] = entry
        entry.observed.window = self._period(entry.config)
        self._set_timer(entry.observed.window.until)

    def _period(self, config: ServerConfig) -> Period:
        scale = config.scale
        key = (scale.awake, scale.asleep, scale.timezone)
        now = self._clock.time()
        since, known = self._periods.get(key, (0.0, NO_PERIOD))
        # The machine's time may have been set.
        if since and since <= now and (known.until is None or now < known.until):
            return known
        windows = ((ASLEEP, scale.asleep), (AWAKE, scale.awake))
        found = period_at(windows, now, time_zone(scale.timezone))
        self._periods[key] = now, found
        return found

    def _set_timer(self, until: float | None) -> None:
        if until is None:
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + min(max(0.0, until - self._clock.time()), _LONGEST_WAIT_SECONDS)
        if self._timer is None or due < self._timer.when():
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_at(due, self._window_changed)

    def _window_changed(self) -> None:
        self._timer = None
        self._periods.clear()
        for entry in list(self._entries.values()):
            if self._period(entry.config) != entry.observed.window:
                self._queue.touch(entry)
            else:
                self._set_timer(entry.observed.window.until)


def asleep_until(entry: Entry) -> float | None:
    """The time until which a window keeps the server asleep, in seconds since 1970 (0: forever); None if none does."""
    return (entry.observed.window.until or 0.0) if entry.kept == ASLEEP and entry.wanted else None


def window_text(entry: Entry, now: float) -> str:
    """The effect of the server's window as text, such as `kept awake until 18:00`; "" without an effect."""
    if not entry.kept:
        return ""
    zone = entry.config.scale.timezone
    text = f"kept {entry.kept} {until_text(entry.observed.window.until, now, time_zone(zone))}".rstrip()
    return f"{text} ({zone})" if zone and entry.observed.window.until is not None else text
