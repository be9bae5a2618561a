"""The first message of a TLS client, reduced to the parts that route it: server name and protocols.

A ClientHello (RFC 8446 §4.1.2) may arrive in several segments, and in several records (§5.1). Nothing is verified here:
the worker, or the gateway where it terminates TLS, does the handshake with the same bytes.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

# A usual one has 300 to 2,000 bytes; several key shares for post-quantum algorithms make it no larger than this.
MOST_BYTES = 32 * 1024
_HANDSHAKE, _MAJOR, _CLIENT_HELLO = 0x16, 3, 1
_RECORD_HEADER_BYTES, _MOST_RECORD_BYTES = 5, 2**14  # RFC 8446 §5.1
_MESSAGE_HEADER_BYTES = 4
_MOST_RECORDS = 64  # a client that sends a byte a record would keep the reader busy
_RANDOM_AND_VERSION_BYTES = 34
_SERVER_NAME, _ALPN = 0, 16  # RFC 6066 §3, RFC 7301 §3.1
_extension_header = struct.Struct(">HH")  # kind and length, RFC 8446 §4.2
_HOST_NAME = 0
_is_name = re.compile(rb"[0-9A-Za-z_-]{1,63}(?:\.[0-9A-Za-z_-]{1,63})*").fullmatch
_MOST_NAME_BYTES = 255


class NoClientHello(ValueError):
    """The bytes are not the beginning of a TLS handshake, or of one that is too long."""


class ClientHello(NamedTuple):
    """`server_name` in lower case or ""; `protocols` from ALPN in the client's order."""

    server_name: str = ""
    protocols: tuple[str, ...] = ()


def read_client_hello(data: bytes) -> ClientHello | None:
    """The ClientHello that these bytes begin with; None while it is not complete. Raises NoClientHello."""
    message = _message(data)
    if message is None:
        return None
    try:
        return _client_hello(message)
    except IndexError:
        raise NoClientHello("a ClientHello with wrong lengths") from None


def _message(data: bytes) -> bytes | None:
    """The body of the handshake message, put together from the records; None while it is not complete."""
    at, message, wanted = 0, b"", _MESSAGE_HEADER_BYTES
    for _ in range(_MOST_RECORDS):
        header = data[at : at + _RECORD_HEADER_BYTES]
        if (header and header[0] != _HANDSHAKE) or (len(header) > 1 and header[1] != _MAJOR):
            raise NoClientHello("no record of a handshake")
        if len(header) < _RECORD_HEADER_BYTES:
            return None
        length = int.from_bytes(header[3:], "big")
        if not 0 < length <= _MOST_RECORD_BYTES:
            raise NoClientHello("a record of an invalid length")
        at += _RECORD_HEADER_BYTES
        message += data[at : at + length]
        if message and message[0] != _CLIENT_HELLO:
            raise NoClientHello("a handshake that begins with another message")
        if len(message) >= _MESSAGE_HEADER_BYTES:
            wanted = _MESSAGE_HEADER_BYTES + int.from_bytes(message[1:4], "big")
            if wanted > MOST_BYTES:
                raise NoClientHello("a ClientHello that is too long")
        if len(message) >= wanted:
            return message[_MESSAGE_HEADER_BYTES:wanted]
        at += length
        if len(data) < at:
            return None
    raise NoClientHello("a ClientHello in too many records")


def _client_hello(message: bytes) -> ClientHello:
    rest = message[_RANDOM_AND_VERSION_BYTES:]
    _, rest = _vector(rest, 1)  # session
    _, rest = _vector(rest, 2)  # cipher suites
    _, rest = _vector(rest, 1)  # compression methods
    if not rest:
        return ClientHello()  # without extensions, as before TLS 1.2
    extensions, rest = _vector(rest, 2)
    if rest:
        raise NoClientHello("bytes behind the extensions")
    name, protocols, seen = "", list[bytes](), set[int]()
    at, end = 0, len(extensions)
    while at < end:
        if end - at < _extension_header.size:
            raise IndexError
        kind, length = _extension_header.unpack_from(extensions, at)
        begin = at + _extension_header.size
        at = begin + length
        if at > end:
            raise IndexError
        if kind in seen:
            raise NoClientHello("an extension twice")  # RFC 8446 §4.2
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(extensions[begin:at])
        elif kind == _ALPN:
            protocols = _items(extensions[begin:at])
    return ClientHello(name, tuple(each.decode("latin-1") for each in protocols))


def _host_name(content: bytes) -> str:
    names, rest = _vector(content, 2)
    if rest or names[0] != _HOST_NAME:
        raise NoClientHello("a server name of another kind")
    name, rest = _vector(names[1:], 2)
    if rest or len(name) > _MOST_NAME_BYTES or not _is_name(name):
        raise NoClientHello("not a host name")
    return name.decode("ascii").lower()


def _items(content: bytes) -> list[bytes]:
    protocols, rest = _vector(content, 2)
    found = []
    while protocols:
        protocol, protocols = _vector(protocols, 1)
        found.append(protocol)
    if rest or not all(found):
        raise NoClientHello("a list of protocols with wrong lengths")
    return found


def _vector(data: bytes, length_bytes: int) -> tuple[bytes, bytes]:
    """The content that follows its length, and the rest (RFC 8446 §3.4). Raises IndexError if it is cut off."""
    end = length_bytes + int.from_bytes(data[:length_bytes], "big")
    if len(data) < max(end, length_bytes):
        raise IndexError
    return data[length_bytes:end], data[end:]
