"""Certificates of the gateway's TLS listeners, chosen by the name that the client asks for (SNI)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from poolctl.json_form import Table

PROTOCOLS = ["http/1.1"]
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class ServerContext(ssl.SSLContext):
    """The context of one certificate, which was put for these `names`."""

    names: frozenset[str] = frozenset()
    listener: _TlsListener

    def admits(self, host: bytes) -> bool:
        """Whether requests for this host, with or without a port, may come over a connection with this certificate.

        False for a host of another certificate with which clients have to present theirs: a client could otherwise
        avoid that by naming different hosts in the handshake and the request (RFC 9110 §7.4).
        """
        name = host.decode("latin-1").lower().partition(":")[0].rstrip(".")
        if name.startswith("[") or name.replace(".", "").isdigit():
            name = ""  # clients do not send addresses as names (RFC 6066 §3)
        chosen = self.listener.chosen(name)
        return chosen.verify_mode is ssl.CERT_NONE or chosen.names == self.names


class ListenerCertificates:
    """For each TLS listener the contexts of its certificates: by each of their names, and the first as default.

    A renewed certificate applies to handshakes from then on; connections continue.
    """

    def __init__(self) -> None:
        self._listeners: dict[str, _TlsListener] = {}

    def put(self, bind: str, names: Sequence[str], tls: Table, contents: Sequence[bytes]) -> None:
        """Use this certificate for these names: "www.example.com", "*.example.com", or none at all for the default.

        `contents` are the files of the certificate's chain, of its key and, if clients have to present
        certificates, of their authorities. Raises OSError (ssl.SSLError is one) when they do not match; the former
        certificate stays in use then.
        """
        context = _server_context(tls, contents)
        context.set_alpn_protocols(PROTOCOLS)
        listener = self._listeners.get(bind)
        if listener is None:
            listener = self._listeners[bind] = _TlsListener(context)
        listener.put(names, context)

    def keep(self, bind: str, certificates: Sequence[Sequence[str]]) -> None:
        """Use no other certificates of the listener than those with these names; the first is the default."""
        if bind in self._listeners:
            self._listeners[bind].keep(certificates)

    def context(self, bind: str, name: str = "") -> ssl.SSLContext | None:
        """The context for a new connection of the listener, whose client asks for this name."""
        listener = self._listeners.get(bind)
        return listener.chosen(name.lower().rstrip(".")) if listener is not None else None


class _TlsListener:
    def __init__(self, default: ServerContext) -> None:
        self.default = default
        self._by_name: dict[str, ServerContext] = {}
        self._by_names: dict[frozenset[str], ServerContext] = {}  # one for each certificate

    def put(self, names: Sequence[str], context: ServerContext) -> None:
        given = _names(names)
        if context is self.default or not given or given == self.default.names:
            self.default = context
        context.names, context.listener = given, self
        context.sni_callback = self._choose
        self._by_names[given] = context
        self._by_name.update(dict.fromkeys(given, context))

    def keep(self, certificates: Sequence[Sequence[str]]) -> None:
        kept = {
            given: self._by_names[given] for given in map(_names, certificates) if given in self._by_names
        }
        if len(kept) < len({*map(_names, certificates)}):
            return  # one could not be used: a former certificate may still serve its hosts
        self._by_names, self.default = kept, next(iter(kept.values()))
        self._by_name = {name: context for given, context in kept.items() for name in given}

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        """Called by OpenSSL in the handshake. Without a fitting certificate the default one is presented.

        Whether the client has to present a certificate was settled with the context that the connection began with.
        """
        chosen = self.chosen((name or "").lower().rstrip("."))
        if chosen is not context:
            if chosen.verify_mode is not context.verify_mode:
                return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
            connection.context = chosen
        return None

    def chosen(self, name: str) -> ServerContext:
        """The context of the certificate for this name, or the default one."""
        found = self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")
        return found or self.default


def _names(names: Sequence[str]) -> frozenset[str]:
    return frozenset(name.lower().rstrip(".") for name in names)


def _server_context(tls: Table, contents: Sequence[bytes]) -> ServerContext:
    context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.get("min_version", "1.2")]
    context.num_tickets = (
        1  # a second one costs a twentieth of a handshake, and the next connection brings another
    )
    context.verify_mode = _CLIENT_AUTH[tls.get("client_auth", "none")]
    if tls.get("ciphers"):
        context.set_ciphers(tls["ciphers"])
    certificate, key = map(_as_file, contents[:2])
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


def _as_file(content: bytes) -> int:
    """A descriptor of these bytes: the `ssl` module reads certificates and keys from paths only."""
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    return fd
