"""TLS contexts from files in memory: the supervisor reads the keys, so the worker's user needs no access to them."""

from __future__ import annotations

import ssl
from typing import Any

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def ssl_context(tls: dict[str, Any], fds: list[int]) -> ssl.SSLContext:
    """A server's context from the certificate, the key and, with three descriptors, the clients' authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls["min_version"]]
    renew_context(context, tls, fds)
    context.verify_mode = _CLIENT_AUTH[tls["client_auth"]]
    if tls["ciphers"]:
        context.set_ciphers(tls["ciphers"])
    context.set_alpn_protocols(["h2", "http/1.1"] if tls.get("http2") else ["http/1.1"])
    return context


def renew_context(context: ssl.SSLContext, tls: dict[str, Any], fds: list[int]) -> None:
    """Use these files for the context's handshakes from now on; existing connections are not affected.

    Raises OSError (ssl.SSLError is one) for files that do not match; the context then keeps its previous ones.
    """
    paths = [f"/proc/self/fd/{fd}" for fd in fds]
    # First tried with another context: with a key that does not match, this one would be left without either.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths[0], paths[1], tls["password"])
    context.load_cert_chain(paths[0], paths[1], tls["password"])
    if len(paths) > 2:
        context.load_verify_locations(paths[2])
