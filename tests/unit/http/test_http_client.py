"""Which proxy the environment names for a host."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import h11
import pytest

from poolctl.http.http_client import (
    ForwardProxy,
    NoResponse,
    ProxyError,
    StreamedResponse,
    exchange,
    proxy_for,
)
from poolctl.http.messages import ResponseReader
from tests.asyncio_server import listening
from tests.certificates import certificate

PROXY = {"HTTPS_PROXY": "http://proxy.test:3128"}


def test_proxy_is_that_of_the_scheme_with_its_credentials() -> None:
    assert proxy_for("https", "hooks.test", 443, PROXY) == ForwardProxy("proxy.test", 3128)
    assert proxy_for("http", "hooks.test", 80, PROXY) is None
    assert proxy_for("http", "hooks.test", 80, {"http_proxy": "proxy.test"}) == ForwardProxy("proxy.test", 80)
    named = proxy_for("https", "hooks.test", 443, {"ALL_PROXY": "http://me:s%20t@proxy.test:1"})
    assert named == ForwardProxy("proxy.test", 1, "Basic bWU6cyB0")


@pytest.mark.parametrize(
    ("host", "listed", "direct"),
    [
        ("hooks.test", "other.test, hooks.test", True),
        ("a.hooks.test", ".hooks.test", True),
        ("a.hooks.test", "*.hooks.test", True),
        ("badhooks.test", "hooks.test", False),
        ("hooks.test", "hooks.test:443", True),
        ("hooks.test", "hooks.test:8443", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("::1", "[::1]", True),
        ("10.1.2.3", "10.9.9.9/8", True),
        ("192.168.1.1", "10.0.0.0/8,hooks.test", False),
        ("hooks.test", "*", True),
        ("hooks.test", "", False),
    ],
)
def test_no_proxy_excepts_names_domains_addresses_and_networks(host: str, listed: str, direct: bool) -> None:
    assert (proxy_for("https", host, 443, {**PROXY, "NO_PROXY": listed}) is None) is direct


@pytest.mark.parametrize("value", ["https://proxy.test", "socks5://proxy.test", "http://", "http://a:port"])
def test_value_that_is_no_address_of_a_proxy_is_an_error_without_it(value: str) -> None:
    with pytest.raises(ProxyError, match="HTTPS_PROXY is not the address of a proxy"):
        proxy_for("https", "hooks.test", 443, {"HTTPS_PROXY": value})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "answered 407"),
        (b"HTTP/1.0 503\r\nContent-Length: 0\r\n\r\n", "answered 503"),
        (b"HTTP/1.1 200 OK\n\n\r\n\r\n", "does not answer with HTTP"),
        (b"HTTP/1.1 2\r\n\r\n", "does not answer with HTTP"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not answer with HTTP"),
    ],
)
async def test_tunnel_that_a_proxy_refuses_is_an_error_with_the_reason(answer: bytes, problem: str) -> None:
    async def refuse(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with served(refuse) as where:
        with pytest.raises(ProxyError, match=f"the proxy 127.0.0.1:{where[1]} {problem}"):
            await ForwardProxy(*where).open_tunnel("a.test", 443, ssl.create_default_context(), limit=65536)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def served(handler: Handler, *place: Any, **options: Any) -> AsyncIterator[tuple[str, int]]:
    """The address of a server that handles each connection so, and closes it."""

    async def handle(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(stream, writer)
        finally:
            writer.close()

    where = place or ("127.0.0.1", 0)
    async with asyncio.timeout(60), listening(handle, *where, **options) as server:
        yield "127.0.0.1", 0 if place else server.sockets[0].getsockname()[1]


def answering(answer: bytes, heads: list[bytes], size: int = 0) -> Handler:
    async def handler(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await stream.readuntil(b"\r\n\r\n") + await stream.readexactly(size))
        writer.write(answer)
        await writer.drain()

    return handler


async def body_of(response: StreamedResponse) -> bytes:
    return b"".join([piece async for piece in response.body()])


def secure(directory: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server for localhost, and of a client that trusts it."""
    cert, key = certificate(directory)
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    inside.load_cert_chain(cert, key)
    return inside, ssl.create_default_context(cafile=str(cert))


HOST = [("host", "a")]


