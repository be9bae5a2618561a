"""How bad an event is: info, warning or error. One verdict for the colours of a table and for who is told."""

from __future__ import annotations

from typing import Any

INFO, WARNING, ERROR = SEVERITIES = ("info", "warning", "error")

_STATES = {"failed": ERROR, "backoff": WARNING}
_HEALTH = {"ko": ERROR, "warn": WARNING}
_POOL = {"keeper lost": ERROR, "keeper silent": ERROR, "events lost": ERROR}
_ORDERED = ("draining", "stopping")


def severity(event: dict[str, Any]) -> str:
    """The event's own `severity`, if it has one, else what its kind says."""
    own = event.get("severity")
    if own in SEVERITIES:
        return str(own)
    kind, after = event.get("kind"), event.get("after")
    if kind == "health":
        return _HEALTH.get(str(after), INFO)
    if kind == "lifecycle":
        return _of_lifecycle(event)
    if kind == "recovery":
        return ERROR if event.get("event") in ("failed", "given up") else WARNING
    if kind == "pool":
        return _POOL.get(str(event.get("event")), WARNING if event.get("adopted") else INFO)
    return INFO


def _of_lifecycle(event: dict[str, Any]) -> str:
    if event.get("event") != "worker ended":
        return _STATES.get(str(event.get("after")), INFO)
    unordered = event.get("before") not in _ORDERED
    return WARNING if unordered and event.get("status") != 0 else INFO
