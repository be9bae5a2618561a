"""What the model knows and this version does not do yet. Using it is a problem, never silently ignored.

A later version deletes lines here and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolctl.config.problems import Finding

VERSION_LACKS = "{what} is not available in this version of poolctl"


def _recovery(value: Any) -> tuple[str, str]:
    return ("", "") if value in ({}, {"strategy": "restart"}) else ("", "recovery")


def _limits(value: Any) -> tuple[str, str]:
    return ("memory", "limits.memory") if value.get("memory") is not None else ("", "")


# Key of a server → (key within it, what is missing), both "" where the value is the default.
SERVER_KEYS: dict[str, Callable[[Any], tuple[str, str]]] = {
    "health": lambda value: ("", "health") if value else ("", ""),
    "limits": _limits,
    "recovery": _recovery,
}
FILE_TABLES = {
    "gateway": "the gateway",
    "route": "the gateway's [[route]]",
    "stream": "the gateway's [[stream]]",
    "operator": "the gateway's [operator]",
    "proxmox": "the gateway's [proxmox]",
}
# Keys whose value is a table: anything else is the model's complaint.
TABLES = frozenset({"limits", "recovery"})


def unavailable(table: dict[str, Any]) -> list[Finding]:
    """A finding for each key that is used before its time."""
    found: list[Finding] = []
    for key in SERVER_KEYS.keys() & table.keys():
        if key in TABLES and not isinstance(table[key], dict):
            continue
        within, what = SERVER_KEYS[key](table[key])
        if what:
            found.append(lacking((key, within) if within else (key,), what))
    return found


def lacking(path: tuple[str | int, ...], what: str) -> Finding:
    """The finding of something that comes later."""
    return Finding(path, VERSION_LACKS.format(what=what), "take it out, or install a version that has it")
