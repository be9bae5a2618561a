"""TCP and UDP through the gateway of a real pool: to other addresses, and to servers, asleep and awake, with TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.certificates import certificate
from tests.ports import claim_port
from tests.real_pool import RealPool

from .conftest import Until
from .test_wake import APP

pytestmark = pytest.mark.integration

FILE = """
[gateway]
[[stream]]
bind = "127.0.0.1:{plain_stream}"
to = "plain"
[[stream]]
bind = "127.0.0.1:{secure_stream}"
to = "secure"
[[stream]]
bind = "127.0.0.1:{datagrams}"
protocol = "udp"
to = "127.0.0.1:{echo}"
[[server]]
name = "plain"
bind = "127.0.0.1:{plain}"
app = "wakeful:app"
scale = {{ min = 0, idle = 0.2 }}
[[server]]
name = "secure"
bind = "127.0.0.1:{secure}"
app = "wakeful:app"
scale = {{ min = 0, idle = 0.2 }}
tls = {{ cert = "{cert}", key = "{key}" }}
"""
NAMES = ("plain_stream", "secure_stream", "datagrams", "plain", "secure")
GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@contextmanager
def echo() -> Iterator[int]:
    """A UDP server that sends each datagram back; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def serve() -> None:
            while data := (received := sock.recvfrom(65536))[0]:
                sock.sendto(data, received[1])

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield sock.getsockname()[1]
        finally:
            sock.sendto(b"", sock.getsockname())
            thread.join()


async def is_seen(port: int, context: ssl.SSLContext | None = None) -> bool:
    """Whether the server that answers sees this client's own port."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost" if context else None
    )
    writer.write(GET)
    try:
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 OK"), answer
        return answer.split()[-2] == b"%d" % writer.get_extra_info("sockname")[1]
    finally:
        writer.close()


def is_asleep(pool: RealPool, name: str) -> bool:
    return bool(pool.items()[name]["state"] == "sleeping")


@pytest.mark.capability
def test_streams_reach_and_wake_servers_and_other_addresses(real_pool: RealPool, until: Until) -> None:
    ports = {name: claim_port() for name in NAMES}
    cert, key = certificate(real_pool.directory)
    context = ssl.create_default_context(cafile=str(cert))
    with echo() as other:
        real_pool.write("wakeful.py", APP)
        real_pool.write("pool.toml", FILE.format(**ports, echo=other, cert=cert.name, key=key.name))
        real_pool.ok("start")
        until(lambda: is_asleep(real_pool, "plain") and is_asleep(real_pool, "secure"))
        until(lambda: "gateway started" in real_pool.ok("events").stdout)
        for _ in range(2):  # asleep, and then awake
            assert not asyncio.run(is_seen(ports["plain_stream"]))
            assert asyncio.run(is_seen(ports["secure_stream"], context))  # its connection was passed on
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.connect(("127.0.0.1", ports["datagrams"]))
            client.send(b"datagram")
            assert client.recv(100) == b"datagram"
