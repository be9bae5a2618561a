"""What servers print and no file takes, because a disk is full, say: an event, and a warning of a command under way."""

from __future__ import annotations

from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.monitor.events import Events

# A disk may stay full for days; once a minute is often enough to hear of it.
_AGAIN_SECONDS = 60.0


class LostOutput:
    """Adds up what is reported. The server itself goes on: serving is worth more than its log."""

    def __init__(self, core: Core, events: Events) -> None:
        self._core = core
        self._events = events
        self._warnings: dict[str, tuple[str, int]] = {}
        self._untold: dict[str, int] = {}
        self._next: dict[str, float] = {}

    def report(self, name: str, count: int, path: str, reason: str) -> None:
        """So many bytes that the server printed were not stored at `path`."""
        entry = self._core.entries.get(name)
        if entry is None:
            return
        because = f" to {path}: {reason}" if reason else f" to {path}"
        self._warn(entry, count, because)
        self._untold[name] = self._untold.get(name, 0) + count
        now = self._core.clock.monotonic()
        if now >= self._next.get(name, 0.0):
            self._next[name] = now + _AGAIN_SECONDS
            lost = self._untold.pop(name)
            message = f"{lost} bytes of output could not be written{because}"
            bind = entry.config.key
            self._events.record(
                "pool", "output lost", server=name, message=message, cause=reason, bind=bind, severity="error"
            )

    def _warn(self, entry: Entry, count: int, because: str) -> None:
        """One warning for a server, which the next command takes away, however much is lost till then."""
        before, lost = self._warnings.get(entry.name, ("", 0))
        lost = lost + count if before in entry.warnings else count
        text = f"{entry.name}: {lost} bytes of output could not be written{because}"
        self._core.warn(entry, text, instead_of=before)
        self._warnings[entry.name] = text, lost
