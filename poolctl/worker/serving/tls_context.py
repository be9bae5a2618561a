"""TLS from files in memory: keys are read by the supervisor, so that the worker's user need not be able to."""

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
    """Let the context's handshakes from now on use these files; those that have been are not touched.

    Raises OSError (ssl.SSLError is one) for files that do not fit; the context keeps what it had.
    """
    paths = [f"/proc/self/fd/{fd}" for fd in fds]
    # Tried out on another one first: a key that does not fit its certificate would leave this one without either.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths[0], paths[1], tls["password"])
    context.load_cert_chain(paths[0], paths[1], tls["password"])
    if len(paths) > 2:
        context.load_verify_locations(paths[2])
