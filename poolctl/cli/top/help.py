"""The page that explains the keys."""

from __future__ import annotations

from rich.text import Text

_KEYS = (
    ("Look", ""),
    ("↑ ↓  j k", "select a server; Page Up, Page Down, Home, End"),
    ("/", "filter: words of names, addresses, states, health, tags;"),
    ("", "Esc shows all again"),
    ("< >  ← →", "sort by the column before or after"),
    ("N S H R L M C U X", "sort by name, state, health, requests, latency, memory,"),
    ("", "CPU, uptime, restarts; once more: the other way round;"),
    ("", "F: the order of the file"),
    ("Enter  l", "the log of the selected server"),
    ("Space", "pause, and go on"),
    ("", ""),
    ("Act on the selected server", ""),
    ("r", "restart: the new process answers before the old one ends"),
    ("s", "stop it (asks first), or start it"),
    ("d", "take it out of rotation (asks first), or back"),
    ("+ -", "one worker more, or fewer (asks first)"),
    ("", ""),
    ("Columns", ""),
    ("REQ/S  P99", "requests a second; 99 of 100 are answered in this time"),
    ("MEM  CPU", "of all its processes; shared memory counts in part (PSS)"),
    ("BUSY  CONN", "requests being answered, connections open"),
    ("UP  RST", "since when it runs, and how often it was restarted"),
    ("", ""),
    ("q", "leave; the servers go on"),
)
_WIDTH = 19


def help_lines() -> list[Text]:
    """The page."""
    lines = []
    for keys, meaning in _KEYS:
        if keys and not meaning:
            lines.append(Text(f" {keys}", "bold cyan"))
        else:
            lines.append(Text.assemble("  ", (keys.ljust(_WIDTH), "bold"), meaning))
    return lines
