"""Accepted connections are found by their descriptors, also those that the loop has not registered yet."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from poolctl.listeners.open_listener import accepted_from


@pytest.mark.parametrize(
    ("family", "host", "called"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "0.0.0.0", "127.0.0.1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
def test_accepted_connections_of_a_listener_are_found(family: int, host: str, called: str) -> None:
    with socket.socket(family) as listener, socket.create_server(("127.0.0.1", 0)) as another:
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with (
            socket.create_connection((called, port)),
            socket.create_connection(another.getsockname()),
            listener.accept()[0] as accepted,
            another.accept()[0],
        ):
            twin = os.dup(accepted.fileno())
            try:
                assert set(accepted_from([listener])) == {listener.fileno(), accepted.fileno(), twin}
            finally:
                os.close(twin)


def test_unix_sockets_are_identified_by_their_paths(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "a.sock"))
        listener.listen()
        client.connect(str(tmp_path / "a.sock"))
        with listener.accept()[0] as accepted:
            expected = {listener.fileno(), accepted.fileno()}
            assert set(accepted_from([listener])) == expected


def test_no_connections_are_found_without_listeners() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert accepted_from([]) == []
