"""TLS that the real program passes to servers with certificates of their own, by the server name of the client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from poolctl.features.gateway.haproxy.configuration import ServerAddresses, configuration_of
from poolctl.features.gateway.haproxy.listeners import HaproxyListener
from poolctl.features.gateway.settings import Endpoint
from poolctl.routing.route import Redirect, Route, Target, TrafficLimits
from tests.asyncio_server import listening
from tests.certificates import certificate
from tests.features.gateway.scripted_haproxy import gateway_settings
from tests.features.gateway.test_haproxy_configuration import check
from tests.programs import program

DEADLINE = 60.0
SECURE = (Target(server="secure"),)


@contextlib.asynccontextmanager
async def passing(directory: Path, routes: Sequence[Route]) -> AsyncIterator[int]:
    """The port of the real program before a server whose certificate is for server.test."""
    executable = program("haproxy")
    cert, key = certificate(directory, "server.test")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"hello")
            writer.close()

    async with listening(serve, "127.0.0.1", 0, ssl=context) as server:
        endpoints = {"secure": Endpoint("tcp", *server.sockets[0].getsockname(), tls=True)}
        endpoints["plain"] = endpoints["secure"]._replace(tls=False)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            bind = HaproxyListener((f"fd@{listener.fileno()}",), passes_tls=True)
            settings = gateway_settings(head_timeout=1.0)
            made = configuration_of(settings, [bind], routes, [], ServerAddresses(endpoints))
            path = directory / "haproxy.cfg"
            path.write_text(made.text())
            process = await asyncio.create_subprocess_exec(
                executable, "-f", str(path), pass_fds=[listener.fileno()]
            )
            try:
                yield listener.getsockname()[1]
            finally:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()


async def answer(port: int, name: str | None) -> bytes:
    """What the server sends within TLS whose certificate is the server's; nothing if the connection is closed."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname=name or ""
        )
    except (ConnectionError, ssl.SSLError):
        return b""
    with contextlib.closing(writer):
        assert b"server.test" in (writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b"")
        return await reader.read()


@pytest.mark.capability
async def test_tls_of_a_whole_host_is_passed_to_its_server(tmp_path: Path) -> None:
    routes = [
        Route(alias="whole", host="a.test", to=SECURE),
        Route(alias="below", host="*.below.test", to=SECURE),
        Route(alias="label", host="users", to=SECURE),
        Route(alias="to-https", host="a.test", redirect=Redirect(to="https")),
        Route(alias="divided", host="divided.below.test", path="/v1", to=SECURE),
        Route(alias="limited", host="limited.below.test", to=SECURE, limit=TrafficLimits(concurrency=1)),
        Route(alias="plain", host="plain.below.test", to=(Target(server="plain"),)),
        Route(alias="closed", host="closed.below.test", to=SECURE, allow=("10.0.0.0/8",)),
        Route(alias="open", host="open.below.test", to=SECURE, allow=("127.0.0.0/8",)),
    ]
    async with passing(tmp_path, routes) as port:
        passed = ["a.test", "A.test", "x.below.test", "users.anything", "open.below.test"]
        for name in passed:
            assert await answer(port, name) == b"hello", name
        for part in ("divided", "limited", "plain", "closed"):
            assert await answer(port, f"{part}.below.test") == b"", part
        for name in ("below.test", "other.test"):
            assert await answer(port, name) == b"", name
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b"", "no TLS"


def test_addresses_that_pass_tls_and_others_are_served_together(tmp_path: Path) -> None:
    listeners = [HaproxyListener(("127.0.0.1:8080",)), HaproxyListener(("127.0.0.1:8443",), passes_tls=True)]
    endpoints = {"secure": Endpoint("tcp", "127.0.0.1", 9443, tls=True)}
    routes = [Route(alias="a", to=SECURE)]
    made = configuration_of(gateway_settings(), listeners, routes, [], ServerAddresses(endpoints))
    assert [(each.name, each.passes_tls, len(each.servers)) for each in made.backends] == [
        ("route:a", False, 1),
        ("tls:a", True, 1),
    ]
    assert [server.options for each in made.backends for server in each.servers][1] == ""
    check(made, tmp_path)
