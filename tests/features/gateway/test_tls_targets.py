"""https targets of routes: how HAProxy and the probes verify their certificates."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import certificate
from tests.environments import need_gateway
from tests.features.gateway.conftest import GatewayPool, gateway

__all__ = ["gateway"]

pytestmark = [pytest.mark.slow, pytest.mark.integration]

NAME = "billing.internal"


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def secure_backend(directory: Path, address: str = "10.9.9.9") -> Iterator[tuple[int, set[str | None]]]:
    """The port of a server whose certificate is for NAME and the address, and the names that it was asked for."""
    cert, key = certificate(directory, NAME, address=address)
    context, asked = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), set[str | None]()
    context.load_cert_chain(cert, key)
    context.sni_callback = lambda sock, name, context: asked.add(name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def start(gateway: GatewayPool, port: int, keys: str, health: str = "") -> None:
    need_gateway()
    gateway.pool.write(
        "pool.toml",
        f'[gateway]\nbind = "127.0.0.1:{gateway.port}"\n'
        f'[[route]]\nto = {{ to = "https://127.0.0.1:{port}", {keys} }}\n{health}',
    )
    gateway.pool.ok("start")


@pytest.mark.parametrize(
    ("keys", "status", "why"),
    [
        (f'ca = "{NAME}.pem", sni = "{NAME}"', 200, ""),
        (f'ca = "other.pem", sni = "{NAME}"', 503, "certificate verify failed"),
        (f'ca = "{NAME}.pem"', 503, "certificate verify failed"),
        (f'sni = "{NAME}"', 503, "certificate verify failed"),
        (f'verify = false, sni = "{NAME}"', 200, ""),
        ("verify = false", 200, ""),
    ],
)
@pytest.mark.parametrize(
    "health", ["", 'health = { http = "/", interval = "100ms", timeout = "30s", fall_count_ko = 1 }\n']
)
def test_certificate_of_a_target_is_verified_as_its_keys_say(
    gateway: GatewayPool, keys: str, status: int, why: str, health: str
) -> None:
    certificate(gateway.pool.directory, "other")
    with secure_backend(gateway.pool.directory) as (port, asked):
        start(gateway, port, keys, health)

        def report() -> dict[str, Any]:
            (found,) = gateway.pool.ok("backends", "-o", "json").json["items"]
            return dict(found)

        assert gateway.get("/").status == status
        gateway.until(lambda: why in report()["why"] and (status == 503) == bool(report()["why"]))
        assert (NAME in asked) == (f'sni = "{NAME}"' in keys)
        gateway.pool.ok("stop")


def test_certificate_for_another_name_than_the_one_asked_for_is_refused(gateway: GatewayPool) -> None:
    with secure_backend(gateway.pool.directory) as (port, asked):
        start(gateway, port, f'ca = "{NAME}.pem", sni = "other"')
        assert gateway.get("/").status == 503
        assert asked == {"other"}

        def why() -> str:
            return str(gateway.pool.ok("backends", "-o", "json").json["items"][0]["why"])

        reason = "certificate verify failed: Hostname mismatch"
        gateway.until(lambda: reason in why())
        assert reason in gateway.pool.ok("routes").stderr
        assert reason in gateway.pool.run("doctor").stdout
        gateway.pool.ok("stop")


def test_certificate_for_the_address_alone_needs_a_name(gateway: GatewayPool) -> None:
    with secure_backend(gateway.pool.directory, address="127.0.0.1") as (port, _):
        start(gateway, port, f'ca = "{NAME}.pem"')
        assert gateway.get("/").status == 503
        reason = "HAProxy looks for 127.0.0.1 among the names of the certificate, not among its addresses"

        def why() -> str:
            return str(gateway.pool.ok("backends", "-o", "json").json["items"][0]["why"])

        gateway.until(lambda: reason in why())
        gateway.pool.ok("stop")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ('{ to = "http://a:1", ca = "pool.toml" }', "ca is for an https:// target"),
        ('{ to = "http://a:1", verify = false }', "verify is for an https:// target"),
        ('{ to = "https://a:1", ca = "pool.toml", verify = false }', "ca has no effect with verify = false"),
        ('{ to = "https://a:1", ca = "pool.toml" }', "no certificates that can be used"),
        ('{ to = "https://a:1", ca = "gone.pem" }', "No such file or directory"),
        ('{ to = "https://a:1", sni = "a b" }', "sni"),
    ],
)
def test_key_that_cannot_apply_is_a_problem_of_the_file(
    gateway: GatewayPool, target: str, message: str
) -> None:
    gateway.pool.write("pool.toml", f'[gateway]\nbind = "127.0.0.1:1"\n[[route]]\nto = {target}\n')
    done = gateway.pool.run("validate")
    assert done.code == 5, done
    assert message in done.stdout + done.stderr
