"""The interface to uvicorn: the configuration that workers create for it, and the internals that they use.

TLS contexts are made from files in memory: the supervisor reads the keys, so the worker's user needs no access to them.

uvicorn documents few of its internals, and may change them. Every import from below `uvicorn` is made here. The names
of uvicorn's classes on which the protocol mixins and the closing of WebSockets rely are listed here. A test compares
the lists with the code of this package and with the installed uvicorn. If a protocol class lacks a listed name, a drain
closes its connections instead of moving them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

import uvicorn
from uvicorn.config import LOG_LEVELS, LOGGING_CONFIG
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string
from uvicorn.server import ServerState

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Http1Protocol(asyncio.Protocol):
        """A base class for type checkers: what uvicorn's protocol classes for HTTP/1.1 have in common."""

        access_log: bool
        loop: asyncio.AbstractEventLoop
        timeout_keep_alive_task: asyncio.TimerHandle | None
        transport: asyncio.Transport

        def __init__(self, *arguments: Any, **named: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

        def handle_websocket_upgrade(self, *event: Any) -> None: ...

        def on_response_complete(self) -> None: ...

        def send_400_response(self, msg: str) -> None: ...

        def shutdown(self) -> None: ...

        def timeout_keep_alive_handler(self) -> None: ...

else:
    Http1Protocol = object

    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:  # httptools is not installed
        HttpToolsProtocol = object

__all__ = [
    "CLOSE_HEADER", "LOGGING_CONFIG", "LOG_LEVELS", "App", "H11Protocol", "Http1Protocol", "HttpToolsProtocol",
    "LifespanOn", "Message", "Receive", "Scope", "Send", "ServerState", "State",
    "get_client_addr", "get_path_with_query_string",
]  # fmt: skip

# Types of an ASGI application; the state is the object that it finds in each scope.
State = dict[str, Any]
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Arguments of uvicorn's configuration, and of `ssl_context`.
Settings = dict[str, Any]
Tls = dict[str, Any]

_LOGGERS = ("uvicorn.error", "uvicorn.access", "uvicorn.asgi")
ABOVE_INFO = ("warning", "error", "critical")

_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}

# The modules that workers use, imported before the first fork.
MODULES = (
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.http.h11_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.protocols.websockets.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.loops.asyncio",
    "uvicorn.loops.uvloop",
    "uvicorn.middleware.proxy_headers",
)


class RequiredProtocolMembers(NamedTuple):
    """The names of the methods and attributes that poolctl uses in one of uvicorn's protocol classes.

    `cycle` names the attributes that poolctl uses in uvicorn's object for one request and its response.
    """

    methods: tuple[str, ...]
    attributes: tuple[str, ...]
    cycle: tuple[str, ...] = ()

    def missing(self, protocol: type) -> set[str]:
        """Return the names that the class `protocol`, or the class of its requests, lacks; empty if both have all.

        An attribute may be in the class, or be set by the `__init__` of the class or of a base class.
        """
        cycle = getattr(sys.modules[protocol.__module__], "RequestResponseCycle", object)
        missing = {*self.methods}.difference(dir(protocol))
        return missing | {*self.attributes} - _members(protocol) | {*self.cycle} - _members(cycle)


def _members(kind: type) -> set[str]:
    names = set(dir(kind))
    for base in kind.__mro__:
        code = getattr(vars(base).get("__init__"), "__code__", None)
        names.update(getattr(code, "co_names", ()))
    return names


# Members used in the HTTP/1.1 classes of both parsers.
HTTP1 = RequiredProtocolMembers(
    (
        "connection_made", "connection_lost", "data_received", "shutdown", "on_response_complete",
        "timeout_keep_alive_handler", "_unset_keepalive_if_required", "send_400_response",
    ),
    (
        "transport", "connections", "server_state", "loop", "timeout_keep_alive", "timeout_keep_alive_task", "app",
        "access_log", "server", "client", "scheme", "limit_concurrency", "cycle", "scope",
    ),
    (
        "scope", "default_headers", "disconnected", "message_event", "more_body", "response_started",
        "response_complete", "send", "send_500_response", "on_response", "keep_alive", "transport",
    ),
)  # fmt: skip
# Further members used in the class of one parser.
HTTPTOOLS = RequiredProtocolMembers(
    (
        "on_headers_complete",
        "on_message_complete",
        "on_url",
        "handle_websocket_upgrade",
        "_should_upgrade",
        "_unsupported_upgrade_warning",
    ),
    ("flow", "headers", "parser", "pipeline"),
    ("chunked_encoding", "expected_content_length"),
)
H11 = RequiredProtocolMembers(("handle_events", "handle_websocket_upgrade"), ("config", "conn", "headers"))

