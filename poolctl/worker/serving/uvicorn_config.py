"""Makes uvicorn's configuration for a worker, and its TLS contexts.

The part of a configuration that workers share is prepared in the zygote. TLS contexts are made from files in memory:
the supervisor reads the keys, so the worker's user needs no access to them.
"""

from __future__ import annotations

import ssl
from importlib.util import find_spec
from typing import Any

import uvicorn

from .uvicorn_parts import App

# Of uvicorn, and those for `ssl_context`.
Settings = dict[str, Any]
Tls = dict[str, Any]

# The settings of a server without an `http` table.
USUAL: Settings = {
    "http": "auto",
    "loop": "auto",
    "ws": "auto",
    "timeout_keep_alive": 75.0,
    "root_path": "",
    "proxy_headers": False,
    "forwarded_allow_ips": [],
    "access_log": False,
    "limit_concurrency": None,
    "limit_max_requests": None,
}

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

_prepared: list[uvicorn.Config] = []


def prepare(app: App) -> None:
    """Make the usual configuration once, before the first fork; it saves each worker 0.3 MB and 1 ms."""
    made = _make(app, USUAL)
    made.load()
    # Given as classes, they are not looked up by name in each worker (0.1 MB).
    made.http, made.ws = made.http_protocol_class, made.ws_protocol_class  # type: ignore[assignment]
    made.loaded = False
    _prepared[:] = [made]


def drainable(settings: Settings) -> Settings:
    """The settings with a parser instead of `auto`, whose meaning may change in uvicorn.

    Connections with these parsers can be drained without loss.
    """
    if settings["http"] != "auto":
        return settings
    return {**settings, "http": "h11" if find_spec("httptools") is None else "httptools"}


def configure(app: App, settings: Settings) -> uvicorn.Config:
    """A configuration for `app`, not loaded yet."""
    if settings != USUAL or not _prepared:
        return _make(app, settings)
    # Not copy.copy(), whose code would make 0.1 MB of pages private.
    config = object.__new__(uvicorn.Config)
    config.__dict__.update(_prepared[0].__dict__, app=app)
    return config


def _make(app: App, settings: Settings) -> uvicorn.Config:
    # The preload has set up the logging; the access log is poolctl's own.
    return uvicorn.Config(app, log_config=None, log_level="warning", **drainable(settings))


def ssl_context(tls: Tls, fds: list[int]) -> ssl.SSLContext:
    """A server's context from the certificate, the key and, with three descriptors, the clients' authorities."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls["min_version"]]
    renew_context(context, tls, fds)
    context.verify_mode = _CLIENT_AUTH[tls["client_auth"]]
    if tls["ciphers"]:
        context.set_ciphers(tls["ciphers"])
    context.set_alpn_protocols(["h2", "http/1.1"] if tls.get("http2") else ["http/1.1"])
    return context


def renew_context(context: ssl.SSLContext, tls: Tls, fds: list[int]) -> None:
    """Use these files for the context's handshakes from now on; existing connections are not affected.

    Raises OSError (ssl.SSLError is one) for files that do not match; the context then keeps its previous ones.
    """
    paths = [f"/proc/self/fd/{fd}" for fd in fds]
    # First tried with another context: with a key that does not match, this one would be left without either.
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(paths[0], paths[1], tls["password"])
    context.load_cert_chain(paths[0], paths[1], tls["password"])
    if len(paths) > 2:
        context.load_verify_locations(paths[2])
