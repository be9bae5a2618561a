"""The formats of receivers: ntfy, gotify, Slack and compatible services, any webhook."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from poolctl.logs.log_line import stamp

from .message import NEWS, RESOLVED, TEST, Message

Document = dict[str, Any]

# https://docs.ntfy.sh/publish/#message-priority, https://docs.ntfy.sh/emojis/
_NTFY_PRIORITIES = {"error": 5, "warning": 4, "info": 3}
_NTFY_TAGS = {"error": "rotating_light", "warning": "warning", "info": "information_source"}
# Gotify's apps make a sound from priority 4 on, a loud one from 8 on.
_GOTIFY_PRIORITIES = {"error": 8, "warning": 5, "info": 2}
_COLOURS = {"error": "#d00000", "warning": "#e8a317", "info": "#2eb886"}


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


def document(message: Message, pool: str, host: str) -> Document:
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


def _json(path: str, headers: dict[str, str], body: Document) -> Post:
    return Post(path, {"content-type": "application/json", **headers}, json.dumps(body, default=str).encode())


def _ntfy(message: Message, topic: str) -> Document:
    tag = "white_check_mark" if message.status == RESOLVED else _NTFY_TAGS[message.severity]
    return {
        "topic": topic,
        "title": message.title,
        "message": message.text,
        "priority": _NTFY_PRIORITIES[message.severity],
        "tags": [tag],
    }


def _gotify(message: Message) -> Document:
    return {
        "title": message.title,
        "message": message.text,
        "priority": _GOTIFY_PRIORITIES[message.severity],
        "extras": {"client::display": {"contentType": "text/plain"}},
    }


def _slack(message: Message) -> Document:
    # https://api.slack.com/reference/surfaces/formatting#escaping
    colour = _COLOURS["info" if message.status in (RESOLVED, NEWS, TEST) else message.severity]
    return {
        "text": f"*{_escaped(message.title)}*",
        "attachments": [{"color": colour, "text": _escaped(message.text), "fallback": message.title}],
    }


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
