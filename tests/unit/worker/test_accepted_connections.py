"""Connections whose handshake cannot even begin, or fails: they are closed, and counted no more."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from pathlib import Path

import pytest

from poolctl.worker.serving.accepted_connections import AcceptedConnections
from poolctl.worker.serving.connection_state import PoolServerState
from tests.certificates import certificate
from tests.serving import until


def server_context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(directory))
    return context


async def ended(client: socket.socket) -> None:
    """Return when the other end is closed."""
    client.setblocking(False)
    async with asyncio.timeout(10):
        while True:
            try:
                assert client.recv(4096) == b""
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except ConnectionResetError:
                return
            else:
                return


def test_connection_whose_handshake_raises_at_once_is_closed_and_counted_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        state = PoolServerState()
        # Not of a stream: asyncio raises before anything is awaited.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            ours.setblocking(False)
            accepted = AcceptedConnections(state)
            accepted.shake_hands(asyncio.Protocol(), ours, server_context(tmp_path), time.monotonic() + 60)
            assert ours.fileno() == -1
            assert not state.expects
            assert state.open_connections == 0
            await ended(theirs)

    asyncio.run(scenario())


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b""])
def test_connection_whose_handshake_fails_later_is_counted_no_more(tmp_path: Path, said: bytes) -> None:
    async def scenario() -> None:
        state = PoolServerState()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            accepted = AcceptedConnections(state)
            accepted.shake_hands(asyncio.Protocol(), ours, server_context(tmp_path), time.monotonic() + 60)
            assert state.expects
            theirs.send(said)
            theirs.shutdown(socket.SHUT_WR)
            await until(lambda: not state.expects)
            assert state.open_connections == 0

    asyncio.run(scenario())
