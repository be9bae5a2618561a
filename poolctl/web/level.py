"""The level of a server, one word for its history bar."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
