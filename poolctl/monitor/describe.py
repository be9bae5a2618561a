"""What people see of an event: a line of text, who caused it, and how bad it is."""

from __future__ import annotations

from poolctl.values import Table

INFO, WARNING, ERROR = SEVERITIES = ("info", "warning", "error")

_STATES = {"failed": ERROR, "backoff": WARNING}
_HEALTH = {"ko": ERROR, "warn": WARNING}
_POOL = {"keeper lost": ERROR, "keeper silent": ERROR, "events lost": ERROR}
_ORDERED = ("draining", "stopping")


def sentence(event: Table) -> str:
    """What happened, and why: `starting → running (restart a)`."""
    what, cause = _what(event), str(event.get("cause") or "")
    return what if what.endswith(cause) else f"{what} ({cause})"


def who(event: Table) -> str:
    """The user and process that caused it, `root, poolctl 4242`; "" for none."""
    by = event.get("by")
    if not isinstance(by, dict):
        return ""
    return f"{by.get('user', by.get('uid', '?'))}, {by.get('command') or 'pid'} {by.get('pid', '?')}"


def _what(event: Table) -> str:
    kind, word, message = event.get("kind"), str(event.get("event", "")), str(event.get("message") or "")
    if word.startswith("worker ") and kind == "lifecycle":
        pid = f" (pid {event['pid']})" if event.get("pid") else ""
        return f"{word}{pid}: {message}" if message else f"{word}{pid}"
    if kind == "scale":
        return message or f"{word}: {event.get('before')} → {event.get('after')}"
    if kind == "audit":
        end = word.partition(" ")[2]
        took = f" after {event['duration_seconds']:g} s" if end and "duration_seconds" in event else ""
        return f"{message}: {end}{took}" if end else message
    if kind == "config":
        keys = ", ".join(map(str, event.get("keys") or ()))
        return f"{word}: {message or keys}" if message or keys else word
    if kind in ("lifecycle", "wake") and message:
        return message
    return f"{word}: {message}" if message and message != word else word


def severity(event: Table) -> str:
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


def _of_lifecycle(event: Table) -> str:
    if event.get("event") != "worker ended":
        return _STATES.get(str(event.get("after")), INFO)
    unordered = event.get("before") not in _ORDERED
    return WARNING if unordered and event.get("status") != 0 else INFO
