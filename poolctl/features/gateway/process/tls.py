"""TLS with clients: the server name in a ClientHello, the certificates of listeners, and one buffer for all reads."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import struct
from collections.abc import Sequence
from typing import NamedTuple

from poolctl.json_form import Table
from poolctl.platform import memory_file

# Of a ClientHello. A usual one has 300 to 2,000 bytes; even several post-quantum key shares stay below this.
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
PROTOCOLS = ["http/1.1"]
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}
_BUFFER = memoryview(bytearray(256 * 1024))


class NoClientHello(ValueError):
    """The bytes are not the beginning of a TLS handshake, or the ClientHello is too long."""


class ClientHello(NamedTuple):
    """The data of a ClientHello: `server_name` in lower case or "", and the ALPN `protocols` in the client's order."""

    server_name: str = ""
    protocols: tuple[str, ...] = ()


def read_client_hello(data: bytes) -> ClientHello | None:
    """The ClientHello at the start of these bytes; None if it is incomplete. Raises NoClientHello."""
    message = _read_handshake_message(data)
    if message is None:
        return None
    try:
        return _client_hello(message)
    except IndexError:
        raise NoClientHello("a ClientHello with wrong lengths") from None


def _read_handshake_message(data: bytes) -> bytes | None:
    """The body of the handshake message, assembled from its records; None if it is incomplete."""
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
            protocols = _alpn_protocols(extensions[begin:at])
    return ClientHello(name, tuple(each.decode("latin-1") for each in protocols))


def _host_name(content: bytes) -> str:
    names, rest = _vector(content, 2)
    if rest or names[0] != _HOST_NAME:
        raise NoClientHello("a server name of another kind")
    name, rest = _vector(names[1:], 2)
    if rest or len(name) > _MOST_NAME_BYTES or not _is_name(name):
        raise NoClientHello("not a host name")
    return name.decode("ascii").lower()


def _alpn_protocols(content: bytes) -> list[bytes]:
    protocols, rest = _vector(content, 2)
    found = []
    while protocols:
        protocol, protocols = _vector(protocols, 1)
        found.append(protocol)
    if rest or not all(found):
        raise NoClientHello("a list of protocols with wrong lengths")
    return found


def _vector(data: bytes, length_bytes: int) -> tuple[bytes, bytes]:
    """The content of a length-prefixed vector, and the bytes after it (RFC 8446 §3.4). IndexError if incomplete."""
    end = length_bytes + int.from_bytes(data[:length_bytes], "big")
    if len(data) < max(end, length_bytes):
        raise IndexError
    return data[length_bytes:end], data[end:]


class CertificateContext(ssl.SSLContext):
    """The TLS context of one certificate, which was added for these `names`."""

    names: frozenset[str] = frozenset()
    listener: _TlsListener

    def allows_requests_for_host(self, host: bytes) -> bool:
        """Whether requests for this host, with or without a port, may come over a connection with this certificate.

        False for a host of another certificate that requires client certificates: a client could otherwise avoid
        presenting one by naming different hosts in the handshake and the request (RFC 9110 §7.4).
        """
        name = host.decode("latin-1").lower().partition(":")[0].rstrip(".")
        if name.startswith("[") or name.replace(".", "").isdigit():
            name = ""  # clients do not send addresses as names (RFC 6066 §3)
        chosen = self.listener.context_for(name)
        return chosen.verify_mode is ssl.CERT_NONE or chosen.names == self.names


