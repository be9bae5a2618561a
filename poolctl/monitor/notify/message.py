"""One notification: a title, a line for each problem, and its severity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from poolctl.monitor.describe import INFO, SEVERITIES

_NAMED = 3
PROBLEM, RESOLVED, NEWS, TEST = "problem", "resolved", "info", "test"


class Message(NamedTuple):
    """`status` is problem, resolved, info or test; `time` in seconds since the epoch."""

    status: str
    severity: str
    title: str
    lines: tuple[str, ...]
    time: float
    events: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """Its lines as one text."""
        return "\n".join(self.lines)


class MessageLine(NamedTuple):
    """One problem, its end, or a piece of news."""

    status: str
    severity: str
    text: str
    event: dict[str, Any]


def compose(pool: str, lines: Sequence[MessageLine], now: float) -> Message:
    """One message of these lines, of which there is at least one."""
    counts = {status: sum(line.status == status for line in lines) for status in (PROBLEM, RESOLVED, NEWS)}
    status = next(status for status, count in counts.items() if count)
    worst = max((SEVERITIES.index(line.severity) for line in lines if line.status == status), default=0)
    words = [f"{count} {_word(status, count)}" for status, count in counts.items() if count]
    title = lines[0].text if len(lines) == 1 else f"{', '.join(words)}{_server_names(lines)}"
    return Message(
        status,
        SEVERITIES[worst] if status != RESOLVED else INFO,
        f"{pool}: {title.partition(chr(10))[0]}",
        tuple(line.text for line in lines),
        now,
        tuple(line.event for line in lines),
    )


def _server_names(lines: Sequence[MessageLine]) -> str:
    """The names of the first few servers: often only the title is read."""
    names = list(
        dict.fromkeys(str(line.event.get("server") or "") for line in lines if line.event.get("server"))
    )
    shown = ", ".join(names[:_NAMED])
    return f" ({shown}{' …' if len(names) > _NAMED else ''})" if names else ""


def _word(status: str, count: int) -> str:
    if status == PROBLEM:
        return "problems" if count > 1 else "problem"
    return "resolved" if status == RESOLVED else "news"
