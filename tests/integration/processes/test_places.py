"""Every kind of address, with real servers: loopback names, IPv6, Unix sockets, inherited sockets, taken ports, TLS."""

from __future__ import annotations

import fcntl
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.configuration import server
from tests.http_get import get
from tests.processes import descriptors
from tests.real_pool import COMMAND_TIMEOUT_SECONDS, HELLO_APP, RealPool


@pytest.fixture
def hello(pool: RealPool) -> Any:
    """Starts servers of the small app, by name and their keys."""

    def start(**servers: dict[str, Any]) -> dict[str, Any]:
        pool.write("hello.py", HELLO_APP)
        pool.write(
            "pool.toml",
            "".join(server(name, **{"app": "hello:app"} | keys) for name, keys in servers.items()),
        )
        pool.ok("start")
        return pool.items()

    return start


def test_a_unix_socket_of_a_program_is_ready_when_the_program_accepts(pool: RealPool) -> None:
    path = pool.runtime / "web.sock"
    pool.write(
        "late.py",
        """
        import pathlib, socket, time
        listener = socket.socket(fileno=3)
        time.sleep(0.5)
        pathlib.Path("accepting").touch()
        while True:
            listener.accept()[0].close()
        """,
    )
    pool.write("pool.toml", server("web", bind=f"unix:{path}", command=[sys.executable, "late.py"]))
    pool.ok("start")
    assert (pool.directory / "accepting").exists()


@pytest.mark.capability
def test_a_socket_of_systemds_is_served_and_given_back_as_it_was(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    pool.write("hello.py", HELLO_APP)
    pool.write(
        "pool.toml",
        server("web", bind="fd:web", app="hello:app") + server("other", bind="fd:4", app="hello:app"),
    )
    with socket.create_server(("127.0.0.1", port)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        lifted = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in (one, two)]

        def pass_them() -> None:
            for place, fd in enumerate(lifted, 3):
                os.dup2(fd, place)

        started = subprocess.run(
            ["/bin/sh", "-c", 'export LISTEN_PID=$$; exec "$@"', "sh", *pool.command(), "start"],
            env=pool.env | {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "web:"}, cwd=pool.directory, capture_output=True,
            text=True, preexec_fn=pass_them, pass_fds=(3, 4), timeout=COMMAND_TIMEOUT_SECONDS, check=False,
        )  # fmt: skip
        for fd in lifted:
            os.close(fd)
        assert started.returncode == 0, started.stderr
        assert get(port).status == 200
        assert get(two.getsockname()[1]).status == 200
        items = pool.items()
        assert items["web"]["bind"] == "fd:web"
        assert str(port) in str(pool.ok("list").stdout) or str(port) in str(items["web"])
        pool.ok("restart")
        assert get(port).status == 200
        pool.ok("stop")
        # It accepts connections still: the socket is systemd's.
        with socket.create_connection(("127.0.0.1", port), timeout=60):
            pass


def test_a_taken_port_names_its_holder_and_is_tried_again(
    hello: Any, pool: RealPool, free_port: Any, until: Any
) -> None:
    port = free_port()
    pool.write("hello.py", HELLO_APP)
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="hello:app"))
    with socket.create_server(("127.0.0.1", port)):
        done = pool.run("start")
        assert done.code == 1
        assert str(os.getpid()) in done.stderr
        assert str(port) in done.stderr
    until(lambda: pool.items()["web"]["ready"])


def test_program_that_binds_itself_has_a_taken_port_reported_too(pool: RealPool, free_port: Any) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", "{port}"]
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", command=command, restart="no"))
    with socket.create_server(("127.0.0.1", port)):
        done = pool.run("start")
    assert done.code == 1
    assert str(os.getpid()) in done.stderr


def certificates(directory: Path) -> None:
    """An authority, a server's certificate of it and a client's, as PEM files."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def write(name: str, issuer: Any, issuer_key: Any) -> tuple[Any, Any]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            # What RFC 5280 asks of them, and Python 3.13 looks at.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer_key or key).public_key()),
                critical=False,
            )
        )
        if issuer is None:
            builder = builder.add_extension(signing_only(x509), critical=True)
        certificate = builder.sign(issuer_key or key, hashes.SHA256())
        (directory / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame")
            if name == "locked"
            else serialization.NoEncryption(),
        )
        (directory / f"{name}.key").write_bytes(private)
        (directory / f"{name}.key").chmod(0o600)
        return subject, key

    issuer, issuer_key = write("authority", None, None)
    for name in ("server", "client", "locked"):
        write(name, issuer, issuer_key)


def signing_only(x509: Any) -> Any:
    """The key usage of an authority."""
    rest = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "encipher_only", "decipher_only")  # fmt: skip
    return x509.KeyUsage(key_cert_sign=True, crl_sign=True, **dict.fromkeys(rest, False))


def ask_tls(port: int, directory: Path, client: str | None = None) -> bytes:
    context = ssl.create_default_context(cafile=str(directory / "authority.pem"))
    if client:
        context.load_cert_chain(directory / f"{client}.pem", directory / f"{client}.key")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        secured.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while chunk := secured.recv(65536):
            answer += chunk
        return answer


def test_tls_with_client_certificates_and_a_key_with_a_password(
    hello: Any, pool: RealPool, free_port: Any
) -> None:
    certificates(pool.directory)
    plain, strict, locked = free_port(), free_port(), free_port()
    pool.env["KEY_PASSWORD"] = "open sesame"
    items = hello(
        plain={"bind": f"127.0.0.1:{plain}", "tls": {"cert": "server.pem", "key": "server.key"}},
        strict={
            "bind": f"127.0.0.1:{strict}",
            "tls": {
                "cert": "server.pem", "key": "server.key", "ca": "authority.pem", "client_auth": "required",
                "min_version": "1.3",
            },
        },
        locked={
            "bind": f"127.0.0.1:{locked}",
            "tls": {"cert": "locked.pem", "key": "locked.key", "password_env": "KEY_PASSWORD"},
        },
    )  # fmt: skip
    assert items["plain"]["expose"].startswith("https://")
    for port in (plain, locked):
        assert b"200 OK" in ask_tls(port, pool.directory)
    assert b"200 OK" in ask_tls(strict, pool.directory, client="client")
    try:
        answer = ask_tls(strict, pool.directory)
    except (ssl.SSLError, ConnectionError):
        answer = b""
    assert answer == b""
    pool.ok("restart")
    assert b"200 OK" in ask_tls(plain, pool.directory)


def test_key_that_only_root_can_read_serves_a_worker_of_user_nobody(
    hello: Any, pool: RealPool, free_port: Any
) -> None:
    pool.open_to_all()
    certificates(pool.directory)
    port = free_port()
    hello(
        web={
            "bind": f"127.0.0.1:{port}", "user": "nobody", "tls": {"cert": "server.pem", "key": "server.key"},
        }
    )  # fmt: skip
    assert b"200 OK" in ask_tls(port, pool.directory)
    (worker,) = pool.items()["web"]["pids"]
    assert Path(f"/proc/{worker}").stat().st_uid != 0
    held = descriptors(worker).values()
    assert {target for target in held if "memfd" in target} == {"/memfd:poolctl-tally (deleted)"}
