"""TLS at the gateway: its own certificates, renewed ones, and hosts whose connections are passed by their name."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from tests.certificates import certificate
from tests.integration.gateway.conftest import ROUTES, GatewayPool

pytestmark = pytest.mark.unmeasured

SERVER = """
[[server]]
name = "secure"
bind = "127.0.0.1:{port}"
app = "tests.load.apps:app"
tls = {{ cert = "{cert}", key = "{key}" }}
"""


def ask(port: int, name: str, path: str = "/one") -> tuple[x509.Certificate, bytes]:
    """The certificate that a client gets which asks for this name, and the response."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=name) as sock,
    ):
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        der, response = sock.getpeercert(binary_form=True), b""
        while data := sock.recv(65536):
            response += data
    assert der is not None
    return x509.load_der_x509_certificate(der), response


def chosen_protocol(port: int, name: str) -> str | None:
    """What is negotiated with a client that would rather speak HTTP/2."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=name) as sock,
    ):
        return sock.selected_alpn_protocol()


def loaded(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


@pytest.mark.capability
def test_certificate_is_chosen_by_name_renewed_by_reload_and_a_whole_host_is_passed(
    gateway: GatewayPool,
) -> None:
    directory = gateway.pool.directory
    first, key = certificate(directory, "a.example.com")
    second, other_key = certificate(directory, "b.example.com")
    own, own_key = certificate(directory, "secure.example.com")
    (port,) = gateway.pool.write_hello("secure").values()
    gateway.write(ROUTES + '[[route]]\nhost = "secure.example.com"\nto = "secure"\n')
    text = (directory / "pool.toml").read_text()
    binding = (
        f'bind = {{ bind = "127.0.0.1:{gateway.port}", tls = [{{ cert = "{first}", key = "{key}" }}, '
        f'{{ cert = "{second}", key = "{other_key}" }}] }}'
    )
    text = text.replace(f'bind = "127.0.0.1:{gateway.port}"', binding)
    gateway.pool.write("pool.toml", text + SERVER.format(port=port, cert=own, key=own_key))
    gateway.pool.ok("start")
    for name, path in (("a.example.com", first), ("b.example.com", second), ("c.example.com", first)):
        found, response = ask(gateway.port, name)
        assert found == loaded(path), name
        assert response.startswith(b"HTTP/1.1 200"), response
        assert chosen_protocol(gateway.port, name) == "http/1.1"
    # The server's own certificate: the gateway has not seen more than the name.
    gateway.until(lambda: ask(gateway.port, "secure.example.com", "/")[0] == loaded(own))
    assert ask(gateway.port, "secure.example.com", "/")[1].startswith(b"HTTP/1.1 200")
    renewed, _ = certificate(directory, "a.example.com")
    gateway.pool.ok("reload")
    gateway.until(lambda: ask(gateway.port, "a.example.com")[0] == loaded(renewed))
