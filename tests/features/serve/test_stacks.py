"""The socket on which a process of `poolctl serve` answers with its stacks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolctl.features.serve._stacks import StacksSocket
from tests.deadline import wait_until

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


def test_only_the_own_user_and_root_are_answered(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = listener.getsockname()
    uid = 1000
    monkeypatch.setattr("poolctl.features.serve._stacks.peer_credentials", lambda sock: (1, uid, 1))
    monkeypatch.setattr("poolctl.features.serve._stacks.os.geteuid", lambda: 1000)
    stacks = StacksSocket(listener, SPEC)
    stacks.begin()
    assert read(path).startswith(b'{"name": "web"')
    uid = 0
    assert b"Current thread" in read(path)
    uid = 1001
    assert read(path) == b""
    stacks.close()
    wait_until(lambda: not Path(path).exists())
