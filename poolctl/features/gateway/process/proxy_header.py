"""Parses the PROXY protocol header, by which a proxy in front reports a connection's client (versions 1 and 2).

https://www.haproxy.org/download/2.6/doc/proxy-protocol.txt
"""

from __future__ import annotations

import re
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

# Version 2 may have further parts, of which nothing is used; no known sender comes near this.
MOST_BYTES = 4096
_MOST_BYTES_1 = 107  # §2.1
_BEGINS_1, _BEGINS_2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"
_LINE = re.compile(
    rb"PROXY (?:UNKNOWN(?: [ -~]*)?|(TCP[46]) ([0-9A-Fa-f.:]{2,39}) ([0-9A-Fa-f.:]{2,39}) "
    rb"(0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n"
)
_FIXED = struct.Struct("!12sBBH")
_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6, _UNIX = 0x00, 0x11, 0x21, 0x31
_ADDRESS_BYTES = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36, _UNIX: 216}
_MOST_PORT = 65535


class NoProxyHeader(Exception):
    """The bytes are not the beginning of a PROXY protocol header."""


class ProxyHeader(NamedTuple):
    """A complete header: its length, and the client's address and port, or "" and 0 if it names no client.

    A proxy's own connections, such as its probes, have no client.
    """

    size: int
    client: str = ""
    port: int = 0


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header at the start of these bytes; None if it is incomplete. Raises NoProxyHeader."""
    if data.startswith(_BEGINS_2[: len(data)]):
        return _version_2(data)
    if data.startswith(_BEGINS_1[: len(data)]):
        return _version_1(data)
    raise NoProxyHeader


def _version_1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, _MOST_BYTES_1) + 2
    if end < 2:
        if len(data) >= _MOST_BYTES_1:
            raise NoProxyHeader
        return None
    found = _LINE.fullmatch(data[:end])
    if found is None:
        raise NoProxyHeader
    family, source, target, *ports = found.groups()
    if family is None:
        return ProxyHeader(end)
    kind = IPv4Address if family == b"TCP4" else IPv6Address
    try:
        client, _ = kind(source.decode()), kind(target.decode())
    except ValueError as error:
        raise NoProxyHeader from error
    if any(int(port) > _MOST_PORT for port in ports):
        raise NoProxyHeader
    return ProxyHeader(end, _plain(client), int(ports[0]))


def _version_2(data: bytes) -> ProxyHeader | None:
    if len(data) < _FIXED.size:
        return None
    _, command, family, length = _FIXED.unpack_from(data)
    size = _FIXED.size + length
    needed = _ADDRESS_BYTES.get(family)
    if command not in (_LOCAL, _PROXY) or size > MOST_BYTES:
        raise NoProxyHeader
    if command == _PROXY and (needed is None or length < needed):
        raise NoProxyHeader  # also for datagrams
    if len(data) < size:
        return None
    if command == _LOCAL or family in (_UNSPECIFIED, _UNIX):
        return ProxyHeader(size)
    at = _FIXED.size
    if family == _TCP4:
        (port,) = struct.unpack_from("!H", data, at + 8)
        return ProxyHeader(size, str(IPv4Address(data[at : at + 4])), port)
    (port,) = struct.unpack_from("!H", data, at + 32)
    return ProxyHeader(size, _plain(IPv6Address(data[at : at + 16])), port)


def _plain(address: IPv4Address | IPv6Address) -> str:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
