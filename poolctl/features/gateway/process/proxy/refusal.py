"""Responses of the gateway itself, where no backend gives one."""

from __future__ import annotations

from http import HTTPStatus
from math import ceil

# RFC 9110's phrases where older interpreters' http.HTTPStatus has obsolete phrases.
_PHRASES = {413: "Content Too Large"}


def refusal(
    status: int,
    *,
    retry_after_seconds: float = 0,
    head_only: bool = False,
    keep_alive: bool = False,
    fields: bytes = b"",
) -> bytes:
    """A whole response of HTTP/1.1 with a line of text; without `keep_alive` it announces the connection's end.

    `fields` are the lines of further fields, each with its end.
    """
    phrase = phrase_of(status)
    body = f"{status} {phrase}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
    ]
    if retry_after_seconds:
        lines.append(f"Retry-After: {max(1, ceil(retry_after_seconds))}")
    if not keep_alive:
        lines.append("Connection: close")
    head = "\r\n".join([*lines, ""]).encode() + fields + b"\r\n"
    return head if head_only else head + body


def phrase_of(status: int) -> str:
    """The reason phrase of a status, "" for an unknown one."""
    try:
        return _PHRASES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return ""
