"""A supervisor's answers on an event loop: for clients that ask continually, or follow what happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from poolctl.control.client import FIELDS, OK, LineSplitter, NoSupervisor, SupervisorEnded
from poolctl.http.exchange import NoResponse, exchange
from poolctl.http.head import BadMessage
from poolctl.values import Table


async def answers(
    socket_path: str, verb: str, body: Mapping[str, Any] | None = None
) -> AsyncGenerator[Table]:
    """Every line of the answer to `verb` as it comes: progress, then {"result": …}. Close it to stop asking.

    Raises NoSupervisor when nothing listens, SupervisorEnded when it goes away before the result, or refuses.
    """
    payload = json.dumps(body or {}).encode()
    fields = [*FIELDS, ("Content-Length", str(len(payload)))]
    lines = LineSplitter()
    try:
        async with exchange(socket_path, "POST", f"/v1/{verb}", fields, payload, version="1.0") as response:
            if response.status != OK:
                raise SupervisorEnded(socket_path)
            async for piece in response.body():
                for line in lines.feed(piece):
                    document = json.loads(line)
                    yield document
                    if "result" in document:
                        return
    except (NoResponse, BadMessage, ValueError):
        raise SupervisorEnded(socket_path) from None
    except OSError:
        raise NoSupervisor from None
    raise SupervisorEnded(socket_path)


async def ask(
    socket_path: str, verb: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float
) -> Table:
    """The supervisor's result for `verb`. Raises what `answers` does, and TimeoutError."""
    async with (
        asyncio.timeout(timeout_seconds),
        contextlib.aclosing(answers(socket_path, verb, body)) as documents,
    ):
        async for document in documents:
            if "result" in document:
                result: Table = document["result"]
                return result
    raise SupervisorEnded(socket_path)
