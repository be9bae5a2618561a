"""HAProxy's syntax: words, names, times and networks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from poolctl.routing.decision import EVERY, UNIX_PEERS

# The longest time that HAProxy supports, in place of no limit.
_NO_LIMIT = "24d"
_NETWORKS_A_LINE = 20


def unique_name(text: str, taken: set[str]) -> str:
    """Return a name that HAProxy allows, resembles the text and is not in `taken`; adds it to `taken`."""
    wanted = found = re.sub(r"[^A-Za-z0-9_.:-]", "_", text)
    number = 1
    while found in taken:
        number += 1
        found = f"{wanted}:{number}"
    taken.add(found)
    return found


def quoted(text: str) -> str:
    """The text as one word of a configuration, quoted if necessary. It must not contain line breaks."""
    return text if re.fullmatch(r"[A-Za-z0-9_./:@=,+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def literal(text: str) -> str:
    """The text, escaped for places where HAProxy expands formats."""
    return text.replace("%", "%%")


def duration(seconds: float) -> str:
    """The time in HAProxy's syntax; 0 means no limit."""
    return f"{max(1, round(seconds * 1000))}ms" if seconds else _NO_LIMIT


def longest_duration(times: Iterable[float]) -> str:
    """The longest of several time limits in HAProxy's syntax; a limit of 0 means no limit."""
    found = [*times]
    return duration(0.0 if 0.0 in found else max(found))


def network_groups(networks: Sequence[str]) -> Iterator[str]:
    """The networks, separated by spaces, in groups of at most _NETWORKS_A_LINE; UNIX_PEERS is none."""
    networks = [each for each in networks if each != UNIX_PEERS]
    if EVERY in networks:
        networks = ("0.0.0.0/0", "::/0")
    for start in range(0, len(networks), _NETWORKS_A_LINE):
        yield " ".join(networks[start : start + _NETWORKS_A_LINE])
