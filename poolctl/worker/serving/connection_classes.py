"""The classes of connections, each for a class of uvicorn's that it extends."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from .h11_connection import H11Connection
from .uvicorn_parts import H11, HTTP1, HTTP2, HTTPTOOLS, ZTTP, UvicornParts, use_what_is_known

logger = logging.getLogger("uvicorn.error")

# With the parts of uvicorn's class that each uses. All are imported before the first fork; a parser may be missing.
_CLASSES: list[tuple[type[asyncio.Protocol], tuple[UvicornParts, ...]]] = [(H11Connection, (HTTP1, H11))]
with suppress(ImportError):
    from .httptools_connection import HttptoolsConnection

    _CLASSES.append((HttptoolsConnection, (HTTP1, HTTPTOOLS)))
with suppress(ImportError):
    from .zttp_connection import ZttpConnection

    _CLASSES.append((ZttpConnection, (HTTP1, ZTTP)))
with suppress(ImportError):
    from .http2_connection import Http2Connection

    _CLASSES.append((Http2Connection, (HTTP2,)))


def connection_class(protocol: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    """The class for connections that extends the given uvicorn class, or that class itself if it lacks a known part.

    In that case a drain closes connections, and requests are not counted.
    """
    use_what_is_known(protocol)
    for ours, parts in _CLASSES:
        if issubclass(ours, protocol) and not any(each.missing(protocol) for each in parts):
            return ours
    logger.warning(
        "uvicorn's %s is not known to this version of poolctl: a restart closes its connections, and may lose requests "
        'that are on their way, and none is counted; set http.implementation to "h11" or "httptools"',
        protocol.__name__,
    )
    return protocol


def http2_class() -> type[asyncio.Protocol]:
    """The class for connections of HTTP/2. Raises ImportError where uvicorn's is missing, or zttp is."""
    from uvicorn.protocols.http.zttp_h2_impl import ZttpH2Protocol

    return connection_class(ZttpH2Protocol)
