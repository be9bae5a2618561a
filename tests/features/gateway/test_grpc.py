"""gRPC through the gateway: calls, streams in both directions, and trailers, with TLS and without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.environments import need_gateway
from tests.ports import claim_port
from tests.real_pool import RealPool

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.integration

SERVER = Path(__file__).with_name("grpc_server.py")
SECONDS = 60.0


class Grpc:
    """A client of `grpc_server` at this port of the gateway; with a certificate file it uses TLS."""

    def __init__(self, port: int, authority: Path | None = None) -> None:
        if authority is None:
            self.channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        else:
            credentials = grpc.ssl_channel_credentials(authority.read_bytes())
            self.channel = grpc.secure_channel(f"localhost:{port}", credentials)

    def call(self, kind: str, method: str, request: Any) -> tuple[Any, str]:
        """The response, a list if it is a stream, and the number of messages in the trailers."""
        call = getattr(self.channel, kind)(f"/echo/{method}")
        if kind.endswith("stream"):
            running = call(request, timeout=SECONDS)
            found: Any = [*running]
        else:
            found, running = call.with_call(request, timeout=SECONDS)
        return found, dict(running.trailing_metadata())["x-messages"]

    def check(self) -> None:
        """Try every kind of call."""
        assert self.call("unary_unary", "unary", b"a") == (b"a", "1")
        assert self.call("unary_stream", "download", b"b" * 100_000) == ([b"b" * 100_000] * 3, "3")
        assert self.call("stream_unary", "upload", iter([b"c"] * 50)) == (b"c" * 50, "50")
        assert self.call("stream_stream", "both", iter([b"d", b"e"])) == ([b"d", b"e"], "2")
        with pytest.raises(grpc.RpcError) as failed:
            self.call("unary_unary", "fail", b"")
        found: Any = failed.value
        assert (found.code(), found.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "as asked")


@pytest.fixture
def outside() -> Iterator[Any]:
    """Start a gRPC server outside the pool; returns its port."""
    started = []

    def start(**variables: str) -> int:
        port = claim_port()
        environment = {**os.environ, **variables}
        started.append(subprocess.Popen([sys.executable, str(SERVER), str(port)], env=environment))
        return port

    yield start
    for each in started:
        each.send_signal(signal.SIGTERM)
        each.wait(SECONDS)


def clients(pool: RealPool, route: str) -> list[Grpc]:
    """Start a pool with this route; returns a client without TLS, and one with it."""
    need_gateway()
    plain, tls = claim_port(), claim_port()
    cert, _ = certificate(pool.directory)
    pool.write(
        "pool.toml",
        f'[gateway]\nbind = ["127.0.0.1:{plain}", {{ bind = "127.0.0.1:{tls}", tls = {{ cert = "localhost.pem", '
        f'key = "localhost.key" }} }}]\n{route}',
    )
    pool.ok("start")
    return [Grpc(plain), Grpc(tls, cert)]


@pytest.mark.parametrize("socket", ["program", "proxied"])
def test_command_that_speaks_http2_is_called(real_pool: RealPool, socket: str) -> None:
    bind = "127.0.0.1:auto" if socket == "proxied" else f"127.0.0.1:{claim_port()}"
    for client in clients(
        real_pool,
        f'[[route]]\nto = "calls"\n[[server]]\nname = "calls"\nbind = "{bind}"\n'
        f'command = ["{sys.executable}", "{SERVER}"]\nsocket = "{socket}"\nbackend_protocol = "h2"\n',
    ):
        client.check()


def test_target_outside_that_speaks_http2_is_called_while_routes_change(
    real_pool: RealPool, outside: Any
) -> None:
    port = outside()
    route = f'[[route]]\nto = "h2c://127.0.0.1:{port}"\nrepeatable = true\n'
    for number, client in enumerate(clients(real_pool, route)):
        wait_until(lambda client=client: answers(client))
        client.check()

        def messages(number: int = number) -> Iterator[bytes]:
            yield b"before"
            path = real_pool.directory / "pool.toml"
            path.write_text(
                f'{path.read_text()}[[route]]\nalias = "r{number}"\nredirect = "https"\npath = "/{number}"\n'
            )
            real_pool.ok("reload")
            yield b"after"

        assert client.call("stream_stream", "both", messages()) == ([b"before", b"after"], "2")


def test_target_that_speaks_http2_with_tls_is_called(
    real_pool: RealPool, outside: Any, tmp_path: Path
) -> None:
    cert, key = certificate(tmp_path)
    port = outside(CERTIFICATE=str(cert), KEY=str(key))
    route = f'[[route]]\nto = {{ to = "https+h2://localhost:{port}", ca = "{cert}" }}\n'
    for client in clients(real_pool, route):
        wait_until(lambda client=client: answers(client))
        client.check()


def answers(client: Grpc) -> bool:
    try:
        return client.call("unary_unary", "unary", b"a") == (b"a", "1")
    except grpc.RpcError:
        return False


def test_app_speaks_no_http2_with_the_gateway(real_pool: RealPool) -> None:
    real_pool.write(
        "pool.toml", '[[server]]\nname = "web"\nbind = ":0"\napp = "app:app"\nbackend_protocol = "h2"\n'
    )
    done = real_pool.run("validate")
    assert "backend_protocol is for a command" in done.stdout + done.stderr, done
