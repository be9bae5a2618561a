"""TLS at the gateway: its own certificates, renewed ones, and hosts whose connections are passed by their name."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from tests.certificates import certificate
from tests.features.gateway.conftest import ROUTES, GatewayPool
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, Done, RealPool

pytestmark = pytest.mark.integration

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
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
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
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
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


def certificate_lines(done: Done) -> list[str]:
    """What a command says about certificates: it may say as well that a worker is slow."""
    return [line for line in done.stderr.splitlines() if "certificate" in line]


def test_warnings_of_the_file_are_printed_by_start_and_reload_and_only_those_of_the_added_server_by_add(
    real_pool: RealPool,
) -> None:
    pool = real_pool
    certificate(pool.directory, "a.test", days=5)
    certificate(pool.directory, "soon.test", days=3)
    pool.write("hello.py", HELLO_APP)
    pool.write(
        "pool.toml",
        f"""
        [gateway]
        bind = [{{ bind = "127.0.0.1:{claim_port()}", tls = {{ cert = "a.test.pem", key = "a.test.key" }} }}]
        [[server]]
        name = "web"
        bind = "127.0.0.1:{claim_port()}"
        app = "hello:app"
        [[route]]
        host = "b.test"
        to = "web"
        """,
    )
    of_file = ("a.test.pem: the certificate expires on ", "has no certificate for b.test: ")
    of_added = "two: tls.cert: soon.test.pem: the certificate expires on "
    for done in (pool.ok("validate"), pool.ok("start")):
        assert [done.stderr.count(each) for each in of_file] == [1, 1], done
    tls = 'tls={cert="soon.test.pem",key="soon.test.key"}'
    others = [
        pool.ok("add", "one", "--command", "sleep 1000"),
        pool.ok("scale", "web", "2"),
        pool.ok("remove", "one"),
    ]
    added = pool.ok("add", "two", "--bind", f"127.0.0.1:{claim_port()}", "--app", "hello:app", "--set", tls)
    assert [certificate_lines(each) for each in others] == [[], [], []], others
    (line,) = certificate_lines(added)
    assert of_added in line
    reloaded = pool.ok("reload")
    assert [reloaded.stderr.count(each) for each in of_file] == [1, 1], reloaded
