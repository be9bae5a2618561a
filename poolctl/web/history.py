"""The servers' levels, one word for each moment of a history bar, and their changes during the last hour."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

SPAN_SECONDS = 3600.0
_MOST_CHANGES = 400

Changes = list[list[Any]]  # [seconds since 1970, level], oldest first

OK, WARN, KO, BUSY, ASLEEP, OFF = "ok", "warn", "ko", "busy", "asleep", "off"

_RESTING = {
    "stopped": OFF,
    "disabled": OFF,
    "sleeping": ASLEEP,
    "failed": KO,
    "backoff": KO,
    "starting": BUSY,
    "draining": BUSY,
    "stopping": BUSY,
}


STATES = frozenset({*_RESTING, "running"})


def level(item: Mapping[str, Any]) -> str:
    """`ok warn ko busy asleep off` for a server as `list` describes it (state, ready, health)."""
    state = str(item.get("state", ""))
    if state in _RESTING:
        # A job that has exited with 0 has succeeded.
        return OK if state == "stopped" and item.get("ready") else _RESTING[state]
    if item.get("health") == "ko":
        return KO
    if item.get("health") == "warn":
        return WARN
    return OK if item.get("ready") else BUSY


class Levels:
    """The changes of every server's level. The time before the first one is unknown."""

    def __init__(self) -> None:
        self._changes: dict[str, Changes] = {}

    def fill(self, event: Mapping[str, Any]) -> None:
        """Add a server's change from an event of the journal."""
        kind, name, after = event.get("kind"), str(event.get("server") or ""), event.get("after")
        if not name or not isinstance(after, str):
            return
        if kind in ("lifecycle", "wake") and after in STATES:
            word = level({"state": after, "ready": after == "running"})
            self._note(name, word, _seconds(event.get("time")))
        elif kind == "health" and after in (OK, WARN, KO):
            self._note(name, after, _seconds(event.get("time")))

    def note(self, item: Mapping[str, Any], now: float) -> None:
        """Add a server's present level, if it has changed."""
        self._note(str(item["name"]), level(item), now)

    def _note(self, name: str, word: str, now: float) -> None:
        changes = self._changes.setdefault(name, [])
        # The journal's events may arrive after the present state has been queried.
        place = bisect.bisect_right(changes, now, key=lambda change: float(change[0]))
        if place == 0 or changes[place - 1][1] != word:
            changes.insert(place, [round(now, 1), word])
            del changes[:-_MOST_CHANGES]

    def forget(self, names: Iterable[str]) -> None:
        """Drop the history of removed servers."""
        for name in names:
            self._changes.pop(name, None)

    def since(self, now: float) -> dict[str, Changes]:
        """The last hour's changes by server: the last one before it, and those within."""
        return {name: _recent(changes, now - SPAN_SECONDS) for name, changes in self._changes.items()}


def _recent(changes: Changes, begin: float) -> Changes:
    within = next((index for index, (when, _) in enumerate(changes) if when > begin), len(changes))
    return changes[max(0, within - 1) :]


def _seconds(time: Any) -> float:
    return datetime.fromisoformat(str(time)).timestamp()
