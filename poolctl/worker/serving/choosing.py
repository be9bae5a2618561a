"""How connections of each of uvicorn's HTTP protocol classes leave a worker."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import Any

from .connection import Closing, Lingering, LingeringZttp
from .moving import MovingH11, MovingHttptools
from .uvicorn_parts import DIRECT, H11, HTTP1, HTTP2, HTTPTOOLS, ZTTP, H11Protocol, http2_protocol

logger = logging.getLogger("uvicorn.error")


@functools.cache
def able_to_leave(protocol: type[asyncio.Protocol], *, http2: bool = False) -> type[asyncio.Protocol]:
    """The given HTTP protocol class, able to leave: it moves if it can, lingers if it cannot, and closes otherwise.

    With `http2` a connection may turn out to be one of uvicorn's for HTTP/2.
    """
    http1 = _with(Closing if HTTP1.missing(protocol) else _mixin(protocol), protocol)
    if not http2:
        return http1
    from .http1_or_2 import Http1Or2
    from .http2 import LingeringHttp2

    http2_class = http2_protocol()
    mixin = Closing if HTTP2.missing(http2_class) else LingeringHttp2
    classes = {"http1": http1, "http2": _with(mixin, http2_class)}
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
    names: dict[str, Any] = {name: getattr(protocol, method, None) for name, method in DIRECT.items()}
    if issubclass(mixin, Lingering):
        # With thirty attributes of their own, objects of a class share their names no more: each takes 1.3 KB more, and
        # more time for each attribute. uvicorn's have twenty-eight.
        names["__slots__"] = ("count", "head")
    return type(f"{mixin.__name__}{protocol.__name__}", (mixin, protocol), names)


def _mixin(protocol: type[Any]) -> type[Any]:
    if not HTTPTOOLS.missing(protocol):
        return MovingHttptools
    events = getattr(protocol, "handle_events", None)
    arguments = -1 if events is None else len(inspect.signature(events).parameters) - 1
    if issubclass(protocol, H11Protocol) and arguments == 0 and not H11.missing(protocol):
        return MovingH11
    if arguments == 1 and _is_zttp(protocol) and not ZTTP.missing(protocol):
        return LingeringZttp
    return Closing


def _is_zttp(protocol: type[Any]) -> bool:
    return any(each.__name__ == "ZttpProtocol" for each in protocol.__mro__)