@pytest.mark.parametrize(
    ("method", "answer", "body"),
    [
        ("POST", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        ("POST", b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (
            "POST",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            b"hello",
        ),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b""),
    ],
)
async def test_request_is_sent_and_its_response_read(method: str, answer: bytes, body: bytes) -> None:
    heads: list[bytes] = []
    fields = [("host", "a.test"), ("content-length", "2")]
    async with (
        served(answering(answer, heads, 2)) as where,
        exchange(where, method, "/x?y", fields, b"ab") as response,
    ):
        assert (response.status, response.head.reason) == (200, b"OK")
        assert repr(response) == "<StreamedResponse 200>"
        assert await body_of(response) == body
    assert heads == [method.encode() + b" /x?y HTTP/1.1\r\nhost: a.test\r\ncontent-length: 2\r\n\r\nab"]


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"]
)
async def test_response_that_ends_early_is_an_error(answer: bytes) -> None:
    async with served(answering(answer, [])) as where:
        with pytest.raises(NoResponse, match="closed before the response was complete"):
            async with exchange(where, "GET", "/", HOST) as response:
                await body_of(response)


async def test_reset_before_the_response_is_an_error() -> None:
    async def reset(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        at_once = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)

    async with served(reset) as where:
        with pytest.raises(NoResponse, match="reset"):
            async with exchange(where, "GET", "/", HOST):
                pass


def test_body_above_the_limit_is_cut_off_and_ends_the_response() -> None:
    request = h11.Request(method="GET", target="/", headers=HOST)
    for limit, body in ((4, b"hell"), (5, b"hello"), (6, b"hello")):
        reader = ResponseReader(request, max_body_bytes=limit)
        reader.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello")
        assert (reader.complete, reader.body) == (limit < 5, body)


async def test_unix_socket_and_an_old_version_are_spoken_to(tmp_path: Path) -> None:
    heads: list[bytes] = []
    path = str(tmp_path / "s")
    async with (
        served(answering(b"HTTP/1.0 204 No Content\r\n\r\n", heads), path),
        exchange(path, "GET", "/", HOST) as response,
    ):
        assert response.status == 204
    assert heads == [b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"]


@pytest.mark.parametrize("status", [b"200 OK", b"299 Odd"])
async def test_tunnel_reaches_the_host_and_checks_its_certificate(tmp_path: Path, status: bytes) -> None:
    inside, trusting = secure(tmp_path)
    asked: list[bytes] = []

    async def proxying(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await stream.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %b\r\n\r\n" % status)
        await writer.start_tls(inside)
        await answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", asked)(stream, writer)

    async with served(proxying) as where:
        proxy = ForwardProxy(*where, "Basic bWU6cyB0")
        async with exchange(("localhost", 8443), "GET", "/x", HOST, tls=trusting, proxy=proxy) as response:
            assert await body_of(response) == b"ok"
    assert asked == [
        b"CONNECT localhost:8443 HTTP/1.1\r\nhost: localhost:8443\r\nproxy-authorization: Basic bWU6cyB0\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n",
    ]


@pytest.mark.parametrize("length", [b"Content-Length: 6\r\n", b""])
async def test_body_is_yielded_in_the_pieces_in_which_it_arrives(length: bytes) -> None:
    taken = asyncio.Event()

    async def handler(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        for piece in (b"ab", b"cd", b"ef"):
            writer.write(piece)
            await taken.wait()
            taken.clear()

    found = []
    async with served(handler) as where, exchange(where, "GET", "/", HOST) as response:
        async for piece in response.body():
            found.append(piece)
            taken.set()
    assert found == [b"ab", b"cd", b"ef"]


async def test_request_without_tls_is_sent_to_the_proxy_itself() -> None:
    asked: list[bytes] = []
    async with (
        served(answering(b"HTTP/1.1 204 No Content\r\n\r\n", asked)) as where,
        exchange(("a.test", 80), "GET", "http://a.test/", HOST, proxy=ForwardProxy(*where)) as response,
    ):
        assert response.status == 204
    assert asked == [b"GET http://a.test/ HTTP/1.1\r\nhost: a\r\n\r\n"]


async def test_host_with_tls_is_reached_without_a_proxy(tmp_path: Path) -> None:
    inside, trusting = secure(tmp_path)
    handler = answering(b"HTTP/1.1 204 No Content\r\n\r\n", [])
    async with (
        served(handler, ssl=inside) as (_, port),
        exchange(("localhost", port), "GET", "/", HOST, tls=trusting) as response,
    ):
        assert response.status == 204


@pytest.mark.parametrize("through", ["exchange", "tunnel"])
async def test_connection_is_closed_when_the_exchange_ends(through: str) -> None:
    seen = asyncio.Event()

    async def handler(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await seen.wait()

    async with served(handler) as where:
        before = len(os.listdir("/proc/self/fd"))
        if through == "exchange":
            async with exchange(where, "GET", "/", HOST):
                pass
        else:
            with pytest.raises(ProxyError, match="answered 403"):
                await ForwardProxy(*where).open_tunnel("a", 443, ssl.create_default_context(), limit=65536)
        assert len(os.listdir("/proc/self/fd")) - before == 1, "the server's side"
        seen.set()
