"""An asyncio HTTP client: sends one request on a new connection, and streams the response.

Forward proxies are named by the environment variables HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in upper or
lower case, as for curl and Python's urllib. For https a tunnel is requested (RFC 9110 §9.3.6): the proxy does not see
its contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import h11

from .messages import BadMessage, ResponseReader, request_head

_READ_BYTES = 256 * 1024


class NoResponse(ConnectionError):
    """The connection was made, and ended before the response was complete."""


class StreamedResponse:
    """A response with its head; the body is read on demand."""

    def __init__(self, head: h11.Response, message: ResponseReader, stream: asyncio.StreamReader) -> None:
        self.head = head
        self.status = head.status_code
        self._message = message
        self._stream = stream

    def __repr__(self) -> str:
        return f"<StreamedResponse {self.status}>"

    async def body(self) -> AsyncGenerator[bytes]:
        """Yield the body in pieces, as they arrive. Raises BadMessage, OSError, and NoResponse when it ends early."""
        while True:
            if piece := self._message.take_body():
                yield piece
            if self._message.complete:
                return
            await _read_more_into(self._message, self._stream)


@contextlib.asynccontextmanager
async def exchange(
    where: str | tuple[str, int],
    method: str,
    target: str,
    fields: Iterable[tuple[str, str]],
    body: bytes = b"",
    *,
    tls: ssl.SSLContext | None = None,
    server_name: str | None = None,
    proxy: ForwardProxy | None = None,
) -> AsyncIterator[StreamedResponse]:
    """Send one request to `where`, a Unix socket's path or a host and a port, and yield the response.

    With both `proxy` and `tls`, the request goes through a tunnel of the proxy. With `proxy` alone, the proxy itself
    gets the request, and `target` must be a URL.

    With `tls` the certificate must be valid for `server_name`, or the host, unless the context says otherwise.
    Redirects are not followed, failures are not retried, and there is no time limit except the caller's
    `asyncio.timeout`. Raises OSError, BadMessage for a response that is not HTTP, NoResponse, and ValueError for a
    request that cannot be written.
    """
    message = ResponseReader(request_head(method, target, fields), body)
    if isinstance(where, str):
        stream, writer = await asyncio.open_unix_connection(where, limit=_READ_BYTES)
    elif proxy is not None and tls is not None:
        stream, writer = await proxy.open_tunnel(*where, tls, limit=_READ_BYTES)
    elif proxy is not None:
        stream, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=_READ_BYTES)
    else:
        stream, writer = await asyncio.open_connection(
            *where, limit=_READ_BYTES, ssl=tls, server_hostname=server_name
        )
    try:
        writer.write(message.payload)
        with contextlib.suppress(ConnectionError):
            await writer.drain()  # a server that refuses the rest has sent the reason
        yield StreamedResponse(await _read_head_of(message, stream), message, stream)
    finally:
        # Not close(), which would wait for a server that does not read, or that does not end its TLS.
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _read_head_of(message: ResponseReader, stream: asyncio.StreamReader) -> h11.Response:
    while message.head is None:
        await _read_more_into(message, stream)
    return message.head


async def _read_more_into(message: ResponseReader, stream: asyncio.StreamReader) -> None:
    """Read more of the response. Raises NoResponse if it has ended early."""
    try:
        data = await stream.read(_READ_BYTES)
    except ConnectionError as error:
        raise NoResponse(error.errno, error.strerror) from None
    if data:
        message.feed(data)
    elif not message.record_disconnect():
        raise NoResponse("the connection was closed before the response was complete")


class ProxyError(ConnectionError):
    """The proxy is unusable or has refused the request; the message leaves out its password."""


class ForwardProxy(NamedTuple):
    """A proxy: its address, and the value of Proxy-Authorization ("" for none)."""

    host: str
    port: int
    authorization: str = ""

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields for the proxy itself; empty without `authorization`."""
        return [("proxy-authorization", self.authorization)] if self.authorization else []

    async def open_tunnel(
        self, host: str, port: int, tls: ssl.SSLContext, *, limit: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a TLS connection to the host through the proxy; `limit` is the read buffer in bytes. Raises OSError."""
        stream, writer = await asyncio.open_connection(self.host, self.port, limit=limit)
        try:
            authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            message = ResponseReader(request_head("CONNECT", authority, [("host", authority), *self.fields]))
            writer.write(message.payload)
            try:
                await _read_head_of(message, stream)
            except (NoResponse, BadMessage):
                raise ProxyError(f"the proxy {self.host}:{self.port} does not answer with HTTP") from None
            if message.status // 100 != 2:
                raise ProxyError(f"the proxy {self.host}:{self.port} answered {message.status}")
            await writer.start_tls(tls, server_hostname=host)
        except BaseException:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            raise
        return stream, writer


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> ForwardProxy | None:
    """The proxy for a request to the host; None for a direct connection. Raises ProxyError for an unusable value."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        value = environment.get(name) or environment.get(name.upper())
        if value:
            return None if _bypasses_proxy(host, port, environment) else _parse(name.upper(), value)
    return None


def _parse(name: str, value: str) -> ForwardProxy:
    try:
        where = urlsplit(value if "//" in value else f"http://{value}")
        port = where.port or 80
    except ValueError:
        raise ProxyError(f"{name} is not the address of a proxy") from None
    if where.scheme != "http" or not where.hostname:
        raise ProxyError(f"{name} is not the address of a proxy, which begins with http://")
    authorization = ""
    if where.username is not None:
        credentials = f"{unquote(where.username)}:{unquote(where.password or '')}"
        authorization = f"Basic {b64encode(credentials.encode()).decode()}"
    return ForwardProxy(where.hostname, port, authorization)


def _bypasses_proxy(host: str, port: int, environment: Mapping[str, str]) -> bool:
    """Whether NO_PROXY matches the host: by name, parent domain, address or network; `*` matches every host."""
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    host = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for rule in filter(None, (part.strip().lower() for part in listed.split(","))):
        if rule == "*":
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(rule.strip("[]"), strict=False):
                    return True
            except ValueError:
                pass
        name, _, digits = rule.rpartition(":") if rule.count(":") == 1 else (rule, "", "")
        domain = name.lstrip("*").lstrip(".")
        if domain and (not digits or digits == str(port)) and (host == domain or host.endswith(f".{domain}")):
            return True
    return False