# By the name of a WebSocket class; uvicorn imports only the class in use.
WEBSOCKETS = {
    "WebSocketsSansIOProtocol": RequiredProtocolMembers(
        ("shutdown", "stop_keepalive", "send_receive_event_to_app", "send_500_response"),
        ("transport", "loop", "handshake_complete", "close_sent", "close_timer", "conn", "frames", "queue"),
    ),
    "WSProtocol": RequiredProtocolMembers(
        ("shutdown", "stop_keepalive", "handle_message", "handle_ping", "handle_pong", "send_500_response"),
        ("transport", "loop", "handshake_complete", "close_sent", "close_timer", "conn", "queue", "response_started"),
    ),
    "WebSocketProtocol": RequiredProtocolMembers(
        ("shutdown", "close", "send_500_response"),
        ("transport", "loop", "handshake_completed_event", "close_timeout", "open", "tasks", "ws_server"),
    ),
}  # fmt: skip

# The name of the application that answers above limit_concurrency, in the module of a protocol class.
BUSY_APP = "service_unavailable"


class HttpApp:
    """Base class of ASGI applications that have neither WebSockets nor a lifespan."""


def settings_for(app: object, settings: Settings) -> Settings:
    """The settings without WebSockets and lifespan if `app` is an HttpApp, and with a definite parser.

    The meaning of the parser `auto` may change in uvicorn. Connections with the chosen parser can be drained without
    loss.
    """
    if isinstance(app, HttpApp):
        settings = {**settings, "ws": "none", "lifespan": "off"}
    if settings["http"] != "auto":
        return settings
    return {**settings, "http": "h11" if find_spec("httptools") is None else "httptools"}


def configure(app: App, settings: Settings) -> uvicorn.Config:
    """A uvicorn configuration for `app`, not loaded yet."""
    # Logging was set up by the preload, its level by the worker; the access log is poolctl's own.
    return uvicorn.Config(app, log_config=None, **settings_for(app, settings))


class UnixPeers:
    """The trusted hosts of uvicorn's middleware, and the clients of a Unix socket, which have no address."""

    def __init__(self, hosts: Any) -> None:
        self._hosts = hosts

    def __contains__(self, host: str | None) -> bool:
        return host is None or host in self._hosts

    def get_trusted_client_address(self, hops: str) -> Any:
        return self._hosts.get_trusted_client_address(hops)


def wsgi_middleware() -> Any:
    """uvicorn's class that serves a WSGI application, for environments without a2wsgi."""
    return import_module("uvicorn.middleware.wsgi").WSGIMiddleware


def ssl_context(tls: Tls, fds: list[int]) -> ssl.SSLContext:
    """A server's TLS context from the settings `tls` and the files `fds`: certificate, key and, optionally, client CAs.

    Raises OSError (ssl.SSLError is one) or ValueError for unusable files.
    """
    paths = [f"/proc/self/fd/{fd}" for fd in fds]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls["min_version"]]
    context.load_cert_chain(paths[0], paths[1], tls["password"])
    if len(paths) > 2:
        context.load_verify_locations(paths[2])
    context.verify_mode = _CLIENT_AUTH[tls["client_auth"]]
    if tls["ciphers"]:
        context.set_ciphers(tls["ciphers"])
    context.set_alpn_protocols(["http/1.1"])
    return context


def omit_uvicorns_lines() -> None:
    """Suppress the INFO messages of uvicorn and its WebSockets about startup, shutdown and each connection.

    The worker reports its start and its end, and the access log the connections. Applications write to `uvicorn.error`
    too: their records appear as they do under uvicorn.
    """
    packages = (uvicorn, sys.modules.get("websockets"))
    directories = tuple(
        os.path.dirname(package.__file__) + os.sep for package in packages if package and package.__file__
    )

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno != logging.INFO or not record.pathname.startswith(directories)

    logging.getLogger("uvicorn.error").addFilter(is_wanted)


class _EnabledLogger(logging.Logger):
    """A logger that stays enabled: its level and its handlers say what is logged."""

    @property
    def disabled(self) -> bool:
        return False

    @disabled.setter
    def disabled(self, value: bool) -> None: ...


def keep_loggers_enabled() -> None:
    """Log errors and requests even if an application sets up its own logging.

    By default `logging.config.dictConfig` and `fileConfig` disable existing loggers: exceptions in requests would not
    be logged.
    """
    for name in _LOGGERS:
        logging.getLogger(name).__class__ = _EnabledLogger


def apply_and_drop_level(settings: Settings) -> Settings:
    """Set the configured log level before the application is imported, so that the application can override it.

    Returns the settings without the level: uvicorn would set it again after the import.
    """
    level = settings.get("log_level")  # missing for uvicorn's default
    if level is None:
        return settings
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(LOG_LEVELS[level])
    return {key: value for key, value in settings.items() if key != "log_level"}