class CertificatesByListener:
    """The TLS contexts of each listener, by the host names of their certificates; the first one is the default.

    A renewed certificate applies to later handshakes; open connections continue.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, _TlsListener] = {}

    def put(self, bind: str, names: Sequence[str], tls: Table, contents: Sequence[bytes]) -> None:
        """Use this certificate for these host names of the listener; without names, as the default certificate.

        Names may be wildcards ("*.example.com"). `contents` are the files of the certificate chain, of its key and, if
        clients must present certificates, of their CAs. Raises OSError (ssl.SSLError is one) if they do not match; the
        previous certificate then stays in use.
        """
        context = _server_context(tls, contents)
        context.set_alpn_protocols(PROTOCOLS)
        listener = self._listeners.get(bind)
        if listener is None:
            listener = self._listeners[bind] = _TlsListener(context)
        listener.put(names, context)

    def retain_if_all_loaded(self, bind: str, certificates: Sequence[Sequence[str]]) -> None:
        """Keep only the listener's certificates for these sets of host names; the first set's becomes the default.

        If a set has no certificate, all certificates are kept, because an older one may still serve the set's hosts.
        """
        if bind in self._listeners:
            self._listeners[bind].retain_if_all_loaded(certificates)

    def context(self, bind: str, name: str) -> ssl.SSLContext | None:
        """The context for a new connection whose client requests this name; None if the listener has no certificate."""
        listener = self._listeners.get(bind)
        return listener.context_for(name.lower().rstrip(".")) if listener is not None else None


class _TlsListener:
    def __init__(self, default: CertificateContext) -> None:
        self.default = default
        self._by_name: dict[str, CertificateContext] = {}
        self._by_names: dict[frozenset[str], CertificateContext] = {}  # one for each certificate

    def put(self, names: Sequence[str], context: CertificateContext) -> None:
        given = _names(names)
        if context is self.default or not given or given == self.default.names:
            self.default = context
        context.names, context.listener = given, self
        context.sni_callback = self._switch_certificate
        self._by_names[given] = context
        self._by_name.update(dict.fromkeys(given, context))

    def retain_if_all_loaded(self, certificates: Sequence[Sequence[str]]) -> None:
        kept = {
            given: self._by_names[given] for given in map(_names, certificates) if given in self._by_names
        }
        if len(kept) < len({*map(_names, certificates)}):
            return  # one could not be used: a previous certificate may still serve its hosts
        self._by_names, self.default = kept, next(iter(kept.values()))
        self._by_name = {name: context for given, context in kept.items() for name in given}

    def _switch_certificate(
        self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> int | None:
        """Called by OpenSSL in the handshake: switch to the certificate for this name; returns None, or an alert.

        The handshake is refused if the chosen context has another rule for client certificates than the context with
        which the connection began, because the rule can no longer be changed.
        """
        chosen = self.context_for((name or "").lower().rstrip("."))
        if chosen is not context:
            if chosen.verify_mode is not context.verify_mode:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = chosen
        return None

    def context_for(self, name: str) -> CertificateContext:
        """The context of the certificate for this name, or the default one."""
        found = self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")
        return found or self.default


def _names(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.lower().rstrip(".") for name in names)


def _server_context(tls: Table, contents: Sequence[bytes]) -> CertificateContext:
    context = CertificateContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.get("min_version", "1.2")]
    # A second one costs a twentieth of a handshake, and the next connection brings another.
    context.num_tickets = 1
    context.verify_mode = _CLIENT_AUTH[tls.get("client_auth", "none")]
    if tls.get("ciphers"):
        context.set_ciphers(tls["ciphers"])
    # The `ssl` module reads certificates and keys only from paths.
    certificate, key = (memory_file("certificate", content) for content in contents[:2])
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        path = "/proc/self/fd/{}".format
        context.load_cert_chain(path(certificate), path(key), tls.get("password") or "")
    finally:
        os.close(certificate)
        os.close(key)
    if len(contents) > 2:
        context.load_verify_locations(cadata=contents[2].decode("ascii"))
    return context


class SharedBufferProtocol(asyncio.BufferedProtocol):
    """Passes a transport's callbacks on to `protocol`. Data is received in a buffer that all connections share."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(_BUFFER[:nbytes]))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._protocol.connection_lost(error)

    def eof_received(self) -> bool | None:
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()
