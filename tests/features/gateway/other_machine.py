"""A server of another machine, as far as a pool knows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.asyncio_server import listening
from tests.ports import claim_port


@contextmanager
def backend(text: bytes) -> Iterator[int]:
    """The port of a server of another machine, which answers every request with this text."""
    ready, over = threading.Event(), threading.Event()
    port = claim_port()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            writer.write(head % len(text) + text)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has left
        finally:
            writer.close()

    async def serve() -> None:
        async with listening(answer, "127.0.0.1", port):
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield port
    finally:
        over.set()
        thread.join()
