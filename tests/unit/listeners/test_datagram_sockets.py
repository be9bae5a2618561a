"""UDP sockets: what is opened for an address, and what is said when it cannot be."""

from __future__ import annotations

import socket

import pytest

from poolctl.address import parse
from poolctl.listeners.open_listener import ListenError, close_listener, describe, open_datagram_sockets

from .test_open_listener import FreePort, needs_ipv6


def test_datagram_sockets_are_bound_non_blocking_and_not_inherited(free_port: FreePort) -> None:
    port = free_port()
    (sock,) = open_datagram_sockets(parse(f"127.0.0.1:{port}"))
    with sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        assert (describe(sock), sock.type) == (f"127.0.0.1:{port}", socket.SOCK_DGRAM)
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        client.sendto(b"hello", ("127.0.0.1", port))
        assert sock.recv(100) == b"hello"


@needs_ipv6
def test_datagram_address_without_a_host_opens_a_socket_for_each_ip_version(free_port: FreePort) -> None:
    port = free_port()
    sockets = open_datagram_sockets(parse(f":{port}"))
    assert [describe(sock) for sock in sockets] == [f"0.0.0.0:{port}", f"[::]:{port}"]
    close_listener(sockets)


def test_udp_port_in_use_is_named_and_not_shared(free_port: FreePort) -> None:
    address = parse(f"127.0.0.1:{free_port()}")
    (sock,) = open_datagram_sockets(address)
    with sock, pytest.raises(ListenError, match=f"UDP port {address.port} is in use") as caught:
        open_datagram_sockets(address)
    assert f"ss -uanp 'sport = :{address.port}'" in caught.value.hint


def test_address_without_a_port_has_no_datagram_socket() -> None:
    with pytest.raises(ListenError, match=r"unix:/run/a\.sock has no UDP port"):
        open_datagram_sockets(parse("unix:/run/a.sock"))
