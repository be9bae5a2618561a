"""A supervisor's answers on an event loop: for clients that ask all the time, or follow what happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from poolctl.control.client import NoSupervisor, SupervisorEnded

Document = dict[str, Any]

# One line is one document, and that of a pool with thousands of servers has megabytes.
_LINE_BYTES = 256 * 1024 * 1024
_OK = b"200"


async def answers(
    socket_path: str, verb: str, body: Mapping[str, Any] | None = None
) -> AsyncGenerator[Document]:
    """Every line of the answer to `verb` as it comes: progress, then {"result": …}. Close it to ask no more.

    Raises NoSupervisor when nothing listens, SupervisorEnded when it goes away before the result, or refuses.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path, limit=_LINE_BYTES)
    except OSError:
        raise NoSupervisor from None
    try:
        payload = json.dumps(body or {}).encode()
        head = f"POST /v1/{verb} HTTP/1.0\r\nHost: poolctl\r\nContent-Length: {len(payload)}\r\n\r\n"
        writer.write(head.encode() + payload)
        if not await _accepted(reader):
            raise SupervisorEnded(socket_path)
        while line := await reader.readline():
            document = json.loads(line)
            yield document
            if "result" in document:
                return
        raise SupervisorEnded(socket_path)
    except (ConnectionError, ValueError):
        raise SupervisorEnded(socket_path) from None
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(
    socket_path: str, verb: str, body: Mapping[str, Any] | None = None, *, timeout_seconds: float
) -> Document:
    """The supervisor's result for `verb`. Raises what `answers` does, and TimeoutError."""
    async with (
        asyncio.timeout(timeout_seconds),
        contextlib.aclosing(answers(socket_path, verb, body)) as lines,
    ):
        async for document in lines:
            if "result" in document:
                result: Document = document["result"]
                return result
    raise SupervisorEnded(socket_path)


async def _accepted(reader: asyncio.StreamReader) -> bool:
    """Whether the answer is one; its head has been read."""
    status = await reader.readline()
    while (await reader.readline()).strip():
        continue
    return status.split()[1:2] == [_OK]
