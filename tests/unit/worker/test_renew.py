"""A certificate is renewed while connections are open and others come."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from pathlib import Path

import pytest

from poolctl.worker.serving.uvicorn_parts import ssl_context
from tests.certificates import certificate
from tests.serving import ENGINES, Client, Engine, Pair, served, turns, until

SETTINGS = {"password": None, "client_auth": "none", "min_version": "1.2", "ciphers": ""}


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def context(directory: Path, name: str) -> ssl.SSLContext:
    fds = [os.open(path, os.O_RDONLY) for path in certificate(directory, name)]
    try:
        return ssl_context(SETTINGS, fds)
    finally:
        for fd in fds:
            os.close(fd)


def trusting(directory: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(directory / f"{name}.pem"))


async def secure(port: int, directory: Path, name: str) -> Client:
    return Client(
        *await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(directory, name), server_hostname="127.0.0.1"
        )
    )


def test_new_handshakes_use_the_new_certificate_and_open_connections_go_on(
    engine: Engine, tmp_path: Path
) -> None:
    old, new = context(tmp_path, "old"), context(tmp_path, "new")

    async def scenario() -> None:
        async with served(engine, secure=old) as (server, _, port, _running):
            before = await secure(port, tmp_path, "old")
            assert (await before.get())[0] == 200
            server.acceptor.renew(new)
            with pytest.raises(ssl.SSLCertVerificationError):
                await secure(port, tmp_path, "old")
            after = await secure(port, tmp_path, "new")
            assert (await after.get())[0] == 200
            assert (await before.get())[0] == 200

    engine.run(scenario())


def test_drain_waits_for_a_tls_handshake_in_progress(engine: Engine, tmp_path: Path) -> None:
    certified = context(tmp_path, "same")

    async def scenario() -> None:
        async with served(engine, secure=certified) as (server, _, port, running):
            client = await Client.connect(port)
            await until(lambda: server.server_state.expected)  # accepted, and nothing was said
            server.drain()
            await turns()
            assert not running.done()
            await client.writer.start_tls(trusting(tmp_path, "same"), server_hostname="127.0.0.1")
            assert (await client.get())[0] == 200
            await asyncio.wait_for(running, 15)

    engine.run(scenario())


def test_no_connection_is_lost_while_the_certificate_is_renewed(engine: Engine, tmp_path: Path) -> None:
    contexts = [context(tmp_path, "same"), context(tmp_path, "same")]
    trusted = ssl.create_default_context()
    trusted.check_hostname, trusted.verify_mode = False, ssl.CERT_NONE

    async def scenario() -> None:
        async with served(engine, secure=contexts[0]) as (server, _, port, _running):

            async def ask() -> int:
                client = Client(*await asyncio.open_connection("127.0.0.1", port, ssl=trusted))
                return (await client.get("/", "connection: close"))[0]

            asking = [asyncio.ensure_future(ask()) for _ in range(20)]
            for turn in range(10):
                server.acceptor.renew(contexts[turn % 2])
                asking.append(asyncio.ensure_future(ask()))
            assert set(await asyncio.gather(*asking)) == {200}

    engine.run(scenario())


def test_connections_that_are_taken_use_the_new_certificate(engine: Engine, tmp_path: Path) -> None:
    old, new = context(tmp_path, "old"), context(tmp_path, "new")

    async def scenario() -> None:
        async with served(engine, secure=old, adoption=pair.worker()) as (server, _, _port, _running):
            server.acceptor.renew(new)
            with socket.create_server(("127.0.0.1", 0)) as listener:
                connecting = asyncio.ensure_future(secure(listener.getsockname()[1], tmp_path, "new"))
                listener.setblocking(False)
                sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                pair.hand_over(sock)
                assert (await (await connecting).get())[0] == 200

    with contextlib.closing(Pair()) as pair:
        engine.run(scenario())
