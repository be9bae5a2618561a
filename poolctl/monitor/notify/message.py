"""A receiver's message: composed of events, and written in the form of each kind of receiver."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from poolctl.logs.log_line import stamp
from poolctl.monitor.describe import INFO, SEVERITIES
from poolctl.values import Table

_NAMED = 3
PROBLEM, RESOLVED, NEWS, TEST = "problem", "resolved", "info", "test"
# https://docs.ntfy.sh/publish/#message-priority, https://docs.ntfy.sh/emojis/
_NTFY_PRIORITIES = {"error": 5, "warning": 4, "info": 3}
_NTFY_TAGS = {"error": "rotating_light", "warning": "warning", "info": "information_source"}
# Gotify's apps make a sound from priority 4 on, a loud one from 8 on.
_GOTIFY_PRIORITIES = {"error": 8, "warning": 5, "info": 2}
_COLOURS = {"error": "#d00000", "warning": "#e8a317", "info": "#2eb886"}


class PoolFacts(Protocol):
    """The facts of a pool that its receivers need."""

    @property
    def name(self) -> str:
        """The name of the pool."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that hold secrets."""
        ...

    @property
    def directory(self) -> str:
        """Where commands run."""
        ...

    def tags(self, server: str) -> Collection[str]:
        """The tags of the server of this name."""
        ...


class Message(NamedTuple):
    """`status` is problem, resolved, info or test; `time` in seconds since the epoch."""

    status: str
    severity: str
    title: str
    lines: tuple[str, ...]
    time: float
    events: tuple[Table, ...] = ()

    @property
    def text(self) -> str:
        """Its lines as one text."""
        return "\n".join(self.lines)


class MessageLine(NamedTuple):
    """One problem, its end, or a piece of news."""

    status: str
    severity: str
    text: str
    event: Table


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


class Post(NamedTuple):
    """The request; the path is appended to that of the address."""

    path: str
    headers: dict[str, str]
    body: bytes


def post(kind: str, message: Message, *, pool: str, host: str, topic: str = "", token: str = "") -> Post:
    """The message as a receiver of this kind takes it."""
    bearer = {"authorization": f"Bearer {token}"} if token else {}
    if kind == "ntfy":
        return _json("/", bearer, _ntfy(message, topic))
    if kind == "gotify":
        return _json("/message", {"x-gotify-key": token}, _gotify(message))
    if kind == "slack":
        return _json("", bearer, _slack(message))
    return _json("", bearer, document(message, pool, host))


def document(message: Message, pool: str, host: str) -> Table:
    """The body for a webhook, and the standard input of a command."""
    return {
        "schema": 1,
        "pool": pool,
        "host": host,
        "status": message.status,
        "severity": message.severity,
        "title": message.title,
        "text": message.text,
        "time": stamp(message.time),
        "events": list(message.events),
    }


def _json(path: str, headers: dict[str, str], body: Table) -> Post:
    return Post(path, {"content-type": "application/json", **headers}, json.dumps(body, default=str).encode())


def _ntfy(message: Message, topic: str) -> Table:
    tag = "white_check_mark" if message.status == RESOLVED else _NTFY_TAGS[message.severity]
    return {
        "topic": topic,
        "title": message.title,
        "message": message.text,
        "priority": _NTFY_PRIORITIES[message.severity],
        "tags": [tag],
    }


def _gotify(message: Message) -> Table:
    return {
        "title": message.title,
        "message": message.text,
        "priority": _GOTIFY_PRIORITIES[message.severity],
        "extras": {"client::display": {"contentType": "text/plain"}},
    }


def _slack(message: Message) -> Table:
    # https://api.slack.com/reference/surfaces/formatting#escaping
    colour = _COLOURS["info" if message.status in (RESOLVED, NEWS, TEST) else message.severity]
    return {
        "text": f"*{_escaped(message.title)}*",
        "attachments": [{"color": colour, "text": _escaped(message.text), "fallback": message.title}],
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
