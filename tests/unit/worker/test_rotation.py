"""A worker that is out of rotation answers everything, each time for the last time on its connection."""

from __future__ import annotations

import pytest
from websockets.asyncio.client import connect

from poolctl.worker.serving import http1_connection
from tests.serving import ENGINES, Client, Engine, leaving, served, turns


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def test_out_of_rotation_a_new_connection_is_answered_and_closed(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            server.rotate(False)
            for _ in range(2):
                client = await Client.connect(port)
                status, headers, _body = await client.get()
                assert (status, headers["connection"]) == (200, "close")
                assert await client.at_end()
            assert not running.done()

    engine.run(scenario())


def test_out_of_rotation_an_idle_connection_is_answered_once_more_or_closed_when_quiet(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 5.0)

    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            quiet, talking = await Client.connect(port), await Client.connect(port)
            await quiet.get()
            await talking.get()
            server.rotate(False)
            assert (await talking.get())[1]["connection"] == "close"
            assert await talking.at_end()
            monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 0.15)
            server.rotate(True)
            server.rotate(False)
            assert await quiet.at_end()

    engine.run(scenario())


def test_back_in_rotation_connections_are_kept_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_connection, "QUIET_SECONDS", 0.05)

    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            client = await Client.connect(port)
            await client.get()
            server.rotate(False)
            server.rotate(True)
            assert await client.stays_open(0.15)
            for _ in range(2):
                assert "connection" not in (await client.get())[1]

    engine.run(scenario())


def test_websocket_stays_open_out_of_rotation(engine: Engine) -> None:
    async def scenario() -> None:
        async with (
            served(engine) as (server, app, port, _running),
            connect(f"ws://127.0.0.1:{port}/", proxy=None) as client,
        ):
            await app.under_way.wait()
            server.rotate(False)
            await turns()
            assert client.close_code is None

    engine.run(scenario())


def test_draining_worker_does_not_return_to_rotation(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await client.get()
            server.drain()
            await leaving(server)
            server.rotate(True)
            assert (await client.get())[1]["connection"] == "close"
            await running

    engine.run(scenario())
