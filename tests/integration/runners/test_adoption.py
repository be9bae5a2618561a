"""A server's adoption pair: given to its workers, kept by the keeper, and closed with its listener."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from poolctl import Pool, ServerConfig
from poolctl.keeper.connection_handover import Connection
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.local.local_runner import LocalRunner
from tests.integration.runners.test_runners import ask, config
from tests.ports import claim_port


@pytest.fixture
def runner() -> Iterator[ProcessRunner]:
    made = ProcessRunner()
    host = loop_thread.get_or_start()
    host.hold()  # also between two calls of a test's own, the runner keeps its loop
    yield made
    loop_thread.run_sync(made.aclose())
    host.release()


async def local(runner: ProcessRunner) -> LocalRunner:
    await runner.start()
    return runner


async def kept(runner: ProcessRunner) -> dict[str, Any]:
    """What the keeper holds."""
    reply, _ = await (await local(runner)).keeper.call({"op": "list", "after": ""})
    return dict(reply["entries"])


def hand_over(runner: ProcessRunner, server: ServerConfig) -> socket.socket:
    """Our end of a connection whose other end was given to the server's workers."""

    async def give(sock: Connection) -> bool:
        return (await local(runner)).adoptions.give(server.key, sock)

    ours, theirs = socket.socketpair()
    with Connection(fileno=theirs.detach()) as connection:
        assert loop_thread.run_sync(give(connection))
    ours.settimeout(60)
    return ours


def test_a_connection_that_is_given_is_answered_by_a_worker(runner: ProcessRunner) -> None:
    server = config("web")
    pool = Pool([server], runner=runner)
    pool.start_sync()
    with hand_over(runner, server) as sock:
        assert ask(sock).endswith(b"hello")
    pool.stop_sync()


def test_the_pair_is_kept_as_long_as_the_listener_is_open(runner: ProcessRunner) -> None:
    server = config("web")
    pool = Pool([server], runner=runner)
    pool.start_sync()
    entry = loop_thread.run_sync(kept(runner))[f"adoption:{server.key}"]
    assert entry == {"server": "web", "protocol": "plain"}
    pool.stop_sync()
    assert not [name for name in loop_thread.run_sync(kept(runner)) if name.startswith("adoption:")]


def test_connections_in_the_pair_of_a_stopping_server_are_closed(runner: ProcessRunner) -> None:
    server = config("web")

    async def scenario() -> None:
        runner_ = await local(runner)
        await runner_.open(server)  # and no worker

    loop_thread.run_sync(scenario())
    with hand_over(runner, server) as sock:
        loop_thread.run_sync(runner.close(server.key))
        assert sock.recv(1) == b""


def test_a_program_has_no_pair(runner: ProcessRunner) -> None:
    server = ServerConfig(name="tool", bind=f"127.0.0.1:{claim_port()}", command=["sleep", "60"])

    async def scenario() -> bool:
        runner_ = await local(runner)
        await runner_.open(server)
        with Connection() as sock:
            return runner_.adoptions.give(server.key, sock)

    assert loop_thread.run_sync(scenario()) is False
    loop_thread.run_sync(runner.close(server.key))
