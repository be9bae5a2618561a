"""Headers of the PROXY protocol: read whole or in pieces, and refused where they are malformed."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolctl.features.gateway.process.proxy_header import (
    MOST_BYTES,
    NoProxyHeader,
    ProxyHeader,
    read_proxy_header,
)
from tests.examples import examples

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def version_2(command: int, family: int, addresses: bytes, parts: bytes = b"") -> bytes:
    rest = addresses + parts
    return SIGNATURE + struct.pack("!BBH", command, family, len(rest)) + rest


def tcp4(client: str = "192.0.2.1", port: int = 5000) -> bytes:
    return socket.inet_aton(client) + socket.inet_aton("10.0.0.1") + struct.pack("!HH", port, 80)


def tcp6(client: str) -> bytes:
    ends = [socket.inet_pton(socket.AF_INET6, each) for each in (client, "::1")]
    return b"".join(ends) + struct.pack("!HH", 5000, 80)


VALID = [
    (b"PROXY TCP4 192.0.2.1 10.0.0.1 5000 80\r\n", "192.0.2.1", 5000),
    (b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n", "2001:db8::1", 65535),
    (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", "192.0.2.1", 1),
    (b"PROXY UNKNOWN\r\n", "", 0),
    (b"PROXY UNKNOWN ffff:f...f ffff:f...f 65535 65535\r\n", "", 0),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", "", 0),
    (version_2(0x21, 0x11, tcp4()), "192.0.2.1", 5000),
    (version_2(0x21, 0x11, tcp4(), b"\x04\x00\x03abc"), "192.0.2.1", 5000),
    (version_2(0x21, 0x21, tcp6("2001:db8::1")), "2001:db8::1", 5000),
    (version_2(0x21, 0x21, tcp6("::ffff:192.0.2.1")), "192.0.2.1", 5000),
    (version_2(0x20, 0x00, b""), "", 0),
    (version_2(0x20, 0x11, tcp4()), "", 0),
    (version_2(0x21, 0x00, b""), "", 0),
    (version_2(0x21, 0x31, bytes(216)), "", 0),
    (version_2(0x21, 0x11, tcp4(), bytes(MOST_BYTES - 16 - 12)), "192.0.2.1", 5000),
]


@pytest.mark.parametrize(("header", "client", "port"), VALID)
@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\n", SIGNATURE])
def test_header_names_the_client(header: bytes, client: str, port: int, more: bytes) -> None:
    assert read_proxy_header(header + more) == ProxyHeader(len(header), client, port)
    for end in range(len(header)):
        assert read_proxy_header(header[:end]) is None, header[:end]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01",
        b"proxy TCP4 192.0.2.1 10.0.0.1 5000 80\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 5000\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 65536 80\r\n",
        b"PROXY TCP4 192.0.2.1 10.0.0.1 05000 80\r\n",
        b"PROXY TCP4 192.0.2.01 10.0.0.1 5000 80\r\n",
        b"PROXY TCP4 ::1 ::1 5000 80\r\n",
        b"PROXY TCP6 192.0.2.1 10.0.0.1 5000 80\r\n",
        b"PROXY TCP4  192.0.2.1 10.0.0.1 5000 80\r\n",
        b"PROXY TCP5 192.0.2.1 10.0.0.1 5000 80\r\n",
        b"PROXY UNKNOWN\x00\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * 93,
        b"PROXY UNKNOWN " + b"x" * 107,
        b"\r\n\r\n\x00\r\nQUIT\r",
        SIGNATURE + b"\x11\x11\x00\x0c" + tcp4(),  # version 1 in the form of 2
        SIGNATURE + b"\x22\x11\x00\x0c" + tcp4(),
        version_2(0x21, 0x12, tcp4()),  # UDP
        version_2(0x21, 0x11, tcp4()[:-1]),
        version_2(0x21, 0x21, tcp4()),
        SIGNATURE + b"\x21\x11" + struct.pack("!H", MOST_BYTES),
    ],
)
def test_malformed_header_is_refused(data: bytes) -> None:
    with pytest.raises(NoProxyHeader):
        read_proxy_header(data)


@given(st.sampled_from([each for each, *_ in VALID]), st.integers(0, 60), st.binary(max_size=3))
@examples(100)
def test_any_bytes_are_read_or_refused_within_the_bound(header: bytes, at: int, other: bytes) -> None:
    data = (header[:at] + other + header[at + len(other) :])[:MOST_BYTES]
    try:
        found = read_proxy_header(data)
    except NoProxyHeader:
        return
    assert found is None or 0 < found.size <= len(data)
