"""Private addresses for the processes of proxied servers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolctl.errors import ServerError
from poolctl.runners.local.private_ports import free_private_address
from tests.programs import program
from tests.sandbox import FILES_AND_NETWORK, run_in_namespace

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


def test_addresses_that_are_taken_are_left_out() -> None:
    program("ip")

    def work() -> None:
        with socket.create_server(("127.0.0.1", 10_000)):
            assert free_private_address(()).key == "127.0.0.1:10001"
            with pytest.raises(ServerError, match="no private port is free"):
                free_private_address({"127.0.0.1:10001"})

    outgoing = "echo 10002 65535 > /proc/sys/net/ipv4/ip_local_port_range"
    run_in_namespace(f"ip link set lo up; {outgoing}", work, FILES_AND_NETWORK)
