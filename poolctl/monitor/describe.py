"""An event in a line for people."""

from __future__ import annotations

from typing import Any


def sentence(event: dict[str, Any]) -> str:
    """What happened, and why: `starting → running (restart a)`."""
    what, cause = _what(event), str(event.get("cause") or "")
    return what if what.endswith(cause) else f"{what} ({cause})"


def who(event: dict[str, Any]) -> str:
    """Who asked for it, "" for nobody: `root, poolctl 4242`."""
    by = event.get("by")
    if not isinstance(by, dict):
        return ""
    return f"{by.get('user', by.get('uid', '?'))}, {by.get('command') or 'pid'} {by.get('pid', '?')}"


def _what(event: dict[str, Any]) -> str:
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
