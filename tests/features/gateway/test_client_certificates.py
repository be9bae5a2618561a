"""A certificate that demands one of clients: it holds for its hosts, over any connection."""

from __future__ import annotations

import base64
import re
import socket
import ssl
from pathlib import Path

from tests.certificates import certificate
from tests.ports import claim_port

from .conftest import GatewayPool

ROUTES = """
[[route]]
host = "open.test"
to = "one"
[[route]]
alias = "closed"
host = "closed.test"
to = "one"
"""


# Answers with what the gateway says of the client's certificate.
ECHO = """
async def app(scope, receive, send):
    shown = b"; ".join(value for name, value in scope["headers"] if name.startswith(b"client"))
    length = (b"content-length", b"%d" % len(shown))
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": shown})
"""


def answer(
    port: int, shown: str, host: str, own: tuple[Path, Path] | None = None, fields: str = ""
) -> tuple[str, str]:
    """Status and body for a request for `host` over a connection for the host `shown`; "" if the handshake fails."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if own is not None:
        context.load_cert_chain(*own)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain, server_hostname=shown) as sock:
                sock.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n{fields}Connection: close\r\n\r\n".encode())
                with sock.makefile("rb") as file:
                    head, _, body = file.read().decode("latin-1").partition("\r\n\r\n")
        except ssl.SSLError:
            return "", ""
    found = re.match(r"HTTP/1\.1 (\d+) ", head)
    return (found[1] if found else head), body


def status(port: int, shown: str, host: str, own: tuple[Path, Path] | None = None) -> str:
    return answer(port, shown, host, own)[0]


def test_host_whose_certificate_demands_one_of_clients_is_not_reached_over_another_hosts_connection(
    gateway: GatewayPool,
) -> None:
    pems = {name: certificate(gateway.pool.directory, name) for name in ("open.test", "closed.test")}
    tables = [f'{{ cert = "{cert}", key = "{key}" }}' for cert, key in pems.values()]
    ca, port = pems["closed.test"][0], claim_port()
    demands = tables[1].replace(" }", f', ca = "{ca}", client_auth = "required" }}')
    address = f'{{ bind = "127.0.0.1:{port}", tls = [{tables[0]}, {demands}] }}'
    gateway.write(ROUTES)
    path = gateway.pool.directory / "pool.toml"
    path.write_text(path.read_text().replace(f'"127.0.0.1:{gateway.port}"', f"[{address}]"))
    gateway.pool.ok("start")
    assert status(port, "open.test", "open.test") == "200"
    assert status(port, "open.test", "closed.test") == "421"
    assert status(port, "closed.test", "closed.test") == ""
    assert status(port, "closed.test", "closed.test", pems["closed.test"]) == "200"


def test_application_gets_the_certificate_that_its_client_has_shown_and_no_other(
    gateway: GatewayPool,
) -> None:
    pool = gateway.pool
    cert, key = certificate(pool.directory, "localhost")
    own = certificate(pool.directory, "client")
    pool.write("echo.py", ECHO)
    tls = f'{{ cert = "{cert}", key = "{key}", ca = "{own[0]}", client_auth = "optional" }}'
    pool.write(
        "pool.toml",
        f'[gateway]\nbind = [{{ bind = "127.0.0.1:{gateway.port}", tls = {tls} }}]\n[[route]]\nto = "web"\n'
        f'[[server]]\nname = "web"\nbind = "127.0.0.1:{claim_port()}"\napp = "echo:app"\n',
    )
    pool.ok("start")
    forged = "Client-Cert: :forged:\r\nclient_cert: :forged:\r\nClient-Cert-Chain: :forged:\r\n"
    assert answer(gateway.port, "localhost", "localhost", fields=forged) == ("200", "")
    code, body = answer(gateway.port, "localhost", "localhost", own, forged)
    shown = ssl.DER_cert_to_PEM_cert(base64.b64decode(body.strip(":")))
    assert (code, shown.split()) == ("200", own[0].read_text().split())
