"""Private addresses for the processes of proxied servers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.errors import ServerError
from poolctl.runners.local import private_ports
from poolctl.runners.local.private_ports import free_private_address

OUTGOING = range(*map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()))


def test_address_is_free_and_no_outgoing_connection_gets_its_port() -> None:
    found = set()
    for _ in range(50):
        host, port = free_private_address(()).key.split(":")
        with socket.socket() as sock:
            sock.bind((host, int(port)))
        assert host == "127.0.0.1"
        assert int(port) not in OUTGOING
        found.add(port)
    assert len(found) > 40, "chosen at random, so that a port is not used again at once"


def test_addresses_that_are_taken_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as used, socket.socket() as free:
        for each in (used, free):
            each.bind(("127.0.0.1", 0))
        used.listen()
        ports = [sock.getsockname()[1] for sock in (used, free)]
        free.close()
        monkeypatch.setattr(private_ports, "_candidates", lambda: iter(ports))
        assert free_private_address(()).key == f"127.0.0.1:{ports[1]}"
        with pytest.raises(ServerError, match="no private port is free"):
            free_private_address({f"127.0.0.1:{ports[1]}"})
