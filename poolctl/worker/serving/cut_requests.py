"""Requests that take longer than a stop may: their clients get 503 (RFC 9110 §15.6.4), unless a response has begun.

uvicorn responds with 500 to a request whose task is cancelled, as if the application had failed. A request that waits
for a thread cannot be cancelled: its response does not wait for the application.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from functools import partial
from typing import Any

from .uvicorn_parts import CLOSE_HEADER

CUT = "the server stops"  # the message of the cancellation

_STATUS, _BODY = 503, b"Service Unavailable"
_HEADERS = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(_BODY))]
_SEND_SECONDS = 0.1


def cancel(tasks: Iterable[asyncio.Task[None]], connections: Iterable[object]) -> None:
    """Cancel the tasks of requests; requests whose application sends no response to that get a 503."""
    for connection, cycle in _unanswered(connections):
        cycle.send_500_response = partial(_answer, connection, cycle)
    for task in list(tasks):
        task.cancel(msg=CUT)


async def answer_uncancelled(connections: Iterable[object]) -> None:
    """Answer the requests with 503 whose cancelled tasks have not ended."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SEND_SECONDS):
            for connection, cycle in list(_unanswered(connections)):
                await _answer(connection, cycle)
                cycle.disconnected = True  # the application's further output is ignored


def _unanswered(connections: Iterable[Any]) -> Iterable[tuple[Any, Any]]:
    """The requests without a response, with their connections; excludes WebSockets and unknown classes."""
    for connection in connections:
        several = getattr(connection, "cycles", None)  # of HTTP/2
        cycles = [getattr(connection, "cycle", None)] if several is None else several.values()
        for cycle in cycles:
            if cycle is not None and not cycle.response_started and not cycle.disconnected:
                yield connection, cycle


async def _answer(connection: Any, cycle: Any) -> None:
    headers = list(_HEADERS)
    if hasattr(connection, "cycle") and CLOSE_HEADER not in cycle.default_headers:
        headers.append(CLOSE_HEADER)
    await cycle.send({"type": "http.response.start", "status": _STATUS, "headers": headers})
    await cycle.send({"type": "http.response.body", "body": _BODY, "more_body": False})
