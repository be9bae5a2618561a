"""Which proxy the environment names for a host."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from poolctl.http.http_client import ForwardProxy, ProxyError, proxy_for

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
        ("192.168.1.1", "10.0.0.0/8,hooks.test", False),
        ("hooks.test", "*", True),
        ("hooks.test", "", False),
    ],
)
def test_no_proxy_excepts_names_domains_addresses_and_networks(host: str, listed: str, direct: bool) -> None:
    assert (proxy_for("https", host, 443, {**PROXY, "NO_PROXY": listed}) is None) is direct


@pytest.mark.parametrize("value", ["https://proxy.test", "socks5://proxy.test", "http://", "http://a:port"])
def test_value_that_is_no_address_of_a_proxy_is_an_error_without_it(value: str) -> None:
    with pytest.raises(ProxyError, match="HTTPS_PROXY is no address of a proxy"):
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
def test_tunnel_that_a_proxy_refuses_is_an_error_with_the_reason(answer: bytes, problem: str) -> None:
    async def refuse(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stream.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(refuse, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            proxy = ForwardProxy("127.0.0.1", port)
            with pytest.raises(ProxyError, match=f"the proxy 127.0.0.1:{port} {problem}"):
                await proxy.open_tunnel("a.test", 443, ssl.create_default_context(), limit=65536)

    asyncio.run(scenario())
