"""How connections of each of uvicorn's HTTP protocol classes leave a worker."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .connection import Closing, Lingering
from .moving import MovingH11, MovingHttptools

logger = logging.getLogger("uvicorn.error")

# Aliases under which the mixins call methods of the class without super().
_DIRECT = {
    "made": "connection_made",
    "lost": "connection_lost",
    "feed": "data_received",
    "headers_complete": "on_headers_complete",
    "response_complete": "on_response_complete",
}
# What the mixins rely on, in addition to each parser's callbacks.
_COMMON = ("connection_made", "connection_lost", "data_received", "shutdown", "on_response_complete",
           "timeout_keep_alive_handler", "_unset_keepalive_if_required")  # fmt: skip
_ATTRIBUTES = ("transport", "connections", "server_state", "timeout_keep_alive_task")
_HTTP1 = (*_COMMON, "send_400_response"), (*_ATTRIBUTES, "cycle", "scope")
_HTTP2 = (*_COMMON, "handle_request", "flush", "_close_connection"), (*_ATTRIBUTES, "conn", "cycles")


@functools.cache
def able_to_leave(protocol: type[asyncio.Protocol], *, http2: bool = False) -> type[asyncio.Protocol]:
    """The given HTTP protocol class, able to leave: it moves if it can, lingers if it cannot, and closes otherwise.

    With `http2` a connection may turn out to be one of uvicorn's for HTTP/2.
    """
    http1 = _with(_mixin(protocol) if _has(protocol, *_HTTP1) else Closing, protocol)
    if not http2:
        return http1
    from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

    from .http1_or_2 import Http1Or2
    from .http2 import LingeringHttp2

    mixin = LingeringHttp2 if _has(ZttpH2Protocol, *_HTTP2) else Closing
    classes = {"http1": http1, "http2": _with(mixin, ZttpH2Protocol)}
    return type("Http1Or2", (Http1Or2,), classes)


def http_classes(made: Any) -> tuple[type[Any], ...]:
    """All classes that a connection of one that `able_to_leave` made can have before it is a WebSocket."""
    return tuple(each for each in (made, getattr(made, "http1", None), getattr(made, "http2", None)) if each)


def _with(mixin: type[Any], protocol: type[Any]) -> type[Any]:
    if mixin is Closing:
        logger.warning(
            "uvicorn's %s is not known to this version of poolctl: a restart closes its connections, and may lose "
            'requests that are on their way; set http.implementation to "h11" or "httptools"',
            protocol.__name__,
        )
    names: dict[str, Any] = {name: getattr(protocol, method, None) for name, method in _DIRECT.items()}
    if issubclass(mixin, Lingering):
        # With thirty attributes of their own, objects of a class share their names no more: each takes 1.3 KB more, and
        # more time for each attribute. uvicorn's have twenty-eight.
        names["__slots__"] = ("count", "head")
    return type(f"{mixin.__name__}{protocol.__name__}", (mixin, protocol), names)


def _mixin(protocol: type[Any]) -> type[Any]:
    if hasattr(protocol, "on_message_complete") and hasattr(protocol, "on_headers_complete"):
        return MovingHttptools
    events = getattr(protocol, "handle_events", None)
    arguments = -1 if events is None else len(inspect.signature(events).parameters) - 1
    if issubclass(protocol, H11Protocol) and arguments == 0:
        return MovingH11
    if arguments == 1 and any(each.__name__ == "ZttpProtocol" for each in protocol.__mro__):
        from .zttp import LingeringZttp

        return LingeringZttp
    return Closing


def _has(protocol: type[Any], methods: tuple[str, ...], attributes: tuple[str, ...]) -> bool:
    named: set[str] = set()
    for each in protocol.__mro__:
        code = getattr(vars(each).get("__init__"), "__code__", None)
        named.update(getattr(code, "co_names", ()))
    return named.issuperset(attributes) and all(hasattr(protocol, name) for name in methods)
