"""Certificates of the gateway's TLS listeners, chosen by the name that the client asks for (SNI)."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

from ...frozen_value import Table

ALPN = ("http/1.1",)
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class Certificates:
    """For each TLS listener the contexts of its certificates: one by each of their names, and the first as default.

    A certificate that is put again replaces the former one for handshakes from then on; connections go on.
    """

    def __init__(self, alpn: Sequence[str] = ALPN) -> None:
        self._alpn = list(alpn)
        self._listeners: dict[str, _Listener] = {}

    def put(self, bind: str, names: Sequence[str], tls: Table, contents: Sequence[bytes]) -> None:
        """Use this certificate for these names: "www.example.com", "*.example.com", or none at all for the default.

        `contents` are the files of the certificate's chain, of its key and, if clients have to present
        certificates, of their authorities. Raises OSError (ssl.SSLError is one) when they do not match; the former
        certificate stays in use then.
        """
        context = _server_context(tls, contents)
        context.set_alpn_protocols(self._alpn)
        listener = self._listeners.get(bind)
        if listener is None:
            listener = self._listeners[bind] = _Listener(context)
        listener.put(names, context)

    def remove(self, bind: str) -> None:
        """Forget the listener's certificates."""
        self._listeners.pop(bind, None)

    def context(self, bind: str) -> ssl.SSLContext | None:
        """The context for a new connection of the listener; it chooses the certificate during the handshake."""
        listener = self._listeners.get(bind)
        return listener.default if listener is not None else None


class _Listener:
    def __init__(self, default: ssl.SSLContext) -> None:
        self.default = default
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._default_names: frozenset[str] = frozenset()

    def put(self, names: Sequence[str], context: ssl.SSLContext) -> None:
        given = frozenset(name.lower().rstrip(".") for name in names)
        if not self._by_name or not given or given == self._default_names:
            self.default, self._default_names = context, given
        context.sni_callback = self._choose
        self._by_name.update(dict.fromkeys(given, context))

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        """Called by OpenSSL in the handshake. Without a fitting certificate the default one is presented."""
        wanted = (name or "").lower().rstrip(".")
        context = self._by_name.get(wanted) or self._by_name.get(f"*.{wanted.partition('.')[2]}")
        if context is not None:
            connection.context = context


def _server_context(tls: Table, contents: Sequence[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.get("min_version", "1.2")]
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
