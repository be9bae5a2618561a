"""A protocol class of uvicorn's that is not known closes its connections in a drain, and serves until then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from poolctl.worker.serving import uvicorn_parts
from poolctl.worker.serving.http1_connection import Http1Connection
from poolctl.worker.serving.pool_server import connection_class
from tests.serving import FAST, Client, Engine, blank_page, served


class Unheard(asyncio.Protocol):
    """What uvicorn's server asks of every protocol class, and no more."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        self.connections = server_state.connections

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)

    def shutdown(self) -> None:
        self.transport.close()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_unknown_protocol_class_serves_and_is_closed_by_a_drain(loop: str, capsys: Any) -> None:
    async def scenario() -> None:
        async with served(Engine(loop, "h11"), config={"http": Unheard}) as (server, _, port, running):
            client = await Client.connect(port)
            assert (await client.get())[0] == 200
            server.drain()
            assert await client.at_end()
            await asyncio.wait_for(running, 10)

    Engine(loop, "h11").run(scenario())
    assert "Unheard is not known to this version of poolctl" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
def test_auto_is_a_class_that_can_be_drained(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    monkeypatch.setattr(uvicorn_parts, "find_spec", lambda name: object() if there else None)
    expected = "httptools" if there else "h11"
    assert uvicorn_parts.drainable({"http": "auto", "loop": "auto"}) == {"http": expected, "loop": "auto"}
    assert uvicorn_parts.drainable({"http": "zttp"}) == {"http": "zttp"}


def test_known_protocol_class_that_lacks_a_part_counts_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert issubclass(connection_class(H11Protocol), Http1Connection)
    monkeypatch.delattr(H11Protocol, "handle_events")
    assert connection_class(H11Protocol) is H11Protocol


@pytest.mark.parametrize("engine", [Engine("uvloop", "h11"), FAST], ids="-".join)
def test_connections_share_the_names_of_their_attributes(engine: Engine) -> None:
    # CPython has room for thirty (SHARED_KEYS_MAX_SIZE); with more each object has a table of its own.
    async def scenario() -> None:
        async with served(engine, tally=blank_page()) as (server, _, port, _running):
            client = await Client.connect(port)
            await client.get()
            (connection,) = server.server_state.connections
            assert len(vars(connection)) < 30

    engine.run(scenario())
