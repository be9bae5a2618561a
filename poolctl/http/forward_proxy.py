"""Forward proxies named by environment variables: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

The names are the same as for curl and Python's urllib, also in lower case. For https a tunnel is requested (RFC 9110
§9.3.6); the proxy never sees its contents.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from base64 import b64encode
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from .message_head import BadMessage, ResponseHead, request_head


class ProxyError(ConnectionError):
    """The proxy cannot be used, or has refused; the message names it without its password."""


class ForwardProxy(NamedTuple):
    """A proxy: its address, and the value of Proxy-Authorization ("" for none)."""

    host: str
    port: int
    authorization: str = ""

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The header fields for the proxy itself."""
        return [("proxy-authorization", self.authorization)] if self.authorization else []

    async def open_tunnel(
        self, host: str, port: int, tls: ssl.SSLContext, *, limit: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the host through the proxy, with TLS. Raises OSError, such as ProxyError."""
        stream, writer = await asyncio.open_connection(self.host, self.port, limit=limit)
        try:
            authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            writer.write(request_head("CONNECT", authority, [("host", authority), *self.fields]))
            try:
                head = ResponseHead(await stream.readuntil(b"\r\n\r\n"))
            except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, BadMessage):
                raise ProxyError(f"the proxy {self.host}:{self.port} does not answer with HTTP") from None
            if head.status // 100 != 2:
                raise ProxyError(f"the proxy {self.host}:{self.port} answered {head.status}")
            await writer.start_tls(tls, server_hostname=host)
        except BaseException:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            raise
        return stream, writer


def proxy_for(scheme: str, host: str, port: int, environment: Mapping[str, str]) -> ForwardProxy | None:
    """The proxy for a request to the host; None for a direct one. Raises ProxyError for an unusable value."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        value = environment.get(name) or environment.get(name.upper())
        if value:
            return None if _is_excepted(host, port, environment) else _parse(name.upper(), value)
    return None


def _parse(name: str, value: str) -> ForwardProxy:
    try:
        where = urlsplit(value if "//" in value else f"http://{value}")
        port = where.port or 80
    except ValueError:
        raise ProxyError(f"{name} is no address of a proxy") from None
    if where.scheme != "http" or not where.hostname:
        raise ProxyError(f"{name} is no address of a proxy: it begins with http://")
    authorization = ""
    if where.username is not None:
        whole = f"{unquote(where.username)}:{unquote(where.password or '')}"
        authorization = f"Basic {b64encode(whole.encode()).decode()}"
    return ForwardProxy(where.hostname, port, authorization)


def _is_excepted(host: str, port: int, environment: Mapping[str, str]) -> bool:
    """Whether NO_PROXY names the host: by its name, a domain above it, an address or a network; `*` is every host."""
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    host = host.lower().rstrip(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        address = None
    for each in filter(None, (part.strip().lower() for part in listed.split(","))):
        if each == "*":
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(each.strip("[]"), strict=False):
                    return True
            except ValueError:
                pass
        name, _, wanted = each.rpartition(":") if each.count(":") == 1 else (each, "", "")
        domain = name.lstrip("*").lstrip(".")
        if domain and (not wanted or wanted == str(port)) and (host == domain or host.endswith(f".{domain}")):
            return True
    return False
