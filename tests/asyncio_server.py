"""An asyncio server for tests, which closes all of its connections when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None] | None]

_ACCEPT_TURNS = 3  # of the loop, from an accepted connection to its transport
# asyncio references a handler only through its connection, until the client has closed its side.
_handlers: set[asyncio.Task[None]] = set()
# Open until the server stops: the writer of each connection, with the server's address.
_connections: dict[asyncio.StreamWriter, Any] = {}


async def start_server(handle: Handler, *place: Any, **options: Any) -> asyncio.Server:
    """Listen on a host and a port, or on the path of a Unix socket."""

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _connections[writer] = writer.get_extra_info("sockname")
        if (handling := handle(reader, writer)) is not None:
            task = asyncio.get_running_loop().create_task(handling)
            _handlers.add(task)
            task.add_done_callback(_handlers.discard)

    if len(place) == 1:
        return await asyncio.start_unix_server(connected, *place, **options)
    return await asyncio.start_server(connected, *place, **options)


async def hang_up(server: asyncio.Server) -> None:
    """Close the server and each of its connections, those included that no handler has seen.

    `close` leaves them open, and so does a handler that is cancelled before its first step. Their collection as garbage
    is a warning, which fails whichever test runs by then.
    """
    loop = asyncio.get_running_loop()
    names = {listener.getsockname() for listener in server.sockets}
    for listener in server.sockets:
        loop.remove_reader(listener.fileno())
    for _ in range(_ACCEPT_TURNS):
        await asyncio.sleep(0)
    server.close()
    for transport in [*loop._transports.values()]:  # type: ignore[attr-defined]
        is_open = transport.get_extra_info("socket").fileno() >= 0
        if is_open and transport.get_extra_info("sockname") in names:
            transport.abort()
    for writer in [writer for writer, name in _connections.items() if name in names]:
        if not writer.transport.is_closing():  # a TLS transport, which is not in the loop's list
            writer.transport.abort()
        del _connections[writer]
    await asyncio.sleep(0)


@asynccontextmanager
async def listening(handle: Handler, *place: Any, **options: Any) -> AsyncIterator[asyncio.Server]:
    """A server as `start_server` makes it, until the end of the block."""
    server = await start_server(handle, *place, **options)
    try:
        yield server
    finally:
        await hang_up(server)
