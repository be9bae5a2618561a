"""The socket on which a process of `poolctl serve` answers with its stacks."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.features.serve._stacks import THREAD, StacksSocket
from tests.deadline import wait_until
from tests.sandbox import run_as

SPEC = {"server": "web", "app_dir": "/srv/shop", "cwd": "/srv/shop"}


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """A listener whose path is short enough."""
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(tmp_path / "s"))
        found.listen()
        yield found


def read(path: str) -> bytes:
    found = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(path)
        while piece := connection.recv(65536):
            found += piece
    return found


def test_own_user_is_answered_until_the_socket_is_closed(listener: socket.socket) -> None:
    path = listener.getsockname()
    stacks = StacksSocket(listener, SPEC)
    stacks.begin()
    answer = read(path)
    assert answer.startswith(b'{"name": "web"')
    assert b"Current thread" in answer
    listener.shutdown(socket.SHUT_RDWR)  # ends its thread
    stacks.close()
    wait_until(lambda: not Path(path).exists())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize(("server", "client", "answered"), [(65534, 0, True), (0, 65534, False)])
def test_other_users_than_root_are_not_answered(server: int, client: int, answered: bool) -> None:
    with (
        tempfile.TemporaryDirectory() as directory,  # everybody can reach it
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        path = f"{directory}/s"
        listener.bind(path)
        listener.listen()
        os.chmod(directory, 0o755)
        os.chmod(path, 0o666)
        stacks = StacksSocket(listener, SPEC)
        try:
            run_as(client, lambda: connection.connect(path))
            run_as(server, stacks.begin)
            connection.settimeout(30)
            assert bool(connection.recv(1)) is answered
        finally:
            # Its thread ends: it may accept at the descriptor's number when another listener has it, and seteuid(2)
            # aborts the process while a thread of another user runs.
            listener.shutdown(socket.SHUT_RDWR)
            stacks.close()
            wait_until(lambda: THREAD not in {thread.name for thread in threading.enumerate()})
